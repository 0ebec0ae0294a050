"""The tables, for SQLite and PostgreSQL alike, and the way from one version of them to the next.

Every statement of the package is written once. What the two databases spell differently has a name
in braces: `{serial}` a key that counts up, `{real}` eight bytes of floating point, `{whole}` eight
of an integer, `{random}` a new name. Two clocks are functions in SQL: `epoch()` is the time of day,
for people; `steady()` is the one that leases are measured by (the machine's monotonic clock for
SQLite, whose workers all run on one machine, the server's clock for PostgreSQL, whose workers do
not).

A *window* is a pair of `steady()` times in which nobody may claim a row: the lease of who runs it,
or the wait after a failed attempt. A row is free when the clock stands outside of its window on
either side. So a clock that is set forwards ends leases early, one that is set backwards or starts
again from zero (a reboot) ends them as well instead of holding them for hours, and in both cases
the fence keeps the late worker from writing.
"""

from collections.abc import Callable
from typing import Any

from onsil.errors import OnsilError

Run = Callable[..., list[dict[str, Any]]]

PREFIX = "line:"  # of the units that are counted: the lines of a batch
FREE = "not (lease_from <= steady() and steady() < lease_until)"


def _counted(ok: int) -> str:
    """How many lines of a job are in the table."""
    return (
        "(select count(*) from checkpoints c where c.job = jobs.id"
        f" and substr(c.unit, 1, {len(PREFIX)}) = '{PREFIX}' and c.ok = {ok})"
    )


MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """create table jobs (
            seq {serial}, id text not null unique, owner text not null, key text not null,
            kind text not null, fingerprint text not null, payload text not null,
            state text not null, attempts integer not null default 0,
            max_attempts integer not null, fence {whole} not null default 0,
            lease_from {real} not null default 0, lease_until {real} not null default 0,
            worker text, progress integer not null default 0, result text, error text,
            cancelling {real}, webhook text, created {real} not null, started {real},
            finished {real}, expires {real}, unique (owner, key))""",
        """create index jobs_open on jobs (kind, seq)
            where state in ('ready', 'failed', 'running')""",
        "create index jobs_of on jobs (owner, seq)",
        """create index jobs_expiring on jobs (expires)
            where expires is not null and state in ('ready', 'failed')""",
        """create table checkpoints (
            job text not null, unit text not null, value text not null, ok integer not null,
            fence {whole} not null, at {real} not null, primary key (job, unit))""",
        """create table events (
            seq {serial}, job text not null, at {real} not null, state text not null,
            attempt integer not null, fence {whole} not null, error text)""",
        "create index events_of on events (job, seq)",
        """create table deliveries (
            seq {serial}, id text not null unique, job text not null, url text not null,
            body text not null, state text not null, attempts integer not null default 0,
            fence {whole} not null default 0, lease_from {real} not null default 0,
            lease_until {real} not null default 0, error text, created {real} not null,
            finished {real})""",
        "create index deliveries_open on deliveries (seq) where state = 'ready'",
        """create table files (
            seq {serial}, id text not null unique, owner text not null, filename text not null,
            bytes {whole} not null, purpose text not null, sha256 text not null,
            created {real} not null)""",
        "create index files_of on files (owner, seq)",
        "create index files_with on files (sha256)",
    ),
    (
        "drop index jobs_open",
        """create index jobs_open on jobs (kind, created, seq)
            where state in ('ready', 'failed', 'running')""",
        "drop index jobs_of",
        "create index jobs_of on jobs (owner, kind, seq)",
        "create index jobs_over on jobs (finished) where finished is not null",
        "create index deliveries_of on deliveries (job, seq)",
        "create table job_store (id text not null)",
        "insert into job_store (id) select {random}",
    ),
    (
        # of how many checkpoints the two beside it know: of all, but for a program of a version
        # before that still writes
        "alter table jobs add column tallied integer not null default 0",
        "alter table jobs add column well integer not null default 0",
        "alter table jobs add column badly integer not null default 0",
        f"update jobs set tallied = progress, well = {_counted(1)}, badly = {_counted(0)}"
        " where progress > 0",
    ),
)


def migrate(run: Run, words: dict[str, str]) -> None:
    """Bring the tables to this version, inside the caller's transaction. Raises OnsilError for
    tables of a later one."""
    run("create table if not exists job_schema (version integer not null)")
    found = run("select version from job_schema")
    version = found[0]["version"] if found else 0
    if version > len(MIGRATIONS):
        raise OnsilError(
            en=(
                f"The job store is of version {version}; this onsil knows {len(MIGRATIONS)}.",
                "An older program could lose what a newer one wrote.",
                "Use the newer onsil, or another store.",
            ),
            ko=(
                f"작업 저장소는 {version}판인데 이 onsil은 {len(MIGRATIONS)}판까지 압니다.",
                "옛 프로그램이 새 기록을 잃어버릴 수 있습니다.",
                "새 onsil을 쓰거나 다른 저장소를 지정해 주세요.",
            ),
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            run(statement.format(**words))
    if not found:
        run("insert into job_schema (version) values (?)", len(MIGRATIONS))
    elif version < len(MIGRATIONS):
        run("update job_schema set version = ?", len(MIGRATIONS))
