"""The graph in one process: shapes, limits, one deadline, and what stands around a node."""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from onsil.errors import OnsilError
from onsil.graph import (
    BadInput,
    Busy,
    Failed,
    Failure,
    Late,
    Node,
    NoQuorum,
    Open,
    breaker,
    cache,
    canary,
    compile,
    par,
    remaining,
    route,
    shadow,
    step,
)
from onsil.graph.failures import KINDS, read_failure
from onsil.graph.policies import in_share
from onsil.graph.request import caller
from onsil.graph.running import Running
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


@step
def upper(text: str) -> str:
    return text.upper()


@step
async def bang(text: str) -> str:
    await asyncio.sleep(0)
    return text + "!"


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
    assert "secret words" in failure.detail and isinstance(failure.__cause__, ValueError)
    assert outcomes(failure.trace) == [("upper", "ok"), ("broken", "failed")]


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
        heard.append(gone.wait(20))

    node = step(listen, on="pool", timeout=0.05)
    with contextlib.closing(compile(node)) as run:
        with pytest.raises(Late):
            await run(1)
        start = time.monotonic()
        while run.works[node].running:
            await asyncio.sleep(0.005)
        assert heard == [True] and time.monotonic() - start < 5


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

    graph = step(look) >> step(look, timeout=0.5) >> step(look_here, on="pool") >> step(look_here)
    await asked(graph, 1, deadline=time.monotonic() + 2)
    assert 1.8 < left[0] <= 2 and 0.4 < left[1] <= 0.5
    assert 1.5 < left[2] <= 1.8 and left[3] <= left[2]
    left.clear()
    await asked(step(look_here), 1)
    assert left == [float("inf")]


@running
async def test_the_deadline_ends_the_run_and_names_the_step():
    ended: list[str] = []
    graph = waiting(0.05, "first") >> waiting(5, "second", ended) >> waiting(0, "third")
    start = time.monotonic()
    with contextlib.closing(compile(graph)) as run, pytest.raises(Late) as raised:
        await run(1, deadline=start + 0.2)
    assert 0.15 < time.monotonic() - start < 1 and ended == ["second"]
    assert raised.value.step == "second"
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
        await asyncio.sleep(5 if len(calls) == 1 else 0)
        return "done"

    once = step(first_slow, timeout=0.05)
    with pytest.raises(Late) as raised:
        await asked(once, 1)
    assert raised.value.step == "first_slow"
    calls.clear()
    assert await asked(step(first_slow, timeout=0.05, idempotent=True, retries=1), 1) == "done"


# ── side by side ────────────────────────────────────────────────────────────────────────────────


@running
async def test_a_quorum_is_enough_and_the_losers_are_cancelled():
    ended: list[str] = []
    graph = par(waiting(5, "slow", ended), waiting(0.02, "b"), waiting(0, "a"), quorum=2)
    start = time.monotonic()
    with contextlib.closing(compile(graph)) as run:
        answer = await run(1)
    assert time.monotonic() - start < 1 and ended == ["slow"]
    assert answer.value == {"answer": {"b": "b", "a": "a"}, "voted": ["b", "a"], "errors": {}}
    assert ("slow", "cancelled") in outcomes(answer.trace)


@running
async def test_votes_stand_in_the_order_of_the_branches_and_errors_are_kept():
    join = lambda votes: "|".join(votes.values())  # noqa: E731
    graph = par(waiting(0.05, "x"), waiting(0, "x"), failing("y"), join=join, quorum=2)
    told = await asked(graph, 1)
    assert told["answer"] == "x|x" and told["voted"] == ["x", "x #2"]
    assert told["errors"]["y"]["kind"] == "failed" and told["errors"]["y"]["step"] == "y"


@running
async def test_a_quorum_that_cannot_be_reached_fails_at_once():
    ended: list[str] = []
    graph = par(waiting(5, "slow", ended), failing("b"), failing("c"), quorum=2)
    start = time.monotonic()
    with pytest.raises(
        NoQuorum, match=r"0 of 3 .* 2 are needed \(b: failed, c: failed\)"
    ) as raised:
        await asked(graph, 1)
    assert time.monotonic() - start < 1 and ended == ["slow"]
    assert set(raised.value.errors) == {"b", "c"}


@running
async def test_who_votes_does_not_depend_on_the_hash_of_anything():
    branches = [step(lambda value: 1, name=f"b{n}") for n in range(8)]
    with contextlib.closing(compile(par(*branches, failing(), quorum=5))) as run:
        for _ in range(20):
            assert (await run(1)).value["voted"] == ["b0", "b1", "b2", "b3", "b4"]


@running
async def test_each_branch_has_its_time():
    graph = par(waiting(5, "slow"), waiting(0, "quick"), timeout=0.05)
    with pytest.raises(NoQuorum) as raised:
        await asked(graph, 1)
    assert raised.value.errors["slow"]["kind"] == "late"
    assert ("slow", "late") in outcomes(raised.value.trace)


@running
async def test_a_join_that_breaks_is_a_failure():
    with pytest.raises(Failed, match="join raised KeyError"):
        await asked(par(upper, join=lambda votes: votes["nobody"]), "a")


@running
async def test_a_caller_who_goes_takes_all_branches_along():
    ended: list[str] = []
    with contextlib.closing(compile(par(waiting(5, "a", ended), waiting(5, "b", ended)))) as run:
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
        with pytest.raises(BadInput, match="cannot be told"):
            await asked(by_field, wrong)
    with pytest.raises(BadInput, match="no route 'z'; there are: a"):
        await asked(route("kind", {"a": upper}), {"kind": "z"})


# ── cache, breaker, shadow, canary ──────────────────────────────────────────────────────────────


def counting() -> tuple[Node, list[Any]]:
    seen: list[Any] = []

    def count(value: Any) -> Any:
        seen.append(value)
        return {"n": len(seen)}

    return step(count), seen


@running
async def test_an_answer_is_remembered_by_its_input():
    node, seen = counting()
    with contextlib.closing(compile(cache(node, 2, 60))) as run:
        first = (await run({"a": 1, "b": 2})).value
        first["n"] = "spoilt"
        again = await run({"b": 2, "a": 1})
        assert again.value == {"n": 1} and outcomes(again.trace) == [("count", "cached")]
        again.value["n"] = "spoilt"
        assert (await run({"a": 1, "b": 2})).value == {"n": 1}
        assert [(await run(q)).value["n"] for q in ("x", "y", "y", {"a": 1, "b": 2})] == [
            2,
            3,
            3,
            4,
        ]
    assert len(seen) == 4  # the oldest of three went


@running
async def test_an_answer_is_forgotten_in_time_and_a_failure_at_once():
    node, _ = counting()
    with contextlib.closing(compile(cache(node, 10, 0.05))) as run:
        await run(1)
        await asyncio.sleep(0.06)
        assert (await run(1)).value == {"n": 2}
    node, _ = flaky(1)
    with contextlib.closing(compile(cache(node, 10, 60))) as run:
        with pytest.raises(Failed):
            await run({})
        assert (await run({})).value == 2


class Switch:
    """A step that fails while it is off."""

    def __init__(self) -> None:
        self.on, self.calls = True, 0
        self.node = step(self.work, name="switch")

    async def work(self, value: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(0.01)
        if value == "bad":
            raise BadInput("bad")
        if not self.on:
            raise ConnectionError("off")
        return "on"


async def kinds(run: Running, *values: Any) -> list[str]:
    """How each of some calls ended, one after the other."""
    found = []
    for value in values:
        try:
            found.append((await run(value)).value)
        except Failure as e:
            found.append(e.kind)
    return found


@running
async def test_a_breaker_opens_fails_fast_and_closes_after_one_good_try():
    switch = Switch()
    with contextlib.closing(compile(breaker(switch.node, 2, 0.15))) as run:
        assert await kinds(run, 1, 1) == ["on", "on"]
        switch.on = False
        assert await kinds(run, 1, "bad", 1, 1, 1) == [
            "failed",
            "bad_input",
            "failed",
            "open",
            "open",
        ]
        assert switch.calls == 5
        with pytest.raises(Open, match="failed 2 times") as raised:
            await run(1)
        assert raised.value.retry_after == 1 and raised.value.step == "switch"
        await asyncio.sleep(0.2)
        together = await asyncio.gather(*(kinds(run, 1) for _ in range(3)))
        assert sorted(together) == [["failed"], ["open"], ["open"]]  # half open: one tries
        assert await kinds(run, 1) == ["open"]  # and it was no better
        switch.on = True
        await asyncio.sleep(0.2)
        assert await kinds(run, 1, 1) == ["on", "on"]
        switch.on = False
        assert await kinds(run, 1, 1, 1) == ["failed", "failed", "open"]


@running
async def test_a_try_that_is_cancelled_leaves_the_door_to_the_next():
    switch = Switch()
    switch.on = False
    with contextlib.closing(compile(breaker(switch.node, 1, 0.05))) as run:
        assert await kinds(run, 1, 1) == ["failed", "open"]
        await asyncio.sleep(0.06)
        trying = asyncio.create_task(run(1))
        await asyncio.sleep(0)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        switch.on = True
        assert await kinds(run, 1) == ["on"]


@running
async def test_what_is_too_slow_opens_a_breaker_too():
    graph = breaker(waiting(5, "slow"), 2, 60)
    with contextlib.closing(compile(graph)) as run:
        for _ in range(2):
            with pytest.raises(Late):
                await run(1, deadline=time.monotonic() + 0.03)
        with pytest.raises(Open):
            await run(1)


@running
async def test_a_shadow_is_asked_beside_and_compared():
    answer = lambda text: step(lambda v: {"text": text(v), "model": text(0)}, name="m")  # noqa: E731
    same = lambda v: f"{v}"  # noqa: E731
    half = lambda v: f"{v}" if v == 0 or v % 2 else "different"  # noqa: E731
    with contextlib.closing(compile(shadow(answer(same), answer(half), 1.0))) as run:
        answers = []
        for n in range(1, 9):
            answers.append((await run(n, request_id=f"r{n}")).value["text"])
            await run.settled()
    assert answers == [f"{n}" for n in range(1, 9)]
    told = run.comparisons[0].told()
    assert (told["same"], told["different"], told["failed"]) == (4, 4, 0)
    assert told["differing"] == ["r2", "r4", "r6", "r8"] and told["served"]["node"] == 8


@running
async def test_a_shadow_can_neither_delay_nor_break_an_answer():
    for other in (waiting(0.2, "slow"), failing()):
        with contextlib.closing(compile(shadow(upper, other, 1.0))) as run:
            start = time.monotonic()
            answer = await run("a")
            assert answer.value == "A" and time.monotonic() - start < 0.1
            assert outcomes(answer.trace) == [("upper", "ok")]
            await run.settled()
            counts = run.comparisons[0]
            assert counts.different + counts.failed == 1
    with contextlib.closing(compile(shadow(upper, waiting(0.2, "slow"), 1.0))) as run:
        for _ in range(12):
            await run("a")
        await run.settled()
        assert run.comparisons[0].skipped == 4


@running
async def test_a_canary_answers_its_share_and_is_compared():
    judged: list[tuple[Any, Any]] = []

    def judge(one: Any, other: Any) -> bool:
        judged.append((one, other))
        return True

    graph = canary(upper, bang, 0.3, diff=judge)
    with contextlib.closing(compile(graph)) as run:
        ids = [f"id{n}" for n in range(200)]
        first = {i: (await run("a", request_id=i)).value for i in ids}
        second = {i: (await run("a", request_id=i)).value for i in reversed(ids)}
        await run.settled()
        counts = run.comparisons[0]
    assert first == second and set(first.values()) == {"A", "a!"}
    drawn = sum(value == "a!" for value in first.values())
    assert 40 <= drawn <= 80
    assert counts.served == {"node": 2 * (200 - drawn), "other": 2 * drawn}
    assert counts.different + counts.skipped == 2 * drawn
    assert judged and all(pair == ("A", "a!") for pair in judged)


def test_shares_are_drawn_by_id_and_apart_from_one_another():
    ids = [f"r{n}" for n in range(2000)]
    one, two = ({i for i in ids if in_share(i, salt, 0.5)} for salt in ("a", "b"))
    assert 900 < len(one) < 1100 and 400 < len(one & two) < 600
    assert not any(in_share(i, "a", 0) for i in ids) and all(in_share(i, "a", 1) for i in ids)
