"""What may stand around a node: memory, a breaker, a newer one beside it.

Each is a function from what runs a node to what runs it with the policy; `running.py` builds them.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from onsil.graph.failures import BadInput, Busy, Failure, Open
from onsil.graph.nodes import Beside, Breaker, Cache, references
from onsil.graph.request import NEVER, Context, step_deadline
from onsil.graph.values import Json, canonical, plain
from onsil.graph.works import failure_of

Run = Callable[[Json, Context], Awaitable[Json]]

MOST_BESIDE = 8  # comparisons under way at once; past it a request is not compared
BESIDE_SECONDS = 60.0  # for one, when the request itself had no deadline
KEPT = 20  # ids of requests that differed
log = logging.getLogger("onsil.graph")


def cached(node: Cache, run: Run) -> Run:
    """`run` with its answers remembered."""
    inside = references(node)
    kept: OrderedDict[bytes, tuple[float, Json]] = OrderedDict()

    async def remembering(value: Json, context: Context) -> Json:
        start = time.monotonic()
        key = _key([context.pins[reference].digest for reference in inside], value)
        found = kept.get(key)
        if found is not None and start < found[0]:
            kept.move_to_end(key)
            context.note(node.title, start, "cached")
            return plain(found[1])
        answer = await run(value, context)
        kept[key] = (time.monotonic() + node.seconds, plain(answer))
        kept.move_to_end(key)
        while len(kept) > node.entries:
            kept.popitem(last=False)
        return answer

    return remembering


def _key(digests: list[str], value: Json) -> bytes:
    """One key for one input to one set of models; as long for a book as for a word."""
    spelled = canonical([digests, value]).encode("utf-8", "surrogatepass")
    return hashlib.sha256(spelled).digest()


def broken(node: Breaker, run: Run) -> Run:
    """`run` behind a breaker. Closed: everybody passes. Open: nobody, for so many seconds. Half
    open: one does; it closes the breaker or opens it again."""
    failed = 0  # in a row
    until = 0.0
    trying = False

    async def guarding(value: Json, context: Context) -> Json:
        nonlocal failed, until, trying
        start = time.monotonic()
        if failed >= node.failures and (trying or start < until):
            context.note(node.title, start, Open.kind)
            wait = max(until - start, 1.0)
            message = f"{node.title} failed {failed} times in a row and is left alone for a while."
            raise Open(message, node.title, retry_after=math.ceil(wait))
        mine = trying = failed >= node.failures
        try:
            answer = await run(value, context)
        except (BadInput, Busy):
            raise
        except (Failure, asyncio.CancelledError) as e:
            if isinstance(e, Failure) or time.monotonic() >= context.deadline:
                failed += 1
                until = time.monotonic() + node.seconds
            raise
        finally:
            if mine:
                trying = False
        if mine or failed < node.failures:  # who came before it opened does not close it
            failed = 0
        return answer

    return guarding


@dataclass
class Comparison:
    """Two nodes on the same requests. `served` counts answers by who gave them; `skipped` those
    that were not compared because too many were; `differing` are ids of the last that differed."""

    name: str
    other: str
    served: dict[str, int] = field(default_factory=lambda: {"node": 0, "other": 0})
    same: int = 0
    different: int = 0
    failed: int = 0
    skipped: int = 0
    differing: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    def told(self) -> dict[str, Any]:
        """As plain JSON, for a page or metrics."""
        return self.__dict__ | {"served": dict(self.served), "differing": list(self.differing)}


def in_share(request_id: str, salt: str, share: float) -> bool:
    """Whether a request belongs to the share: the same id always does or never, and two canaries
    (by `salt`) draw independently."""
    drawn = hashlib.sha256(f"{salt}\0{request_id}".encode()).digest()
    return int.from_bytes(drawn[:8]) < share * 2**64


def differ(one: Json, other: Json) -> bool:
    """Whether two answers differ in anything but which model gave them."""
    return _said(one) != _said(other)


def _said(answer: Json) -> str:
    if isinstance(answer, dict):
        answer = {key: value for key, value in answer.items() if key != "model"}
    return canonical(answer)


class Comparing:
    """The requests of one graph that are compared in the background."""

    def __init__(self) -> None:
        self.comparisons: list[Comparison] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def beside(self, node: Beside, run: Run, other: Run) -> Run:
        """Who answers, and who is asked beside."""
        one, another = (inner.title for inner in node.inside)
        kept = Comparison(one, another)
        self.comparisons.append(kept)
        salt = f"{one}\0{another}"

        async def choosing(value: Json, context: Context) -> Json:
            drawn = in_share(context.id, salt, node.share)
            first, second = (other, run) if drawn and node.answers else (run, other)
            copy = plain(value) if drawn else None
            answer = await first(value, context)
            kept.served["other" if first is other else "node"] += 1
            if drawn:
                self._begin(kept, node, (plain(answer), copy, second, context))
            return answer

        return choosing

    def _begin(self, kept: Comparison, node: Beside, asked: Any) -> None:
        if len(self.tasks) >= MOST_BESIDE:
            kept.skipped += 1
            return
        task = asyncio.create_task(self._compare(kept, node, *asked))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _compare(
        self, kept: Comparison, node: Beside, answer: Json, copy: Json, asked: Run, within: Context
    ) -> None:
        context = _own(within)
        step_deadline.set(context.deadline)
        try:
            async with asyncio.timeout(context.deadline - time.monotonic()):
                compared = await asked(copy, context)
            pair = (compared, answer) if node.answers else (answer, compared)
            different = (node.diff or differ)(*pair)
        except (Failure, TimeoutError):
            kept.failed += 1
        except Exception as e:  # of `diff`
            failure = failure_of(e, "diff")
            log.warning("%s beside %s: %s", kept.other, kept.name, failure.message)
            log.debug("%s", failure.detail)
            kept.failed += 1
        else:
            kept.same += not different
            kept.different += bool(different)
            if different:
                kept.differing.append(context.id)

    async def settled(self) -> None:
        """When every comparison that was begun has ended."""
        while self.tasks:
            await asyncio.wait(list(self.tasks))


def _own(context: Context) -> Context:
    """The same request again: its models, its deadline or one of its own, a trace nobody reads."""
    deadline = context.deadline
    if deadline == NEVER:
        deadline = time.monotonic() + BESIDE_SECONDS
    return Context(context.id, deadline, context.pins)
