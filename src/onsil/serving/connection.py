"""What uvicorn does not bound: how long a connection may dawdle, how many requests begin at once.

*A connection that is not at work is closed.* Uvicorn bounds the idle time between two requests, but
not how long the headers of one may take, nor how long a client may go on sending a body that was
already answered; a few hundred such clients would take every file handle of the server. Here a
connection is at work from the end of a request's headers to the end of its answer (the guard bounds
that time), and whatever else it does may take `PATIENCE` seconds in all, however slowly it drips.

*Requests begin in turns.* An event loop does what is ready in one pass, and a thousand callers at
once are a pass of a second, in which nothing else is heard. Here `TURN` of them begin in a pass;
the others wait, in the order they came, while the loop looks around. A probe does not wait: whoever
asks whether the server is alive hears it from the midst of the crowd.
"""

import asyncio
import sys
from collections import deque
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.h11_impl import H11Protocol

from onsil.serving.guard import Refused
from onsil.serving.life import PROBES

PATIENCE, TURN = 20.0, 2
FIRST = tuple(f"{method} {path} ".encode() for method in ("GET", "HEAD") for path in PROBES)
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Turns:
    """Who may begin a request on one event loop, and who waits."""

    def __init__(self):
        self.begun = 0  # in this pass
        self.waiting: deque[tuple[PatientConnection, bytes]] = deque()

    def take(self, connection: "PatientConnection", data: bytes) -> None:
        """Begin now or later; until then no more is read from that connection."""
        if not self.begun:
            asyncio.get_running_loop().call_soon(self._pass)
        if self.begun < TURN:
            self.begun += 1
            connection.begin(data)
        else:
            connection.transport.pause_reading()
            self.waiting.append((connection, data))

    def _pass(self) -> None:
        self.begun = min(TURN, len(self.waiting))
        if self.begun:
            asyncio.get_running_loop().call_soon(self._pass)
        for _ in range(self.begun):
            connection, data = self.waiting.popleft()
            connection.transport.resume_reading()
            connection.begin(data)


TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


class PatientConnection(H11Protocol):
    """Uvicorn's HTTP/1.1 with both bounds; given to `uvicorn.Config(http=...)`."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._at_work or data.startswith(FIRST):
            self.begin(data)
        else:
            if self.loop not in TURNS:
                TURNS[self.loop] = Turns()  # which does not know its loop, or neither would ever go
            TURNS[self.loop].take(self, data)

    def begin(self, data: bytes) -> None:
        """What was received is read."""
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    @property
    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Called where bytes were no request. Headers that are too long have a status of their own,
        and every refusal one form."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        message = msg if status != 431 else "The headers are too large."
        body = Refused(status, message).body()
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        head = f"{first}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock, leave it running, or stop it while there is work."""
        if self._at_work:
            self._stop()
        elif self._clock is None and not self.transport.is_closing():
            self._clock = self.loop.call_later(PATIENCE, self._give_up)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        between = self.cycle is None or not self.cycle.more_body
        if between and self.conn.trailing_data[0]:
            self.transport.write(LATE)  # headers began and never ended
        self.transport.close()
