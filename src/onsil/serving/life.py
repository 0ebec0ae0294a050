"""A server's life: alive at once, ready after a warm answer, drained before it goes.

Alive and ready are two questions. `/health` says that the process answers and is what a supervisor
restarts by; `/ready` says that a question asked now would be answered, and is what a balancer sends
traffic by. A server that is loading its model is the first and not the second, and so is one that
was told to stop: from then on new work is refused with 503 and `Retry-After`, what runs may finish
for some seconds, and the process ends with 0. Both routes are open and say one word, so they stand
in front of the guard, answer also while everything behind it is busy, and ask for no key.

Left out: waiting for a balancer to notice. Where one polls slowly, stop it there first.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from onsil.serving.guard import Refused

PROBES = ("/health", "/ready")
HANDSHAKE = 10.0  # seconds
RETRY_AFTER = b"2"  # seconds; a restart is that quick


class Life:
    """Whether one server is ready, whether it is draining, and how many requests it is at."""

    def __init__(self) -> None:
        self.warm = self.draining = False
        self.running = 0

    @property
    def state(self) -> str:
        """`starting`, `ready` or `draining`."""
        return "draining" if self.draining else "ready" if self.warm else "starting"

    def around(self, app: ASGIApp, hosts: frozenset[str]) -> ASGIApp:
        """`app` behind the two routes, for callers who name one of `hosts`, and the gate."""

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            if scope["path"] in PROBES:
                host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
                return await self._probed(scope, host in hosts, send)
            if self.state != "ready":
                message = f"The server is {self.state}; come back in a moment."
                refused = Refused(503, message, "server_error", code=f"server_{self.state}")
                return await _say(send, 503, refused.body())
            self.running += 1
            try:
                await app(scope, receive, send)
            finally:
                self.running -= 1

        return gate

    async def _probed(self, scope: Scope, known: bool, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if not known:
            refused = Refused(421, "This server does not answer to that host name.")
            return await _say(send, 421, refused.body())
        if method not in ("GET", "HEAD"):
            refused = Refused(405, f"{method} {path} is not served here.")
            return await _say(send, 405, refused.body())
        word = "ok" if path == "/health" else self.state
        body = json.dumps({"status": word}).encode()
        await _say(send, 200 if word in ("ok", "ready") else 503, body)


async def _say(send: Send, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    if status == 503:
        headers += [(b"retry-after", RETRY_AFTER), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class PatientLoop(asyncio.SelectorEventLoop):
    """Asyncio's own loop, in which a caller who begins TLS and says no more is held for `HANDSHAKE`
    seconds instead of 60: until it is done, no clock of ours knows the connection."""

    async def create_server(self, *args: Any, ssl: Any = None, **more: Any) -> asyncio.Server:
        if ssl:
            more["ssl_handshake_timeout"] = HANDSHAKE
        return await super().create_server(*args, ssl=ssl, **more)


class DrainingServer(uvicorn.Server):
    """Uvicorn that warms when it listens, drains at a first SIGTERM or SIGINT, stops at a second.

    `warm` makes the life ready; what it raises ends the server and stands in `failure`. While it
    drains it goes on listening, because a refused connection tells a client less than a 503; it
    ends as soon as nothing runs, at the latest after `seconds`, and with exit code 0.
    """

    failure: BaseException | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        life: Life,
        seconds: float,
        warm: Callable[[], Coroutine[Any, Any, None]],
    ):
        super().__init__(config)
        self.life, self.seconds, self._until, self._warm = life, seconds, 0.0, warm

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._warming = asyncio.create_task(self._warm())
        self._warming.add_done_callback(self._is_warm)

    def _is_warm(self, warming: asyncio.Task[None]) -> None:
        if not warming.cancelled() and (failure := warming.exception()) is not None:
            self.failure, self.should_exit = failure, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.life.draining:
            self.should_exit = self.force_exit = True
        self.life.draining = True
        self._until = time.monotonic() + self.seconds

    async def on_tick(self, counter: int) -> bool:
        late = time.monotonic() >= self._until
        if self.life.draining and (late or not self.life.running):
            self.should_exit = True
        return await super().on_tick(counter)
