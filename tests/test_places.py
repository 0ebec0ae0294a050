"""Where commands work: who only looks makes no workspace, and a wrong place is three lines."""

from pathlib import Path

import pytest
from commands import run

from onsil.lineage import Workspace

LOOKING = [
    ("models",),
    ("models", "--json"),
    ("ask", "desk", "?"),
    ("chat", "desk"),
    ("report", "desk"),
    ("lineage", "desk"),
    ("diff", "desk", "desk"),
    ("verify", "desk"),
    ("affected", "a.md"),
    ("gc",),
    ("gc", "--delete"),
    ("inspect", "desk"),
    ("export", "desk", "out"),
    ("write", "desk", "a"),
    ("merge", "a", "b", "--name", "c"),
    ("serve", "desk"),
    ("keys",),
    ("keys", "remove", "a"),
    ("feedback", "desk"),
    ("replay", "a"),
]


def three_lines(capsys: pytest.CaptureFixture[str], about: str) -> None:
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3 and about in said[0], said


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
def test_who_only_looks_makes_no_workspace(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 1
    three_lines(capsys, str(tmp_path))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / "home"))
    assert run(monkeypatch, *arguments) == 1
    three_lines(capsys, str(tmp_path / "home"))
    assert not list(tmp_path.iterdir())


def test_the_real_workspace_is_found_from_below(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    Workspace(tmp_path / ".onsil")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    assert run(monkeypatch, "models") == 0
    assert "No models yet" in capsys.readouterr().out and not list(Path().iterdir())


@pytest.mark.parametrize("home", [None, "home"])
def test_a_key_is_made_where_there_was_nothing(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    if home:
        monkeypatch.setenv("ONSIL_HOME", home)
    assert run(monkeypatch, "keys", "add", "kim") == 0
    assert (tmp_path / (home or ".onsil") / "format").is_file()


@pytest.mark.parametrize("home", ["a_file", "a_file/ws"])
@pytest.mark.parametrize("arguments", [("models",), ("keys", "add", "kim")], ids=" ".join)
def test_a_home_that_is_a_file_is_three_lines(tmp_path, monkeypatch, capsys, home, arguments):
    (tmp_path / "a_file").write_text("x")
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / home))
    assert run(monkeypatch, *arguments) == 1
    three_lines(capsys, str(tmp_path / home))


def test_a_folder_nothing_can_be_written_in_is_three_lines(monkeypatch, capsys):
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    monkeypatch.chdir("/sys")
    assert run(monkeypatch, "keys", "add", "kim") == 1
    three_lines(capsys, "/sys/.onsil")
    assert run(monkeypatch, "models") == 1
    three_lines(capsys, "/sys")


@pytest.mark.parametrize("plan", ["nope.json", "a_folder", "picture.json", "list.json"])
def test_a_plan_that_cannot_be_read_is_three_lines(tmp_path, monkeypatch, capsys, plan):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_folder/a.md").write_text("연차는 15일이다.")
    (tmp_path / "picture.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.json").write_text("[]")
    assert run(monkeypatch, "grow", "a_folder", "--name", "desk", "--plan", plan) == 1
    three_lines(capsys, "This is not a plan" if plan == "list.json" else plan)
