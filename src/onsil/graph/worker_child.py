"""The child of `workers.py`: makes one work from its description, then answers calls until its
parent closes the line.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from typing import Any

from onsil.errors import OnsilError
from onsil.graph.failures import Failure, NotReady
from onsil.graph.request import NEVER, Pin, step_deadline
from onsil.graph.values import plain
from onsil.graph.wire import HEAD, packed
from onsil.graph.works import Work, failure_of, work_of


class Child:
    """One work and the calls that are under way."""

    def __init__(self, work: Work, writer: asyncio.StreamWriter):
        self.work, self.writer = work, writer
        self.calls: dict[int, asyncio.Task[None]] = {}

    def take(self, message: dict[str, Any]) -> None:
        """Begin a call, or cancel one."""
        number = message["id"]
        if message.get("cancel"):
            if number in self.calls:
                self.calls[number].cancel()
            return
        self.calls[number] = task = asyncio.create_task(self.answer(number, message))
        task.add_done_callback(lambda _: self.calls.pop(number))

    async def answer(self, number: int, message: dict[str, Any]) -> None:
        """Do what a message asks and say how it ended; a call that was cancelled, when its function
        has really ended."""
        pin = Pin(*message["pin"]) if message["pin"] else None
        left = message["seconds"]
        step_deadline.set(NEVER if left is None else time.monotonic() + left)
        told: dict[str, Any]
        try:
            if message.get("load"):
                told = {"value": await self.work.load(pin)}
            else:
                told = {"value": plain(await self.work.call(message["value"], pin))}
            line = packed(told | {"id": number})
        except asyncio.CancelledError:
            line = packed({"id": number, "value": None})
        except Exception as e:  # told to the caller, who raises it
            line = packed({"id": number, "failure": failure_of(e).told()})
        self.writer.write(line)
        await self.writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises IncompleteReadError at the end of the line."""
    (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
    return json.loads(await reader.readexactly(length))


async def serve(line: socket.socket) -> None:
    """Everything, from the description of the work to the end of the line."""
    reader, writer = await asyncio.open_connection(sock=line)
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        described = await receive(reader)
        try:
            child = Child(work_of(described), writer)
        except (Exception, SystemExit) as e:  # a deployment file may do anything when it is read
            said = e.en[0] if isinstance(e, OnsilError) else f"{type(e).__name__}: {e}"
            failure = e if isinstance(e, Failure) else NotReady(said)
            writer.write(packed({"id": 0, "failure": failure.told()}))
            await writer.drain()
            return
        writer.write(packed({"id": 0, "value": os.getpid()}))
        while True:
            child.take(await receive(reader))


def main(number: int) -> None:
    """The life of a child; `number` is that of its open socket. A signal to the whole group, as by
    Ctrl-C, is the parent's to obey: it may still want answers."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.set_inheritable(number, False)
    asyncio.run(serve(socket.socket(fileno=number)))
    os._exit(0)  # a function that still runs in a thread does not keep the process
