"""Jobs under SIGKILL: every accepted one finishes once, on SQLite and on PostgreSQL.

Whole process groups are killed at seeded, uniformly drawn times over the whole run (work is handed
in over the same time), and each point is printed. A killed worker writes nothing more, so it alone
would never need the fence: some workers are also put to sleep for longer than their lease and
woken again. The short runs belong to `make test`; the long ones are what the figures come from.
"""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import job_stores
import pytest
from job_stores import miscounted, until

from onsil.serving.jobs import JobStore, open_store
from onsil.serving.jobs.batches import Batches
from onsil.serving.jobs.files import FileStore

CHILD = Path(__file__).with_name("jobs_child.py")
LEASE, WORKERS, UNITS, CLIENTS = 0.5, 4, 3, 3
FEWEST = 5  # jobs of each caller, however slow the machine


url = job_stores.url


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CHILD), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def kill(child: subprocess.Popen[str]) -> None:
    """SIGKILL to the whole group."""
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


@dataclass
class Pool:
    """Some workers: one can be killed and is followed by a new one, or put to sleep."""

    url: str
    without: tuple[str, ...] = ()
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.children = [self.new() for _ in range(WORKERS)]

    def new(self) -> subprocess.Popen[str]:
        return start("worker", self.url, str(LEASE), *self.without)

    def kill(self, which: int) -> None:
        kill(self.children[which])
        self.children[which] = self.new()

    def send(self, which: int, number: signal.Signals) -> None:
        os.killpg(self.children[which].pid, number)


def plan(kills: int, sleeps: int, seconds: float, draw: random.Random) -> list[tuple]:
    """(when, what, which worker), by time; who sleeps wakes after two leases."""
    events: list[tuple] = [
        (draw.uniform(0, seconds), "kill", draw.randrange(WORKERS)) for _ in range(kills)
    ]
    for _ in range(sleeps):
        at, which = draw.uniform(0, seconds), draw.randrange(WORKERS)
        events += [(at, "sleep", which), (at + 2 * LEASE, "wake", which)]
    return sorted(events)


def chaos(
    url: str, jobs: int, kills: int, sleeps: int, seconds: float, seed: int, *without: str
) -> dict[str, Any]:
    """The whole run, workers busy six tenths of it; what the store says in the end."""
    longest = 1.2 * WORKERS * seconds / jobs
    draw, store, pool = random.Random(seed), open_store(url), Pool(url, without)
    events, began = plan(kills, sleeps, seconds, draw), time.monotonic()
    wrong = set[str]()  # whose counts did not agree behind a kill

    def strike() -> None:  # in its own thread: who sleeps may hold SQLite's one place to write
        for at, what, which in events:
            time.sleep(max(0.0, began + at - time.monotonic()))
            now = time.monotonic() - began
            print(f"{now:8.3f} s (drawn {at:8.3f}) {what} worker {which}; {store.counts()}")
            if what == "kill":
                pool.kill(which)
                wrong.update(miscounted(store))
            else:
                pool.send(which, signal.SIGSTOP if what == "sleep" else signal.SIGCONT)

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        for number in range(jobs):
            time.sleep(max(0.0, began + seconds * number / jobs - time.monotonic()))
            payload = {"n": number, "seconds": draw.uniform(0, longest)}
            store.submit(
                *("kim", f"key {number}", "work", payload), fingerprint="", max_attempts=100
            )
        striking.join()
        settle(store, jobs)
    finally:
        striking.join()
        for child in pool.children:
            kill(child)
    took = time.monotonic() - began
    found = verdict(store, jobs) | {"jobs": jobs, "kills": kills, "sleeps": sleeps, "seed": seed}
    found["miscounted"] += len(wrong)
    store.close()
    print(json.dumps(found | {"seconds": round(took, 1)}))
    return found


def settle(store: JobStore, jobs: int) -> None:
    """Until all are done, or nothing changes any more: soon, where nothing is left to be done."""
    before, since = store.counts(), time.monotonic()
    while before != {"done": jobs}:
        if time.monotonic() > since + (1.0 if {*before} == {"done"} else 60.0):
            return
        time.sleep(0.05)
        if (now := store.counts()) != before:
            before, since = now, time.monotonic()


def verdict(store: JobStore, jobs: int) -> dict[str, Any]:
    """What went wrong, of everything that may."""
    with store.database.reading() as run:
        states = run("select state, count(*) as number from jobs group by state")
        done = run("select job from events where state = 'done' group by job having count(*) > 1")
        attempts = run("select count(*) as number from events where state = 'running'")
        units = run("select job, count(*) as number from checkpoints group by job")
        late = run(
            "select c.job from checkpoints c join events e on e.job = c.job and"
            " e.state = 'running' and e.fence > c.fence and e.at < c.at"
        )
        results = run("select payload, result from jobs")
        unlike = run(
            "select c.value as value, j.payload as payload from checkpoints c"
            " join jobs j on j.id = c.job"
        )
    n = lambda text: json.loads(text)["n"]  # noqa: E731
    return {
        "states": {row["state"]: row["number"] for row in states},
        "done twice": len(done),
        "written by an old fence": len(late),
        "not exactly three units": sum(row["number"] != UNITS for row in units) + jobs - len(units),
        "miscounted": len(miscounted(store)),
        "another's result": sum(n(r["payload"]) != n(r["result"]) for r in results if r["result"])
        + sum(n(r["value"]) != n(r["payload"]) for r in unlike),
        "attempts": attempts[0]["number"],
        "integrity": integrity(store),
    }


def integrity(store: JobStore) -> str:
    """The databases' own checks."""
    with store.database.transaction() as run:
        if not store.database.skip_locked:
            return run("pragma integrity_check")[0]["integrity_check"]
        run("create extension if not exists amcheck schema public")
        for table in ("jobs", "events", "checkpoints"):
            if damage := run(f"select msg from verify_heapam('{table}')"):
                return damage[0]["msg"]
        run(
            "select bt_index_check(indexrelid, true) from pg_index where indrelid in"
            " ('jobs'::regclass, 'events'::regclass, 'checkpoints'::regclass)"
        )
    return "ok"


def clean(found: dict[str, Any]) -> bool:
    wrong = ("done twice", "written by an old fence", "not exactly three units", "miscounted")
    wrong += ("another's result",)
    return (
        found["states"] == {"done": found["jobs"]}
        and found["integrity"] == "ok"
        and not any(found[name] for name in wrong)
    )


def test_every_job_is_done_once_while_workers_are_killed(url):
    found = chaos(url, jobs=40, kills=8, sleeps=2, seconds=2.5, seed=6)
    assert clean(found), found


@pytest.mark.slow
def test_two_thousand_jobs_under_250_kills_of_workers(url):
    found = chaos(url, jobs=2_000, kills=250, sleeps=40, seconds=240, seed=2026)
    assert clean(found), found


@pytest.mark.slow
def test_without_the_fence_the_same_run_fails(url):
    found = chaos(url, 300, 20, 40, 60, 2026, "--without", "fence")
    assert not clean(found), found


# ── the server ──────────────────────────────────────────────────────────────────────────────────


class Mortal:
    """A server that is followed by a new one when it is killed; `address` is the last."""

    def __init__(self, url: str, folder: Path, *without: str):
        self._new = lambda: start("server", url, str(folder), *without)
        self.kills, self.began = 0, time.monotonic()
        self._listen()

    def _listen(self) -> None:
        self.child = self._new()
        assert self.child.stdout is not None
        self.address = f"http://127.0.0.1:{int(self.child.stdout.readline())}"

    def kill(self) -> None:
        kill(self.child)
        self.kills += 1
        print(f"{time.monotonic() - self.began:8.3f} s: killed the server")
        self._listen()

    def kill_at(self, points: list[float]) -> None:
        """At these times, in seconds from now."""
        self.began = time.monotonic()
        for point in points:
            time.sleep(max(0.0, self.began + point - time.monotonic()))
            print(f"drawn {point:8.3f}", end="; ")
            self.kill()


def ask(address: str, key: str, n: int) -> str | None:
    """The id that came with 202; None when the server died before it said so."""
    body = json.dumps({"kind": "work", "input": {"n": n, "seconds": 0.0}, "max_attempts": 20})
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    request = urllib.request.Request(f"{address}/v1/jobs", body.encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 202
            return json.loads(answer.read())["id"]
    except urllib.error.HTTPError as e:
        raise AssertionError(e.read()) from e
    except (OSError, http.client.HTTPException):
        return None


def accepting(url: str, folder: Path, kills: int, seconds: float, *without: str) -> dict[str, Any]:
    """Jobs over HTTP, from several callers, while the server is killed; a request without an answer
    is sent again under its key. What of all that was accepted is there, done once."""
    draw = random.Random(11)
    points = sorted(draw.uniform(0, seconds) for _ in range(kills))
    store, server = open_store(url), Mortal(url, folder, *without)
    striking = threading.Thread(target=server.kill_at, args=(points,))
    accepted, unanswered = [0] * CLIENTS, [0] * CLIENTS

    def client(place: int) -> None:
        while (
            striking.is_alive()
            or time.monotonic() - server.began < seconds
            or accepted[place] < FEWEST
        ):
            key, n = f"key-{place}-{accepted[place]}", accepted[place]
            while ask(server.address, key, n) is None:
                unanswered[place] += 1
                time.sleep(0.02)
            accepted[place] += 1

    clients = [threading.Thread(target=client, args=(place,)) for place in range(CLIENTS)]
    for thread in (striking, *clients):
        thread.start()
    try:
        for thread in (striking, *clients):
            thread.join()
        settle(store, sum(accepted))
    finally:
        kill(server.child)
    found = verdict(store, sum(accepted))
    found |= {"jobs": sum(accepted), "kills": server.kills, "unanswered": sum(unanswered)}
    store.close()
    print(json.dumps(found | {"seconds": seconds}))
    return found


def test_what_was_accepted_outlives_its_server(url, tmp_path):
    found = accepting(url, tmp_path / "files", 2, 1.5)
    assert clean(found), found


@pytest.mark.slow
def test_what_was_accepted_outlives_twenty_kills_of_its_server(url, tmp_path):
    found = accepting(url, tmp_path / "files", 20, 60.0)
    assert found["jobs"] > 500 and clean(found), found


def test_an_answer_before_the_commit_would_lose_jobs(tmp_path):
    """The same run with a server that answers first: the test sees it."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    found = accepting(url, tmp_path / "files", 2, 1.5, "--without", "commit")
    assert found["kills"] == 2 and found["states"].get("done", 0) < found["jobs"], found


# ── batches, and a worker told to stop ──────────────────────────────────────────────────────────


def test_a_batch_goes_on_where_its_server_was_killed(url, tmp_path):
    """Every line is answered once, also when it is killed in the middle, twice."""
    store = open_store(url)
    files = FileStore(store, tmp_path / "files")
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings"}
        | {"body": {"model": "desk", "input": f"{n}", "slow": 0.02}}
        for n in range(100)
    ]
    text = [json.dumps(line).encode() + b"\n" for line in lines]
    file = files.write("kim", text, "in.jsonl", "batch", "file-in")
    batches = Batches(store, files)
    body = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = batches.create("kim", None, body)
    server, now = Mortal(url, tmp_path / "files"), lambda: batches.get("kim", made["id"])
    try:
        for answered in (10, 40):
            until(lambda most=answered: now()["request_counts"]["completed"] >= most)
            server.kill()
            assert miscounted(store) == []
        until(lambda: now()["status"] == "completed")
    finally:
        kill(server.child)
    found = now()
    assert found["request_counts"] == {"total": 100, "completed": 100, "failed": 0}
    rows = files.path(files.get("kim", found["output_file_id"])).read_text().splitlines()
    answers = [json.loads(row) for row in rows]
    assert [row["custom_id"] for row in answers] == [f"c{n}" for n in range(100)]
    assert all(row["response"]["body"]["model"] == "desk@v1" for row in answers)
    job = store.get("kim", made["id"].replace("batch_", "job_"))
    assert job.attempts == 3 and found["error_file_id"] is None
    store.close()


def test_a_worker_ends_well_at_sigterm(tmp_path):
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = open_store(url)
    job = store.submit("kim", None, "work", {"n": 1, "seconds": 3.0}, fingerprint="")
    module = [sys.executable, "-m", "onsil.serving.jobs", "--store", url]
    paths = os.pathsep.join([*sys.path, str(CHILD.parent)])
    child = subprocess.Popen(
        [*module, "--handlers", "jobs_child:HANDLERS"], env=os.environ | {"PYTHONPATH": paths}
    )
    until(lambda: store.get("kim", job.id).progress)
    child.terminate()
    assert child.wait(15) == 0
    found = store.get("kim", job.id)
    assert (found.state, found.attempts) == ("ready", 0) and found.progress in (1, 2)
    store.close()
