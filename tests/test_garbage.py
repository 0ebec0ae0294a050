"""Garbage is never what somebody is making: a second process, a real one, is at work meanwhile."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run

from onsil.errors import OnsilError
from onsil.lineage import Workspace, collect_garbage, stage

CHILD = Path(__file__).with_name("garbage_child.py")


@stage(version=1)
def weed(*, out, run):
    (out / "a").write_text("1")


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Between its two stages until a line is sent: what it has finished has no name yet."""
    pipe = subprocess.PIPE
    command = [sys.executable, str(CHILD), str(tmp_path / "ws")]
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_another_process_is_making_is_not_removed(tmp_path, child, monkeypatch, capsys):
    assert told(child) == "sown"
    ws = Workspace(tmp_path / "ws")
    lost = weed(ws)
    with pytest.raises(OnsilError, match="under way"):
        collect_garbage(ws, delete=True)
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    assert run(monkeypatch, "gc", "--delete") == 1 and lost.path.exists()
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
    assert run(monkeypatch, "gc") == 0
    said = capsys.readouterr().out
    assert "objects: 2" in said and "under way" in said

    _, errors = child.communicate("go on\n")
    assert child.returncode == 0, errors
    assert run(monkeypatch, "gc", "--delete") == 0
    assert "under way" not in capsys.readouterr().out
    assert not lost.path.exists() and ws.is_whole(ws.resolve("desk")[2])
    assert sorted(r["stage"] for r in ws.records()) == ["reap", "sow"]


def test_nobody_begins_while_garbage_is_removed(tmp_path, child):
    """The child starts while the workspace is held alone, so it waits with its first stage."""
    ws = Workspace(tmp_path / "ws")
    with ws.alone() as nobody:
        assert nobody
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        assert not list(ws.records())
    assert told(child) == "sown"


def test_a_killed_process_holds_nothing(tmp_path, child):
    assert told(child) == "sown"
    child.kill()
    child.wait()
    assert len(collect_garbage(Workspace(tmp_path / "ws"), delete=True)["objects"]) == 1


MADE = {"bytes": "one"}


@stage(version=1)
def flower(*, out, run):
    (out / "a").write_text(MADE["bytes"])


@stage(version=1)
def bouquet(*, of, out, run):
    (out / "a").write_text((of / "a").read_text() + " bound")


def test_what_a_named_model_was_made_from_stays_when_it_is_made_anew(tmp_path, monkeypatch, capsys):
    """Another processor gives other bytes: those that a version names and used are kept."""
    ws = Workspace(tmp_path / "ws")
    first = flower(ws)
    made = bouquet(ws, of=first)
    ws.register("desk", made)
    (ws.root / "records" / f"{first.key}.json").write_text("{")
    monkeypatch.setitem(MADE, "bytes", "two")
    second = flower(ws)
    assert second.key == first.key and second.digest != first.digest
    lost = weed(ws)
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    ws._let_go()
    assert run(monkeypatch, "gc", "--delete") == 0
    assert ws.is_whole(made) and ws.is_whole(first) and not lost.path.exists()
    capsys.readouterr()
    assert run(monkeypatch, "verify", "desk") == 1 and "changed" in capsys.readouterr().out


def test_the_bytes_that_a_name_holds_are_kept_and_looked_at(tmp_path, monkeypatch, capsys):
    ws = Workspace(tmp_path / "ws")
    monkeypatch.setitem(MADE, "bytes", "one")
    made = flower(ws)
    ws.register("desk", made)
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    assert run(monkeypatch, "verify", "desk") == 0
    (ws.root / "records" / f"{made.key}.json").write_text("{")
    monkeypatch.setitem(MADE, "bytes", "two")
    assert flower(ws).digest != made.digest
    ws._let_go()
    assert run(monkeypatch, "gc", "--delete") == 0 and ws.is_whole(made)
    capsys.readouterr()
    assert run(monkeypatch, "verify", "desk") == 1 and made.digest[:12] in capsys.readouterr().out


def test_files_that_are_no_versions_and_records_that_lack_fields(tmp_path, monkeypatch, capsys):
    ws = Workspace(tmp_path / "ws")
    made = flower(ws)
    ws.register("desk", made)
    (ws.root / "names/desk/v1 (1).json").write_bytes((ws.root / "names/desk/v1.json").read_bytes())
    assert list(ws.versions("desk")) == ["v1"]
    record = ws.root / "records" / f"{made.key}.json"
    record.write_text(f'{{"key": "{made.key}"}}')
    assert ws.record(made.key) is None
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    assert run(monkeypatch, "verify", "desk") == 1
    assert "no record" in capsys.readouterr().out


def test_a_version_whose_record_cannot_be_made_again_can_be_given_up(tmp_path, monkeypatch, capsys):
    """Its inputs have other bytes by now, so that to grow again makes another record."""
    ws = Workspace(tmp_path / "ws")
    monkeypatch.setitem(MADE, "bytes", "one")
    first = flower(ws)
    old = bouquet(ws, of=first)
    ws.register("desk", old)
    for lost in (first, old):
        (ws.root / "records" / f"{lost.key}.json").unlink()
    monkeypatch.setitem(MADE, "bytes", "two")
    new = bouquet(ws, of=flower(ws))
    ws.register("desk", new)
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    ws._let_go()
    assert run(monkeypatch, "gc", "--delete") == 1
    entry = ws.root / "names/desk/v1.json"
    said = capsys.readouterr().err
    assert f"{old.key}.json" in said and f"give desk@v1 up and delete {entry}" in said
    entry.unlink()
    assert run(monkeypatch, "gc", "--delete") == 0
    assert not old.path.exists() and ws.is_whole(new)
