"""Templates and schemas from outside are worked on in a child process that can be given up.

A chat template is a program that came with a model, a JSON schema is one that came with a request;
either may be made to run for ever or to fill the memory. Threads cannot be ended, processes can:
past its time the child is killed and the next request gets a new one. One question at a time.
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


class GaveUp(Exception):
    """The child took too long or died."""


class Confined:
    """One child, started when first needed; it ends with this object."""

    def __init__(self, memory: int = MEMORY):
        self.memory = memory
        self.lock = threading.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self.ending: weakref.finalize | None = None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The child's answer. Raises GaveUp after so many seconds, or when it dies."""
        with self.lock:
            child, late, answer = self.child or self._start(), threading.Event(), None
            timer = threading.Timer(seconds, _kill, (child, late))
            timer.start()
            try:
                answer = _answer(child, message)
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
        self.child = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        self.ending = weakref.finalize(self, _end, self.child)
        # Loading takes longer than any request may: wait for it outside of their time.
        try:
            _answer(self.child, {"template": "", "values": {}})
        except (BrokenPipeError, EOFError) as error:
            self._stop()
            raise GaveUp("its process could not be started") from error
        return self.child

    def _stop(self) -> None:
        if self.ending is not None:
            self.ending()
        self.child = self.ending = None


def _answer(child: subprocess.Popen[bytes], message: dict[str, Any]) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    send(child.stdin, message)
    return receive(child.stdout)[0]


def _kill(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what it has not read, nobody misses
                continue
    child.wait()
