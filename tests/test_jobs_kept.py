"""What a store keeps, for how long, and what crashes leave behind."""

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import job_doors
import job_stores
import pytest
from job_stores import miscounted, submit, taken, until, working
from served import make_pen, server

from onsil.errors import OnsilError
from onsil.graph import step
from onsil.lineage import Workspace
from onsil.serving.deployment import App
from onsil.serving.jobs import (
    Claimed,
    Conflict,
    Job,
    JobStore,
    NoRetry,
    Unknown,
    Worker,
    keeping,
    open_store,
    schema,
)
from onsil.serving.jobs.__main__ import main
from onsil.serving.jobs.answering import BatchHandler
from onsil.serving.jobs.batches import Batches
from onsil.serving.jobs.files import STALE, FileStore
from onsil.serving.jobs.job import DamagedFile
from onsil.serving.jobs.webhooks import deliveries

url, store, files = job_stores.url, job_stores.store, job_doors.files
BATCH = {"input_file_id": "file-in", "endpoint": "/v1/embeddings", "completion_window": "24h"}


def over(store: JobStore, days: float, **more: Any) -> Job:
    """A job that was done so many days ago, with all that belongs to one."""
    job = submit(store, more.pop("payload", None), **more)
    held = taken(store)
    store.checkpoint(held.id, held.fence, "u", 1)
    store.finish(held.id, held.fence, None)
    aged(store, job.id, days)
    return job


def aged(store: JobStore, job: str, days: float) -> None:
    with store.database.transaction() as run:
        run("update jobs set finished = finished - ? where id = ?", days * 86_400, job)


def rows_of(store: JobStore, job: str) -> dict[str, int]:
    """How many rows of each table are a job's."""
    with store.database.reading() as run:
        return {
            table: run(f"select count(*) as n from {table} where job = ?", job)[0]["n"]
            for table in ("checkpoints", "events", "deliveries")
        }


def bytes_in(files: FileStore) -> list[Path]:
    return [path for path in files.folder.rglob("*") if path.is_file()]


def upload(files: FileStore, name: str, text: bytes = b"text", days: float = 0.0) -> None:
    files.write("kim", [text], "in.jsonl", "batch", name)
    with files.store.database.transaction() as run:
        run("update files set created = created - ? where id = ?", days * 86_400, name)


def make_old(path: Path) -> None:
    then = time.time() - STALE - 60
    os.utime(path, (then, then))


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_that_ended_long_ago_are_forgotten_whole(store):
    old, young = over(store, 31), over(store, 29)
    assert store.prune(30) == 1 and store.prune(30) == 0
    with pytest.raises(Unknown):
        store.get("kim", old.id)
    assert rows_of(store, old.id) == {"checkpoints": 0, "events": 0, "deliveries": 0}
    assert store.get("kim", young.id).state == "done"
    assert rows_of(store, young.id) == {"checkpoints": 1, "events": 3, "deliveries": 0}
    assert store.prune(28) == 1 and store.counts() == {}


def test_what_is_not_over_is_never_forgotten(store):
    """Waiting, running, failed and waiting again, and told by nobody yet."""
    told = over(store, 99, webhook="http://127.0.0.1:9/")
    failed, running, waiting = submit(store), submit(store), submit(store)
    held = taken(store)
    store.fail(held.id, held.fence, {"kind": "E", "message": "", "trace": ""}, wait=60)
    assert taken(store).id == running.id
    with store.database.transaction() as run:
        run("update jobs set created = created - 1e9, started = started - 1e9")
    assert store.prune(0) == 0
    assert {job.id for job in (told, failed, running, waiting)} == {
        job.id for job in store.listed("kim", ["work"])
    }
    with store.database.transaction() as run:
        run("update deliveries set state = 'delivered'")
    assert store.prune(0) == 1 and deliveries(store, told.id) == []


def test_a_key_is_kept_as_long_as_its_job(store):
    first = over(store, 31, payload=1, key="a")
    with pytest.raises(Conflict):
        submit(store, 2, key="a")
    assert submit(store, 1, key="a").id == first.id
    store.prune(30)
    assert submit(store, 2, key="a").id != first.id


def test_the_last_of_a_scheduled_batch_stays_and_a_dead_job_may_be_retried_till_then(store):
    for kind in ("batch.nightly", "batch.nightly", "work"):
        job = store.submit("kim", None, kind, {}, fingerprint="")
        held = store.claim([kind], "w", 30)
        assert held is not None
        store.fail(job.id, held.fence, {"kind": "E", "message": "", "trace": ""}, retry=False)
        aged(store, job.id, 31)
    last = store.listed("kim", ["batch.nightly"], 1)[0]
    dead = store.listed("kim", ["work"])[0]
    store.retry("kim", dead.id)
    assert store.prune(30) == 1
    assert {job.id for job in store.listed("kim", ["batch.nightly", "work"])} == {last.id, dead.id}


def test_little_is_forgotten_at_once(store, monkeypatch):
    monkeypatch.setattr(keeping, "TOGETHER", 3)
    monkeypatch.setattr(keeping, "MOST_ROWS", 2)
    for _ in range(4):
        over(store, 31)
    assert [store.prune(30) for _ in range(3)] == [2, 2, 0]


def test_two_workers_forget_and_work_side_by_side(store, url):
    for _ in range(30):
        over(store, 31)
    other, found = open_store(url), list[int]()

    def forget(one: JobStore) -> None:
        while more := one.prune(30):
            found.append(more)

    threads = [threading.Thread(target=forget, args=(one,)) for one in (store, other)]
    for thread in threads:
        thread.start()
    keys = {submit(store, n, key=str(n)).id for n in range(10)}
    for thread in threads:
        thread.join()
    other.close()
    assert sum(found) == 30 and store.counts() == {"ready": 10} and len(keys) == 10


def test_a_worker_forgets_what_is_older_than_its_days(store):
    old, young = over(store, 31), over(store, 29)
    with working(store, lambda claimed: None):
        until(lambda: store.counts() == {"done": 1})
    assert store.get("kim", young.id).state == "done" and old.id != young.id
    with working(store, lambda claimed: None, days=28):
        until(lambda: store.counts() == {})


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf")])
def test_what_is_no_number_of_days_is_refused(days, tmp_path, monkeypatch):
    with pytest.raises(OnsilError, match=f"days {days:g} cannot be used"):
        Worker(open_store(tmp_path / "jobs.db"), {}, days=days)
    said = ["jobs", "--store", f"{tmp_path / 'other.db'}", "--handlers", "json:loads"]
    monkeypatch.setattr("sys.argv", [*said, "--days", f"{days}"])
    with pytest.raises(SystemExit, match=f"--days {days:g} cannot be used"):
        main()
    assert not (tmp_path / "other.db").exists()


def looked_through(store: JobStore) -> bool:
    """Whether a worker began to keep house: what expired is closed, and then what is old goes."""
    return store.counts().get("expired") == 1


@pytest.mark.parametrize(("days", "left"), [("9", 1), ("0", 3)])
def test_a_server_keeps_what_is_over_as_long_as_it_was_told(tmp_path, days, left):
    home = make_pen(tmp_path)
    store = open_store(home / "jobs/jobs.db")
    for old in (8, 10, 4_000):
        over(store, old)
    submit(store, expires=-1.0)
    with server(home, "--keep-days", days, name="pen"):
        until(lambda: looked_through(store))
    assert store.counts() == {"done": left, "expired": 1}  # what it began it has finished
    store.close()


def test_a_deployment_keeps_what_is_over_as_long_as_it_was_told(tmp_path):
    app = App(Workspace(tmp_path / "ws"), f"{tmp_path / 'jobs.db'}")
    app.jobs("/v1/jobs", step(lambda value: value, name="same"))
    store = open_store(tmp_path / "jobs.db")
    for days, left in ((0, 3), (9, 1)):
        for old in (8, 10, 4_000):
            over(store, old)
        submit(store, expires=-1.0)
        app.open(keep_days=days)
        asyncio.run(app.ready())
        until(lambda: looked_through(store))
        app.close()
        assert store.counts() == {"done": left, "expired": 1}
        store.prune(0)
    store.close()


def test_a_store_of_an_earlier_version_is_brought_up_to_date(url, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        early = open_store(url)
        job = submit(early, "safe")
        early.close()
    for _ in range(2):
        later = open_store(url)
        with later.database.reading() as run:
            assert run("select version from job_schema") == [{"version": 3}]
        assert later.get("kim", job.id).payload == "safe"
        later.close()


def checkpoint_before_counts(store: JobStore, job: str, unit: str, ok: bool) -> None:
    """As the version before counts wrote one."""
    with store.database.transaction() as run:
        run("update jobs set progress = progress where id = ? returning id", job)
        run(
            "insert into checkpoints (job, unit, value, ok, fence, at) values"
            " (?, ?, ?, ?, ?, epoch()) on conflict (job, unit) do nothing returning unit",
            *(job, unit, "null", int(ok), 1),
        )
        run("update jobs set progress = progress + 1 where id = ? returning id", job)


def test_lines_from_before_there_were_counts_are_counted(url, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:2])
        early = open_store(url)
        jobs = [submit(early).id for _ in range(3)]
        for number in range(5):
            checkpoint_before_counts(early, jobs[0], f"line:{number}", number != 3)
        for job in jobs[:2]:
            checkpoint_before_counts(early, job, "validated", True)
        early.close()
    later = open_store(url)
    assert miscounted(later) == []
    assert [later.checkpoint_counts(job) for job in jobs] == [(4, 1), (0, 0), (0, 0)]
    held = taken(later)
    later.checkpoint(held.id, held.fence, "line:6", None, ok=False)
    assert held.id == jobs[0] and later.checkpoint_counts(held.id) == (4, 2)
    assert miscounted(later) == []
    later.close()


def test_a_program_of_the_version_before_may_go_on_writing(store):
    """On another machine, say, until it is brought up to date as well."""
    held = submit(store) and taken(store)
    for number, write in enumerate((True, False) * 3):
        if write:
            store.checkpoint(held.id, held.fence, f"line:{number}", None)
        else:
            checkpoint_before_counts(store, held.id, f"line:{number}", False)
    assert store.checkpoint_counts(held.id) == (3, 3) and miscounted(store) == [held.id]


# ── plans ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def crowded(store: JobStore) -> Iterator[JobStore]:
    """Very many jobs, most of them done and in front."""
    many = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000)"
    state = "case when i < 4800 then 'done' else 'ready' end"
    with store.database.transaction() as run:
        run(
            f"{many} insert into jobs (id, owner, key, kind, fingerprint, payload, state,"
            " max_attempts, created, finished, expires, result)"
            f" select 'job_' || i, 'kim', '' || i, 'work', '', '1', {state}, 3, i,"
            " case when i < 4800 then i end, 1e12, 'null' from n"
        )
        run(
            f"{many} insert into deliveries (id, job, url, body, state, created)"
            " select 'evt_' || i, 'job_' || i, '', '', 'delivered', i from n"
        )
        run(
            f"{many} insert into events (job, at, state, attempt, fence)"
            " select 'job_' || i, i, 'done', 1, 1 from n"
        )
    with store.database.transaction() as run:
        run("analyze")
    yield store


def test_among_many_jobs_every_question_goes_by_an_index(crowded, monkeypatch):
    """What the databases say of the statements as they are sent."""
    asked: list[tuple[str, tuple[Any, ...]]] = []
    real = crowded.database.transaction

    @contextmanager
    def listening() -> Iterator[schema.Run]:
        with real() as run:

            def told(sql: str, *values: Any) -> list[dict[str, Any]]:
                asked.append((sql, values))
                return run(sql, *values)

            yield told

    monkeypatch.setattr(crowded.database, "transaction", listening)
    monkeypatch.setattr(crowded.database, "reading", listening)
    crowded.claim(["play", "work"], "w", 30)
    crowded.sweep()
    crowded.listed("kim", ["play"])
    deliveries(crowded, "job_5")
    crowded.get("kim", "job_5")
    crowded.prune(1e9)
    monkeypatch.undo()
    looks = [(sql, values) for sql, values in asked if sql.startswith("select")]
    assert len(looks) >= 8
    light = not crowded.database.skip_locked
    for sql, values in looks:
        with crowded.database.transaction() as run:
            if light:
                plan = [row["detail"] for row in run(f"explain query plan {sql}", *values)]
                bad = r"SCAN (jobs|events|deliveries|d|e)\b"
            else:
                plan = [row["QUERY PLAN"] for row in run(f"explain {sql}", *values)]
                bad = r"Seq Scan on (jobs|events|deliveries)|jobs_pkey on jobs +\("
                bad += r"|Filter: .*(expires|finished) <"
        assert not [step for step in plan if re.search(bad, step)], (sql, plan)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_old_files_are_forgotten_but_not_those_of_jobs_that_are_kept(store, files):
    for name, days in (("file-old", 31), ("file-young", 29), ("file-in", 99)):
        upload(files, name, name.encode(), days)
    batch = Batches(store, files).create("kim", None, BATCH)
    made = f"file-{batch['id'].removeprefix('batch_')}o"
    upload(files, made, b"answers", 99)
    assert store.prune(30) == 1 and store.prune(30) == 0
    names = [file.id for file in files.listed("kim", 9, None, None, True)]
    assert names == ["file-young", "file-in", made] and len(bytes_in(files)) == 3
    Batches(store, files).cancel("kim", batch["id"])
    aged(store, f"job_{batch['id'].removeprefix('batch_')}", 31)
    assert store.prune(30) == 1 and store.prune(30) == 2 and store.prune(30) == 0
    assert len(bytes_in(files)) == 1


def test_bytes_that_a_crash_left_without_a_name_are_removed(store, files, monkeypatch):
    """One process died between bytes and name, one while an upload came in, one as a file was
    deleted; what is new may still get its name."""
    upload(files, "file-safe", b"safe")
    upload(files, "file-twin", b"safe")

    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    with monkeypatch.context() as broken:
        broken.setattr(FileStore, "get", die)  # the last step of keeping, behind the commit
        with pytest.raises(Died):
            upload(files, "file-late", b"named all the same")
    with monkeypatch.context() as broken:
        broken.setattr("onsil.serving.jobs.files._sync", die)  # within the transaction
        with pytest.raises(Died):
            upload(files, "file-none", b"never named")
    with monkeypatch.context() as broken:
        broken.setattr(FileStore, "_let_go", die)
        with pytest.raises(Died):
            files.delete("kim", "file-late")
    (files.folder / "incoming" / "tmp1").write_bytes(b"half")
    assert len(bytes_in(files)) == 4
    assert store.prune(30) == 0 and len(bytes_in(files)) == 4
    for path in bytes_in(files):
        make_old(path)
    assert store.prune(30) == 0
    assert [path.read_bytes() for path in bytes_in(files)] == [b"safe"]
    files.delete("kim", "file-safe")
    assert files.path(files.get("kim", "file-twin")).read_bytes() == b"safe"


def test_two_stores_with_one_folder_leave_each_other_alone(store, files, tmp_path):
    other = FileStore(open_store(tmp_path / "other.db"), files.folder.parent)
    upload(files, "file-in", b"the same")
    upload(other, "file-in", b"the same")
    for path in bytes_in(files) + bytes_in(other):
        make_old(path)
    assert store.prune(30) == 0 and other.store.prune(30) == 0
    other.delete("kim", "file-in")
    assert files.path(files.get("kim", "file-in")).read_bytes() == b"the same"
    assert files.folder.stat().st_mode & 0o77 == files.folder.parent.stat().st_mode & 0o77 == 0
    other.store.close()


def test_a_name_never_outlives_its_bytes(store, files, monkeypatch):
    """A delete that dies half way, wherever: the file is whole or it is gone."""
    upload(files, "file-in", b"whole")

    def die(*_: Any, **__: Any) -> None:
        raise OSError(5, "the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", die)
        with pytest.raises(Exception, match="the disk is gone"):
            files.delete("kim", "file-in")
    with pytest.raises(Unknown):
        files.get("kim", "file-in")


def test_a_file_whose_bytes_are_gone_says_so_and_can_be_uploaded_again(store, files):
    upload(files, "file-in", b"{}")
    bytes_in(files)[0].unlink()
    with pytest.raises(DamagedFile, match="file-in is damaged") as e:
        files.path(files.get("kim", "file-in"))
    assert e.value.status == 500
    batches = Batches(store, files)
    made, cancelled = batches.create("kim", None, BATCH), batches.create("kim", None, BATCH)
    job = store.claim(["batch"], "w", 30)
    assert job is not None
    store.checkpoint(job.id, job.fence, "validated", {"total": 1, "errors": [], "models": {}})
    with pytest.raises(NoRetry, match="is damaged"):
        BatchHandler(store, files, lambda *_: (200, {}))(Claimed(store, job, 30))
    store.cancel("kim", job.id)
    store.stop(job.id, job.fence, None)
    batches.cancel("kim", cancelled["id"])
    assert [b["status"] for b in batches.listed("kim", 9, None)] == ["cancelled", "cancelled"]
    assert batches.get("kim", made["id"])["error_file_id"] is None
    upload(files, "file-again", b"{}")
    assert files.path(files.get("kim", "file-in")).read_bytes() == b"{}"
