"""The graph in one process: shapes, limits, one deadline."""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from graph_steps import bang, upper

from onsil.errors import OnsilError
from onsil.graph import (
    BadInput,
    Busy,
    Failed,
    Late,
    Node,
    NoQuorum,
    breaker,
    cache,
    compile,
    par,
    remaining,
    route,
    shadow,
    step,
)
from onsil.graph.failures import KINDS, read_failure
from onsil.graph.request import caller
from onsil.graph.values import NotPlain, plain


def running(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that awaits."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 300))

    return run


async def asked(node: Node, value: Any, **how: Any) -> Any:
    with contextlib.closing(compile(node)) as run:
        return (await run(value, **how)).value


def outcomes(trace: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["step"], line["outcome"]) for line in trace]


def waiting(seconds: float, name: str, ended: list[str] | None = None, answer: Any = None) -> Node:
    """A step that sleeps, and notes when it was cancelled."""

    async def wait(value: Any) -> Any:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if ended is not None:
                ended.append(name)
            raise
        return name if answer is None else answer

    return step(wait, name=name)


def failing(name: str = "broken", kind: type[Exception] = ValueError) -> Node:
    def fail(value: Any) -> Any:
        raise kind("secret words")

    return step(fail, name=name)


# ── steps and their values ──────────────────────────────────────────────────────────────────────


@running
async def test_steps_run_in_a_row_and_leave_a_trace():
    with contextlib.closing(compile(upper >> bang >> (upper >> bang))) as run:
        answer = await run("a", request_id="r1")
    assert (answer.value, answer.id) == ("A!!", "r1")
    assert outcomes(answer.trace) == [("upper", "ok"), ("bang", "ok")] * 2
    starts = [line["start"] for line in answer.trace]
    assert starts == sorted(starts) and all(line["seconds"] >= 0 for line in answer.trace)
    assert upper("called as it is") == "CALLED AS IT IS"


@pytest.mark.parametrize(
    "value",
    [
        (1,),
        {1},
        float("nan"),
        {1: 2},
        b"x",
        type("S", (str,), {})("x"),
        functools.reduce(lambda inner, _: [inner], range(65), 0),
    ],
)
def test_what_is_not_plain_json_is_refused_everywhere(value):
    with pytest.raises(NotPlain):
        plain({"in": [value]})

    async def through() -> None:
        with pytest.raises(Failed, match="not plain JSON"):
            await asked(step(lambda _: {"in": value}, name="odd"), 1)
        with pytest.raises(BadInput, match="not plain JSON"):
            await asked(upper, value if isinstance(value, tuple) else [value])

    asyncio.run(through())


@running
async def test_a_step_never_shares_its_value_with_another():
    kept = {"list": [1]}

    def same(value: Any) -> Any:
        return kept

    def spoil(value: Any) -> Any:
        value["list"].append(2)
        return value

    spoiling = step(spoil)
    value = {"list": [0]}
    assert await asked(step(same) >> spoiling, value) == {"list": [1, 2]}
    votes = (await asked(par(spoiling, step(spoil, name="b")), value))["answer"]
    assert votes == {"spoil": {"list": [0, 2]}, "b": {"list": [0, 2]}}
    assert kept == {"list": [1]} and value == {"list": [0]}


@running
async def test_an_exception_is_a_failure_that_keeps_its_words_to_itself():
    graph = upper >> failing() >> bang
    with contextlib.closing(compile(graph)) as run, pytest.raises(Failed) as raised:
        await run("a")
    failure = raised.value
    assert failure.step == "broken" and "secret" not in str(failure)
    assert "secret words" in failure.detail and "test_graph.py" in failure.detail
    assert isinstance(failure.__cause__, ValueError)
    assert outcomes(failure.trace) == [("upper", "ok"), ("broken", "failed")]


@pytest.mark.parametrize("on", ["inline", "pool"])
@pytest.mark.parametrize("end", [SystemExit, asyncio.CancelledError])
def test_a_step_that_ends_itself_ends_nobody_else(end, on):
    def leave(value: Any) -> Any:
        raise end

    async def leave_too(value: Any) -> Any:
        await asyncio.sleep(0)
        raise end

    @running
    async def test() -> None:
        for fn in (leave, leave_too):
            with pytest.raises(Failed, match=end.__name__):
                await asked(step(fn, on=on), 1)
        votes = await asked(par(step(leave, on=on), upper, quorum=1), "a")
        assert votes["voted"] == ["upper"]

    test()


def test_failures_travel_as_json():
    for kind in KINDS.values():
        made = kind("m", "s", 2.5, "d", {"b": {"kind": "late"}})
        again = read_failure(made.told())
        assert type(again) is kind and again.told() == made.told()


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: step(upper.fn, retries=1), "idempotent"),
        (lambda: step(upper.fn, on="gpu"), "'gpu'"),
        (lambda: step(upper.fn, max_inflight=0), "max_inflight=0"),
        (lambda: step(upper.fn, timeout=0), "timeout=0"),
        (lambda: step(functools.partial(print)), "name=''"),
        (lambda: par(), "branches=0"),
        (lambda: par(upper, bang, quorum=3), "quorum=3"),
        (lambda: par(upper, print), "no step"),
        (lambda: upper >> print, "no step"),
        (lambda: route("kind", {"a": print}), "no step"),
        (lambda: cache(upper, 0, 1), "entries=0"),
        (lambda: breaker(upper, 1, 0), "seconds=0"),
        (lambda: shadow(upper, bang, 1.5), "share=1.5"),
        (lambda: compile(upper, "cloud"), "'cloud'"),
    ],
)
def test_a_graph_that_means_nothing_is_refused_where_it_is_written(make, word):
    with pytest.raises(OnsilError) as raised:
        make()
    assert word in raised.value.en[0] and raised.value.ko[0]


# ── limits of a step ────────────────────────────────────────────────────────────────────────────


@running
async def test_past_max_inflight_a_step_is_busy():
    slow = step(waiting(0.05, "s").fn, name="slow", max_inflight=2)
    with contextlib.closing(compile(slow)) as run:
        got = await asyncio.gather(*(run(1) for _ in range(5)), return_exceptions=True)
        busy = [g for g in got if isinstance(g, Busy)]
        assert len(busy) == 3 and busy[0].retry_after == 1 and busy[0].step == "slow"
        assert (await run(1)).value == "s"


@running
async def test_a_thread_whose_caller_has_gone_still_counts():
    go = threading.Event()
    stuck = step(lambda value: go.wait(10), on="pool", name="stuck", max_inflight=1, timeout=0.05)
    with contextlib.closing(compile(stuck)) as run:
        with pytest.raises(Late):
            await run(1)
        with pytest.raises(Busy):
            await run(1)
        go.set()
        while run.works[stuck].running:
            await asyncio.sleep(0.01)
        assert (await run(1)).value is True


@running
async def test_a_thread_can_hear_that_its_caller_has_gone():
    heard: list[bool] = []

    def listen(value: Any) -> None:
        gone = threading.Event()
        caller.get().when_gone(gone.set)
        heard.append(gone.wait(60))

    node = step(listen, on="pool", timeout=0.05)
    with contextlib.closing(compile(node)) as run:
        with pytest.raises(Late):
            await run(1)
        while run.works[node].running:
            await asyncio.sleep(0.005)
        assert heard == [True]


@running
async def test_the_placement_and_on_say_where_a_step_runs():
    def where(value: Any) -> str:
        return threading.current_thread().name

    graph = par(
        step(where, name="free"),
        step(where, on="inline", name="here"),
        step(where, on="pool", name="there"),
    )
    for placement, free in (("inline", "MainThread"), ("pool", "onsil-step")):
        with contextlib.closing(compile(graph, placement)) as run:
            found = (await run(1)).value["answer"]
        assert found["free"].startswith(free) and found["here"] == "MainThread"
        assert found["there"].startswith("onsil-step")


def flaky(times: int, **how: Any) -> tuple[Node, list[Any]]:
    """A step that spoils its input and fails so many times, and the inputs it saw."""
    seen: list[Any] = []

    def sometimes(value: Any) -> Any:
        seen.append(dict(value))
        value["spoilt"] = True
        if len(seen) <= times:
            raise ConnectionError("gone")
        return len(seen)

    return step(sometimes, **how), seen


@running
async def test_only_an_idempotent_step_is_tried_again_and_always_on_the_same_input():
    node, seen = flaky(2, idempotent=True, retries=2)
    with contextlib.closing(compile(node)) as run:
        answer = await run({"q": 1})
    assert answer.value == 3 and seen == [{"q": 1}] * 3
    assert [o for _, o in outcomes(answer.trace)] == ["failed", "failed", "ok"]
    for node, seen in (flaky(1), flaky(1, idempotent=True), flaky(5, idempotent=True, retries=1)):
        with pytest.raises(Failed):
            await asked(node, {"q": 1})
        assert len(seen) == 1 + node.retries


@running
async def test_bad_input_is_not_tried_again():
    calls = []

    def refuse(value: Any) -> Any:
        calls.append(value)
        raise BadInput("Ask differently.")

    with pytest.raises(BadInput, match="differently") as raised:
        await asked(step(refuse, idempotent=True, retries=3), 1)
    assert len(calls) == 1 and raised.value.step == "refuse"


# ── one deadline ────────────────────────────────────────────────────────────────────────────────


@running
async def test_a_step_gets_what_the_steps_before_it_left():
    left: list[float] = []

    async def look(value: Any) -> Any:
        left.append(remaining())
        await asyncio.sleep(0.1)
        return value

    def look_here(value: Any) -> Any:
        left.append(remaining())
        return value

    graph = step(look) >> step(look, timeout=500) >> step(look_here, on="pool") >> step(look_here)
    await asked(graph, 1, deadline=time.monotonic() + 1000)
    assert 900 < left[0] <= 1000 and 400 < left[1] <= 500
    assert 900 < left[3] <= left[2] <= left[0] - 0.2
    left.clear()
    await asked(step(look_here), 1)
    assert left == [float("inf")]


@running
async def test_the_deadline_ends_the_run_and_names_the_step():
    ended: list[str] = []
    graph = waiting(0, "first") >> waiting(600, "second", ended) >> waiting(0, "third")
    with contextlib.closing(compile(graph)) as run, pytest.raises(Late) as raised:
        await run(1, deadline=time.monotonic() + 0.3)
    assert ended == ["second"] and raised.value.step == "second"
    assert outcomes(raised.value.trace) == [("first", "ok"), ("second", "late")]


@running
async def test_what_blocks_the_loop_past_the_deadline_is_late_not_answered():
    blocking = step(lambda value: time.sleep(0.1), name="blocking")
    called: list[int] = []
    after = step(lambda value: called.append(1), name="after")
    with contextlib.closing(compile(blocking >> after)) as run:
        with pytest.raises(Late):
            await run(1, deadline=time.monotonic() + 0.05)
        with pytest.raises(Late):
            await run(1, deadline=time.monotonic() - 1)
    assert not called


@running
async def test_a_step_past_its_own_timeout_is_late_and_may_be_tried_again():
    calls: list[int] = []

    async def first_slow(value: Any) -> Any:
        calls.append(1)
        await asyncio.sleep(600 if len(calls) == 1 else 0)
        return "done"

    once = step(first_slow, timeout=0.3)
    with pytest.raises(Late) as raised:
        await asked(once, 1)
    assert raised.value.step == "first_slow"
    calls.clear()
    assert await asked(step(first_slow, timeout=0.3, idempotent=True, retries=1), 1) == "done"


# ── side by side ────────────────────────────────────────────────────────────────────────────────


@running
async def test_a_quorum_is_enough_and_the_losers_are_cancelled():
    ended: list[str] = []
    graph = par(waiting(600, "slow", ended), waiting(0.02, "b"), waiting(0, "a"), quorum=2)
    with contextlib.closing(compile(graph)) as run:
        answer = await run(1)
    assert ended == ["slow"]
    assert answer.value == {"answer": {"b": "b", "a": "a"}, "voted": ["b", "a"], "errors": {}}
    assert ("slow", "cancelled") in outcomes(answer.trace)


@running
async def test_votes_stand_in_the_order_of_the_branches_and_errors_are_kept():
    join = lambda votes: "|".join(votes.values())  # noqa: E731
    graph = par(waiting(0.05, "x"), waiting(0, "x"), failing("y"), join=join, quorum=2)
    told = await asked(graph, 1)
    assert told["answer"] == "x|x" and told["voted"] == ["x", "x #2"]
    assert told["errors"] == {
        "y": {"kind": "failed", "message": "It raised ValueError.", "step": "y"}
    }


@running
async def test_a_quorum_that_cannot_be_reached_fails_at_once():
    ended: list[str] = []
    graph = par(waiting(600, "slow", ended), failing("b"), failing("c"), quorum=2)
    with pytest.raises(
        NoQuorum, match=r"0 of 3 .* 2 are needed \(b: failed, c: failed\)"
    ) as raised:
        await asked(graph, 1)
    assert ended == ["slow"] and set(raised.value.errors) == {"b", "c"}
    assert "secret" not in str(raised.value.told())


@running
async def test_who_votes_does_not_depend_on_the_hash_of_anything():
    branches = [step(lambda value: 1, name=f"b{n}") for n in range(8)]
    with contextlib.closing(compile(par(*branches, failing(), quorum=5))) as run:
        for _ in range(20):
            assert (await run(1)).value["voted"] == ["b0", "b1", "b2", "b3", "b4"]


@running
async def test_each_branch_has_its_time():
    graph = par(waiting(600, "slow"), waiting(0, "quick"), timeout=0.3)
    with pytest.raises(NoQuorum) as raised:
        await asked(graph, 1)
    assert raised.value.errors["slow"]["kind"] == "late"
    assert ("slow", "late") in outcomes(raised.value.trace)


@running
async def test_a_join_that_breaks_is_a_failure():
    with pytest.raises(Failed, match="raised KeyError") as raised:
        await asked(par(upper, join=lambda votes: votes["nobody"]), "a")
    assert raised.value.step == "join"


@running
async def test_a_caller_who_goes_takes_all_branches_along():
    ended: list[str] = []
    with contextlib.closing(
        compile(par(waiting(600, "a", ended), waiting(600, "b", ended)))
    ) as run:
        task = asyncio.create_task(run(1))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(ended) == ["a", "b"]


# ── one of several ──────────────────────────────────────────────────────────────────────────────


@running
async def test_a_route_takes_the_branch_its_key_says():
    kind = lambda value: "long" if len(value) > 3 else "short"  # noqa: E731
    graph = route(kind, {"long": upper, "short": bang})
    assert [await asked(graph, text) for text in ("long", "sh")] == ["LONG", "sh!"]
    by_field = route("kind", {"a": step(lambda v: "a", name="a")}, step(lambda v: "d", name="d"))
    assert await asked(by_field, {"kind": "a"}) == "a"
    assert await asked(by_field, {"kind": "z"}) == "d"
    for wrong in ({}, {"kind": []}, "text"):
        with pytest.raises(BadInput, match="kind must be text"):
            await asked(by_field, wrong)
    with pytest.raises(
        Failed, match="raised TypeError"
    ) as raised:  # by the function, not the value
        await asked(graph, 1)
    assert raised.value.step == "route"
    with pytest.raises(BadInput, match="no route 'z'; there are: a"):
        await asked(route("kind", {"a": upper}), {"kind": "z"})
