"""The same graph on a local Ray cluster of two CPUs."""

import asyncio
import contextlib
import json
import os
import signal
import time
from typing import Any

import pytest
from graph_steps import broken, killed_again, killed_once, noted, refuse, upper, where
from served import grow_small
from test_graph import outcomes, running
from test_graph_models import QUESTION
from test_graph_placements import GRAPH
from test_patterns import FILES, answers

from onsil.errors import OnsilError
from onsil.graph import BadInput, Died, Failed, Late, compile, model, par, prep, step
from onsil.lineage import Workspace

ray = pytest.importorskip("ray", reason="needs the extra [ray]")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def cluster():
    for again in (True, True, False):  # Ray gives itself 30 seconds, which may be too few
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception as e:
            if not again or "timed out" not in str(e):
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def ws(tmp_path_factory) -> Workspace:
    return Workspace(grow_small(tmp_path_factory.mktemp("ray")))


@running
async def test_a_graph_on_ray_gives_what_it_gives_here():
    made = []
    for placement in ("inline", "ray"):
        with contextlib.closing(compile(GRAPH, placement)) as run:
            await run.ready()
            made.append([(await run(text)).value for text in ("a", "야근", "x" * 100_000)])
    assert made[0] == made[1]
    with contextlib.closing(compile(where, "ray")) as run:
        assert (await run(1)).value != os.getpid()


@running
async def test_models_on_ray_answer_as_they_do_here(ws):
    graph = prep("desk@champion") >> model("desk@champion")
    asked = [{"question": q} for q in (QUESTION, "숙박비는 얼마인가요?", "What is the fare?")]
    made = []
    for placement in ("inline", "ray"):
        with contextlib.closing(compile(graph, placement, ws)) as run:
            await run.ready()
            made.append(json.dumps([(await run(value)).value for value in asked]))
    assert made[0] == made[1]


@pytest.mark.parametrize("file", [FILES[n] for n in (0, 2, 3, 5, 6)], ids=lambda f: f.stem)
def test_the_patterns_on_ray_give_the_golden_bytes(file, ws, tmp_path, monkeypatch):
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    monkeypatch.chdir(tmp_path)
    assert asyncio.run(answers(file, "ray")) == asyncio.run(answers(FILES[0]))


@running
async def test_failures_on_ray_are_the_failures_here():
    for node, kind, words in ((refuse, BadInput, "Not 1."), (broken, Failed, "raised ValueError")):
        with (
            contextlib.closing(compile(node, "ray")) as run,
            pytest.raises(kind, match=words) as raised,
        ):
            await run(1)
        assert raised.value.step == node.title


@running
async def test_an_actor_killed_in_mid_request_is_retried_or_a_clean_error(tmp_path):
    with contextlib.closing(compile(killed_again, "ray")) as run:
        answer = await run({"note": str(tmp_path / "once"), "times": 1})
        assert answer.value == "survived"
        assert outcomes(answer.trace) == [("killed", "died"), ("killed", "ok")]
    with contextlib.closing(compile(killed_once, "ray")) as run:
        value = {"note": str(tmp_path / "clean"), "times": 1}
        with pytest.raises(Died, match="actor ended"):
            await run(value)
        assert (await run(value)).value == "survived"


@running
async def test_a_kill_from_outside_in_mid_request_is_survived(tmp_path):
    slow = step(noted.fn, name="noted", idempotent=True)
    with contextlib.closing(compile(slow, "ray")) as run:
        await run.ready()
        pid = await run.works[slow].actor.pid.remote()
        asked = asyncio.create_task(run({"seconds": 1.0, "note": str(tmp_path / "note")}))
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        answer = await asked
        assert answer.value == "slept" and outcomes(answer.trace)[0] == ("noted", "died")


@running
async def test_losers_and_the_late_are_cancelled_on_ray(tmp_path):
    note = tmp_path / "note"
    value: dict[str, Any] = {"seconds": 600, "note": str(note)}

    async def cancelled() -> None:
        while not note.exists():
            await asyncio.sleep(0.02)
        note.unlink()

    with contextlib.closing(compile(par(noted, where, quorum=1), "ray")) as run:
        await run.ready()
        assert (await run(value)).value["voted"] == ["where"]
        await cancelled()
    with contextlib.closing(compile(noted, "ray")) as run:
        await run.ready()
        with pytest.raises(Late):  # or the test would sleep for ten minutes
            await run(value, deadline=time.monotonic() + 0.5)
        await cancelled()


@running
async def test_what_does_not_fit_is_refused_at_once():
    many = step(upper.fn, name="s0")
    for n in range(1, 21):
        many = many >> step(upper.fn, name=f"s{n}")
    with pytest.raises(OnsilError, match=r"CPUs free and this graph takes 2\.1"):
        compile(many, "ray")


def test_a_cluster_that_is_not_there_is_told_of(monkeypatch):
    def refuse(**how: Any) -> None:
        raise ConnectionError("nobody is at first:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "first:6379")
    with pytest.raises(OnsilError, match=r"RAY_ADDRESS='first:6379'.*nobody is at"):
        compile(upper, "ray")


def test_rows_in_bulk_keep_their_order_and_their_errors(ws):
    from onsil.graph.on_ray import batch_on_ray

    node = prep("desk@champion") >> model("desk@champion")
    rows: list[Any] = [{"question": f"{QUESTION} {n}"} for n in range(40)]
    rows[7] = {"question": 7}
    done = list(batch_on_ray(rows, node, ws, workers=2))
    assert [row["input"] for row in done] == rows
    assert done[7]["error"]["kind"] == "bad_input" and done[7]["value"] is None
    assert all(
        row["error"] is None and row["value"]["answered"] for row in done if row["input"] != rows[7]
    )
    digest = ws.resolve("desk")[2].digest
    assert done[0]["models"]["desk@champion"]["digest"] == digest

    async def here() -> list[Any]:
        with contextlib.closing(compile(node, ws=ws)) as run:
            return [(await run(row)).value for row in (rows[0], rows[39])]

    assert asyncio.run(here()) == [done[0]["value"], done[39]["value"]]
    assert list(batch_on_ray([], node, ws)) == []
