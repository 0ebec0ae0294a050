"""A step in a process of its own: started afresh, spoken to in JSON, replaced when it dies.

    here ── {"id", "value", "pin", "seconds"} ──▶ child ── {"id", "value" | "failure"} ──▶ here

A process is worth its microseconds for what a thread cannot give: a second processor for Python
code, memory of its own, and an end. A call whose caller has gone is cancelled in the child; when
its function has not ended `GRACE` seconds later the child is retired: new calls go to a new one,
and the old one is killed as soon as no other call waits for it. A child that dies takes its calls
with it (Died); the next call starts another.

The child is a new interpreter, not a fork: a fork of a process with threads and torch in it may
hang. It ends when this process does, because its line ends. Two threads here read and write the
line, so that a child that no longer reads holds up nobody but itself.
"""

import asyncio
import contextlib
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

from onsil.errors import language
from onsil.graph.failures import Died, Failure, NotReady, read_failure
from onsil.graph.request import NEVER, Pin, step_deadline
from onsil.graph.values import Json
from onsil.graph.wire import packed, receive

CHILD = (  # the module path of this process, and nothing of the folder it is started in
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from onsil.graph.worker_child import main; main(int(sys.argv[1]))"
)
GRACE = 2.0  # seconds that a cancelled function has to end


class Worker:
    """One child and the calls that wait for it. Made in any thread, called from any loop."""

    def __init__(self, work: dict[str, Json]):
        self.line, theirs = socket.socketpair()
        environment = os.environ | {"ONSIL_LANG": language()}
        command = [sys.executable, "-P", "-c", CHILD, str(theirs.fileno()), *sys.path]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self.numbers = itertools.count(1)
        self.waiting: dict[int, Future[Any]] = {}
        self.dropped: set[int] = set()  # cancelled, not ended yet
        self.retired = self.gone = False
        self.lock = threading.Lock()
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.started = self._expect(0)
        self.threads = [
            threading.Thread(target=target, name="onsil-worker", daemon=True)
            for target in (self._read, self._write)
        ]
        for thread in self.threads:
            thread.start()
        self.outgoing.put(packed(work))

    def call(self, message: dict[str, Any]) -> tuple[int, Future[Any]]:
        """Send a call: its number and the future of its value. Raises Died when the child has
        ended, ValueError for a message that cannot be sent."""
        number = next(self.numbers)
        line = packed(message | {"id": number})
        answer = self._expect(number)
        self.outgoing.put(line)
        return number, answer

    def drop(self, number: int) -> None:
        """Nobody waits for this call any more."""
        with self.lock:
            if number not in self.waiting:
                return
            self.dropped.add(number)
        self.outgoing.put(packed({"id": number, "cancel": True}))

    def overran(self, number: int) -> None:
        """The grace of a dropped call is over: when it has not ended, no more calls come here."""
        with self.lock:
            self.retired = self.retired or number in self.dropped
        self._end_if_retired()

    def close(self) -> None:
        """End the child at once."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # the other end may have closed it
            self.line.shutdown(socket.SHUT_RDWR)  # though a grandchild may hold it open
        self.outgoing.put(None)
        for thread in self.threads:
            thread.join()
        self.line.close()

    def _expect(self, number: int) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_running_or_notify_cancel()  # a caller that goes does not take it away
        with self.lock:
            if self.gone:
                raise _died(self.process)
            self.waiting[number] = answer
        return answer

    def _end_if_retired(self) -> None:
        with self.lock:
            wanted = len(self.waiting) - len(self.dropped)
        if self.retired and not wanted:
            self.process.kill()

    def _read(self) -> None:
        """Hand every answer to whoever waits for it, until the line ends."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._settle(receive(self.line))
        with self.lock:
            self.gone = True
            left, self.waiting = self.waiting, {}
        self.process.wait()
        for number, answer in left.items():
            answer.set_exception(_died(self.process) if number else _not_started(self.process))

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the child has gone; whoever reads tells it
            while (line := self.outgoing.get()) is not None:
                self.line.sendall(line)

    def _settle(self, message: dict[str, Any]) -> None:
        with self.lock:
            answer = self.waiting.pop(message["id"])
            self.dropped.discard(message["id"])
        if "failure" in message:
            answer.set_exception(read_failure(message["failure"]))
        else:
            answer.set_result(message["value"])
        self._end_if_retired()


class InProcess:
    """A work in a child: see `works.Work`."""

    def __init__(self, work: dict[str, Json]):
        self.work = work
        self.worker: Worker | None = None
        self.old: list[Worker] = []

    @property
    def running(self) -> int:
        every = (*self.old, *([self.worker] if self.worker else []))
        return sum(len(w.waiting) - (0 in w.waiting) for w in every)

    async def call(self, value: Json, pin: Pin | None) -> Json:
        return await self._asked({"value": value, "pin": pin})

    async def load(self, pin: Pin | None) -> str | None:
        return await self._asked({"load": True, "pin": pin})

    async def _asked(self, message: dict[str, Any]) -> Json:
        worker = self._current()
        await asyncio.wrap_future(worker.started)
        deadline = step_deadline.get()
        seconds = None if deadline == NEVER else deadline - time.monotonic()
        number, answer = worker.call(message | {"seconds": seconds})
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            worker.drop(number)
            asyncio.get_running_loop().call_later(GRACE, worker.overran, number)
            raise

    def _current(self) -> Worker:
        """The child that takes calls; a new one when there is none that is well."""
        worker = self.worker
        if worker is None or worker.gone or worker.retired:
            if worker is not None:
                self.old.append(worker)
            for old in [w for w in self.old if w.gone]:
                old.close()
                self.old.remove(old)
            self.worker = worker = Worker(self.work)
        return worker

    def close(self) -> None:
        for worker in (*self.old, *([self.worker] if self.worker else [])):
            worker.close()
        self.worker, self.old = None, []


def _died(process: subprocess.Popen) -> Failure:
    code = process.poll()
    how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
    return Died(f"Its process ended ({how}) while it worked.")


def _not_started(process: subprocess.Popen) -> Failure:
    return NotReady(f"Its process ended before it began (status {process.poll()}).")
