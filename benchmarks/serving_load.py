"""A caller of many streams at once, as cheap as it can be: raw sockets, one event loop.

Every request asks for a fixed number of tokens after a prompt of ids, streamed, the end token
forbidden. What is measured is when each event came; what the server spent is asked of the system.
"""

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Heard:
    """One request as its caller saw it. Times in seconds."""

    status: int = 0
    first: float = 0.0  # until the first text
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


async def ask(address: str, headers: str, body: dict[str, Any]) -> Heard:
    """One streamed completion on a connection of its own."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    content = json.dumps(body).encode()
    lines = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}"
    lines += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    heard, began = Heard(), time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{lines}Connection: close\r\n\r\n".encode() + content)
    last = began
    async for line in reader:
        if not heard.status:
            heard.status = int(line.split()[1])
        if not line.startswith(b"data: {"):
            continue
        now, event = time.perf_counter(), json.loads(line[6:])
        if event.get("usage"):
            heard.tokens = event["usage"]["completion_tokens"]
        if not event.get("choices") or event["choices"][0].get("finish_reason"):
            continue
        if heard.first:
            heard.gaps.append(now - last)
        else:
            heard.first = now - began
        last = now
    heard.seconds = time.perf_counter() - began
    writer.close()
    return heard


async def closed(address: str, headers: str, bodies: list[dict], streams: int) -> list[Heard]:
    """Each of `streams` callers asks again as soon as it was answered, until none is left."""
    left, found = list(reversed(bodies)), []

    async def caller() -> None:
        while left:
            found.append(await ask(address, headers, left.pop()))

    await asyncio.gather(*(caller() for _ in range(streams)))
    return found


async def opened(
    address: str, headers: str, bodies: list[dict], rate: float, seed: int
) -> list[Heard]:
    """Callers come by chance, `rate` a second, whether or not others were answered (Poisson)."""
    draw, tasks = random.Random(seed), []
    for body in bodies:
        tasks.append(asyncio.create_task(ask(address, headers, body)))
        await asyncio.sleep(draw.expovariate(rate))
    return list(await asyncio.gather(*tasks))


def told(found: list[Heard], seconds: float) -> dict[str, Any]:
    """Figures of a run that took `seconds`."""
    good = [h for h in found if h.status == 200 and h.tokens]
    gaps = sorted(gap for h in good for gap in h.gaps)
    firsts = sorted(h.first for h in good)
    return {
        "requests": len(found),
        "refused": sum(h.status == 503 for h in found),
        "tokens_per_s": round(sum(h.tokens for h in good) / seconds, 2),
        "ttft_ms": [round(1e3 * at(firsts, q), 2) for q in (0.5, 0.99)],
        "gap_ms": [round(1e3 * at(gaps, q), 2) for q in (0.5, 0.99)],
    }


def goodput(found: list[Heard], seconds: float, first: float, gap: float) -> float:
    """Requests a second that met both: the first text within `first` seconds, and between two
    tokens, in the mean, no more than `gap`."""
    kept = [h for h in found if h.status == 200 and h.first <= first and h.gaps]
    return sum(statistics.mean(h.gaps) <= gap for h in kept) / seconds


def at(values: list[float], share: float) -> float:
    """The quantile, between two values in proportion: of two values 0.5 is their mean."""
    return float(np.quantile(values, share)) if values else float("nan")
