"""From a URL to a store."""

from pathlib import Path

from onsil.errors import OnsilError
from onsil.serving.jobs.store import JobStore


def open_store(url: str | Path) -> JobStore:
    """The store behind `sqlite:///path`, a plain path, or `postgresql://user@host/name`. Raises
    OnsilError for any other scheme and for a bare word, StoreError when it cannot be used."""
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        from onsil.serving.jobs.postgres import Postgres

        return JobStore(Postgres(text))
    bare = isinstance(url, str) and text.isidentifier() and not Path(text).exists()
    if bare or (separator and scheme != "sqlite"):
        named = text if bare else f"{scheme}://"
        raise OnsilError(
            en=(
                f"{named} is no job store.",
                "Jobs are kept in SQLite (one machine) or PostgreSQL (several).",
                "Use sqlite:///path/jobs.db or postgresql://user@host/name.",
            ),
            ko=(
                f"{named}에는 작업을 둘 수 없습니다.",
                "작업은 SQLite(컴퓨터 한 대)나 PostgreSQL(여러 대)에 둡니다.",
                "sqlite:///경로/jobs.db 또는 postgresql://사용자@호스트/이름 으로 적어 주세요.",
            ),
        )
    from onsil.serving.jobs.sqlite import SQLite

    return JobStore(SQLite(Path(rest.removeprefix("/") if separator else text)))
