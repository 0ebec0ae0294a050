"""A thousand callers at once: what a server holds, whom it refuses, and whether it still answers.

    python benchmarks/flood.py [--callers 1000] [--peer LLAMA_CPP_BUILD/bin HOME]

Two floods, one after the other. *Slow streams*: every caller asks for a streamed completion and
reads it a little at a time. *Half-open*: every caller sends the first half of its headers and then
nothing. All the while `/health` is asked ten times a second. Told: statuses, the memory that the
server grew by a caller, and how long `/health` took (p50, p99, worst). Rows are appended to
benchmarks/results/flood.jsonl. With `--peer`, llama.cpp's server gets the same, on the model that
`serving.py prepare HOME` made.
"""

import argparse
import asyncio
import json
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from serving import append, http, llama, prepare
from serving_load import at

TOKENS, SECONDS = 40, 20.0


def watch(address: str) -> None:
    """`/health` ten times a second, on a new connection each, until standard input ends; then a
    line: seconds each took, and how many did not answer 200. A process of its own, for the one
    that floods would measure how busy it is itself."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    asking = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    times: list[float] = []
    lost = 0
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        began, said = time.perf_counter(), b""
        try:
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(asking)
                while part := connection.recv(4096):
                    said += part
        except OSError:
            pass
        lost += b" 200 " not in said.partition(b"\r\n")[0]
        times.append(time.perf_counter() - began)
    print(json.dumps([times, lost]))


@contextmanager
def watched(address: str, process: psutil.Process) -> Iterator[dict[str, Any]]:
    """What `watch` saw while the body ran, and by how much the server grew at most."""
    seen: dict[str, Any] = {}
    before = peak = process.memory_info().rss
    command = [sys.executable, __file__, "watch", address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as watcher:
        assert watcher.stdin is not None and watcher.stdout is not None
        watcher.stdout.readline()
        over = threading.Event()

        def weigh() -> None:
            nonlocal peak
            while not over.wait(0.1):
                peak = max(peak, process.memory_info().rss)

        weighing = threading.Thread(target=weigh)
        weighing.start()
        try:
            yield seen
        finally:
            over.set()
            weighing.join()
            said, _ = watcher.communicate("")
        times, lost = json.loads(said)
    times.sort()
    shown = [round(1e3 * t, 1) for t in (at(times, 0.5), at(times, 0.99), times[-1])]
    seen |= {"health_ms": shown, "health_lost": lost, "grown": peak - before}


async def slow_stream(address: str, headers: str, body: bytes) -> int:
    """Ask, and read 200 bytes every tenth of a second; the status (0: no answer at all)."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2048)
        lines = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}"
        lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{lines}Connection: close\r\n\r\n".encode() + body)
        first = await reader.readline()
        while await reader.read(200):
            await asyncio.sleep(0.1)
        writer.close()
    except OSError:
        return 0
    return int(first.split()[1]) if first else 0


async def half_open(address: str, headers: str, body: bytes) -> int:
    """Half of the headers, then silence until the server ends it: the status it gave (0: none)."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nX-".encode())
        said = await asyncio.wait_for(reader.read(), SECONDS + 20)
        writer.close()
        return int(said.split()[1]) if said else 0
    except (OSError, TimeoutError):
        return 0


async def flood(kind: Any, place: tuple, callers: int, body: bytes) -> dict[str, Any]:
    address, headers, process = place
    with watched(address, process) as seen:
        await asyncio.sleep(0.5)
        statuses = await asyncio.gather(*(kind(address, headers, body) for _ in range(callers)))
    counts = {str(s): statuses.count(s) for s in sorted(set(statuses))}
    return {
        "flood": kind.__name__,
        "callers": callers,
        "statuses": counts,
        "kib_a_caller": round(seen.pop("grown") / 1024 / callers, 1),
    } | seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=1_000)
    parser.add_argument("--peer", nargs=2, type=Path, metavar=("BIN", "HOME"))
    told = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    body = {"model": "pen", "prompt": [300] * 20, "max_tokens": TOKENS, "stream": True}
    content = json.dumps(body).encode()
    with tempfile.TemporaryDirectory() as folder:
        home = told.peer[1] if told.peer else Path(folder) / "home"
        if not told.peer:
            prepare(home, 64, 2)
        for name in ["http", "llama"] if told.peer else ["http"]:
            for kind in (slow_stream, half_open):
                made = http(home, 1) if name == "http" else llama(home, 1, told.peer[0])
                with made as place:
                    asyncio.run(flood(slow_stream, place, 64, content))  # warm: slots, threads
                    row = asyncio.run(flood(kind, place, told.callers, content))
                append({"side": name} | row, "flood")


if __name__ == "__main__":
    watch(sys.argv[2]) if sys.argv[1:2] == ["watch"] else main()
