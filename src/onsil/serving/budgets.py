"""Budgets: how often a key may ask in a minute, and how many tokens it may use in a day.

The rate is a token bucket as deep as the limit, kept as one number, the time at which it would be
full again (GCRA, ITU-T I.371). Tokens are counted after an answer, when they are known, so the
answers under way when a budget ends are still given. A day is one of UTC. A clock that is set back
neither refills a day nor shuts a key out for more than a minute.

The counts live in a small mapped file, 64 bytes an owner: a process that is killed loses none of
them, two servers of one workspace share them under a lock, and counting costs microseconds and no
fsync. A machine that loses power may lose the last half minute. What a refusal and every counted
answer say stands in the headers that OpenAI's clients read.
"""

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsil.serving.guard import PUBLIC, Refused, refuse
from onsil.serving.keys import REMOVED, Key, KeyRing

FILE = "budgets"
DAY = 86_400
RECORD = struct.Struct("<32sIQdI8x")  # sha256 of the owner, day, tokens, full at, crc32
log = logging.getLogger("onsil.serving")


class Counts:
    """Two numbers an owner, in a file: tokens of a day, and when the bucket is full again."""

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._places: dict[bytes, int] = {}

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def held(self) -> Iterator[mmap.mmap | None]:
        """The mapped file, alone among threads and processes; None while it is empty."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                size = os.fstat(self._file).st_size // RECORD.size * RECORD.size
                if not size:
                    yield None
                    return
                with mmap.mmap(self._file, size) as held:
                    yield held
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def change(
        self, owner: str, count: Callable[[int, int, float], tuple[int, int, float]]
    ) -> tuple[int, int, float]:
        """(day, tokens, full at) of an owner after `count` changed them; zeros before the first."""
        name = hashlib.sha256(owner.encode()).digest()
        with self.held() as held:
            place = self._place(held, name)
            if place is None:
                place = os.fstat(self._file).st_size // RECORD.size * RECORD.size
                now = count(0, 0, 0.0)
                os.pwrite(self._file, _packed(name, *now), place)
                return now
            assert held is not None
            now = count(*_unpacked(held[place : place + RECORD.size]))
            held[place : place + RECORD.size] = _packed(name, *now)
            return now

    def _place(self, held: mmap.mmap | None, name: bytes) -> int | None:
        if held is None:
            return None
        place = self._places.get(name)
        if place is None:
            for at in range(0, len(held), RECORD.size):
                if held[at : at + 32] == name:
                    place = self._places[name] = at
        return place


def _packed(name: bytes, day: int, tokens: int, full: float) -> bytes:
    check = zlib.crc32(struct.pack("<IQd", day, tokens, full))
    return RECORD.pack(name, day, tokens, full, check)


def _unpacked(record: bytes) -> tuple[int, int, float]:
    _, day, tokens, full, check = RECORD.unpack(record)
    if check != zlib.crc32(struct.pack("<IQd", day, tokens, full)):
        log.error("A budget's count was damaged and starts again.")
        return 0, 0, 0.0
    return day, tokens, full


@dataclass(frozen=True)
class Left:
    """What a key has left: limits, remaining, seconds until whole again; None where unlimited."""

    requests: tuple[int, int, float] | None
    tokens: tuple[int, int, float] | None
    refused: str = ""  # `requests` or `tokens` when there is not enough
    wait: float = 0.0  # seconds until another try makes sense

    def headers(self) -> list[tuple[bytes, bytes]]:
        """OpenAI's: x-ratelimit-{limit,remaining,reset}-{requests,tokens}."""
        found = []
        for what, counts in (("requests", self.requests), ("tokens", self.tokens)):
            if counts:
                limit, remaining, reset = counts
                said = {"limit": str(limit), "remaining": str(remaining), "reset": spell(reset)}
                found += [(f"x-ratelimit-{k}-{what}".encode(), v.encode()) for k, v in said.items()]
        if self.refused:
            found.append((b"retry-after", str(max(1, int(self.wait + 0.999))).encode()))
        return found


def spell(seconds: float) -> str:
    """A duration as OpenAI's headers have it: `120ms`, `7.5s`, `6m0s`, `3h0m12s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


class Budgets:
    """The limits of the keys in `ring`, counted in `home`. `clock`: seconds since the epoch."""

    def __init__(self, home: Path, ring: KeyRing, clock: Callable[[], float] = time.time):
        self.ring, self.clock, self.counts = ring, clock, Counts(home / FILE)

    def admit(self, owner: str) -> Left | None:
        """Count one request of `owner`, unless it is refused; None for an owner without limits.
        Raises Refused (401) for one whose key was removed: what it began ends with it."""
        key = self._key(owner)
        if key is None or (key.requests_per_minute is None and key.tokens_per_day is None):
            return None
        now, rate, most = self.clock(), key.requests_per_minute, key.tokens_per_day
        refused, wait = "", 0.0

        def count(day: int, tokens: int, full: float) -> tuple[int, int, float]:
            nonlocal refused, wait
            day, tokens = (int(now // DAY), 0) if now // DAY > day else (day, tokens)
            full = min(max(full, now), now + 60)
            if most is not None and tokens >= most:
                refused, wait = "tokens", (day + 1) * DAY - now
            elif rate is not None and full - now > 60 - 60 / rate + 1e-6:
                refused, wait = "requests", full - now - (60 - 60 / rate)
            elif rate is not None:
                full += 60 / rate
            return day, tokens, full

        day, tokens, full = self.counts.change(owner, count)
        requests = (rate, int((60 - (full - now)) * rate / 60 + 1e-6), full - now) if rate else None
        used = (most, max(0, most - tokens), (day + 1) * DAY - now) if most else None
        return Left(requests, used, refused, wait)

    def _key(self, owner: str) -> Key | None:
        """The key of an owner; None for the workspace's own. Raises Refused where it is no more."""
        if not self.ring.knows(owner):
            raise Refused(401, REMOVED, "authentication_error")
        return self.ring.of(owner)

    def _refuse_unlimited(self, owner: str) -> None:
        """Raises Refused for a key whose tokens a day could not be counted here."""
        key = self._key(owner)
        if key is not None and key.tokens_per_day is not None:
            message = "This key is limited in tokens, which are not counted at this path."
            raise Refused(403, message, "permission_error")

    def charge(self, owner: str, tokens: int) -> None:
        """Count the tokens of an answer, asked and said."""
        key = self.ring.of(owner)
        if key is None or key.tokens_per_day is None or tokens <= 0:
            return
        today = int(self.clock() // DAY)

        def count(day: int, used: int, full: float) -> tuple[int, int, float]:
            return (today, tokens, full) if today > day else (day, used + tokens, full)

        self.counts.change(owner, count)

    def around(self, app: ASGIApp, uncounted: Collection[str] = ()) -> ASGIApp:
        """`app` with budgets on whatever is asked or posted; whose request it is stands in
        `scope["state"]["owner"]`, what it took in `scope["state"]["observation"]`. A key whose
        tokens are limited has no business at the doors `uncounted`, which do not count any."""

        async def budgeted(scope: Scope, receive: Receive, send: Send) -> None:
            if not _counted(scope, uncounted):
                return await app(scope, receive, send)
            state = scope["state"]
            try:
                if scope["path"] in uncounted:
                    self._refuse_unlimited(state["owner"])
                left = self.admit(state["owner"])
            except Refused as refused:
                return await refuse(send, refused)
            if left is None:
                return await app(scope, receive, send)
            if left.refused:
                return await _refuse(send, left)

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], *left.headers()]}
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                self.charge(state["owner"], state["observation"].tokens)

        return budgeted


def _counted(scope: Scope, doors: Collection[str]) -> bool:
    """Whether a request is one of those that are limited: not a look at a page or at what goes on,
    and not the end of what costs more, unless one of the `doors` is called so."""
    if scope["type"] != "http" or scope["path"] in PUBLIC:
        return False
    ends = scope["method"] == "DELETE" or scope["path"].endswith("/cancel")
    if ends and scope["path"] not in doors:
        return False
    return scope["method"] == "POST" or scope["path"].startswith("/v1/")


async def _refuse(send: Send, left: Left) -> None:
    counts = left.requests if left.refused == "requests" else left.tokens
    assert counts is not None
    span = "minute" if left.refused == "requests" else "day"
    message = (
        f"The limit of {counts[0]:,} {left.refused} a {span} is reached; "
        f"try again in {spell(left.wait)}."
    )
    body = Refused(429, message, left.refused, code="rate_limit_exceeded").body()
    headers = [(b"content-type", b"application/json"), *left.headers()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})
