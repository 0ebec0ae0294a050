"""Files are read in a child process with limits: a bad file costs a row, never the run.

A document from outside may be broken, or made to break readers: a PDF whose objects point at one
another, a page of a million cells, a file that crashes a C library. The child has bounds on memory
and processor time, set by the operating system, and one on the clock, kept by the parent; when it
dies or overruns, the parent writes down why and starts another for the next file. One child reads
many files, for starting Python costs more than reading most of them.

    parent ── suffix, bytes ──▶ child ── kind, title, blocks, members | error ──▶ parent

A message is a length and JSON, then raw bytes; nothing is unpickled. A file that runs out of
memory, or kills a child that has read others, is tried once more in a fresh one, so that the
result does not depend on what was read before. The bounds stop accidents and clumsy malice. They
are no jail: the child can read what its user can. Where there are no rlimits (Windows), only the
clock is bounded.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

from onsil.documents.members import Member
from onsil.documents.types import Block
from onsil.errors import OnsilError

CHILD = "onsil.documents.sandbox_child"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # each reserves memory


@dataclass(frozen=True)
class Limits:
    """Bounds on the reading of one file."""

    memory: int = 4 * 2**30  # bytes of address space
    cpu: int = 120  # seconds of processor time
    wall: float = 300  # seconds on the clock


@dataclass(frozen=True)
class Parsed:
    """What one file holds; of one that LibreOffice must convert first, its suffix alone."""

    suffix: str
    title: str
    blocks: list[Block]
    members: list[Member]


@contextmanager
def sandbox(limits: Limits | None = None) -> Iterator["Sandbox"]:
    """A sandbox whose child is gone when the block ends."""
    box = Sandbox(limits or Limits())
    try:
        yield box
    finally:
        box.stop()


class Sandbox:
    """The parent's side: one child, started when first needed, killed when it overruns."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.child: subprocess.Popen[bytes] | None = None
        self.worn = False  # whether the child has read a file before this one

    def parse(self, suffix: str, data: bytes) -> Parsed:
        """The contents of one file; an OnsilError says what was wrong or which bound it hit."""
        worn = self.worn
        try:
            return self._parsed(suffix, data)
        except _Bound as bound:
            self.stop()
            if worn and not bound.final:
                return self.parse(suffix, data)
            raise bound.error from bound

    def _parsed(self, suffix: str, data: bytes) -> Parsed:
        if self.child is None:
            self.child = _start(self.limits)
        child, overran = self.child, threading.Event()
        timer = threading.Timer(self.limits.wall, _kill, (child, overran))
        timer.start()
        try:
            send(_pipe(child.stdin), {"suffix": suffix, "size": len(data)}, data)
            reply, read = receive(_pipe(child.stdout))
            found = _unpacked(reply, read)
        except (BrokenPipeError, EOFError) as error:
            code = child.wait()
            if overran.is_set():
                raise _Bound(_too_slow(self.limits), final=True) from error
            if code == -getattr(signal, "SIGXCPU", 0):
                raise _Bound(_too_much_work(self.limits), final=True) from error
            raise _Bound(_crashed(code)) from error
        finally:
            timer.cancel()
        self.worn = True
        if "memory" in reply:
            raise _Bound(_out_of_memory(self.limits))
        return found

    def stop(self) -> None:
        """End the child, if there is one."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                _close(pipe)
        self.child, self.worn = None, False


class _Bound(Exception):
    """The child hit a bound or died: what the user is told, and whether a fresh one would too."""

    def __init__(self, error: OnsilError, final: bool = False):
        super().__init__(error.en[0])
        self.error, self.final = error, final


# --- messages -----------------------------------------------------------------------------------


def send(pipe: IO[bytes], message: dict[str, Any], *raw: bytes) -> None:
    """A length, JSON, and what the JSON counts but does not hold. Lone surrogates become `?`."""
    text = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
    pipe.write(struct.pack(">Q", len(text)))
    pipe.write(text)
    for data in raw:
        pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], "Reader"]:
    """The JSON of the next message, and what reads the bytes after it."""
    read = Reader(pipe)
    return json.loads(read(struct.unpack(">Q", read(8))[0])), read


@dataclass(frozen=True)
class Reader:
    """Exactly so many bytes, or EOFError."""

    pipe: IO[bytes]

    def __call__(self, size: int) -> bytes:
        data = self.pipe.read(size)
        if len(data) < size:
            raise EOFError
        return data


def _unpacked(reply: dict[str, Any], read: Reader) -> Parsed:
    if "en" in reply:
        raise _told(reply)
    members = [
        Member(row["name"], error=_told(row))
        if "en" in row
        else Member(row["name"], read(row["size"]))
        for row in reply.get("members", [])
    ]
    blocks = [
        Block(row["kind"], row["text"], row["level"], tuple(map(tuple, row["rows"])))
        for row in reply.get("blocks", [])
    ]
    return Parsed(reply.get("suffix", ""), reply.get("title", ""), blocks, members)


def packed(
    suffix: str, title: str, blocks: list[Block], members: list[Member]
) -> tuple[dict, list[bytes]]:
    """The reply that `_unpacked` reads: JSON, and the bytes of the members."""
    rows = [
        {"name": m.name} | ({"size": len(m.data)} if m.error is None else refusal(m.error))
        for m in members
    ]
    said = [asdict(block) for block in blocks]
    reply = {"suffix": suffix, "title": title, "blocks": said, "members": rows}
    return reply, [m.data for m in members if m.error is None]


def refusal(error: OnsilError) -> dict[str, Any]:
    return {"en": error.en, "ko": error.ko}


def _told(row: dict[str, Any]) -> OnsilError:
    en, ko = row["en"], row["ko"]
    return OnsilError(en=(en[0], en[1], en[2]), ko=(ko[0], ko[1], ko[2]))


# --- the child ----------------------------------------------------------------------------------


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    places = os.pathsep.join(place for place in sys.path if place)
    environment = os.environ | {"PYTHONPATH": places} | dict.fromkeys(THREADS, "1")
    return subprocess.Popen(
        [sys.executable, "-m", CHILD, str(limits.memory), str(limits.cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _kill(child: subprocess.Popen[bytes], overran: threading.Event) -> None:
    overran.set()
    child.kill()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _close(pipe: IO[bytes] | None) -> None:
    """Close a pipe to a dead child, whose unread bytes nobody misses."""
    try:
        _pipe(pipe).close()
    except BrokenPipeError:
        return


# --- what the user is told ----------------------------------------------------------------------


def _too_slow(limits: Limits) -> OnsilError:
    return OnsilError(
        en=(
            f"reading it took more than {limits.wall:g} seconds",
            "A document takes seconds at most; this one is damaged or made to stall readers.",
            "Open it in its program and save it again, or leave it out.",
        ),
        ko=(
            f"읽는 데 {limits.wall:g}초를 넘겼습니다.",
            "보통 문서는 몇 초면 읽습니다. 손상되었거나 일부러 만든 파일로 보입니다.",
            "만든 프로그램에서 열어 다시 저장하거나 폴더에서 빼 주세요.",
        ),
    )


def _out_of_memory(limits: Limits) -> OnsilError:
    size = f"{limits.memory / 2**20:,.0f} MB"
    return OnsilError(
        en=(
            f"reading it took more than {size} of memory",
            "A document takes a small part of that; this one is damaged, or far too large.",
            "Split it, or open it in its program and save it again.",
        ),
        ko=(
            f"읽는 데 메모리를 {size} 넘게 썼습니다.",
            "보통 문서는 그 일부만 씁니다. 손상되었거나 지나치게 큰 파일입니다.",
            "나누어 저장하거나, 만든 프로그램에서 열어 다시 저장해 주세요.",
        ),
    )


def _too_much_work(limits: Limits) -> OnsilError:
    return OnsilError(
        en=(
            f"reading it took more than {limits.cpu} seconds of processor time",
            "A document takes seconds at most; this one is damaged or made to stall readers.",
            "Open it in its program and save it again, or leave it out.",
        ),
        ko=(
            f"읽는 데 프로세서 시간을 {limits.cpu}초 넘게 썼습니다.",
            "보통 문서는 몇 초면 읽습니다. 손상되었거나 일부러 만든 파일로 보입니다.",
            "만든 프로그램에서 열어 다시 저장하거나 폴더에서 빼 주세요.",
        ),
    )


def _crashed(code: int) -> OnsilError:
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return OnsilError(
        en=(
            f"the reader crashed on it ({how})",
            "A library could not cope with it, perhaps for want of memory; other files are safe.",
            "Open it in its program and save it again, or leave it out.",
        ),
        ko=(
            f"파일을 읽던 프로그램이 비정상 종료되었습니다({how}).",
            "라이브러리가 감당하지 못한 파일이며 메모리가 모자랐을 수 있습니다. 다른 파일에는"
            " 영향이 없습니다.",
            "만든 프로그램에서 열어 다시 저장하거나 폴더에서 빼 주세요.",
        ),
    )
