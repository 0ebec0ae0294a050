"""The same graph in threads and in processes: equal answers, and what a process is for."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from graph_steps import (
    bang,
    broken,
    give_up,
    killed_again,
    killed_once,
    leave,
    left,
    noted,
    odd,
    refuse,
    stuck_step,
    upper,
    where,
)
from test_graph import outcomes, running

from onsil.errors import OnsilError
from onsil.graph import (
    BadInput,
    Died,
    Failed,
    Failure,
    Late,
    NotReady,
    compile,
    par,
    route,
    step,
    wire,
)
from onsil.graph import workers as graph_workers

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
        assert said[0] == said[1] == said[2] and said[0]["step"] == node.title
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
async def test_a_child_that_hangs_holds_up_nobody_else(monkeypatch):
    """It is stopped and so reads nothing; what is sent to it is more than a socket holds."""
    monkeypatch.setattr(graph_workers, "GRACE", 0.2)
    with contextlib.closing(compile(where, "process")) as run:
        pid = (await run("")).value
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + 0.3
        calls = (run("x" * 500_000, deadline=deadline) for _ in range(3))
        late = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(failure) for failure in late] == [Late] * 3
        while run.works[where].running:
            await asyncio.sleep(0.02)
        assert (await run("")).value != pid


@running
async def test_what_is_too_long_to_be_sent_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(wire, "LONGEST", 1000)
    with contextlib.closing(compile(where, "process")) as run:
        with pytest.raises(Failed, match="raised ValueError"):
            await run("x" * 1000)
        assert not run.works[where].running and (await run(""))


@running
async def test_a_step_that_ends_itself_fails_and_its_process_goes_on():
    with contextlib.closing(compile(where >> leave, "process")) as run:
        for _ in range(2):
            with pytest.raises(Failed, match="raised SystemExit"):
                await run(1)
        pid = run.works[leave].worker.process.pid
        with pytest.raises(Failed, match="raised SystemExit"):
            await run(1)
        assert run.works[leave].worker.process.pid == pid
    with (
        contextlib.closing(compile(give_up, "process")) as run,
        pytest.raises(Failed, match="raised CancelledError"),
    ):
        await run(1)


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
