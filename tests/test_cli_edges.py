"""The command line at its edges: other terminals, paths no system takes, odd numbers, slips."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from served import make_pen

from onsil import cli
from onsil.serving.schemas import MOST_TOKENS

CHECKPOINT = Path(__file__).parents[1] / "base" / "encoder"
PROGRAM = [sys.executable, "-c", "from onsil.cli import main; main()"]


def typed(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "euc-kr"])
def test_a_terminal_without_our_letters_shows_others(tmp_path: Path, encoding: str):
    for words, code in ((("--help",), 0), (("models",), 1)):
        done = typed(*words, PYTHONIOENCODING=encoding, ONSIL_HOME=str(tmp_path / "none"))
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_a_path_that_no_system_takes_is_told_in_three_lines(tmp_path, monkeypatch, capsys):
    make_pen(tmp_path)
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / "ws"))
    long = "가" * 3_000
    for words in (("affected", long), ("lineage", long), ("inspect", long), ("load", long)):
        assert run(monkeypatch, *words) == 1
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 3 and len(said) < 1_000, said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "2.5"),
        ("--top-p", "0"),
        ("--top-p", "nan"),
        ("--tokens", "-5"),
        ("--tokens", str(MOST_TOKENS + 1)),
        ("--seed", str(-(2**63) - 1)),
        ("--seed", "99999999999999999999999"),
    ],
)
def test_what_no_server_would_draw_with_is_refused(tmp_path, monkeypatch, capsys, option, value):
    make_pen(tmp_path)
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / "ws"))
    monkeypatch.setattr("onsil.inference.load_writer", None)  # refused before weights are read
    assert run(monkeypatch, "write", "pen", "휴가", option, value) == 1
    captured = capsys.readouterr()
    said = captured.err.strip().splitlines()
    assert len(said) == 3 and f"{option} {value}" in said[0] and "휴가" not in captured.out
    assert "finite" in said[1] if value == "nan" else any(c.isdigit() for c in said[1])


def test_what_a_server_would_draw_with_is_taken(tmp_path, monkeypatch, capsys):
    make_pen(tmp_path)
    monkeypatch.setenv("ONSIL_HOME", str(tmp_path / "ws"))
    widest = ("--temperature", "2", "--top-p", "1", "--seed", str(2**63 - 1), "--tokens", "1")
    assert run(monkeypatch, "write", "pen", "휴가", *widest) == 0
    assert capsys.readouterr().out.startswith("휴가")


def test_a_slip_of_the_pen_leaves_no_empty_workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("ONSIL_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# 휴가\n\n연차는 15일이다.\n")
    for words in (
        ("grow", "nowhere", "--name", "desk"),
        ("grow", "docs", "--name", "a/b"),
        ("grow", "docs", "--name", "desk", "--base", "nowhere"),
        ("load", "nowhere"),
        ("load", "docs"),
        ("load", str(CHECKPOINT), "--name", "a/b"),
    ):
        assert run(monkeypatch, *words) == 1
        assert not (tmp_path / ".onsil").exists(), words


def test_a_bad_name_is_refused_before_anything_is_merged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONSIL_HOME", str(make_pen(tmp_path)))
    monkeypatch.setattr("onsil.release.merge_models", None)
    assert run(monkeypatch, "merge", "pen", "pen", "--name", "a/b") == 1
    assert "'a/b' cannot be a model's name" in capsys.readouterr().err


def test_what_may_not_be_read_is_not_said_to_be_unwritable(monkeypatch, capsys):
    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/secret/model.safetensors")

    monkeypatch.setattr(cli, "app", refused)
    assert run(monkeypatch, "lineage", "/secret/model.safetensors") == 1
    said = capsys.readouterr().err
    assert "may not read this" in said and "/secret/model.safetensors" in said
