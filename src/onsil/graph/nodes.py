"""The words of a graph. A node says what is to be done; nothing runs until `compile`.

    prep >> model("desk@champion")                       one after the other
    par(a, b, c, join=vote, quorum=2, timeout=8)         side by side
    route(kind, {"faq": a, "law": rag >> b}, default=c)  one of several
    cache(node, 1000, 60)   breaker(node, 5, 30)         remembered; kept away from while broken
    shadow(node, new, 0.1)  canary(node, new, 0.1)       a newer one beside, or instead

The idea is old (Hoare 1978, Communicating Sequential Processes; the shape is that of any dataflow
graph): composition is data, so the same graph can be laid on threads, processes or machines, and
drawn, and checked before it runs. A node never changes and may stand in several graphs.

Left out: loops. A step is a function; what must go round goes round inside it.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from onsil.errors import OnsilError
from onsil.graph.failures import BadInput
from onsil.graph.values import Json

Where = Literal["inline", "pool", "process"]
WHERE = ("inline", "pool", "process")


@dataclass(frozen=True, eq=False)
class Node:
    """Anything with one value in and one value out. `title`: what it is called in traces and votes;
    `inside`: the nodes it is made of."""

    title: str
    inside: tuple["Node", ...]

    def __rshift__(self, other: "Node") -> "Serial":
        """This, then `other` with what this gave."""
        if not isinstance(other, Node):
            raise not_a_node(other)
        parts = (*_parts(self), *_parts(other))
        return Serial(" >> ".join(part.title for part in parts), parts)


@dataclass(frozen=True, eq=False)
class Leaf(Node):
    """A node that does something, at one place. `on`: where, else where `compile` puts it."""

    on: Where | None
    max_inflight: int
    timeout: float | None
    idempotent: bool
    retries: int


@dataclass(frozen=True, eq=False)
class Step(Leaf):
    """A function of one plain JSON value. Calling the node calls the function."""

    fn: Callable[[Json], Any]

    def __call__(self, value: Json) -> Any:
        return self.fn(value)


@dataclass(frozen=True, eq=False)
class Model(Leaf):
    """A model of the workspace. `limit`: most tokens that one which writes may write."""

    reference: str
    limit: int


@dataclass(frozen=True, eq=False)
class Prep(Leaf):
    """The preprocessing of a model, as a step of its own."""

    reference: str


class Serial(Node):
    """The nodes inside, one after the other."""


@dataclass(frozen=True, eq=False)
class Parallel(Node):
    """The nodes inside, side by side; `names` are what their votes stand under."""

    names: tuple[str, ...]
    join: Callable[[dict[str, Json]], Json] | None
    quorum: int
    timeout: float | None


@dataclass(frozen=True, eq=False)
class Route(Node):
    key: Callable[[Json], str]
    table: dict[str, Node]
    default: Node | None


@dataclass(frozen=True, eq=False)
class Cache(Node):
    entries: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Breaker(Node):
    failures: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Beside(Node):
    """The second node inside sees a share of what the first sees; `answers`: and its answer is the
    one given."""

    share: float
    diff: Callable[[Json, Json], bool] | None
    answers: bool


# ── making nodes ────────────────────────────────────────────────────────────────────────────────


def step(
    fn: Callable[[Json], Any] | None = None,
    *,
    on: Where | None = None,
    max_inflight: int = 64,
    timeout: float | None = None,
    idempotent: bool = False,
    retries: int = 0,
    name: str | None = None,
) -> Any:
    """A function as a node: `@step`, `@step(on="pool")` or `step(fn, timeout=2)`.

    `fn` takes one plain JSON value and returns one; it may be async. `on` is its place whatever the
    graph's: "inline" (on the event loop: for what takes microseconds, or awaits), "pool" (a thread)
    or "process" (its own, which is ended when it overruns). Past `max_inflight` calls at once:
    Busy. `timeout` is in seconds. An `idempotent` step, which does no harm twice, is asked once
    more when its process died, and up to `retries` times after any failure; `retries` of another
    one are refused."""

    def made(fn: Callable[[Json], Any]) -> Step:
        if retries and not idempotent:
            raise OnsilError(
                en=(
                    f"retries={retries} of a step that is not idempotent.",
                    "What it does outside (a payment, a message) would be done twice.",
                    "Say idempotent=True if twice is as good as once; else leave retries out.",
                ),
                ko=(
                    f"idempotent가 아닌 단계에 retries={retries}을(를) 지정했습니다.",
                    "바깥에서 하는 일(결제, 메시지 전송)이 두 번 일어날 수 있습니다.",
                    "두 번 해도 괜찮다면 idempotent=True로 하고, 아니면 retries를 빼 주세요.",
                ),
            )
        title = name or getattr(fn, "__name__", "")
        _check(title, on, max_inflight, timeout)
        _at_least("retries", retries, 0)
        return Step(title, (), on, max_inflight, timeout, idempotent, retries, fn)

    return made if fn is None else made(fn)


def model(
    reference: str,
    *,
    on: Where | None = None,
    max_inflight: int = 8,
    timeout: float | None = None,
    limit: int = 256,
    name: str | None = None,
) -> Model:
    """A model of the workspace as a node.

    In: `{"question": …}` or `{"messages": […]}`, or what `prep` gave. Out: `text` (None: not in the
    documents), `answered`, `citations`, `confidence`, and `model` with name, version and digest.
    The reference is looked up for every request, once. A model never runs on the event loop: its
    "inline" is a thread."""
    _check(reference, on, max_inflight, timeout)
    _at_least("limit", limit, 1)
    title = name or reference
    return Model(title, (), on, max_inflight, timeout, True, 0, reference, limit)


def prep(reference: str, *, on: Where | None = None, max_inflight: int = 64) -> Prep:
    """What comes before a model, as a step of its own: the question checked and tidied, its tokens
    counted with the model's own tokenizer. Its value carries the digest of that tokenizer (and
    template), and a model made with another refuses it."""
    _check(reference, on, max_inflight, None)
    return Prep(f"prep {reference}", (), on, max_inflight, None, True, 0, reference)


def par(
    *branches: Node,
    join: Callable[[dict[str, Json]], Json] | None = None,
    quorum: int | None = None,
    timeout: float | None = None,
) -> Parallel:
    """Branches side by side on copies of one value.

    Gives `{"answer": join(votes), "voted": [names], "errors": {name: failure}}`, where votes are
    the answers by branch, in the order of the branches; without `join` they are the answer. It is
    done as soon as `quorum` branches (default: all) have answered: the others are cancelled. Each
    branch has `timeout` seconds. When the quorum cannot be reached any more: NoQuorum."""
    if not branches:
        raise _refused("branches", 0, "a par needs at least one", "par에는 갈래가 있어야 합니다")
    for branch in branches:
        if not isinstance(branch, Node):
            raise not_a_node(branch)
    needed = len(branches) if quorum is None else quorum
    if not 1 <= needed <= len(branches):
        most = len(branches)
        raise _refused("quorum", needed, f"it is 1 to {most}", f"1에서 {most} 사이여야 합니다")
    _seconds("timeout", timeout)
    return Parallel("par", branches, tuple(_names(branches)), join, needed, timeout)


def route(
    key: Callable[[Json], str] | str, table: dict[str, Node], default: Node | None = None
) -> Route:
    """One of several nodes: `key` (a function of the value, or the name of a field in it) says
    which, `default` takes what the table does not have. Without a default that is BadInput, and so
    is a value without the field."""
    inside = (*table.values(), *([default] if default is not None else []))
    for node in inside:
        if not isinstance(node, Node):
            raise not_a_node(node)
    key = _field(key) if isinstance(key, str) else key
    return Route("route", inside, key, dict(table), default)


def cache(node: Node, entries: int, seconds: float) -> Cache:
    """Answers of `node` remembered: at most so many, for so long. The key is the input and the
    digests of the models inside, so a new champion is never answered for by the old one."""
    _at_least("entries", entries, 1)
    _seconds("seconds", seconds)
    return Cache(node.title, (node,), entries, seconds)


def breaker(node: Node, failures: int, seconds: float) -> Breaker:
    """After so many failures in a row nobody is let through for `seconds` (Open, at once); then one
    is, and its luck decides (Nygard, Release It!, 2007). Bad input and Busy are no failures."""
    _at_least("failures", failures, 1)
    _seconds("seconds", seconds)
    return Breaker(node.title, (node,), failures, seconds)


def shadow(
    node: Node, other: Node, share: float, diff: Callable[[Json, Json], bool] | None = None
) -> Beside:
    """`node` answers; a share of the requests (by their id) also goes to `other` in the background.
    `diff(answer, others_answer)` says whether they differ; by default all but `model` counts. Its
    counts are in the compiled graph's `comparisons`."""
    return _beside(node, other, share, diff, answers=False)


def canary(
    node: Node, other: Node, share: float, diff: Callable[[Json, Json], bool] | None = None
) -> Beside:
    """`other` answers a share of the requests, always the same ids, and `node` the rest. Those of
    `other` also go to `node` in the background, to be compared as in `shadow`."""
    return _beside(node, other, share, diff, answers=True)


def leaves(node: Node) -> Iterator[Leaf]:
    """Every leaf of a graph, in order; one that stands in it twice comes twice."""
    if isinstance(node, Leaf):
        yield node
    for inner in node.inside:
        yield from leaves(inner)


def references(node: Node) -> list[str]:
    """The models that a graph asks, each once."""
    asked = (n.reference for n in leaves(node) if isinstance(n, (Model, Prep)))
    return list(dict.fromkeys(asked))


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


def _parts(node: Node) -> tuple[Node, ...]:
    return node.inside if isinstance(node, Serial) else (node,)


def _names(branches: tuple[Node, ...]) -> Iterator[str]:
    """The titles, the second of a kind as `title #2`."""
    seen: Counter[str] = Counter()
    for branch in branches:
        seen[branch.title] += 1
        again = seen[branch.title]
        yield branch.title if again == 1 else f"{branch.title} #{again}"


def _field(name: str) -> Callable[[Json], str]:
    def field(value: Json) -> str:
        if not isinstance(value, dict) or not isinstance(found := value.get(name), str):
            raise BadInput(f"The route cannot be told: {name} must be text.")
        return found

    return field


def _beside(
    node: Node,
    other: Node,
    share: float,
    diff: Callable[[Json, Json], bool] | None,
    answers: bool,
) -> Beside:
    if not 0 <= share <= 1:
        raise _refused("share", share, "it is 0 to 1", "0에서 1 사이여야 합니다")
    return Beside(node.title, (node, other), share, diff, answers)


def _check(name: str, on: str | None, max_inflight: int, timeout: float | None) -> None:
    if not name:
        raise _refused("name", name, "a step needs one", "단계에는 이름이 있어야 합니다")
    if on not in (None, *WHERE):
        known = ", ".join(WHERE)
        raise _refused("on", on, f"it is one of {known}", f"{known} 가운데 하나여야 합니다")
    _at_least("max_inflight", max_inflight, 1)
    _seconds("timeout", timeout)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise _refused(name, value, f"it is at least {least}", f"{least} 이상이어야 합니다")


def _seconds(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise _refused(name, value, "it is more than 0 seconds", "0초보다 커야 합니다")


def _refused(name: str, value: Any, en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(f"{name}={value!r}: {en}.", "", "Change it where the graph is written."),
        ko=(f"{name}={value!r}: {ko}.", "", "그래프를 적은 곳에서 고쳐 주세요."),
    )


def not_a_node(value: Any) -> OnsilError:
    return OnsilError(
        en=(
            f"{value!r} is no step.",
            "A graph is made of steps, so that each has a name, limits and a place.",
            "Write @step above the function, or step(function).",
        ),
        ko=(
            f"{value!r}은(는) 단계가 아닙니다.",
            "그래프는 단계로 이루어지고, 단계마다 이름과 한도와 실행 위치가 있습니다.",
            "함수 위에 @step을 적거나 step(함수)로 감싸 주세요.",
        ),
    )


def is_async(fn: Callable) -> bool:
    """Whether calling `fn` gives something to await."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004
    )
