"""Steps that other processes look up by name. Not a test itself."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from onsil.graph import BadInput, remaining, step


@step
def upper(text: str) -> str:
    return text.upper()


@step
async def bang(text: str) -> str:
    await asyncio.sleep(0)
    return text + "!"


@step
def where(value: Any) -> int:
    return os.getpid()


@step
def left(value: Any) -> float | None:
    seconds = remaining()
    return None if seconds == float("inf") else round(seconds, 3)


@step
def refuse(value: Any) -> Any:
    raise BadInput(f"Not {value}.")


@step
def broken(value: Any) -> Any:
    raise ValueError("secret words")


@step
def leave(value: Any) -> Any:
    sys.exit(3)


@step
async def give_up(value: Any) -> Any:
    raise asyncio.CancelledError


@step
def odd(value: Any) -> Any:
    return {"set": {1}}


@step
async def noted(value: dict[str, Any]) -> Any:
    """Sleeps; writes into a file that it was cancelled."""
    try:
        await asyncio.sleep(value["seconds"])
    except asyncio.CancelledError:
        Path(value["note"]).write_text("cancelled")
        raise
    return "slept"


def stuck(value: dict[str, Any]) -> str:
    """Blocks for so long that only a kill ends it, the first time."""
    note = Path(value["note"])
    if not note.exists():
        note.write_text(str(os.getpid()))
        time.sleep(600)
    return "free"


def killed(value: dict[str, Any]) -> str:
    """The process that works at it is killed, so many times."""
    note = Path(value["note"])
    times = len(note.read_text()) if note.exists() else 0
    if times < value["times"]:
        note.write_text("x" * (times + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


killed_once = step(killed, name="killed")
killed_again = step(killed, name="killed", idempotent=True)
stuck_step = step(stuck, name="stuck", timeout=0.3)
