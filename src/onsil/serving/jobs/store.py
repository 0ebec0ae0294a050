"""The store: every promise about a job is one transaction here.

What is promised, and by what:

- accepted is durable: `submit` returns after the commit, and a commit returns after the disk;
- the same key twice is one job: (owner, key) is unique, and a key used for other work is refused;
- one worker at a time may write: `HELD` stands in every statement that a worker's write begins
  with, and that statement locks the row: a claim comes before it or after it, never between;
- a unit of work takes effect once: its value is written with the fence check, the first stands,
  and it is counted in the same transaction;
- a failed attempt is never lost from sight: each one is an event with its error, in order;
- what is over is forgotten whole, in one transaction, and only when everybody was told.

The idea of a lease with a fence is Gray and Cheriton's lease (1989) with Kleppmann's token. Left
out: priorities, and jobs that wait for other jobs.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from onsil.serving.jobs.job import (
    CANCELLED,
    DEAD,
    DONE,
    EXPIRED,
    FAILED,
    NAME,
    READY,
    RUNNING,
    Conflict,
    Event,
    Job,
    Json,
    Lost,
    Unknown,
    spell,
)
from onsil.serving.jobs.keeping import forget_jobs
from onsil.serving.jobs.schema import FREE, PREFIX, Run

HELD = "fence = ? and state = 'running'"
COLUMNS = (
    "id, owner, key, kind, state, fingerprint, payload, attempts, max_attempts, fence, lease_until,"
    " progress, result, cancelling, webhook, created, started, finished, expires, worker"
)
ERROR = "(select error from events e where e.job = jobs.id and e.error is not null"
ERROR += " order by e.seq desc limit 1) as error"
GONE = {"kind": "WorkerLost", "message": "The worker stopped without a word.", "trace": ""}
# Every condition of the index `jobs_open`, in its order: PostgreSQL would go by `seq` through all
# that was ever done.
WAITING = f"from jobs where kind = ? and state in ('ready', 'failed', 'running') and {FREE}"
WAITING += " order by created, seq"
PAGE, TOGETHER = 500, 100  # checkpoints read at once; jobs closed at once
LONGEST_WAIT = 60.0  # seconds between two attempts


class Database(Protocol):
    """What SQLite and PostgreSQL are to the store."""

    skip_locked: str

    def transaction(self) -> AbstractContextManager[Run]: ...
    def reading(self) -> AbstractContextManager[Run]: ...
    def alone(self, run: Run, name: str) -> None: ...
    def tell(self) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class JobStore:
    """Jobs in a database. Safe to use from any thread. Every method raises StoreError when the
    database cannot do its part."""

    def __init__(self, database: Database):
        self.database = database
        self.also_pruned: list[Callable[[float], int]] = []  # by who keeps more than rows

    def close(self) -> None:
        self.database.close()

    def identity(self) -> str:
        """A name that no other store has."""
        with self.database.reading() as run:
            return run("select id from job_store")[0]["id"]

    # ── for callers ─────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        owner: str,
        key: str | None,
        kind: str,
        payload: Json,
        *,
        fingerprint: str,
        max_attempts: int = 3,
        expires: float | None = None,
        webhook: str | None = None,
    ) -> Job:
        """The job of `key` (None: of no key, always a new one), on the disk when this returns; the
        one from before when the key was used. `expires`: seconds from now after which it need not
        begin. Raises Conflict when the key stands for another fingerprint."""
        identity = f"job_{secrets.token_hex(12)}"
        found: list[dict[str, Any]] = []
        with self.database.transaction() as run:
            while not found:  # once; twice when the one from before is forgotten in between
                found = run(
                    "insert into jobs (id, owner, key, kind, fingerprint, payload, state,"
                    " max_attempts, webhook, created, expires)"
                    " values (?, ?, ?, ?, ?, ?, 'ready', ?, ?, epoch(), epoch() + ?)"
                    f" on conflict (owner, key) do nothing returning {COLUMNS}, null as error",
                    *(identity, owner, key or identity, kind, fingerprint, spell(payload)),
                    *(max_attempts, webhook, expires),
                )
                if found:
                    _note(run, identity, READY, 0, 0)
                else:
                    sql = f"select {COLUMNS}, {ERROR} from jobs where owner = ? and key = ?"
                    found = run(sql, owner, key)
        job = _job(found[0])
        if job.id == identity:
            self.database.tell()
        elif (job.kind, job.fingerprint) != (kind, fingerprint):
            raise Conflict(
                en=(
                    f"The key {key!r} was used for another request.",
                    "One key means one piece of work; this one differs from the first.",
                    "Send the same request again, or use a new key.",
                ),
                ko=(
                    f"{key!r} 키는 이미 다른 요청에 썼습니다.",
                    "키 하나는 작업 하나를 뜻하는데, 이번 요청은 처음 것과 다릅니다.",
                    "처음과 같은 요청을 보내거나 새 키를 쓰세요.",
                ),
            )
        return job

    def get(self, owner: str, job: str) -> Job:
        """Raises Unknown, also when it is somebody else's."""
        with self.database.reading() as run:
            return self._read(run, owner, job)

    def _read(self, run: Run, owner: str, job: str) -> Job:
        sql = f"select {COLUMNS}, {ERROR} from jobs where id = ? and owner = ?"
        if not NAME.fullmatch(job) or not (found := run(sql, job, owner)):
            raise Unknown("job", job)
        return _job(found[0])

    def listed(
        self, owner: str, kinds: Sequence[str], limit: int = 20, after: str | None = None
    ) -> list[Job]:
        """An owner's jobs of some kinds, the newest first; `after`: the id that the last page ended
        with. Raises Unknown for an `after` that is not there."""
        where = f"owner = ? and kind in ({', '.join('?' * len(kinds))})"
        values: tuple[Any, ...] = (owner, *kinds)
        with self.database.reading() as run:
            if after is not None:
                self._read(run, owner, after)
                where += " and seq < (select seq from jobs where id = ?)"
                values = (*values, after)
            sql = f"select {COLUMNS}, {ERROR} from jobs where {where} order by seq desc limit ?"
            return [_job(row) for row in run(sql, *values, limit)]

    def events(self, owner: str, job: str, after: int = 0) -> list[Event]:
        """The history of a job, oldest first, from the one behind `after` on. Raises Unknown."""
        with self.database.reading() as run:
            self._read(run, owner, job)
            rows = run(
                "select seq, at, state, attempt, fence, error from events"
                " where job = ? and seq > ? order by seq",
                *(job, after),
            )
        return [Event(**row | {"error": _value(row["error"])}) for row in rows]

    def cancel(self, owner: str, job: str) -> Job:
        """End a job: at once when nobody works at it, else its worker is asked to. One that is over
        stays as it is. Raises Unknown."""
        with self.database.transaction() as run:
            run(
                "update jobs set cancelling = coalesce(cancelling, epoch())"
                " where id = ? and owner = ? and state in ('ready', 'failed', 'running')"
                " returning id",
                *(job, owner),
            )
            found = self._read(run, owner, job)
            if not found.closed:
                idle = f"(state in ('ready', 'failed') or state = 'running' and {FREE})"
                _close(run, job, CANCELLED, idle)
                found = self._read(run, owner, job)
        return found

    def retry(self, owner: str, job: str) -> Job:
        """A dead job, ready again with all its attempts; what it had checkpointed stays done.
        Raises Unknown, and Conflict for a job that is not dead."""
        with self.database.transaction() as run:
            changed = run(
                "update jobs set state = 'ready', attempts = 0, lease_from = 0, lease_until = 0,"
                " finished = null, expires = null, cancelling = null"
                " where id = ? and owner = ? and state = 'dead' returning fence",
                *(job, owner),
            )
            if not changed:
                found = self._read(run, owner, job)
                raise Conflict(
                    en=(
                        f"{job} is {found.state}, not dead.",
                        "Only a job that used up its attempts can be tried anew.",
                        "Submit the work again under a new key.",
                    ),
                    ko=(
                        f"{job}의 상태는 {found.state}이고 dead가 아닙니다.",
                        "시도 횟수를 다 쓴 작업만 다시 시도할 수 있습니다.",
                        "새 키로 다시 접수해 주세요.",
                    ),
                )
            _note(run, job, READY, 0, changed[0]["fence"])
            again = self._read(run, owner, job)
        self.database.tell()
        return again

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self.database.reading() as run:
            rows = run("select state, count(*) as number from jobs group by state")
        return {row["state"]: row["number"] for row in rows}

    def checkpoints(self, job: str) -> dict[str, Json]:
        """Unit → value, of everything that took effect."""
        return dict(self.each_checkpoint(job))

    def each_checkpoint(self, job: str, prefix: str = "") -> Iterator[tuple[str, Json]]:
        """The units that begin with `prefix` and their values, by name, read a page at a time."""
        last, page = "", [{}] * PAGE
        while len(page) == PAGE:
            with self.database.reading() as run:
                page = run(
                    "select unit, value from checkpoints where job = ? and unit > ?"
                    " and substr(unit, 1, ?) = ? order by unit limit ?",
                    *(job, last, len(prefix), prefix, PAGE),
                )
            for row in page:
                yield (last := row["unit"]), json.loads(row["value"])

    def checkpoint_of(self, job: str, unit: str) -> tuple[Json, float] | None:
        """One unit's value and when it was written; None when it was not."""
        with self.database.reading() as run:
            rows = run("select value, at from checkpoints where job = ? and unit = ?", job, unit)
        return (json.loads(rows[0]["value"]), rows[0]["at"]) if rows else None

    def checkpoint_counts(self, job: str) -> tuple[int, int]:
        """How many lines (units that begin with `PREFIX`) went well, and how many did not. They are
        counted as they are written; only where a program of a version before wrote some, now."""
        with self.database.reading() as run:
            kept = "select well, badly from jobs where id = ? and tallied = progress"
            if found := run(kept, job):
                return found[0]["well"], found[0]["badly"]
            rows = run(
                "select ok, count(*) as number from checkpoints"
                " where job = ? and substr(unit, 1, ?) = ? group by ok",
                *(job, len(PREFIX), PREFIX),
            )
        number = {row["ok"]: row["number"] for row in rows}
        return number.get(1, 0), number.get(0, 0)

    def conclude(self, job: str, result: Json) -> None:
        """Give a job that was closed without its worker the result that its checkpoints make."""
        with self.database.transaction() as run:
            run(
                "update jobs set result = ? where id = ? and result = 'null'"
                " and state in ('dead', 'cancelled', 'expired') returning id",
                *(spell(result), job),
            )

    # ── for workers ─────────────────────────────────────────────────────────────────────────────

    def claim(self, kinds: Sequence[str], worker: str, lease: float) -> Job | None:
        """The oldest job of these kinds that nobody holds, now `worker`'s for `lease` seconds, its
        attempt counted. On the way, jobs that were left behind are closed: cancelled, expired, or
        dead when their attempts are used up."""
        while True:
            with self.database.transaction() as run:
                for _ in range(TOGETHER):
                    if (job := self._free(run, kinds)) is None:
                        return None
                    if job.state == RUNNING:
                        _note(run, job.id, FAILED, job.attempts, job.fence, GONE)
                    if not _closed_instead(run, job):
                        return _taken(run, job, worker, lease)

    def _free(self, run: Run, kinds: Sequence[str]) -> Job | None:
        """The oldest job of these kinds that nobody holds, locked; None when there is none."""
        if len(kinds) > 1:
            arms = (f"select ? as kind, (select created {WAITING} limit 1) as at" for _ in kinds)
            sql = f"select kind from ({' union all '.join(arms)}) as oldest"
            names = (name for kind in kinds for name in (kind, kind))
            kinds = [row["kind"] for row in run(f"{sql} where at is not null order by at", *names)]
        sql = f"select {COLUMNS}, null as error {WAITING} limit 1{self.database.skip_locked}"
        for kind in kinds:
            if found := run(sql, kind):
                return _job(found[0])
        return None

    def beat(self, job: str, fence: int, lease: float) -> bool:
        """Renew a lease. True when the worker should come to an end: the job was cancelled, or its
        time is over. Raises Lost."""
        with self.database.transaction() as run:
            found = run(
                "update jobs set lease_from = steady(), lease_until = steady() + ?"
                f" where id = ? and {HELD} returning cancelling,"
                " coalesce(expires, epoch() + 1) as expires, epoch() as now",
                *(lease, job, fence),
            )
        if not found:
            raise Lost(job)
        return found[0]["cancelling"] is not None or found[0]["expires"] <= found[0]["now"]

    def checkpoint(self, job: str, fence: int, unit: str, value: Json, ok: bool = True) -> None:
        """One unit's value, once: a second one for the same unit changes nothing. Raises Lost when
        another worker holds the job; then nothing is written."""
        with self.database.transaction() as run:
            if not run(
                f"update jobs set progress = progress where id = ? and {HELD} returning id",
                job,
                fence,
            ):
                raise Lost(job)
            new = run(
                "insert into checkpoints (job, unit, value, ok, fence, at) values"
                " (?, ?, ?, ?, ?, epoch()) on conflict (job, unit) do nothing returning unit",
                *(job, unit, spell(value), int(ok), fence),
            )
            if new:
                line = unit.startswith(PREFIX)
                run(
                    "update jobs set progress = progress + 1, tallied = tallied + 1,"
                    " well = well + ?, badly = badly + ? where id = ? returning id",
                    *(int(line and ok), int(line and not ok), job),
                )

    def finish(self, job: str, fence: int, result: Json) -> None:
        """Done, with its result and its webhook in the same transaction. Raises Lost."""
        with self.database.transaction() as run:
            if not _close(run, job, DONE, HELD, fence, result=result):
                raise Lost(job)

    def fail(
        self, job: str, fence: int, error: dict[str, Any], retry: bool = True, wait: float = 1.0
    ) -> str:
        """One attempt ended in an error: the state that follows (failed, dead or cancelled). The
        next attempt waits `wait` seconds, doubled for each one before, at most a minute. Raises
        Lost."""
        with self.database.transaction() as run:
            held = run(
                f"update jobs set progress = progress where id = ? and {HELD}"
                " returning attempts, max_attempts, cancelling",
                *(job, fence),
            )
            if not held:
                raise Lost(job)
            attempts, cancelling = held[0]["attempts"], held[0]["cancelling"] is not None
            _note(run, job, FAILED, attempts, fence, error)
            if cancelling or not retry or attempts >= held[0]["max_attempts"]:
                state = CANCELLED if cancelling else DEAD
                _close(run, job, state, "fence = ?", fence)
                return state
            pause = min(LONGEST_WAIT, wait * 2 ** (attempts - 1))
            run(
                "update jobs set state = 'failed', lease_from = steady(),"
                " lease_until = steady() + ? where id = ? returning id",
                *(pause, job),
            )
        return FAILED

    def stop(self, job: str, fence: int, result: Json) -> str:
        """The handler saw that it should end: cancelled, or expired. Raises Lost."""
        with self.database.transaction() as run:
            held = run(
                f"update jobs set progress = progress where id = ? and {HELD} returning cancelling",
                job,
                fence,
            )
            if not held:
                raise Lost(job)
            state = EXPIRED if held[0]["cancelling"] is None else CANCELLED
            _close(run, job, state, "fence = ?", fence, result=result)
        return state

    def release(self, job: str, fence: int, wait: float = 0.0) -> None:
        """Give a job back unfinished: for others at once or after `wait` seconds, this attempt not
        counted. Raises Lost."""
        with self.database.transaction() as run:
            back = run(
                "update jobs set state = 'ready', attempts = attempts - 1, lease_from = steady(),"
                f" lease_until = steady() + ? where id = ? and {HELD} returning attempts",
                *(wait, job, fence),
            )
            if not back:
                raise Lost(job)
            _note(run, job, READY, back[0]["attempts"], fence)
        self.database.tell()

    def sweep(self) -> int:
        """Close what expired while it waited, whoever would have worked at it; how many."""
        where = "expires <= (select epoch()) and state in ('ready', 'failed')"
        sql = f"select id from jobs where {where} limit {TOGETHER}{self.database.skip_locked}"
        with self.database.transaction() as run:
            late = run(sql)
            for row in late:
                _close(run, row["id"], EXPIRED, where)
        return len(late)

    def prune(self, days: float) -> int:
        """Forget some of what ended more than `days` ago: jobs, each with its checkpoints, history
        and webhooks, and then files; how many (0: there are no more)."""
        with self.database.transaction() as run:
            jobs = forget_jobs(run, days, self.database.skip_locked)
        return jobs or sum(prune(days) for prune in self.also_pruned)

    def wait(self, seconds: float) -> None:
        """Until there may be new work, at most `seconds`."""
        self.database.wait(seconds)


# ── steps within a transaction ──────────────────────────────────────────────────────────────────


def _note(
    run: Run, job: str, state: str, attempt: int, fence: int, error: dict[str, Any] | None = None
) -> None:
    run(
        "insert into events (job, at, state, attempt, fence, error)"
        " values (?, epoch(), ?, ?, ?, ?)",
        *(job, state, attempt, fence, None if error is None else spell(error)),
    )


def _closed_instead(run: Run, job: Job) -> bool:
    """Whether a job that could be claimed had to be closed."""
    if job.cancelling is not None:
        _close(run, job.id, CANCELLED, "1 = 1")
    elif job.expires is not None and job.expires <= run("select epoch() as now")[0]["now"]:
        _close(run, job.id, EXPIRED, "1 = 1")
    elif job.attempts >= job.max_attempts:
        _close(run, job.id, DEAD, "1 = 1")
    else:
        return False
    return True


def _taken(run: Run, job: Job, worker: str, lease: float) -> Job:
    row = run(
        "update jobs set state = 'running', attempts = attempts + 1, fence = fence + 1,"
        " lease_from = steady(), lease_until = steady() + ?, worker = ?,"
        f" started = coalesce(started, epoch()) where id = ? returning {COLUMNS}, null as error",
        *(lease, worker, job.id),
    )
    taken = _job(row[0])
    _note(run, taken.id, RUNNING, taken.attempts, taken.fence)
    return taken


def _close(run: Run, job: str, state: str, where: str, *values: Any, result: Json = None) -> bool:
    """The last state of a job, its event and its webhook; False when `where` does not hold."""
    closed = run(
        "update jobs set state = ?, result = ?, finished = epoch(), lease_from = 0,"
        f" lease_until = 0 where id = ? and {where}"
        " returning attempts, fence, webhook, finished",
        *(state, spell(result), job, *values),
    )
    if not closed:
        return False
    row = closed[0]
    _note(run, job, state, row["attempts"], row["fence"])
    if row["webhook"] is not None:
        body = {
            "id": f"evt_{secrets.token_hex(12)}",
            "object": "event",
            "created_at": int(row["finished"]),
            "type": f"job.{state}",
            "data": {"id": job},
        }
        run(
            "insert into deliveries (id, job, url, body, state, created)"
            " values (?, ?, ?, ?, 'ready', epoch())",
            *(body["id"], job, row["webhook"], spell(body)),
        )
    return True


def _value(text: str | None) -> Json:
    return None if text is None else json.loads(text)


def _job(row: dict[str, Any]) -> Job:
    return Job(**row | {name: _value(row[name]) for name in ("payload", "result", "error")})
