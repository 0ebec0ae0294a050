"""One request on its way through a graph: its id, its deadline, its models, what happened.

The deadline is one moment for the whole request. Nobody divides it beforehand: a step gets what is
left, `remaining()` tells its function how much that is, and a step that would begin after it does
not begin. The models are looked up once, at the start: an alias that is moved while a request is
under way does not make it half of one model and half of another.
"""

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from onsil.graph.values import Json

NEVER = float("inf")


class Caller:
    """Whoever waits for a call in a thread, which cannot be ended from outside."""

    def __init__(self) -> None:
        self.gone = False
        self._then: list[Callable[[], object]] = []

    def when_gone(self, fn: Callable[[], object]) -> None:
        """Call `fn`, perhaps twice, when nobody waits any more."""
        self._then.append(fn)
        if self.gone:
            fn()

    def go(self) -> None:
        """Nobody waits any more."""
        self.gone = True
        for fn in list(self._then):
            fn()


step_deadline: ContextVar[float] = ContextVar("step_deadline", default=NEVER)
caller: ContextVar[Caller] = ContextVar("caller")


class Pin(NamedTuple):
    """What a reference meant when the request began."""

    name: str
    version: str
    digest: str


class Span(NamedTuple):
    """One line of a trace: seconds since the run began, seconds it took, how it ended."""

    step: str
    start: float
    seconds: float
    outcome: str


class Context:
    """What the steps of one run share. `deadline` is on the monotonic clock."""

    __slots__ = ("deadline", "id", "pins", "spans", "start")

    def __init__(self, id: str, deadline: float, pins: dict[str, Pin]):
        self.id, self.deadline, self.pins = id, deadline, pins
        self.start = time.monotonic()
        self.spans: list[Span] = []

    def within(self, seconds: float) -> "Context":
        """The same run with less time; what happens in it stands in the same trace."""
        inner = Context(self.id, min(self.deadline, time.monotonic() + seconds), self.pins)
        inner.start, inner.spans = self.start, self.spans
        return inner

    def note(self, step: str, start: float, outcome: str) -> None:
        """A line of the trace, ending now."""
        self.spans.append(Span(step, start - self.start, time.monotonic() - start, outcome))

    def told(self) -> list[dict[str, Any]]:
        """The trace as plain JSON, in the order in which the steps ended."""
        return [
            {
                "step": span.step,
                "start": round(span.start, 6),
                "seconds": round(span.seconds, 6),
                "outcome": span.outcome,
            }
            for span in self.spans
        ]


@dataclass(frozen=True)
class Answer:
    """What a run gave: the value, which models stood behind it, and each step with its time.

    A step's outcome in `trace` is ok, cached, cancelled or the kind of a failure. `models` maps a
    reference of the graph to the name, version and digest it had for this request.
    """

    value: Json
    id: str
    context: Context

    @property
    def trace(self) -> list[dict[str, Any]]:
        return self.context.told()

    @property
    def models(self) -> dict[str, dict[str, str]]:
        return {reference: pin._asdict() for reference, pin in self.context.pins.items()}


def remaining() -> float:
    """Seconds that the step which asks still has; infinity when nobody set a limit."""
    return step_deadline.get() - time.monotonic()
