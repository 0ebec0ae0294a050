"""What stands around a node: memory, a breaker, a newer one beside it."""

import asyncio
import contextlib
import time
from typing import Any

import pytest
from graph_steps import bang, upper
from test_graph import failing, flaky, outcomes, running, waiting

from onsil.graph import (
    BadInput,
    Failed,
    Failure,
    Late,
    Node,
    Open,
    breaker,
    cache,
    canary,
    compile,
    policies,
    shadow,
    step,
)
from onsil.graph.policies import in_share
from onsil.graph.running import Running


class Clock:
    """The time, and as much ahead of it as a test says."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(policies, "time", made)
    return made


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
async def test_an_answer_is_forgotten_in_time_and_a_failure_at_once(clock):
    node, _ = counting()
    with contextlib.closing(compile(cache(node, 10, 30))) as run:
        await run(1)
        clock.ahead += 31
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
async def test_a_breaker_opens_fails_fast_and_closes_after_one_good_try(clock):
    switch = Switch()
    with contextlib.closing(compile(breaker(switch.node, 2, 30))) as run:
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
        assert 1 <= raised.value.retry_after <= 30 and raised.value.step == "switch"
        clock.ahead += 31
        together = await asyncio.gather(*(kinds(run, 1) for _ in range(3)))
        assert sorted(together) == [["failed"], ["open"], ["open"]]  # half open: one tries
        assert await kinds(run, 1) == ["open"]  # and it was no better
        switch.on = True
        clock.ahead += 31
        assert await kinds(run, 1, 1) == ["on", "on"]
        switch.on = False
        assert await kinds(run, 1, 1, 1) == ["failed", "failed", "open"]


@running
async def test_a_try_that_is_cancelled_leaves_the_door_to_the_next(clock):
    switch = Switch()
    switch.on = False
    with contextlib.closing(compile(breaker(switch.node, 1, 30))) as run:
        assert await kinds(run, 1, 1) == ["failed", "open"]
        clock.ahead += 31
        trying = asyncio.create_task(run(1))
        await asyncio.sleep(0)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        switch.on = True
        assert await kinds(run, 1) == ["on"]


@running
async def test_a_straggler_from_before_does_not_close_a_breaker():
    go = asyncio.Event()

    async def work(value: Any) -> Any:
        if value == "slow":
            await go.wait()
            return "late luck"
        raise ConnectionError("off")

    with contextlib.closing(compile(breaker(step(work), 2, 60))) as run:
        slow = asyncio.create_task(run("slow"))
        await asyncio.sleep(0)
        assert await kinds(run, 1, 1, 1) == ["failed", "failed", "open"]
        go.set()
        assert (await slow).value == "late luck"
        assert await kinds(run, 1) == ["open"]


@running
async def test_what_is_too_slow_opens_a_breaker_too():
    graph = breaker(waiting(600, "slow"), 2, 60)
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
async def test_a_shadow_can_neither_delay_nor_break_an_answer(caplog):
    go = asyncio.Event()

    async def held(value: Any) -> str:
        await go.wait()
        return "B"

    with contextlib.closing(compile(shadow(upper, step(held), 1.0))) as run:
        for _ in range(12):  # all answered while none of the comparisons can end
            answer = await run("a")
            assert answer.value == "A" and outcomes(answer.trace) == [("upper", "ok")]
        go.set()
        await run.settled()
        counts = run.comparisons[0]
        assert (counts.different, counts.skipped) == (8, 4)

    def breaks(one: Any, other: Any) -> bool:
        raise ValueError("secret words")

    for graph in (shadow(upper, failing(), 1.0), shadow(upper, bang, 1.0, diff=breaks)):
        with contextlib.closing(compile(graph)) as run:
            assert (await run("a")).value == "A"
            await run.settled()
            assert run.comparisons[0].failed == 1
    assert "raised ValueError" in caplog.text and "secret" not in caplog.text


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
