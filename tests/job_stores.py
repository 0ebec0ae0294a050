"""Stores of both kinds, and what the tests of jobs do with them. Not a test itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import postgres
import pytest

from onsil.serving.jobs import Job, JobStore, Worker, fingerprint_of, open_store
from onsil.serving.jobs.sqlite import SQLite


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    return postgres.shared().fresh()


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    opened = open_store(url)
    yield opened
    opened.close()


def submit(store: JobStore, payload: Any = None, **more: Any) -> Job:
    key = more.pop("key", None)
    print_ = fingerprint_of(payload)
    return store.submit("kim", key, "work", payload, fingerprint=print_, **more)


def taken(store: JobStore, lease: float = 30.0, worker: str = "w1") -> Job:
    job = store.claim(["work"], worker, lease)
    assert job is not None
    return job


def pragma(store: JobStore, text: str) -> Any:
    """A setting of the connection that writes, as the disk would have it."""
    database = store.database
    assert isinstance(database, SQLite)
    rows = database._writer.execute(f"pragma {text}").fetchall()
    return next(iter(rows[0].values())) if rows else None


def miscounted(store: JobStore) -> list[str]:
    """Jobs whose counts, as they are kept, are not those of their checkpoints at that moment."""
    lines = "select count(*) from checkpoints c where c.job = jobs.id"
    of_lines = f"{lines} and substr(c.unit, 1, 5) = 'line:' and c.ok"
    with store.database.reading() as run:  # one statement: of one moment, with PostgreSQL too
        rows = run(
            f"select id from jobs where tallied <> progress or progress <> ({lines})"
            f" or well <> ({of_lines} = 1) or badly <> ({of_lines} = 0)"
        )
    return [row["id"] for row in rows]


def states(store: JobStore, job: Job) -> list[str]:
    return [event.state for event in store.events(job.owner, job.id)]


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@contextmanager
def working(store: JobStore, handlers: Any, **more: Any) -> Iterator[Worker]:
    """A worker of these handlers, or of one for the kind `work`."""
    named = handlers if isinstance(handlers, dict) else {"work": handlers}
    worker = Worker(store, named, **({"lease": 1.0, "wait": 0.01} | more))
    thread = worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(15)
        assert not thread.is_alive()
