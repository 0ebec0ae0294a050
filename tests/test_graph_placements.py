"""The same graph in threads and in processes: equal answers, and what a process is for."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_steps import (
    bang,
    broken,
    killed_again,
    killed_once,
    left,
    noted,
    odd,
    refuse,
    stuck_step,
    upper,
    where,
)
from served import grow_small, make_pen
from test_graph import outcomes, running

from onsil.errors import OnsilError
from onsil.graph import (
    BadInput,
    Died,
    Failed,
    Failure,
    Late,
    NotReady,
    cache,
    compile,
    model,
    par,
    prep,
    route,
    step,
)
from onsil.graph import workers as graph_workers
from onsil.graph.models import preparation
from onsil.lineage import Workspace
from onsil.models.checkpoint import load, save

HERE = ("inline", "pool", "process")
GRAPH = (
    upper
    >> par(bang, bang >> bang, join=lambda votes: {"votes": list(votes.values())})
    >> route(
        lambda value: "two" if len(value["voted"]) == 2 else "one",
        {"two": step(lambda value: value["answer"], name="answer", on="inline")},
    )
)


@pytest.mark.parametrize("placement", HERE)
def test_every_placement_gives_the_same_bytes(placement):
    @running
    async def test() -> None:
        with contextlib.closing(compile(GRAPH, placement)) as run:
            await run.ready()
            made = [await run(text) for text in ("a", "야근", "\ud800\u0000", "x" * 100_000)]
        assert [json.dumps(m.value) for m in made] == [
            json.dumps({"votes": [t.upper() + "!", t.upper() + "!!"]})
            for t in ("a", "야근", "\ud800\u0000", "x" * 100_000)
        ]
        assert {o for m in made for _, o in outcomes(m.trace)} == {"ok"}

    test()


@running
async def test_a_step_in_a_process_runs_there_and_fails_as_it_would_here():
    for node, kind, words in (
        (refuse, BadInput, "Not 1."),
        (broken, Failed, "raised ValueError"),
        (odd, Failed, "not plain JSON"),
    ):
        said = []
        for placement in HERE:
            with (
                contextlib.closing(compile(node, placement)) as run,
                pytest.raises(kind, match=words) as raised,
            ):
                await run(1)
            said.append(raised.value.told())
        assert said[0] == said[1] == said[2] and said[0]["step"] == node.name
    with contextlib.closing(compile(where, "process")) as run:
        pid = (await run(1)).value
        assert pid != os.getpid() and (await run(1)).value == pid
        for meant_for_the_parent in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, meant_for_the_parent)
        assert (await run(1)).value == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@running
async def test_the_deadline_reaches_the_process():
    with contextlib.closing(compile(left, "process")) as run:
        assert (await run(1)).value is None
        assert 1.5 < (await run(1, deadline=time.monotonic() + 2)).value <= 2


@running
async def test_a_loser_is_cancelled_where_it_runs(tmp_path):
    value = {"seconds": 60, "note": str(tmp_path / "note")}
    race = par(noted, step(where.fn, name="quick"), quorum=1)
    with contextlib.closing(compile(race, "process")) as run:
        await run.ready()
        assert (await run(value)).value["voted"] == ["quick"]
        while not (tmp_path / "note").exists() or run.works[noted].running:
            await asyncio.sleep(0.01)
        assert (tmp_path / "note").read_text() == "cancelled"
        assert (await run(value | {"seconds": 0})).value["voted"]


@running
async def test_what_overruns_in_a_process_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_workers, "GRACE", 0.2)
    value = {"note": str(tmp_path / "note")}
    with contextlib.closing(compile(par(stuck_step, where), "process")) as run:
        await run.ready()
        with pytest.raises(Failure):
            await run(value)
        pid = int((tmp_path / "note").read_text())
        while Path(f"/proc/{pid}").exists() and run.works[stuck_step].running:
            await asyncio.sleep(0.02)
        await run.ready()  # another one is up
        answer = await run(value)
        assert answer.value["answer"]["stuck"] == "free"
    assert not Path(f"/proc/{pid}").exists()


@running
async def test_a_killed_worker_is_replaced_and_an_idempotent_call_asked_again(tmp_path):
    once = {"note": str(tmp_path / "once"), "times": 1}
    with contextlib.closing(compile(killed_again, "process")) as run:
        answer = await run(once)
        assert answer.value == "survived"
        assert outcomes(answer.trace) == [("killed", "died"), ("killed", "ok")]
        with pytest.raises(Died, match="signal 9"):
            await run({"note": str(tmp_path / "twice"), "times": 9})
        assert len((tmp_path / "twice").read_text()) == 2
    with contextlib.closing(compile(killed_once, "process")) as run:
        with pytest.raises(Died, match="signal 9") as raised:
            await run({"note": str(tmp_path / "clean"), "times": 1})
        assert raised.value.step == "killed" and len((tmp_path / "clean").read_text()) == 1
        assert (await run({"note": str(tmp_path / "clean"), "times": 1})).value == "survived"


def test_a_function_without_an_address_is_refused_before_anything_runs():
    inner = lambda value: value  # noqa: E731
    for fn in (inner, "x".upper):
        with pytest.raises(OnsilError, match="cannot run in another process"):
            compile(step(fn, name="inner"), "process")
    with contextlib.closing(compile(step(inner, name="inner", on="inline"), "process")):
        pass


@running
async def test_a_function_that_is_gone_is_not_ready():
    gone = step(upper.fn, name="gone")
    with contextlib.closing(compile(gone, "process")) as run:
        run.works[gone].work["function"] = {"module": "graph_steps", "name": "nobody", "file": None}
        with pytest.raises(NotReady, match="graph_steps:nobody is not here"):
            await run.ready()
        with pytest.raises(NotReady):
            await run("a")


SCRIPT = """
import asyncio, contextlib
from onsil.graph import compile, step

@step
def shout(text):
    return text.upper() + "!"

async def main():
    with contextlib.closing(compile(shout, "process")) as run:
        print((await run("hey")).value)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_script_may_be_its_own_module_and_its_folder_is_not_searched(tmp_path):
    (tmp_path / "a script.py").write_text(SCRIPT)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise RuntimeError('the wrong json')")
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "a script.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path / "here",
    )
    assert ran.stdout == "HEY!\n", ran.stderr


# ── models ──────────────────────────────────────────────────────────────────────────────────────

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def ws(grown, tmp_path) -> Workspace:
    shutil.copytree(grown, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def another_version(ws: Workspace, tokenizer: bytes | None = None) -> str:
    """A second `desk`, which says so by its gate, perhaps with another tokenizer; its alias stays
    where it was."""
    _, _, made = ws.resolve("desk")
    copy = ws.root / "work" / "copy"
    shutil.copytree(made.path, copy)
    told = json.loads((copy / "model.json").read_text())
    told["gate"]["threshold"] = 1.1  # answers nothing
    (copy / "model.json").write_text(json.dumps(told))
    if tokenizer is not None:
        (copy / "tokenizer" / "tokenizer.json").write_bytes(tokenizer)
    return ws.register("desk", ws.keep(copy, made.key if tokenizer is None else ""))


@running
async def test_a_model_answers_with_its_lineage(ws):
    _, version, made = ws.resolve("desk")
    with contextlib.closing(compile(model("desk@champion"), ws=ws)) as run:
        answer = await run({"question": QUESTION})
        chat = await run({"messages": [{"role": "user", "content": QUESTION}]})
        nothing = (await run({"question": "Wie wird das Wetter morgen?"})).value
    told = answer.value
    assert told["answered"] and "5일" in told["text"]
    assert told["citations"][0]["document"] == "휴가규정.md"
    assert told["model"] == {"name": "desk", "version": version, "digest": made.digest}
    assert answer.models == {"desk@champion": told["model"]} and chat.value == told
    assert not nothing["answered"] and nothing["text"] is None


@pytest.mark.parametrize(
    "value",
    [
        "text",
        {},
        {"question": 1},
        {"question": "  "},
        {"messages": []},
        {"messages": 1},
        {"question": "가" * 1001},
        {"messages": [{"role": "system", "content": "x"}]},
    ],
)
def test_a_model_refuses_what_is_no_question(grown, value):
    @running
    async def test() -> None:
        for node in (model("desk"), prep("desk")):
            with (
                contextlib.closing(compile(node, ws=Workspace(grown))) as run,
                pytest.raises(BadInput),
            ):
                await run(value)

    test()


@running
async def test_an_alias_is_pinned_for_a_request_and_moves_for_the_next(ws):
    second = another_version(ws)

    def promote(value: Any) -> Any:
        ws.set_alias("desk", "champion", second)
        return {"question": QUESTION}

    graph = model("desk@champion") >> step(promote, on="inline") >> model("desk@champion")
    with contextlib.closing(compile(graph, ws=ws)) as run:
        first = await run({"question": QUESTION})
        after = await run({"question": QUESTION})
    assert first.value["model"]["version"] == "v1" and first.value["answered"]
    assert after.value["model"]["version"] == second and not after.value["answered"]


@running
async def test_a_cache_forgets_with_the_model_that_answered(ws):
    second = another_version(ws)
    asked = {"question": QUESTION}
    with contextlib.closing(compile(cache(model("desk@champion"), 10, 60), ws=ws)) as run:
        old = [await run(asked) for _ in range(2)]
        ws.set_alias("desk", "champion", second)
        new = [await run(asked) for _ in range(2)]
        ws.set_alias("desk", "champion", "v1")
        back = await run(asked)
    assert [a.value["model"]["version"] for a in (*old, *new, back)] == [
        "v1",
        "v1",
        *[second] * 2,
        "v1",
    ]
    assert [outcomes(a.trace)[-1][1] for a in (*old, *new, back)] == [
        "ok",
        "cached",
        "ok",
        "cached",
        "cached",
    ]


@running
async def test_a_model_in_a_process_answers_as_it_does_here(ws):
    graph = prep("desk@champion") >> model("desk@champion")
    made = []
    for placement in HERE:
        with contextlib.closing(compile(graph, placement, ws)) as run:
            await run.ready()
            made.append([(await run({"question": q})).value for q in (QUESTION, "숙박비는?", "hi")])
    assert made[0] == made[1] == made[2] and made[0][0]["answered"]


@running
async def test_a_model_that_is_nothing_or_damaged_is_not_ready(ws):
    with contextlib.closing(compile(model("nobody"), ws=ws)) as run:
        with pytest.raises(NotReady, match="'nobody'"):
            await run({"question": "?"})
        with pytest.raises(NotReady, match="'nobody'"):
            await run.ready()
    made = ws.resolve("desk")[2]
    (made / "model.json").write_text("{}")
    for placement in ("inline", "process"):
        with (
            contextlib.closing(compile(model("desk"), placement, ws)) as run,
            pytest.raises(NotReady, match="damaged"),
        ):
            await run.ready()


# ── preprocessing apart ─────────────────────────────────────────────────────────────────────────


@running
async def test_a_preparation_for_another_model_is_not_ready_and_never_answers(ws):
    own = ws.resolve("desk")[2]
    tokenizer = (own / "tokenizer" / "tokenizer.json").read_bytes()
    second = another_version(ws, tokenizer.replace(b"\n", b"\n ", 1))
    graph = prep("desk@v1") >> step(upper_question, on="inline") >> model(f"desk@{second}")
    for placement in ("inline", "process"):
        with contextlib.closing(compile(graph, placement, ws)) as run:
            with pytest.raises(NotReady, match=f"desk@{second} was made with"):
                await run.ready()
            with pytest.raises(NotReady, match="prepared with tokenizer"):
                await run({"question": QUESTION})
    both = prep(f"desk@{second}") >> model(f"desk@{second}")
    with contextlib.closing(compile(both, ws=ws)) as run:
        await run.ready()
        assert not (await run({"question": QUESTION})).value["answered"]


def upper_question(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"question": value["question"].upper()}


@running
async def test_a_model_whose_tokenizer_is_not_the_one_of_its_record_is_not_ready(ws):
    made = ws.resolve("desk")[2]
    copy = ws.root / "work" / "copy"
    shutil.copytree(made.path, copy)
    with (copy / "tokenizer" / "tokenizer.json").open("ab") as f:
        f.write(b"\n")
    second = ws.register("desk", ws.keep(copy, made.key))
    assert preparation(made.path) != preparation(ws.resolve(f"desk@{second}")[2].path)
    with (
        contextlib.closing(compile(model(f"desk@{second}"), ws=ws)) as run,
        pytest.raises(NotReady, match=f"desk@{second} was made with the tokenizer"),
    ):
        await run.ready()


def test_the_preparation_of_a_grown_model_is_the_tokenizer_of_its_record(grown):
    ws = Workspace(grown)
    made = ws.resolve("desk")[2]
    record = ws.record(made.key)
    assert record and record["arguments"]["tokenizer"]["artifact"] == preparation(made.path)


# ── a model that writes ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def pen(tmp_path_factory) -> Workspace:
    """`pen`, shaken until it writes something by itself: its layers are 30 times as loud."""
    ws = Workspace(make_pen(tmp_path_factory.mktemp("pen")))
    made, copy = ws.resolve("pen")[2], ws.root / "work" / "copy"
    shutil.copytree(made.path, copy)
    writer = load(copy)[0]
    with torch.no_grad():
        for parameter in writer.blocks.parameters():
            parameter.mul_(30)
    save(writer, copy, {})
    ws.register("pen", ws.keep(copy, ""))
    return ws


@running
async def test_a_model_that_writes_gives_the_same_text_everywhere(pen):
    graph = prep("pen") >> model("pen", limit=12)
    asked = ({"question": QUESTION}, {"messages": [{"role": "user", "content": QUESTION}]})
    made = []
    for placement in ("inline", "process"):
        with contextlib.closing(compile(graph, placement, pen)) as run:
            await run.ready()
            made += [(await run(value)).value for value in asked]
    assert all(m == made[0] for m in made) and made[0]["text"]
    assert made[0]["finish"] == "length" and made[0]["model"]["name"] == "pen"
    with contextlib.closing(compile(model("pen", limit=3), ws=pen)) as run:
        short = (await run(asked[0])).value["text"]
    assert made[0]["text"].startswith(short) and len(short) < len(made[0]["text"])


@pytest.mark.parametrize(
    "value", [{}, {"messages": []}, {"messages": [1]}, {"messages": [{"role": "user"}]}, "text"]
)
def test_a_model_that_writes_refuses_what_is_no_chat(pen, value):
    @running
    async def test() -> None:
        for node in (model("pen"), prep("pen")):
            with (
                contextlib.closing(compile(node, ws=pen)) as run,
                pytest.raises(BadInput),
            ):
                await run(value)

    test()


@running
async def test_the_slot_of_a_caller_who_has_gone_is_free(pen):
    node = model("pen", limit=400)
    with contextlib.closing(compile(node, ws=pen)) as run:
        await run.ready()
        engine = run.ground.models.loaded(run.pinned()["pen"]).engine
        for gone in ("late", "cancelled"):
            asked = asyncio.create_task(
                run({"question": "?"}, deadline=time.monotonic() + (0.3 if gone == "late" else 60))
            )
            while not engine.running and not asked.done():
                await asyncio.sleep(0.005)
            if gone == "cancelled":
                asked.cancel()
            with pytest.raises((Late, asyncio.CancelledError)):
                await asked
            until = time.monotonic() + 5
            while engine.running or run.works[node].running:
                assert time.monotonic() < until
                await asyncio.sleep(0.005)
