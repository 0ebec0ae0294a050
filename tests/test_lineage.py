"""The lineage floor: identity, atomic finish, names, and the questions records answer."""

import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest

from onsil.errors import OnsilError
from onsil.lineage import (
    Artifact,
    Workspace,
    affected,
    collect_garbage,
    diff,
    drift,
    file_lineage,
    history,
    spell,
    stage,
    unrecorded,
    verify,
)

CALLS: list[str] = []


@dataclass(frozen=True)
class FileRef:
    path: str
    sha256: str


@stage(version=1)
def gather(*, text: str, out, run):
    CALLS.append("gather")
    (out / "a.txt").write_text(text.strip())


@stage(version=1)
def count(*, corpus: Artifact, top: int = 3, out, run):
    CALLS.append("count")
    words = (corpus / "a.txt").read_text().split()
    (out / "n.json").write_text(json.dumps([len(words), top]))
    return {"words": len(words)}


@stage(version=1)
def take(*, files: list, out, run):
    (out / "taken.txt").write_text("".join(f.sha256 for f in files))


@pytest.fixture
def ws(tmp_path) -> Workspace:
    CALLS.clear()
    return Workspace(tmp_path / "ws")


def test_the_second_time_is_free(ws):
    a = count(ws, corpus=gather(ws, text="온실 안 씨앗"))
    b = count(ws, corpus=gather(ws, text="온실 안 씨앗"))
    assert a == b and CALLS == ["gather", "count"]


def test_equal_bytes_upstream_stop_a_rerun(ws):
    count(ws, corpus=gather(ws, text="a b"))
    count(ws, corpus=gather(ws, text="a b  "))
    assert CALLS == ["gather", "count", "gather"]


def test_where_it_ran_and_written_defaults_are_no_identity(ws):
    corpus = gather(ws, text="x", run={"source": "/somewhere"})
    gather(ws, text="x", run={"source": "/elsewhere"})
    count(ws, corpus=corpus)
    count(ws, corpus=corpus, top=3)
    assert CALLS == ["gather", "count"]


@pytest.mark.parametrize("value", [print, {1, 2}, float("nan"), object(), {1: "a"}, b"x"])
def test_a_value_without_a_stable_spelling_is_refused(ws, value):
    with pytest.raises(OnsilError, match="cannot be an argument"):
        gather(ws, text=value)
    assert CALLS == []


def test_a_failing_stage_leaves_nothing_and_keeps_its_scratch(ws):
    tries = []

    @stage(version=1)
    def stumble(*, out, run):
        tries.append([p.name for p in run.scratch.iterdir()])
        (out / "half").write_text("x")
        (run.scratch / "kept").write_text("y")
        if len(tries) == 1:
            raise RuntimeError("fell")
        assert [p.name for p in out.iterdir()] == ["half"]

    with pytest.raises(RuntimeError):
        stumble(ws)
    assert not list((ws.root / "objects").glob("*/*")) and not list(ws.records())
    stumble(ws)
    assert tries == [[], ["kept"]]
    assert not list((ws.root / "work").iterdir())


def _slow(root: str, log: str) -> None:
    import time

    @stage(version=1)
    def slow(*, out, run):
        with open(log, "a") as f:
            f.write("x")
        time.sleep(0.3)
        (out / "done").write_text("1")

    slow(Workspace(root))


def test_two_processes_run_one_stage_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "ws"), str(tmp_path / "log"))
    both = [context.Process(target=_slow, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"


@stage(version=1)
def alike(*, n: int, of: int, out, run):
    for part in range(20):
        (out / f"{part}.txt").write_text(str(of))


def _alike(root: str, n: int, rounds: int, ready) -> None:
    ws = Workspace(root)
    for of in range(rounds):
        ready.wait(30)
        assert alike(ws, n=n, of=of).path.exists()


def test_two_stages_with_equal_bytes_may_finish_together(tmp_path):
    """Two keys, one object, 40 times; without a lock it failed at each of three tries."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    both = [
        context.Process(target=_alike, args=(str(tmp_path / "ws"), n, 40, ready)) for n in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert len(list(Workspace(tmp_path / "ws").records())) == 80


def test_a_record_says_on_what_it_was_made_and_not_where(ws):
    record = ws.record(gather(ws, text="x").key)
    assert record is not None
    told = record["machine"]
    assert told["torch"] == importlib.metadata.version("torch") and told["onsil"]
    assert told["python"] == platform.python_version()
    cpuinfo = Path("/proc/cpuinfo").read_text()
    assert told["cpu"] in cpuinfo and ("amx_bf16" in told["instructions"]) == (
        "amx_bf16" in cpuinfo
    )
    assert 1 < record["peak_rss_mb"] < 100_000
    for private in (platform.node(), str(ws.root), str(Path.home())):
        assert private not in json.dumps(told)


def _die(root: str) -> None:
    @stage(version=1)
    def mortal(*, out, run):
        (out / "a").write_text("whole")

    ws = Workspace(root)
    keep = ws.keep

    def keep_and_die(out, key):
        keep(out, key)
        os._exit(9)  # bytes in place, record not yet written

    ws.keep = keep_and_die  # type: ignore[method-assign]
    mortal(ws)


def test_dying_between_bytes_and_record_changes_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_die, args=(str(tmp_path / "ws"),))
    process.start()
    process.join()
    assert process.exitcode == 9

    @stage(version=1)
    def mortal(*, out, run):
        (out / "a").write_text("whole")

    ws = Workspace(tmp_path / "ws")
    made = mortal(ws)
    assert (made / "a").read_text() == "whole" and all(r["ok"] for r in verify(ws, made.key))


def test_names_versions_and_aliases(ws):
    one, two = gather(ws, text="1"), gather(ws, text="2")
    assert ws.register("규정봇", one) == "v1"
    assert ws.register("규정봇", two) == "v2"
    assert ws.register("규정봇", one) == "v1"
    assert ws.resolve(unicodedata.normalize("NFD", "규정봇"))[2] == two
    ws.set_alias("규정봇", "champion", "v1")
    assert ws.resolve("규정봇@champion")[2] == one == ws.resolve("규정봇")[2]
    assert ws.resolve("규정봇@v2")[2] == two


def test_a_champion_that_was_given_up_is_told(ws):
    ws.register("규정봇", gather(ws, text="1"))
    two = gather(ws, text="2")
    ws.register("규정봇", two)
    ws.set_alias("규정봇", "champion", "v1")
    folder = ws.root / "names" / "규정봇"
    (folder / "v1.json").unlink()
    for called in ("규정봇", "규정봇@champion"):
        with pytest.raises(OnsilError, match=r"aliases\.json names v1"):
            ws.resolve(called)
    (folder / "aliases.json").unlink()
    assert ws.resolve("규정봇")[2] == two


def test_an_unknown_name_names_the_near_one(ws):
    ws.register("규정봇", gather(ws, text="1"))
    with pytest.raises(OnsilError, match="규정보트") as e:
        ws.resolve("규정보트")
    assert "규정봇" in str(e.value)
    with pytest.raises(OnsilError, match="v9"):
        ws.resolve("규정봇@v9")
    for bad in ("../up", "", "a/b", "x" * 65):
        with pytest.raises(OnsilError):
            ws.register(bad, gather(ws, text="1"))


def test_verify_sees_one_changed_byte_and_a_missing_object(ws):
    corpus = gather(ws, text="a b")
    made = count(ws, corpus=corpus)
    assert [row["ok"] for row in verify(ws, made.key)] == [True, True]
    file = corpus / "a.txt"
    file.write_bytes(b"b" + file.read_bytes()[1:])
    assert [(r["stage"], r["reason"]) for r in verify(ws, made.key)] == [
        ("count", ""),
        ("gather", "changed"),
    ]
    file.unlink()
    corpus.path.rmdir()
    assert verify(ws, made.key)[1]["reason"] == "missing"


@pytest.mark.parametrize("text", [b"", b'{"key": "', b"[]", b"{}", b"\x00\xff"])
def test_a_record_that_cannot_be_read_is_none_and_the_stage_runs_again(ws, text):
    corpus = gather(ws, text="a b")
    made = count(ws, corpus=corpus)
    file = ws.root / "records" / f"{corpus.key}.json"
    file.write_bytes(text)
    assert [(r["key"], r["reason"]) for r in verify(ws, made.key)] == [
        (made.key, ""),
        (corpus.key, "no record"),
    ]
    assert unrecorded(ws, made.key) == [corpus.key] and ws.unreadable() == [file]
    ws.register("desk", made)
    with pytest.raises(OnsilError, match=file.name):
        collect_garbage(ws, delete=True)
    assert count(ws, corpus=gather(ws, text="a b")) == made
    assert CALLS == ["gather", "count", "gather"]
    assert all(row["ok"] for row in verify(ws, made.key)) and ws.unreadable() == []


@pytest.mark.parametrize("text", [b"", b'{"object": "97', b"[]", b"\x00\xff"])
def test_a_damaged_version_or_alias_is_named_and_mended_as_told(ws, text):
    one, two = gather(ws, text="1"), gather(ws, text="2")
    for made in (one, two):
        ws.register("규정봇", made)
    ws.set_alias("규정봇", "champion", "v1")
    aliases, first = (ws.root / "names" / "규정봇" / f for f in ("aliases.json", "v1.json"))
    for path in (aliases, first):
        path.write_bytes(text)
        with pytest.raises(OnsilError, match="is damaged") as e:
            ws.resolve("규정봇")
        assert str(path) in e.value.en[0] and str(path) in e.value.ko[0]
        path.unlink()
        assert ws.resolve("규정봇")[2] == two
    assert ws.register("규정봇", one) == "v3" and ws.resolve("규정봇@v2")[2] == two


def test_history_diff_and_affected(ws):
    ref = FileRef("규정/연차.md", "ab" * 32)
    made = count(ws, corpus=gather(ws, text="a b"))
    other = count(ws, corpus=gather(ws, text="a b c"), top=5)
    assert [(d, r["stage"]) for d, r in history(ws, made.key)] == [(0, "count"), (1, "gather")]
    rows = {row["stage"]: row["arguments"] for row in diff(ws, made.key, other.key)}
    assert rows["count"]["top"] == [3, 5] and rows["gather"]["text"] == ["a b", "a b c"]
    assert diff(ws, made.key, made.key) == []
    taken = take(ws, files=[ref])
    ws.register("desk", taken)
    for called in ("규정/연차.md", "연차.md", "ab" * 32, unicodedata.normalize("NFD", "연차.md")):
        assert [row["names"] for row in affected(ws, called)] == [["desk@v1"]]
    with pytest.raises(OnsilError, match="병가"):
        affected(ws, "병가.md")


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("garden_room", "garden_room.py"),
        ("garden_house", "garden_house/__init__.py"),
        ("garden_lane.shed", "garden_lane/shed.py"),  # no __init__.py on the way
        ("garden_yard.bed", "garden_yard/bed/__init__.py"),
    ],
)
def test_drift_is_reported_and_nothing_runs_again(ws, tmp_path, monkeypatch, module, file):
    source = (
        "from onsil.lineage import stage\n"
        "@stage(version=1)\n"
        "def plant(*, out, run):\n    (out / 'a').write_text('1')\n"
    )
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    plant = importlib.import_module(module).plant

    made = plant(ws)
    (tmp_path / file).write_text("# a comment is no change\n" + source)
    assert drift(ws, made.key) == []
    (tmp_path / file).write_text(source.replace("'1'", "'2'"))
    assert drift(ws, made.key) == [f"{module}.plant"]
    assert plant(ws) == made


def test_garbage_collection_keeps_what_names_reach(ws):
    kept = count(ws, corpus=gather(ws, text="kept"))
    lost = count(ws, corpus=gather(ws, text="lost lost"))
    ws.register("desk", kept)
    (ws.root / "work" / "dead").mkdir()
    listed = collect_garbage(ws, delete=False)
    assert lost.path.exists() and lost.digest in listed["objects"]
    collect_garbage(ws, delete=True)
    assert not lost.path.exists() and not list((ws.root / "work").iterdir())
    assert all(row["ok"] for row in verify(ws, kept.key)) and len(list(ws.records())) == 2


def test_a_weights_file_carries_digests_and_no_names(ws, tmp_path):
    import torch

    from onsil.models.weights import stable_bytes

    @stage(version=1)
    def weigh(*, source: Artifact, out, run):
        metadata = {"onsil": json.dumps(run.ancestry)}
        (out / "m.safetensors").write_bytes(stable_bytes({"w": torch.ones(2)}, metadata))

    made = weigh(ws, source=take(ws, files=[FileRef("비밀/이름.md", "cd" * 32)]))
    said = file_lineage(made / "m.safetensors")
    assert [n["stage"] for n in said["nodes"].values()] == ["take@1", "weigh@1"]
    text = json.dumps(said, ensure_ascii=False)
    assert "cd" * 32 in text and "이름" not in text and "_at" not in text
    (tmp_path / "other.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    with pytest.raises(OnsilError, match="carries no onsil lineage"):
        file_lineage(tmp_path / "other.safetensors")


def test_a_workspace_of_another_format_is_refused(tmp_path):
    Workspace(tmp_path)
    (tmp_path / "format").write_text("99\n")
    with pytest.raises(OnsilError, match="99"):
        Workspace(tmp_path)


def test_the_workspace_is_found_from_sub_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    root = Workspace(tmp_path / ".onsil").root
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert Workspace.find().root == root
    monkeypatch.setenv("ONSIL_HOME", str(Workspace(tmp_path / "other").root))
    assert Workspace.find().root == tmp_path / "other"


def test_spelling_is_the_same_for_equal_values():
    assert spell({"b": (1, 2), "a": Path("x").name}) == {"a": "x", "b": [1, 2]}
    assert spell(FileRef("p", "s")) == {"FileRef": {"path": "p", "sha256": "s"}}
