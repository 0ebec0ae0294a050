"""Templates and schemas from outside are worked on in child processes that can be given up.

A chat template is a program that came with a model, a JSON schema is one that came with a request;
either may be made to run for ever or to fill the memory. Threads cannot be ended, processes can:
past its time the child is killed and the next request gets a new one. Each kind of work has a child
of its own, one question at a time: a schema that takes all its time holds up other schemas, and no
chat.
"""

import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from onsil.documents.sandbox import receive, send

CHILD = Path(__file__).with_name("confined_child.py")
MEMORY = 1 << 30
FIRST = {
    "template": {"template": "", "values": {}},
    "schema": {"schema": '{"type": "null"}', "options": {}},
}


class GaveUp(Exception):
    """The child took too long or died."""


class Confined:
    """A child for templates and one for schemas, each started when first needed; they end with this
    object. `memory`: bytes of address space that each may have."""

    def __init__(self, memory: int = MEMORY):
        self.templates, self.schemas = Child("template", memory), Child("schema", memory)

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to {"template", "values"} or {"schema", "options"}. Raises GaveUp after so
        many seconds, or when the child dies."""
        return (self.schemas if "schema" in message else self.templates).ask(message, seconds)

    def close(self) -> None:
        for child in (self.templates, self.schemas):
            child.close()


class Child:
    """One process for one kind of work, `template` or `schema`."""

    def __init__(self, kind: str, memory: int):
        self.kind, self.memory = kind, memory
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.ending: weakref.finalize | None = None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises GaveUp after so many seconds, or when it dies."""
        with self.lock:
            process, late, answer = self.process or self._start(), threading.Event(), None
            timer = threading.Timer(seconds, _kill, (process, late))
            timer.start()
            try:
                answer = _answer(process, message)
                return answer
            except (BrokenPipeError, EOFError) as error:
                slow = f"it took more than {seconds:g} seconds"
                raise GaveUp(slow if late.is_set() else "it ended the process") from error
            finally:
                timer.cancel()
                timer.join()
                if answer is None or late.is_set():  # what was cut short must not answer the next
                    self._stop()

    def close(self) -> None:
        with self.lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), self.kind, str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        self.ending = weakref.finalize(self, _end, self.process)
        # Loading takes longer than any request may: wait for it outside of their time.
        try:
            _answer(self.process, FIRST[self.kind])
        except (BrokenPipeError, EOFError) as error:
            self._stop()
            raise GaveUp("its process could not be started") from error
        return self.process

    def _stop(self) -> None:
        if self.ending is not None:
            self.ending()
        self.process = self.ending = None


def _answer(process: subprocess.Popen[bytes], message: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    send(process.stdin, message)
    return receive(process.stdout)[0]


def _kill(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what it has not read, nobody misses
                continue
    process.wait()
