"""Job stores whose disk is full, damaged, read-only or slow, or whose server is away."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from job_stores import pragma, submit, until, working

from onsil.serving.jobs import (
    Damaged,
    Full,
    Job,
    JobStore,
    StoreError,
    Unavailable,
    open_store,
)
from onsil.serving.jobs.sqlite import SQLite


def test_a_full_store_refuses_and_keeps_what_it_has(tmp_path):
    store = open_store(tmp_path / "jobs.db")
    safe = submit(store, "safe")
    pragma(store, f"max_page_count = {pragma(store, 'page_count') + 4}")
    with pytest.raises(Full, match="no room left") as e:
        for _ in range(100):
            submit(store, "x" * 10_000)
    assert e.value.status == 507
    assert store.get("kim", safe.id).payload == "safe"
    pragma(store, "max_page_count = 1000000")
    assert submit(store, "y" * 100_000).state == "ready"
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_and_one_that_may_only_be_read(small_disk):
    store = open_store(small_disk / "jobs.db")
    made = [submit(store, n).id for n in range(3)]
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(StoreError) as e:
        for _ in range(20):
            made.append(submit(store, "y" * 4000).id)
    assert isinstance(e.value, Full | Unavailable)
    filler.unlink()
    made.append(submit(store).id)
    pragma(store, "query_only = on")
    with pytest.raises(Unavailable, match="readonly"):
        submit(store)
    assert store.get("kim", made[0]).payload == 0
    pragma(store, "query_only = off")
    made.append(submit(store).id)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Unavailable, match=r"readonly|unable to open") as e:
        open_store(small_disk / "jobs.db")
    assert e.value.status == 503
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again = open_store(small_disk / "jobs.db")
    assert [job.id for job in again.listed("kim", ["work"], 100)] == made[::-1]
    again.close()


def test_a_damaged_page_is_found_when_the_store_is_opened(tmp_path):
    path = tmp_path / "jobs.db"
    store = open_store(path)
    for _ in range(50):
        submit(store, "x" * 500)
    store.close()
    whole = path.read_bytes()
    size = 4096
    for page in range(len(whole) // size):
        path.write_bytes(whole[: page * size] + b"\xff" * size + whole[(page + 1) * size :])
        with pytest.raises(Damaged, match="is damaged") as e:
            open_store(path).close()
        assert e.value.status == 503
    path.write_bytes(whole)
    store = open_store(path)
    assert store.counts() == {"ready": 50}
    store.close()


def test_a_folder_that_cannot_be_written_and_a_file_that_is_none(tmp_path):
    (tmp_path / "file").write_text("no database at all" * 100)
    with pytest.raises(Damaged):
        open_store(tmp_path / "file")
    with pytest.raises(Unavailable, match=r"Not a directory|File exists"):
        open_store(tmp_path / "file" / "jobs.db")
    with pytest.raises(Unavailable, match="unable to open"):
        open_store(tmp_path)


def test_a_database_server_that_goes_away_and_comes_back():
    server = postgres.shared()
    store = open_store(server.fresh())
    job = submit(store, "safe")
    server.stop()
    try:
        with pytest.raises(Unavailable) as e:
            submit(store)
        assert e.value.status == 503
        begun = working(store, lambda claimed: claimed.payload)
        begun.__enter__()
    finally:
        server.start()
    until(lambda: _closed(store, job))
    begun.__exit__(None, None, None)
    assert store.get("kim", job.id).result == "safe"
    with pytest.raises(Unavailable, match="read-only"), store.database.transaction() as run:
        run("set transaction read only")
        run("update jobs set state = state")
    with pytest.raises(Full), store.database.transaction() as run:
        run("do $$ begin raise exception 'no space left' using errcode = '53100'; end $$")
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        submit(store)


def test_a_user_without_rights_is_told_so():
    import psycopg

    server = postgres.shared()
    with psycopg.connect(server.url, autocommit=True) as plain:
        plain.execute("create role guest login")
    place = server.fresh().partition("@")[2]
    with pytest.raises(Unavailable, match="permission denied"):
        open_store(f"postgresql://guest@{place}")


def _closed(store: JobStore, job: Job) -> bool:
    try:
        return store.get("kim", job.id).closed
    except Unavailable:
        return False


def counted(tmp_path: Path, program: str) -> int:
    """How often a program waited for the disk after it said `open`; counted from outside."""
    if (strace := shutil.which("strace")) is None:
        pytest.skip("needs strace to count what reaches the disk")
    log = tmp_path / "calls"
    trace = [strace, "-f", "-qq", "-o", str(log), "-e", "trace=fsync,fdatasync,write"]
    first = "import sys, threading\nfrom onsil.serving.jobs import open_store\n"
    first += "store = open_store(sys.argv[1])\nprint('open', flush=True)\n"
    first += "submit = lambda n: store.submit('k', None, 'w', n, fingerprint='')\n"
    child = [sys.executable, "-c", first + program, str(tmp_path / "jobs.db")]
    subprocess.run([*trace, *child], check=True, capture_output=True)
    after = log.read_text().partition("open")[2]
    return len([row for row in after.splitlines() if "sync(" in row])


def test_accepting_waits_for_the_disk(tmp_path):
    assert counted(tmp_path, "for n in range(20): submit(n)") >= 20


def test_accepting_waits_for_the_servers_disk_whatever_the_server_says():
    import psycopg

    url = postgres.shared().database()
    with psycopg.connect(url, autocommit=True) as plain:
        plain.execute("do $$ begin execute format('alter database %I set synchronous_commit = off',"
                      " current_database()); end $$")  # fmt: skip

    def waits() -> int:
        with psycopg.connect(url) as plain:
            row = plain.execute("select wal_sync from pg_stat_wal").fetchone()
            assert row is not None
            return row[0]

    open_store(url).close()
    before, store = waits(), open_store(url)
    for n in range(20):
        submit(store, n)
    store.close()
    until(lambda: waits() - before >= 20)


def test_callers_that_come_together_wait_for_the_disk_once(tmp_path):
    program = (
        "def many(): [submit(n) for n in range(20)]\n"
        "threads = [threading.Thread(target=many) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert store.counts() == {'ready': 160}\n"
    )
    assert 20 <= counted(tmp_path, program) <= 120


def test_who_fails_in_a_group_fails_alone_and_nobody_is_told_wrong(tmp_path):
    """Small and large jobs at once on a disk that is nearly full: what was accepted is exactly what
    is there."""
    store = open_store(tmp_path / "jobs.db")
    pragma(store, f"max_page_count = {pragma(store, 'page_count') + 60}")
    accepted, refused = list[str](), list[str]()

    def many(place: int) -> None:
        for n in range(40):
            key = f"{place}-{n}"
            try:
                submit(store, "x" * (20_000 if n % 4 == 0 else 10), key=key)
                accepted.append(key)
            except Full:
                refused.append(key)

    threads = [threading.Thread(target=many, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = {job.key for job in store.listed("kim", ["work"], limit=1000)}
    assert refused and there == {*accepted} and len(there) == len(accepted)
    pragma(store, "max_page_count = 1000000")
    assert submit(store).state == "ready"
    store.close()


def test_a_group_that_the_disk_refuses_is_refused_as_a_whole(tmp_path):
    """SQLite takes back everything when it runs out of room in the middle: whoever left the commit
    to others is told so, and whoever comes after begins anew."""
    store = open_store(tmp_path / "jobs.db")
    database = store.database
    assert isinstance(database, SQLite)
    for number in range(5):
        pragma(store, f"max_page_count = {pragma(store, 'page_count') + 2}")
        told: dict[str, bool] = {}

        def ask(key: str, told: dict[str, bool] = told) -> None:
            try:
                submit(store, key=key)
                told[key] = True
            except Full:
                told[key] = False

        def fill() -> None:  # one plain row: SQLite cannot take back less than everything
            with pytest.raises(Full), database.transaction() as run:
                values = "('x', 0, 'x', 0, 0, ?)"
                columns = "(job, at, state, attempt, fence, error)"
                run(f"insert into events {columns} values {values}", "x" * 100_000)

        threads = [
            threading.Thread(target=ask, args=(f"{number} before",)),
            threading.Thread(target=fill),
            threading.Thread(target=ask, args=(f"{number} after",)),
        ]
        with pytest.raises(ZeroDivisionError), database.transaction():
            for queued, thread in enumerate(threads, 1):
                thread.start()
                until(lambda queued=queued: database._queued == queued)
            raise ZeroDivisionError
        for thread in threads:
            thread.join()
        there = {job.key for job in store.listed("kim", ["work"], limit=1000)}
        assert told == {key: key in there for key in told} and len(told) == 2
    store.close()


def test_the_files_of_a_store_are_its_owners_alone(tmp_path):
    store = open_store(tmp_path / "deep" / "jobs.db")
    submit(store)
    modes = {path.name: path.stat().st_mode & 0o77 for path in (tmp_path / "deep").iterdir()}
    assert set(modes) >= {"jobs.db", "jobs.db-wal"} and not any(modes.values())
    assert (tmp_path / "deep").stat().st_mode & 0o77 == 0
    store.close()
    with sqlite3.connect(tmp_path / "deep" / "jobs.db") as plain:
        assert plain.execute("pragma journal_mode").fetchone() == ("wal",)
    plain.close()
