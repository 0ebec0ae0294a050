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
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from serving import RESULTS, append, http, llama, prepare
from serving_load import at

TOKENS, SECONDS = 40, 20.0


async def watch(address: str, until: asyncio.Event, process: psutil.Process) -> dict[str, Any]:
    """`/health` ten times a second, on a new connection each, and the memory at its highest."""
    times: list[float] = []
    lost = 0
    before = peak = process.memory_info().rss
    while not until.is_set():
        began = time.perf_counter()
        try:
            async with httpx.AsyncClient(timeout=10) as client:
                answered = await client.get(f"{address}/health")
            lost += answered.status_code != 200
        except httpx.HTTPError:
            lost += 1
        times.append(time.perf_counter() - began)
        peak = max(peak, process.memory_info().rss)
        await asyncio.sleep(0.1)
    times.sort()
    shown = [round(1e3 * t, 1) for t in (at(times, 0.5), at(times, 0.99), times[-1])]
    return {"health_ms": shown, "health_lost": lost, "grown": peak - before}


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
    over = asyncio.Event()
    watching = asyncio.create_task(watch(address, over, process))
    await asyncio.sleep(0.5)
    statuses = await asyncio.gather(*(kind(address, headers, body) for _ in range(callers)))
    over.set()
    seen = await watching
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
    results = RESULTS.with_name("flood.jsonl")
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
                append({"side": name} | row, results)


if __name__ == "__main__":
    sys.exit(main())
