"""Jobs in PostgreSQL: workers on several machines.

A few connections are kept and lent out; one that broke is thrown away, and the next caller gets a
new one. Claims skip rows that others hold (`for update skip locked`), and who waits for work is
woken by `listen`/`notify`. `synchronous_commit` is switched on for our sessions whatever the server
says, because 202 promises a job that survives the server's crash.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onsil.errors import OnsilError
from onsil.serving.jobs.job import Damaged, Full, StoreError, Unavailable
from onsil.serving.jobs.schema import Run, migrate

KEPT, CHANNEL = 4, "onsil_jobs"
WORDS = {
    "serial": "bigint generated always as identity primary key",
    "real": "double precision",
    "whole": "bigint",
    "random": "replace(gen_random_uuid()::text, '-', '')",
}
log = logging.getLogger("onsil.serving.jobs")
CLOCK = "extract(epoch from clock_timestamp())::float8"


class Postgres:
    """The database behind a URL (`postgresql://user@host/name`); tables are made and migrated when
    needed. Raises OnsilError without the driver, StoreError when it cannot be reached."""

    skip_locked = " for update skip locked"

    def __init__(self, url: str):
        try:
            import psycopg
        except ImportError as e:
            raise OnsilError(
                en=(
                    f"{_without_password(url)} needs the PostgreSQL driver.",
                    "It is not installed with onsil itself.",
                    "pip install 'onsil[postgres]'",
                ),
                ko=(
                    f"{_without_password(url)}을(를) 쓰려면 PostgreSQL 드라이버가 필요합니다.",
                    "onsil만 설치하면 함께 깔리지 않습니다.",
                    "pip install 'onsil[postgres]'",
                ),
            ) from e
        self._psycopg, self._url = psycopg, url
        self._idle: list[Any] = []
        self._listening, self._mine = list[Any](), threading.local()
        self._lock, self._over = threading.Lock(), False
        try:
            self._open()
        except OnsilError:
            self.close()
            raise

    def _open(self) -> None:
        with self.transaction() as run:
            self.alone(run, "schema")
            migrate(run, WORDS)
        with self.reading() as run:  # a damaged page of an open job is found now, not by a caller
            run("select sum(length(payload)) from jobs where state in ('ready','failed','running')")

    def close(self) -> None:
        with self._lock:
            self._over, open_ones = True, [*self._idle, *self._listening]
            self._idle, self._listening = [], []
        for connection in open_ones:
            connection.close()

    def _connect(self, first: str = "set synchronous_commit = on") -> Any:
        from psycopg.rows import dict_row

        if self._over:
            raise Unavailable("It was closed")
        connection = self._psycopg.connect(
            self._url, row_factory=dict_row, connect_timeout=10, autocommit=True
        )
        try:
            connection.execute(first)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """`run(sql, *values) -> rows`; committed, and on the server's disk, when the block is left,
        undone when it raises."""
        with self._lent() as connection, connection.transaction():

            def run(sql: str, *values: Any) -> list[dict[str, Any]]:
                found = connection.execute(spelled(sql), values)
                return found.fetchall() if found.description else []

            yield run

    @contextmanager
    def _lent(self) -> Iterator[Any]:
        """A connection, for a moment."""
        with self._faults():
            with self._lock:
                kept = self._idle.pop() if self._idle else None
            connection = kept or self._connect()
            try:
                yield connection
            finally:
                self._give_back(connection)

    reading = transaction

    def _give_back(self, connection: Any) -> None:
        """Keep it for the next caller; a broken one takes with it those that idled beside it."""
        with self._lock:
            if connection.closed:
                gone, self._idle = self._idle, []
            elif len(self._idle) < KEPT and not self._over:
                gone = []
                self._idle.append(connection)
            else:
                gone = [connection]
        for old in gone:
            old.close()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """The driver's errors as ours."""
        errors = self._psycopg.errors
        try:
            yield
        except errors.DiskFull as e:
            raise Full(_first_line(e)) from e
        except (errors.DataCorrupted, errors.IndexCorrupted) as e:
            raise Damaged(_without_password(self._url), _first_line(e)) from e
        except (
            errors.OperationalError,
            errors.InternalError,
            errors.InterfaceError,
            errors.InsufficientPrivilege,
        ) as e:
            raise Unavailable(_first_line(e)) from e

    def alone(self, run: Run, name: str) -> None:
        """Wait until nobody else is in a transaction that asked for the same name."""
        run("select pg_advisory_xact_lock(hashtext(?))", f"onsil jobs {name}")

    def tell(self) -> None:
        """Wake who waits, on every machine; called after the commit, because commits that notify go
        one by one through PostgreSQL, each with its wait for the disk."""
        try:
            with self._lent() as connection:
                connection.execute(f"notify {CHANNEL}")
        except StoreError as e:  # who waits looks by itself before long
            log.warning("%s %s", *e.en[:2])

    def wait(self, seconds: float) -> None:
        """Until something may have changed since this thread waited last, at most `seconds`. Each
        thread that waits has a connection for it."""
        with self._faults():
            ears = getattr(self._mine, "ears", None)
            if ears is not None and not ears.closed:
                for _ in ears.notifies(timeout=seconds, stop_after=1):
                    pass
                return
            made = self._mine.ears = self._connect(f"listen {CHANNEL}")  # a constant of ours
            with self._lock:  # what came before we listened is looked for first
                self._listening = [one for one in self._listening if not one.closed] + [made]


def spelled(sql: str) -> str:
    """Our SQL in PostgreSQL's words."""
    return sql.replace("?", "%s").replace("steady()", CLOCK).replace("epoch()", CLOCK)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
