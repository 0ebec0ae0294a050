"""A graph laid somewhere, to be asked: `run = compile(node)`, `answer = await run(value)`.

Every node becomes one async function of a value and the request; that is all composition is (four
steps in a row cost some microseconds). What differs between placements is who does the work of a
leaf: a call on the event loop, a thread, a child process, a Ray actor. Limits, retries, the trace
and the copying of values are the same for all of them and stand here, once.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from onsil.errors import OnsilError
from onsil.graph.failures import BadInput, Busy, Died, Failure, Late, NoQuorum
from onsil.graph.models import Models, at_odds
from onsil.graph.nodes import (
    Beside,
    Breaker,
    Cache,
    Leaf,
    Model,
    Node,
    Parallel,
    Prep,
    Route,
    Serial,
    leaves,
    references,
)
from onsil.graph.policies import Comparing, Comparison, Run, broken, cached
from onsil.graph.request import NEVER, Answer, Context, Pin, step_deadline
from onsil.graph.values import Json, NotPlain, plain
from onsil.graph.works import Work, described, failure_of, work_here
from onsil.lineage import Workspace

Placement = Literal["inline", "pool", "process", "ray"]
PLACEMENTS = ("inline", "pool", "process", "ray")
PAUSE = 0.05  # seconds before the first retry, then twice as long each time
log = logging.getLogger("onsil.graph")
Spanned = Callable[[str, dict[str, str]], AbstractContextManager[Any]]
_nothing = nullcontext()


def unseen(name: str, attributes: dict[str, str]) -> AbstractContextManager[Any]:
    """No span."""
    return _nothing


def compile(node: Node, placement: Placement = "inline", ws: Workspace | None = None) -> "Running":
    """Lay `node` where it shall run. Steps that name a place of their own go there, the others to
    `placement`. `ws` is the workspace of its models, by default the one found from here. Raises
    OnsilError for a step that cannot run there. Close what it returns."""
    ground = Ground(placement, ws)
    try:
        return Running(node, ground)
    except OnsilError:
        ground.close()
        raise


class Ground:
    """Where graphs are laid: a placement, a workspace, and the work of each leaf. A leaf that
    stands in several graphs, or twice in one, has one work and one limit, and a model that several
    ask is in memory once. Each attempt of a leaf runs inside `span(name, attributes)`; what that
    gives, when it is not None, is a span of OpenTelemetry's and is told how the attempt ended."""

    def __init__(self, placement: Placement, ws: Workspace | None = None, span: Spanned = unseen):
        if placement not in PLACEMENTS:
            known = ", ".join(PLACEMENTS)
            raise OnsilError(
                en=(f"There is no placement {placement!r}.", "", f"Choose one of: {known}."),
                ko=(
                    f"{placement!r}(이)라는 배치는 없습니다.",
                    "",
                    f"이 가운데서 고르세요: {known}.",
                ),
            )
        self.placement, self.ws, self.span = placement, ws, span
        self.models: Models | None = None
        self.asked: set[str] = set()
        self.works: dict[Leaf, Work] = {}

    def lay(self, node: Node) -> None:
        """Give every leaf of `node` its work. Raises OnsilError when one cannot run there."""
        self.asked |= set(references(node))
        if self.asked and self.models is None:
            self.models = Models((self.ws or Workspace.find()).root.resolve())
        if self.models is not None:
            self.models.most = len(self.asked) + 1  # and one that an alias has left
        home = self.models.ws.root if self.models else None
        places = {leaf: leaf.on or self.placement for leaf in leaves(node)}
        new = {leaf: place for leaf, place in places.items() if leaf not in self.works}
        for leaf, place in new.items():
            if place == "process":
                from onsil.graph.workers import InProcess

                self.works[leaf] = InProcess(described(leaf, home))
            elif place != "ray":
                self.works[leaf] = work_here(leaf, place, self.models)
        if far := [leaf for leaf, place in new.items() if place == "ray"]:
            from onsil.graph.on_ray import lay

            laid = lay([described(leaf, home) for leaf in far])
            self.works |= dict(zip(far, laid, strict=True))

    def close(self) -> None:
        """End processes, actors and threads; calls that are under way fail."""
        for work in self.works.values():
            work.close()
        if self.models is not None:
            self.models.close()


class Running:
    """A graph on its ground. It belongs to one event loop, the one that asks it first."""

    def __init__(self, node: Node, ground: Ground):
        self.node, self.ground, self.references = node, ground, references(node)
        self._comparing = Comparing()
        ground.lay(node)
        self._run = self._built(node)

    @property
    def works(self) -> dict[Leaf, Work]:
        """The work of every leaf of the ground."""
        return self.ground.works

    async def __call__(
        self,
        value: Json,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        pins: dict[str, Pin] | None = None,
    ) -> Answer:
        """The answer to a plain JSON value. `deadline` is on the monotonic clock; `request_id`
        decides what is sampled; `pins` are what the references mean, for work that outlives a
        change of alias (`pinned` gives them). Raises a Failure, with the trace until then."""
        until = NEVER if deadline is None else deadline
        context = Context(request_id or uuid.uuid4().hex, until, dict(pins or {}))
        step_deadline.set(until)
        try:
            if deadline is None:
                return await self._answer(value, context)
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                return await self._answer(value, context)
        except Failure as e:
            e.trace = context.told()
            raise
        except TimeoutError as e:
            late = Late("The time for this request is over.", _last(context))
            late.trace = context.told()
            raise late from e

    async def _answer(self, value: Json, context: Context) -> Answer:
        if self.references and not context.pins:
            context.pins |= await asyncio.to_thread(self.pinned)
        try:
            value = plain(value)
        except NotPlain as e:
            raise BadInput(f"The input is not plain JSON: {e}.") from e
        return Answer(await self._run(value, context), context.id, context)

    def pinned(self) -> dict[str, Pin]:
        """What every reference of the graph means now. Raises NotReady for one that is nothing."""
        models = self.ground.models
        return {reference: models.pin(reference) for reference in self.references if models}

    async def ready(self) -> None:
        """Start and load everything, ask each model once, and check that every preparation fits
        the models that get it. Raises NotReady, also when a process cannot start."""
        pins = await asyncio.to_thread(self.pinned)
        made_with: dict[Leaf, str | None] = {}
        for leaf in dict.fromkeys(leaves(self.node)):
            work = self.works[leaf]
            pin = pins[leaf.reference] if isinstance(leaf, (Model, Prep)) else None
            made_with[leaf] = await work.load(pin)
        for before, after in _fed(self.node):
            prepared, needed = made_with[before] or "", made_with[after] or ""
            if prepared != needed:
                raise at_odds(prepared, needed, pins[after.reference])

    @property
    def comparisons(self) -> list[Comparison]:
        """The counts of every shadow and canary, in the order of the graph."""
        return self._comparing.comparisons

    async def settled(self) -> None:
        """When every comparison in the background has ended."""
        await self._comparing.settled()

    def close(self) -> None:
        """End its ground, and with it every graph that stands there."""
        self.ground.close()

    # ── a node as a function ────────────────────────────────────────────────────────────────────

    def _built(self, node: Node) -> Run:
        match node:
            case Leaf():
                return leaf_run(node, self.works[node], self.ground.span)
            case Route(table=table, default=default):
                other = self._built(default) if default is not None else None
                return route_run(node, {key: self._built(n) for key, n in table.items()}, other)
        runs = [self._built(inner) for inner in node.inside]
        match node:
            case Serial():
                return serial_run(runs)
            case Parallel():
                return parallel_run(node, dict(zip(node.names, runs, strict=True)))
            case Cache():
                return cached(node, *runs)
            case Breaker():
                return broken(node, *runs)
            case Beside():
                return self._comparing.beside(node, *runs)
        raise TypeError(node)


def _last(context: Context) -> str | None:
    """The step that the deadline ended."""
    ended = (span.step for span in reversed(context.spans) if span.outcome == Late.kind)
    return next(ended, None)


def _fed(node: Node) -> list[tuple[Prep, Model]]:
    """Every preparation with every model that its value reaches."""
    found: list[tuple[Prep, Model]] = []

    def through(node: Node, arriving: tuple[Prep, ...]) -> tuple[Prep, ...]:
        match node:
            case Prep():
                return (node,)
            case Model():
                found.extend((before, node) for before in arriving)
                return ()
            case Serial():
                for inner in node.inside:
                    arriving = through(inner, arriving)
                return arriving
            case Leaf():
                return arriving
        leaving = [through(inner, arriving) for inner in node.inside]
        return tuple(before for some in leaving for before in some)

    through(node, ())
    return found


# ── leaves ──────────────────────────────────────────────────────────────────────────────────────


def leaf_run(leaf: Leaf, work: Work, span: Spanned) -> Run:
    """A leaf with its limits: how many at once, how long, how often again."""
    name, most, timeout = leaf.title, leaf.max_inflight, leaf.timeout
    reference = leaf.reference if isinstance(leaf, (Model, Prep)) else None
    call, monotonic = work.call, time.monotonic
    called, attributes = f"step {name}", {"onsil.step": name}

    async def once(value: Json, context: Context) -> Json:
        """One attempt, noted in the trace."""
        start, outcome = monotonic(), "ok"
        until = context.deadline if timeout is None else min(context.deadline, start + timeout)
        pin = context.pins[reference] if reference is not None else None
        with span(called, attributes) as seen:
            try:
                if start >= until:
                    raise Late("No time was left for it.")
                if work.running >= most:
                    raise Busy(f"{most} calls are under way; come back in a second.", retry_after=1)
                if timeout is None:
                    answer = plain(await call(value, pin))
                else:
                    answer = plain(await limited(value, pin, until))
                if monotonic() > until:
                    raise Late("It took longer than it had.")
                return answer
            except asyncio.CancelledError:
                outcome = Late.kind if monotonic() >= until else "cancelled"
                raise
            except Exception as e:  # whatever a step raises is a failure of that step
                failure = failure_of(e, name)
                outcome = failure.kind
                log.debug("%s: %s", name, failure.detail or failure.message)
                if failure is e:
                    raise
                raise failure from e
            finally:
                context.note(name, start, outcome)
                if seen is not None:
                    seen.set_attribute("onsil.outcome", outcome)

    async def limited(value: Json, pin: Pin | None, until: float) -> Json:
        token = step_deadline.set(until)
        scope = asyncio.timeout(until - monotonic())
        try:
            async with scope:
                return await call(value, pin)
        except TimeoutError as e:
            if scope.expired():
                raise Late("It took longer than it had.") from e
            raise
        finally:
            step_deadline.reset(token)

    return repeated(once, leaf.retries) if leaf.idempotent else once


def repeated(once: Run, retries: int) -> Run:
    """Asked again, on the same input: so many times, and once more when its process died."""

    async def run(value: Json, context: Context) -> Json:
        left, lost, pause = retries, 1, PAUSE
        while True:
            try:
                return await once(plain(value), context)
            except Failure as e:
                if isinstance(e, Died) and lost:
                    lost -= 1
                elif e.again and left:
                    left -= 1
                else:
                    raise
            await asyncio.sleep(pause)
            pause *= 2

    return run


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────


def serial_run(runs: list[Run]) -> Run:
    """One after the other."""

    async def run(value: Json, context: Context) -> Json:
        for each in runs:
            value = await each(value, context)
        return value

    return run


def route_run(node: Route, table: dict[str, Run], default: Run | None) -> Run:
    """One of several."""

    async def run(value: Json, context: Context) -> Json:
        try:
            key = node.key(value)
            chosen = table.get(key, default)
        except Exception as e:  # of a function that somebody wrote
            raise failure_of(e, node.title) from e
        if chosen is None:
            known = ", ".join(table)
            raise BadInput(f"There is no route {str(key)[:80]!r}; there are: {known}.", "route")
        return await chosen(value, context)

    return run


def parallel_run(node: Parallel, branches: dict[str, Run]) -> Run:
    """Side by side, until enough have answered or too few can."""

    async def branch(name: str, value: Json, context: Context) -> Json:
        inner = context
        if node.timeout is not None:
            inner = context.within(node.timeout)
            step_deadline.set(inner.deadline)
        try:
            async with asyncio.timeout(node.timeout):
                return await branches[name](value, inner)
        except TimeoutError as e:
            raise Late("The branch took longer than it had.", name) from e

    async def run(value: Json, context: Context) -> Json:
        tasks = {
            asyncio.create_task(branch(name, plain(value), context)): name for name in branches
        }
        votes: dict[str, Json] = {}
        errors: dict[str, dict[str, Any]] = {}
        pending = set(tasks)
        try:
            while len(votes) < node.quorum <= len(votes) + len(pending):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in (t for t in tasks if t in done):  # in the order of the branches
                    if isinstance(failure := task.exception(), Failure):
                        errors[tasks[task]] = failure.shown()
                    elif len(votes) < node.quorum:
                        votes[tasks[task]] = task.result()
        finally:
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        errors = {name: errors[name] for name in branches if name in errors}
        if len(votes) < node.quorum:
            told = ", ".join(f"{name}: {error['kind']}" for name, error in errors.items())
            message = f"{len(votes)} of {len(branches)} branches answered, {node.quorum} are needed"
            raise NoQuorum(f"{message} ({told}).", "par", errors=errors)
        voted = {name: votes[name] for name in branches if name in votes}
        return {"answer": joined(node, voted), "voted": list(voted), "errors": errors}

    return run


def joined(node: Parallel, votes: dict[str, Json]) -> Json:
    """What the votes come to. Raises Failed when `join` cannot say."""
    if node.join is None:
        return votes
    try:
        return plain(node.join(votes))
    except Exception as e:  # of a function that somebody wrote
        raise failure_of(e, "join") from e
