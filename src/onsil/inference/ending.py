"""Python does not end while a thread is in a kernel.

When a process ends, its daemon threads are torn away: as soon as one wants the interpreter back,
CPython ends it with pthread_exit. A thread that comes out of torch, or out of the Rust of tokenizer
and grammar, has frames on its stack that cannot be unwound like that: "terminate called without an
active exception", and a process that had done its work dies of SIGABRT. So whatever computes in a
caller's thread does it within `computing`: at the end those inside are waited for, and nobody else
is let in. No tensor may leave it, for freeing one is such a call too. (The engine's own thread is
told to stop.)
"""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from onsil.inference.refusals import Busy

PATIENCE = 30.0  # seconds; who is stuck inside for longer is torn away after all
_changed = threading.Condition()
_inside, _over = 0, False


@contextmanager
def computing() -> Iterator[None]:
    """Around what computes; also a decorator. Raises Busy when Python is ending."""
    global _inside
    with _changed:
        if _over:
            raise Busy("the process is ending")
        _inside += 1
    try:
        yield
    finally:
        with _changed:
            _inside -= 1
            _changed.notify_all()


@atexit.register
def _end() -> None:
    global _over
    with _changed:
        _over = True
        _changed.wait_for(lambda: not _inside, PATIENCE)
