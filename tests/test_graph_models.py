"""Models in a graph: pinned, kept in memory, let go of, prepared for apart."""

import asyncio
import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from served import grow_small, make_pen
from test_graph import outcomes, running

from onsil.graph import (
    BadInput,
    Late,
    NotReady,
    cache,
    compile,
    model,
    par,
    prep,
    step,
)
from onsil.graph import models as graph_models
from onsil.graph.models import preparation
from onsil.inference.engine import Engine
from onsil.lineage import Workspace
from onsil.models.checkpoint import load, save

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def ws(grown, tmp_path) -> Workspace:
    shutil.copytree(grown, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def another_version(ws: Workspace, threshold: float = 1.1, tokenizer: bytes | None = None) -> str:
    """A second `desk`, which says so by its gate, perhaps with another tokenizer; its alias stays
    where it was."""
    _, _, made = ws.resolve("desk")
    copy = ws.root / "work" / "copy"
    shutil.copytree(made.path, copy)
    told = json.loads((copy / "model.json").read_text())
    told["gate"]["threshold"] = threshold  # past 1 it answers nothing
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
        {"question": "x", "messages": [{"role": "user", "content": "y"}]},
        {"messages": [{"role": "user", "content": 1}, {"role": "user", "content": "x"}]},
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


class Counted(graph_models.Quoting):
    """Says when it is made and when it is let go of."""

    made: ClassVar[list[str]] = []
    closed: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, made_with: str):
        super().__init__(folder, made_with)
        Counted.made.append(folder.name)

    def close(self) -> None:
        Counted.closed.append(self)


@pytest.fixture
def counted(monkeypatch) -> type[Counted]:
    monkeypatch.setattr(graph_models, "Quoting", Counted)
    monkeypatch.setattr(Counted, "made", [])
    monkeypatch.setattr(Counted, "closed", [])
    return Counted


@running
async def test_all_models_of_a_graph_stay_in_memory(ws, counted):
    more = [another_version(ws, threshold) for threshold in (1.1, 1.2)]
    graph = par(*(model(f"desk@{version}") for version in ("v1", *more)))
    with contextlib.closing(compile(graph, ws=ws)) as run:
        for _ in range(3):
            assert len((await run({"question": QUESTION})).value["voted"]) == 3
    assert len(counted.made) == 3


def test_a_model_that_is_being_asked_is_not_let_go_of(ws, counted):
    models = graph_models.Models(ws.root)
    first = models.pin("desk")
    with models.using(first) as asked:
        for threshold in (1.1, 1.2, 1.3):
            with models.using(models.pin(f"desk@{another_version(ws, threshold)}")):
                pass
        assert len(counted.closed) == 2 and asked not in counted.closed
        with models.using(first) as again:
            assert again is asked
    models.close()
    assert len(counted.closed) == 4 == len(counted.made)


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
    for placement in ("inline", "pool", "process"):
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
    for node, placement in (
        (model("desk"), "inline"),
        (model("desk"), "process"),
        (prep("desk"), "pool"),
    ):
        with (
            contextlib.closing(compile(node, placement, ws)) as run,
            pytest.raises(NotReady, match="damaged"),
        ):
            await run.ready()


# ── preprocessing apart ─────────────────────────────────────────────────────────────────────────


@running
async def test_a_preparation_for_another_model_is_not_ready_and_never_answers(ws):
    own = ws.resolve("desk")[2]
    tokenizer = (own / "tokenizer" / "tokenizer.json").read_bytes()
    second = another_version(ws, tokenizer=tokenizer.replace(b"\n", b"\n ", 1))
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
async def test_the_slot_of_a_caller_who_has_gone_is_free(pen, monkeypatch):
    """Steps that take 10 ms, so that no machine writes 400 tokens before the caller goes."""
    step = Engine._step
    monkeypatch.setattr(Engine, "_step", lambda self: (time.sleep(0.01), step(self)))
    node = model("pen", limit=400)
    with contextlib.closing(compile(node, ws=pen)) as run:
        await run.ready()
        with run.ground.models.using(run.pinned()["pen"]) as loaded:
            engine = loaded.engine
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
