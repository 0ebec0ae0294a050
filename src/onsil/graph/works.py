"""The work of a leaf, whatever place it is done at: a function called, a model asked.

    await work.call(value, pin)        one value in, one out, or an exception
    work.running                       calls under way, also those whose caller has gone

A work is described in plain JSON (`described`), so that a process or an actor can make the same
one (`work_of`). A function that blocks runs in a thread; nobody can end a thread, so a call whose
caller gave up keeps its place among the running until it ends, and the next ones hear Busy instead
of piling up behind it.
"""

import asyncio
import contextvars
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from onsil.graph.failures import Failed, Failure
from onsil.graph.functions import address_of, function_at
from onsil.graph.models import Models, Preparing, check_preparation
from onsil.graph.nodes import Leaf, Model, Prep, Step, is_async
from onsil.graph.request import Caller, Pin, caller
from onsil.graph.values import Json, NotPlain


class Work(Protocol):
    """What a leaf does."""

    @property
    def running(self) -> int: ...

    async def call(self, value: Json, pin: Pin | None) -> Json: ...

    async def load(self, pin: Pin | None) -> str | None:
        """Make ready for `pin`; the preparation that this gives or needs, if it has one."""

    def close(self) -> None: ...


class Threads:
    """A bounded number of threads for calls that block. `patient`: a call that is cancelled waits
    for its thread, as it should where nobody is waiting for the call any more."""

    def __init__(self, most: int, patient: bool):
        self.running, self.patient = 0, patient
        self._pool = ThreadPoolExecutor(most, "onsil-step")

    async def call(self, fn: Callable[..., Any], *arguments: Any) -> Any:
        """`fn(*arguments)` in a thread that sees this call's deadline."""
        self.running += 1
        here, waiting = contextvars.copy_context(), Caller()
        here.run(caller.set, waiting)
        loop = asyncio.get_running_loop()
        thread = self._pool.submit(here.run, fn, *arguments)
        thread.add_done_callback(lambda _: _tell(loop, self._ended))
        doing = asyncio.wrap_future(thread)
        try:
            return await asyncio.shield(doing)
        except (asyncio.CancelledError, SystemExit) as e:
            _by_itself(e)
            waiting.go()
            if not thread.cancel() and self.patient:
                await asyncio.wait([doing])
            doing.add_done_callback(_dropped)
            raise

    def _ended(self) -> None:
        self.running -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _dropped(doing: asyncio.Future) -> None:
    """Look at a result that nobody waits for, so that its exception is not called forgotten."""
    if not doing.cancelled():
        doing.exception()


def _tell(loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    """Run `fn` on the loop, or here when a thread outlived it."""
    try:
        loop.call_soon_threadsafe(fn)
    except RuntimeError:  # the loop is closed
        fn()


def _by_itself(end: BaseException) -> None:
    """Raises Failed unless this call is being cancelled: a function that calls `sys.exit()`, or
    cancels itself, ends neither the server nor its caller."""
    task = asyncio.current_task()
    if isinstance(end, SystemExit) or not (task and task.cancelling()):
        raise failure_of(end) from end


class Inline:
    """A function on the event loop, called or awaited."""

    def __init__(self, fn: Callable[[Json], Any]):
        self.running, self.fn, self.awaited = 0, fn, is_async(fn)

    async def call(self, value: Json, pin: Pin | None) -> Json:
        self.running += 1
        try:
            return await self.fn(value) if self.awaited else self.fn(value)
        except (asyncio.CancelledError, SystemExit) as e:
            _by_itself(e)
            raise
        finally:
            self.running -= 1

    async def load(self, pin: Pin | None) -> str | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


class Threaded:
    """A function that blocks, in a thread of its own pool."""

    def __init__(self, fn: Callable[[Json], Any], most: int, patient: bool):
        self.fn, self.threads = fn, Threads(most, patient)

    @property
    def running(self) -> int:
        return self.threads.running

    async def call(self, value: Json, pin: Pin | None) -> Json:
        return await self.threads.call(self.fn, value)

    async def load(self, pin: Pin | None) -> str | None:
        return None

    def close(self) -> None:
        self.threads.close()


class Asking:
    """A model, asked in threads."""

    def __init__(self, models: Models, most: int, limit: int, patient: bool):
        self.models, self.limit, self.threads = models, limit, Threads(most, patient)

    @property
    def running(self) -> int:
        return self.threads.running

    async def call(self, value: Json, pin: Pin | None) -> Json:
        assert pin is not None
        return await self.threads.call(self._asked, value, pin)

    def _asked(self, value: Json, pin: Pin) -> Json:
        with self.models.using(pin) as model:
            check_preparation(value, model.preparation, pin)
            return model.ask(value, pin, self.limit)

    async def load(self, pin: Pin | None) -> str | None:
        """Ready after a warm answer."""
        assert pin is not None
        return await self.threads.call(self._warmed, pin)

    def _warmed(self, pin: Pin) -> str:
        with self.models.using(pin) as model:
            model.warm()
            return model.preparation

    def close(self) -> None:
        self.threads.close()


class Prepared:
    """A model's preprocessing, in threads; of the last model alone the tokenizer is kept."""

    def __init__(self, models: Models, most: int, patient: bool):
        self.models, self.threads = models, Threads(most, patient)
        self._kept: tuple[str, Preparing] | None = None

    @property
    def running(self) -> int:
        return self.threads.running

    async def call(self, value: Json, pin: Pin | None) -> Json:
        assert pin is not None
        return await self.threads.call(lambda: self._preparing(pin).prepare(value))

    def _preparing(self, pin: Pin) -> Preparing:
        kept = self._kept
        if kept is None or kept[0] != pin.digest:
            self._kept = kept = (pin.digest, self.models.preparing(pin))
        return kept[1]

    async def load(self, pin: Pin | None) -> str | None:
        assert pin is not None
        return (await self.threads.call(self._preparing, pin)).preparation

    def close(self) -> None:
        self.threads.close()


def failure_of(error: BaseException, step: str | None = None) -> Failure:
    """What an exception of a step means to the caller: itself, or Failed without its words, which
    stand in `detail` with the place in the code."""
    if isinstance(error, Failure):
        failure = error
    elif isinstance(error, NotPlain):
        failure = Failed("It gave something that is not plain JSON.", detail=str(error))
    else:
        told = "".join(traceback.format_exception(error, limit=-1))
        failure = Failed(f"It raised {type(error).__name__}.", detail=told)
    failure.step = failure.step or step
    return failure


def described(leaf: Leaf, home: Path | None) -> dict[str, Json]:
    """The work of a leaf in plain JSON. Raises OnsilError for a function without an address."""
    told: dict[str, Json] = {"most": leaf.max_inflight, "home": str(home) if home else None}
    match leaf:
        case Step(fn=fn):
            return told | {"work": "step", "function": address_of(fn)}
        case Model(limit=limit):
            return told | {"work": "model", "limit": limit}
        case Prep():
            return told | {"work": "prep"}
    raise TypeError(leaf)


def work_of(told: dict[str, Json]) -> Work:
    """The work that was described: what a process or an actor does. Raises OnsilError when its
    function or workspace is not there."""
    if told["work"] == "step":
        fn = function_at(told["function"])
        return Inline(fn) if is_async(fn) else Threaded(fn, told["most"], True)
    models = Models(Path(told["home"]))
    if told["work"] == "prep":
        return Prepared(models, told["most"], True)
    return Asking(models, told["most"], told["limit"], True)


def work_here(leaf: Leaf, place: str, models: Models | None) -> Work:
    """The work of a leaf in this process, `place` being inline or pool."""
    if isinstance(leaf, Step):
        if place == "inline" or is_async(leaf.fn):
            return Inline(leaf.fn)
        return Threaded(leaf.fn, leaf.max_inflight, False)
    assert models is not None
    if isinstance(leaf, Model):
        return Asking(models, leaf.max_inflight, leaf.limit, False)
    return Prepared(models, leaf.max_inflight, False)
