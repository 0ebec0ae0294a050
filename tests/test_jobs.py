"""What the job store promises, on SQLite and on PostgreSQL: each promise a test."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import job_stores
import pytest
from job_stores import states, submit, taken, until, working

from onsil.errors import OnsilError
from onsil.serving.jobs import (
    Cancelled,
    Claimed,
    Conflict,
    Job,
    JobStore,
    Later,
    Lost,
    NoRetry,
    Unknown,
    open_store,
)
from onsil.serving.jobs import store as module
from onsil.serving.jobs.__main__ import handlers_of

A_DAY = 86_400.0
url, store = job_stores.url, job_stores.store


# ── accepting ───────────────────────────────────────────────────────────────────────────────────


def test_one_key_is_one_job_of_one_owner(store):
    first = submit(store, {"n": 1}, key="a")
    assert submit(store, {"n": 1}, key="a") == first
    with pytest.raises(Conflict, match="'a' was used for another request") as e:
        submit(store, {"n": 2}, key="a")
    assert e.value.status == 409
    other = store.submit("lee", "a", "work", {"n": 2}, fingerprint="x")
    assert other.id != first.id
    assert submit(store).id != submit(store).id
    with pytest.raises(Unknown):
        store.get("lee", first.id)
    for call in (store.cancel, store.retry, store.events):
        with pytest.raises(Unknown):
            call("lee", first.id)
    assert [job.id for job in store.listed("lee", ["work"])] == [other.id]
    assert store.listed("lee", ["play"]) == []


def test_a_key_used_by_many_at_once_is_one_job(store):
    found: list[str] = []
    ready = threading.Barrier(8)

    def one() -> None:
        ready.wait()
        found.append(submit(store, 7, key="same").id)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert store.counts() == {"ready": 1}


def test_pages_of_jobs_are_the_newest_first(store):
    made = [submit(store, n).id for n in range(5)]
    first = store.listed("kim", ["work"], limit=2)
    then = store.listed("kim", ["work"], limit=10, after=first[-1].id)
    assert [job.id for job in first + then] == made[::-1]
    for name in ("job_0", "a\0b", "\ud800", "x" * 99):
        with pytest.raises(Unknown):
            store.listed("kim", ["work"], after=name)


def test_what_was_accepted_is_there_when_the_store_is_opened_again(store, url):
    payload = {"text": "가\0\ud800", "numbers": [1, 2.5, None, True]}
    job = submit(store, payload)
    store.close()
    again = open_store(url)
    assert again.get("kim", job.id) == job and job.payload == payload
    again.close()


def test_a_store_of_a_later_version_is_left_alone(store, url):
    with store.database.transaction() as run:
        run("update job_schema set version = 99")
    with pytest.raises(OnsilError, match="version 99; this onsil knows 3"):
        open_store(url)


def test_a_url_that_is_no_store_is_refused():
    with pytest.raises(OnsilError, match="nonsense is no job store"):
        open_store("nonsense")
    with pytest.raises(OnsilError, match="redis:// is no job store"):
        open_store("redis://localhost")


@pytest.mark.parametrize("place", ["nothing.here:x", "json:x", "json", ":x"])
def test_handlers_that_cannot_be_imported_are_named(place):
    with pytest.raises(OnsilError, match=f"--handlers {place}: ") as e:
        handlers_of(place, None)  # pyright: ignore[reportArgumentType]
    assert "package.module:name" in str(e.value)


# ── claiming ────────────────────────────────────────────────────────────────────────────────────


def test_jobs_are_claimed_in_order_each_once(store, url):
    made = {submit(store, n).id for n in range(40)}
    assert taken(store).payload == 0
    other = open_store(url)
    found: list[str] = []

    def claim_all(one: JobStore) -> None:
        while job := one.claim(["work"], "w", 30):
            found.append(job.id)

    threads = [threading.Thread(target=claim_all, args=(s,)) for s in (store, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len(found) == 39 and len({*found}) == 39 and {*found} < made
    assert store.claim(["work"], "w", 30) is None and store.claim([], "w", 30) is None


def test_only_the_kinds_that_are_asked_for(store):
    submit(store)
    assert store.claim(["play"], "w", 30) is None
    assert store.claim(["play", "work"], "w", 30) is not None


def test_the_oldest_of_all_kinds_comes_first(store):
    kinds = ["play", "work", "rest", "work", "play"]
    made = [store.submit("kim", None, kind, None, fingerprint="").id for kind in kinds]
    found = [store.claim(["rest", "play", "none", "work"], "w", 30) for _ in kinds]
    assert [job and job.id for job in found] == made


def test_very_many_that_expired_are_closed_a_few_at_a_time(store, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 3)
    late = [submit(store, expires=1e-6).id for _ in range(7)]
    due = submit(store)
    assert taken(store).id == due.id
    assert {store.get("kim", job).state for job in late} == {"expired"}


def lapse(store: JobStore) -> None:
    """Let every lease be over."""
    with store.database.transaction() as run:
        run("update jobs set lease_from = lease_from - 99, lease_until = lease_until - 99")


def test_a_worker_that_vanishes_is_followed_by_another(store):
    job = submit(store, max_attempts=2)
    first = taken(store, worker="w1")
    assert store.claim(["work"], "w2", 30) is None
    lapse(store)
    second = taken(store, worker="w2")
    assert (first.fence, second.fence, second.attempts, second.worker) == (1, 2, 2, "w2")
    lapse(store)
    assert store.claim(["work"], "w3", 30) is None
    dead = store.get("kim", job.id)
    assert dead.state == "dead" and dead.error is not None and dead.error["kind"] == "WorkerLost"
    assert states(store, job) == ["ready", "running", "failed", "running", "failed", "dead"]


def stale(store: JobStore) -> tuple[Job, Job]:
    """A worker that sleeps through its lease, and the one that follows it."""
    submit(store)
    first = taken(store, worker="w1")
    lapse(store)
    return first, taken(store, worker="w2")


def audit(store: JobStore, job: Job) -> list[str]:
    """What a job's history says against `one worker at a time, done once`."""
    events = store.events(job.owner, job.id)
    wrong = []
    done = [event.fence for event in events if event.state == "done"]
    if done != [store.get(job.owner, job.id).fence]:
        wrong.append(f"done by fences {done}")
    with store.database.reading() as run:
        rows = run("select unit, fence from checkpoints where job = ?", job.id)
    newest = max(event.fence for event in events)
    wrong += [f"{row['unit']} by fence {row['fence']}" for row in rows if row["fence"] != newest]
    return wrong


def test_a_worker_that_lost_its_fence_writes_nothing(store):
    old, new = stale(store)
    before = store.get("kim", old.id), states(store, old)
    for write in (
        lambda: store.checkpoint(old.id, old.fence, "u", "old"),
        lambda: store.finish(old.id, old.fence, "old"),
        lambda: store.fail(old.id, old.fence, {"kind": "E", "message": "", "trace": ""}),
        lambda: store.stop(old.id, old.fence, None),
        lambda: store.release(old.id, old.fence),
        lambda: store.beat(old.id, old.fence, 30),
    ):
        with pytest.raises(Lost):
            write()
    assert (store.get("kim", old.id), states(store, old)) == before
    store.checkpoint(new.id, new.fence, "u", "new")
    store.finish(new.id, new.fence, "new")
    with pytest.raises(Lost):
        store.finish(old.id, old.fence, "old")
    assert store.get("kim", old.id).result == "new" and audit(store, old) == []


def test_without_the_fence_the_old_worker_would_have_written(store, monkeypatch):
    monkeypatch.setattr(module, "HELD", "0 < ?")
    old, new = stale(store)
    store.checkpoint(old.id, old.fence, "u", "old")
    store.finish(new.id, new.fence, "new")
    store.finish(old.id, old.fence, "old")
    assert store.get("kim", old.id).result == "old"
    assert audit(store, old) == ["done by fences [2, 2]", "u by fence 1"]


@pytest.mark.parametrize("jump", [-A_DAY, A_DAY])
def test_a_clock_that_jumps_ends_leases_and_waits_but_never_holds_a_job(store, jump):
    """Seen from the clock, a jump is the same as all windows being moved the other way."""
    submit(store)
    first = taken(store, lease=5)
    store.fail(first.id, first.fence, {"kind": "E", "message": "", "trace": ""}, wait=5)
    held = submit(store), taken(store, lease=5)
    assert store.claim(["work"], "w", 5) is None
    with store.database.transaction() as run:
        run(
            "update jobs set lease_from = lease_from - ?, lease_until = lease_until - ?", jump, jump
        )
    again = {taken(store).id, taken(store).id}
    assert again == {first.id, held[0].id}
    with pytest.raises(Lost):
        store.finish(held[1].id, held[1].fence, None)


def test_the_time_of_day_may_jump_while_a_lease_runs(tmp_path, monkeypatch):
    store = open_store(tmp_path / "jobs.db")
    submit(store)
    job = taken(store, lease=5)
    real = time.time
    for jump in (A_DAY, -A_DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        assert store.claim(["work"], "w", 5) is None
        store.beat(job.id, job.fence, 5)
    store.finish(job.id, job.fence, None)
    store.close()


# ── working ─────────────────────────────────────────────────────────────────────────────────────


def test_what_is_turned_away_waits_and_loses_no_attempt(store):
    """More often than there are attempts, while others go on."""
    turned = 0

    def handler(claimed: Claimed) -> str:
        nonlocal turned
        if claimed.payload == "other" or turned == 5:
            return "done"
        turned += 1
        raise Later("a full house", 0.2)

    made = submit(store, "first", max_attempts=2)
    with working(store, handler):
        until(lambda: turned)
        other = submit(store, "other")
        until(lambda: store.get("kim", other.id).state == "done")
        until(lambda: store.get("kim", made.id).state == "done")
    assert turned == 5 and store.get("kim", made.id).attempts == 1


def test_failures_are_kept_and_a_dead_job_is_tried_anew(store):
    working_now = False
    seen: list[dict[str, Any]] = []

    def handler(claimed: Claimed) -> Any:
        seen.append(claimed.checkpoints())
        claimed.checkpoint("half", claimed.fence)
        if not working_now:
            raise ValueError(f"no {claimed.payload['what']} today")
        return claimed.checkpoints()

    job = submit(store, {"what": "탕수육"}, max_attempts=2)
    with working(store, handler):
        until(lambda: store.get("kim", job.id).closed)
        dead = store.get("kim", job.id)
        assert (dead.state, dead.attempts, dead.progress) == ("dead", 2, 1)
        errors = [event.error for event in store.events("kim", job.id) if event.error]
        assert [error["message"] for error in errors] == ["no 탕수육 today"] * 2
        assert "in handler" in errors[0]["trace"] and dead.payload == {"what": "탕수육"}
        working_now = True
        assert store.retry("kim", job.id).state == "ready"
        until(lambda: store.get("kim", job.id).closed)
    done = store.get("kim", job.id)
    assert (done.state, done.attempts, done.fence) == ("done", 1, 3)
    assert seen == [{}, {"half": 1}, {"half": 1}] and done.result == {"half": 1}
    assert len([event for event in store.events("kim", job.id) if event.error]) == 2
    with pytest.raises(Conflict, match="is done, not dead"):
        store.retry("kim", job.id)


def test_what_can_never_succeed_and_what_is_not_json_is_not_done(store):
    def handler(claimed: Claimed) -> Any:
        if claimed.payload == "hopeless":
            raise NoRetry("there is no such file")
        return {"a", "set"} if claimed.payload == "set" else float("nan")

    made = {text: submit(store, text, max_attempts=2) for text in ("hopeless", "set", "nan")}
    with working(store, handler):
        until(lambda: store.counts() == {"dead": 3})
    found = {text: store.get("kim", job.id) for text, job in made.items()}
    assert {text: job.attempts for text, job in found.items()} == {
        "hopeless": 1,
        "set": 2,
        "nan": 2,
    }
    assert (
        found["set"].error is not None and "not JSON serializable" in found["set"].error["message"]
    )


def test_the_wait_doubles_and_has_an_end(store):
    submit(store, max_attempts=20)
    for attempt, wait in ((1, 4.0), (2, 8.0), (3, 16.0), (4, 32.0), (5, 60.0), (6, 60.0)):
        job = taken(store)
        store.fail(job.id, job.fence, {"kind": "E", "message": "", "trace": ""}, wait=4)
        with store.database.transaction() as run:
            row = run("select lease_until - lease_from as wait from jobs")[0]
            run("update jobs set lease_until = 0")
        assert job.attempts == attempt and row["wait"] == pytest.approx(wait, abs=0.05)


def test_a_lease_is_kept_while_its_job_runs(store, url):
    other = open_store(url)
    runs: list[int] = []

    def handler(claimed: Claimed) -> None:
        runs.append(claimed.fence)
        begun = claimed.job.lease_until
        until(lambda: store.get("kim", claimed.id).lease_until > begun + 0.5)

    job = submit(store)
    with working(store, handler, lease=3.0), working(other, handler, lease=3.0):
        until(lambda: store.get("kim", job.id).closed)
    other.close()
    assert runs == [1] and store.get("kim", job.id).state == "done"


def test_all_who_wait_hear_of_a_job_from_here_and_from_elsewhere(store, url):
    """Two workers of a process: each is woken, and none misses what came just before it waits."""
    other, ready = open_store(url), threading.Semaphore(0)

    def listen() -> None:
        store.wait(60)
        ready.release()
        store.wait(60)

    for near in (other, store):
        threads = [threading.Thread(target=listen, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert ready.acquire(timeout=30)
        submit(near)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "it slept on"
    other.close()


def test_threads_work_side_by_side_and_not_more(store):
    now, most, lock = 0, 0, threading.Lock()

    def handler(claimed: Claimed) -> None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.1)
        with lock:
            now -= 1

    for n in range(9):
        submit(store, n)
    with working(store, handler, threads=3):
        until(lambda: store.counts() == {"done": 9})
    assert most == 3


def test_a_worker_that_stops_gives_its_job_back(store):
    begun, rest = threading.Event(), threading.Event()

    def patient(claimed: Claimed) -> None:
        begun.set()
        for n in range(1000):
            claimed.checkpoint(f"{n}", n)
            time.sleep(0.01)

    def deaf(claimed: Claimed) -> str:
        begun.set()
        rest.wait(5)
        return "too late"

    for handler, more in ((patient, {}), (deaf, {"grace": 0.1})):
        begun.clear()
        rest.clear()
        job = submit(store)
        with working(store, handler, **more):
            begun.wait(5)
        back = store.get("kim", job.id)
        assert (back.state, back.attempts) == ("ready", 0)
        again = taken(store)
        rest.set()
        time.sleep(0.05)
        assert store.get("kim", job.id).state == "running"
        store.finish(again.id, again.fence, None)


def test_a_job_is_cancelled_waiting_running_or_left_behind(store):
    def handler(claimed: Claimed) -> None:
        begun.set()
        while not claimed.cancelled():
            time.sleep(0.02)
        raise Cancelled({"got": "this far"})

    begun = threading.Event()
    waiting = submit(store)
    assert store.cancel("kim", waiting.id).state == "cancelled"
    running = submit(store)
    with working(store, handler, lease=0.3):
        assert begun.wait(5)
        assert store.cancel("kim", running.id).state == "running"
        until(lambda: store.get("kim", running.id).closed)
    found = store.get("kim", running.id)
    assert (found.state, found.result) == ("cancelled", {"got": "this far"})
    left = submit(store)
    taken(store)
    lapse(store)
    assert store.cancel("kim", left.id).state == "cancelled"
    assert store.cancel("kim", left.id).state == "cancelled"
    failing = submit(store)
    held = taken(store)
    store.cancel("kim", failing.id)
    error = {"kind": "E", "message": "", "trace": ""}
    assert store.fail(held.id, held.fence, error) == "cancelled"


def test_a_job_expires_waiting_running_or_left_behind(store):
    begun = threading.Event()

    def handler(claimed: Claimed) -> None:
        begun.set()
        while not claimed.cancelled():
            time.sleep(0.02)
        raise Cancelled

    def overdue() -> None:
        with store.database.transaction() as run:
            run("update jobs set expires = epoch()")

    waiting = submit(store, expires=600)
    assert store.sweep() == 0
    overdue()
    assert store.sweep() == 1 and store.sweep() == 0
    assert store.get("kim", waiting.id).state == "expired"
    left = submit(store, expires=600)
    taken(store)
    overdue()
    lapse(store)
    assert store.claim(["work"], "w", 30) is None
    assert store.get("kim", left.id).state == "expired"
    running = submit(store, expires=600)
    with working(store, handler):
        assert begun.wait(30)
        overdue()
        until(lambda: store.get("kim", running.id).closed)
    assert store.get("kim", running.id).state == "expired"


def test_a_unit_takes_effect_once(store):
    submit(store)
    job = taken(store)
    store.checkpoint(job.id, job.fence, "line:2", {"n": 1})
    store.checkpoint(job.id, job.fence, "line:2", {"n": 2}, ok=False)
    store.checkpoint(job.id, job.fence, "line:1", None, ok=False)
    store.checkpoint(job.id, job.fence, "begun", None)
    assert store.checkpoints(job.id) == {"begun": None, "line:1": None, "line:2": {"n": 1}}
    assert store.checkpoint_counts(job.id) == (1, 1)
    assert store.get("kim", job.id).progress == 3


def test_many_units_are_read_in_pages(store, monkeypatch):
    monkeypatch.setattr(module, "PAGE", 3)
    submit(store)
    job = taken(store)
    for n in range(7):
        store.checkpoint(job.id, job.fence, f"a:{n}", n)
        store.checkpoint(job.id, job.fence, f"b:{n}", n)
    assert dict(store.each_checkpoint(job.id, "b:")) == {f"b:{n}": n for n in range(7)}
    assert len(store.checkpoints(job.id)) == 14


def test_the_page_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[1] / "docs" / "jobs.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    assert len(blocks) == 1
    exec(compile(blocks[0], str(page), "exec"), {})
