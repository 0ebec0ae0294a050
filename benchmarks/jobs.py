"""What a durable job costs: accepted, claimed, finished; ours and two published queues in turn.

    python -m venv peers
    peers/bin/pip install huey==3.5.4 procrastinate==3.10.0 'psycopg[binary]'
    python benchmarks/jobs.py --peer-env peers/bin/python

Accepting means that a commit has reached the disk: ours on SQLite (write-ahead log,
`synchronous=FULL`) and PostgreSQL, huey's SQLite file with `fsync=True`, procrastinate on the same
PostgreSQL. Each round measures one after another, the order turned round every time: `--jobs` jobs
of 500 bytes by one caller, the same by eight at once, and ours through HTTP by eight clients; then
claim and finish by one worker. `disk` is an append of 4 KiB with fsync, the floor of all of them.
Times are wall milliseconds of one operation, `cpu` is this process's microseconds; PostgreSQL's own
are not in it. What the peers do not do is not measured: neither has a lease that runs out by itself
with a fence. Appends a row to benchmarks/results/jobs.jsonl. The goal is p99 ≤ 20 ms and ≥ 200 a
second on an idle disk; the row says how loaded the machine was.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "jobs.jsonl"
CALLERS, PAYLOAD = 8, {"text": "x" * 480}
PEERS = ("huey", "procrastinate")
Times = list[float]


def timed(call: Callable[[], Any], number: int) -> Times:
    """Seconds of each of `number` calls."""
    found = []
    for _ in range(number):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


def summary(times: Times, wall: float, cpu: float) -> dict[str, float]:
    """Rate and percentiles of one series."""
    ordered = sorted(times)
    at = lambda share: 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {
        "per_second": round(len(times) / wall, 1),
        "p50_ms": round(at(0.5), 3),
        "p99_ms": round(at(0.99), 3),
        "cpu_us": round(1e6 * cpu / len(times), 1),
    }


def measured(call: Callable[[], Any], number: int, callers: int = 1) -> dict[str, float]:
    """`number` calls by some callers at once."""
    parts: list[Times] = [[] for _ in range(callers)]

    def one(place: int) -> None:
        parts[place] = timed(call, number // callers)

    threads = [threading.Thread(target=one, args=(place,)) for place in range(callers)]
    before, began = _cpu(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    return summary([t for part in parts for t in part], wall, _cpu() - before)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def disk(folder: Path, number: int) -> dict[str, float]:
    """The floor: one page and an fsync."""
    with (folder / "floor").open("ab", buffering=0) as file:

        def append() -> None:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())

        return measured(append, number)


def ours(url: str, number: int) -> dict[str, Any]:
    """Our store: accepting by one and by eight, claiming and finishing."""
    from onsil.serving.jobs import Job, open_store

    store = open_store(url)
    accept = lambda: store.submit("k", None, "w", PAYLOAD, fingerprint="")  # noqa: E731
    row: dict[str, Any] = {"accept": measured(accept, number)}
    row["accept by 8"] = measured(accept, number, CALLERS)
    held: list[Job] = []

    def claim() -> None:
        job = store.claim(["w"], "w", 600)
        assert job is not None
        held.append(job)

    row["claim"] = measured(claim, number)

    def finish() -> None:
        job = held.pop()
        store.finish(job.id, job.fence, PAYLOAD)

    row["finish"] = measured(finish, number)
    store.close()
    return row


def through_http(url: str, folder: Path, number: int) -> dict[str, float]:
    """POST /v1/jobs to 202, by eight clients that keep their connections."""
    import uvicorn
    from starlette.applications import Starlette

    from onsil.serving.jobs import open_store
    from onsil.serving.jobs.routes import job_routes

    store = open_store(url)
    app = Starlette(routes=job_routes(store, {"w": lambda _: ""}))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    local = threading.local()
    body = json.dumps({"kind": "w", "input": PAYLOAD})
    headers = {"Content-Type": "application/json"}

    def ask() -> None:
        if not hasattr(local, "line"):
            local.line = http.client.HTTPConnection("127.0.0.1", port)
        local.line.request("POST", "/v1/jobs", body, headers)
        answer = local.line.getresponse()
        answer.read()
        assert answer.status == 202

    measured(ask, CALLERS * 4, CALLERS)  # threads and connections of the server, made once
    row = measured(ask, number, CALLERS)
    server.should_exit = True
    thread.join()
    store.close()
    return row


def peer(name: str, url: str, number: int) -> dict[str, Any]:
    """A published queue; runs in its own environment."""
    if name == "huey":
        from huey import SqliteHuey  # pyright: ignore[reportMissingImports]

        queue = SqliteHuey(filename=url, fsync=True, immediate=False)
        task = queue.task()(lambda payload: payload)
        accept: Callable[[], Any] = lambda: task(PAYLOAD)  # noqa: E731
        row = {"accept": measured(accept, number)}
        row["accept by 8"] = measured(accept, number, CALLERS)
        row["claim"] = measured(queue.dequeue, number)
        return row
    import procrastinate  # pyright: ignore[reportMissingImports]

    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
    task = app.task(name="w")(lambda payload: payload)
    with app.open():
        with contextlib.suppress(procrastinate.exceptions.ConnectorException):  # made before
            app.schema_manager.apply_schema()
        accept = lambda: task.defer(payload=PAYLOAD)  # noqa: E731
        row = {"accept": measured(accept, number)}
        row["accept by 8"] = measured(accept, number, CALLERS)
    return row


def run_peer(python: str, name: str, url: str, number: int) -> dict[str, Any]:
    command = [python, __file__, "--peer", name, "--url", url, "--jobs", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def versions(python: str | None) -> dict[str, str]:
    """Of everything that was measured."""
    import sqlite3
    from importlib.metadata import version

    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    found["psycopg"] = version("psycopg")
    if python:
        program = "from importlib.metadata import version as v\n"
        program += f"print(*(v(n) for n in {PEERS!r}))"
        said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
        found |= dict(zip(PEERS, said.stdout.split(), strict=True))
    return found


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("--jobs", type=int, default=1_000)
    reader.add_argument("--rounds", type=int, default=5)
    reader.add_argument("--peer-env", help="the Python of an environment with the peers")
    reader.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    reader.add_argument("--url", help=argparse.SUPPRESS)
    given = reader.parse_args()
    if given.peer:
        print(json.dumps(peer(given.peer, given.url, given.jobs)))
        return
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres

    from onsil.serving.jobs import open_store

    row: dict[str, Any] = {"rounds": []}
    with tempfile.TemporaryDirectory() as name, postgres.server() as server:
        folder = Path(name)
        base, theirs, count = server.database(), server.database(), given.jobs
        open_store(base).close()
        lite = f"sqlite:///{folder / 'jobs.db'}"
        series: dict[str, Callable[[], Any]] = {
            "disk": lambda: disk(folder, count),
            "onsil sqlite": lambda: ours(lite, count),
            "onsil sqlite http": lambda: through_http(lite, folder, count),
            "onsil postgres": lambda: ours(base, count),
            "onsil postgres http": lambda: through_http(base, folder, count),
        }
        if env := given.peer_env:
            series["huey"] = lambda: run_peer(env, "huey", str(folder / "huey.db"), count)
            series["procrastinate"] = lambda: run_peer(env, "procrastinate", theirs, count)
        for number in range(given.rounds):
            order = list(series) if number % 2 == 0 else list(series)[::-1]
            found = {title: series[title]() for title in order}
            row["rounds"].append(found)
            print(json.dumps(found, indent=1))
    row |= {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "jobs": given.jobs,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "kernel": platform.release(),
        },
        "versions": versions(given.peer_env),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
