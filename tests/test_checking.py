"""`onsil serve --check`: each unsafe setup is refused with its reason, a safe one is not."""

import json
import pickle
import shutil
import sqlite3
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from served import grow_small, make_pen
from test_life import TLSFiles, certificate, needs_openssl
from typer.testing import CliRunner

from onsil.cli import app
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.serving import checking
from onsil.serving.access import key_of
from onsil.serving.ai_mark import AIMark
from onsil.serving.checking import OK, REFUSE, WARN, check, self_check, told
from onsil.serving.keys import add_key
from onsil.serving.settings import Settings

GOOD = "mT8v-Qz1xL4r7Wc0nB5yHs"


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("checking"))


@pytest.fixture
def ws(grown, tmp_path, monkeypatch) -> Workspace:
    monkeypatch.delenv("ONSIL_KEY", raising=False)
    shutil.copytree(grown, tmp_path / "ws")
    (tmp_path / "ws").chmod(0o700)
    made = Workspace(tmp_path / "ws")
    key_of(made.root, print)
    return made


def refused(ws: Workspace, settings: Settings = Settings(), name: str = "desk") -> str:
    return "\n".join(f.en for f in check(ws, name, settings) if f.state == REFUSE)


def warned(ws: Workspace, settings: Settings = Settings()) -> str:
    return "\n".join(f.en for f in check(ws, "desk", settings) if f.state == WARN)


def folder(ws: Workspace) -> Path:
    return ws.resolve("desk")[2].path


def test_what_is_safe_is_not_refused_and_says_so_in_both_languages(ws, monkeypatch):
    said: list[str] = []
    findings = check(ws, "desk", Settings())
    assert told(findings, said.append) == 0
    assert len(said) == len(findings) + 1 > 8 and said[-1].startswith("0 refused")
    assert {f.state for f in findings} <= {OK, WARN}
    monkeypatch.setenv("ONSIL_LANG", "ko")
    said.clear()
    told(findings, said.append)
    assert said[0].startswith("정상") and "거부 0건" in said[-1]
    assert all(f.ko != f.en for f in findings)


@pytest.mark.parametrize(
    ("days", "state", "said"), [(7.5, OK, "after 7.5 days"), (0, WARN, "ever")]
)
def test_how_long_work_is_kept_is_said(ws, days, state, said):
    findings = check(ws, "desk", Settings(keep_days=days))
    assert [f.state for f in findings if f.en.startswith("Finished") and said in f.en] == [state]


def test_an_open_door_needs_a_key_of_ones_own_and_tls(ws, monkeypatch):
    reasons = refused(ws, Settings("0.0.0.0"))
    assert "key nobody chose" in reasons and "No TLS" in reasons
    monkeypatch.setenv("ONSIL_KEY", GOOD)
    reasons = refused(ws, Settings("0.0.0.0"))
    assert "key nobody chose" not in reasons and "No TLS" in reasons
    assert told(check(ws, "desk", Settings("0.0.0.0")), print) == 1


@needs_openssl
def test_with_key_and_certificate_the_door_may_be_open(ws, monkeypatch, tmp_path):
    monkeypatch.setenv("ONSIL_KEY", GOOD)
    files = certificate(tmp_path)
    settings = Settings("0.0.0.0", tls=files)
    assert refused(ws, settings) == ""
    assert "good for 1 days" in warned(ws, settings)  # ends soon
    files.key.chmod(0o644)
    assert "read by others" in refused(ws, settings)
    assert "no such file" in refused(ws, Settings(tls=TLSFiles(tmp_path / "x", files.key)))


@pytest.mark.parametrize(
    "key",
    ["short", "a" * 40, "abababababababababab", "abcdefghijklmnopqrst", "secret7secret7secret7"],
)
def test_a_key_that_can_be_guessed(ws, monkeypatch, key):
    monkeypatch.setenv("ONSIL_KEY", key)
    assert "can be guessed" in refused(ws)
    monkeypatch.setenv("ONSIL_KEY", GOOD)
    assert "guessed" not in refused(ws)


def test_a_key_that_no_header_carries(ws, monkeypatch):
    monkeypatch.setenv("ONSIL_KEY", "우리회사문서서버비밀열쇠입니다2026")
    assert "$ONSIL_KEY holds '우'" in refused(ws)
    monkeypatch.setenv("ONSIL_KEY", f"{GOOD} {GOOD}")
    assert "$ONSIL_KEY holds ' '" in refused(ws)


def test_keys_without_limits_are_told_and_a_damaged_list_is_refused(ws):
    add_key(ws.root, "kim")
    add_key(ws.root, "lee", tokens_per_day=5)
    assert "any limit: kim." in warned(ws)
    (ws.root / "keys.json").write_text("[1]")
    assert "not a list of keys" in refused(ws)


def test_files_that_others_can_read(ws):
    (ws.root / "key").chmod(0o644)
    assert "chmod 600" in refused(ws) and "key can be read" in refused(ws)


def test_a_workspace_that_others_can_reach(ws):
    outside = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        outside.chmod(0o755)
        shutil.copytree(ws.root, outside / "ws")
        open_ = Workspace(outside / "ws")
        open_.root.chmod(0o755)
        assert "open to others" in refused(open_)
        outside.chmod(0o700)  # no way to it
        assert refused(open_) == ""
    finally:
        shutil.rmtree(outside)


def test_a_prediction_log_with_identifiers_and_one_that_is_on(ws):
    assert "names and addresses are not" in warned(ws, Settings(log_predictions=True))
    path = ws.root / "logs" / "predictions.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"answer": "[전화번호]"}) + "\n")
    path.chmod(0o600)
    assert refused(ws) == ""
    path.write_text(json.dumps({"answer": "010-1234-5678"}) + "\n")
    assert "1 rows hold identifiers" in refused(ws)


def test_a_model_with_another_byte(ws):
    victim = folder(ws) / "model.json"
    victim.chmod(0o600)
    victim.write_text(victim.read_text() + " ")
    assert "damaged" in refused(ws)


@pytest.mark.parametrize(
    "name", ["weights.pkl", "pytorch_model.bin", "x.pt", "hidden.dat", "z.dat"]
)
def test_a_pickle_whatever_it_is_called(ws, name):
    path = folder(ws) / name
    path.write_bytes(pickle.dumps({"a": 1}))
    if name == "z.dat":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", pickle.dumps(1))
    assert f"{name} is a pickle" in refused(ws)


def test_a_program_and_a_reference_to_one(ws):
    (folder(ws) / "modeling.py").write_text("")
    (folder(ws) / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.M"}}')
    reasons = refused(ws)
    assert "modeling.py is a program" in reasons and "(auto_map)" in reasons


def test_a_template_that_leaves_its_sandbox(tmp_path):
    home = make_pen(tmp_path)
    home.chmod(0o700)
    made = Workspace(home)
    key_of(home, print)
    states = {f.en: f.state for f in check(made, "pen", Settings())}
    assert states["The chat template keeps to its sandbox."] == OK
    pen = made.resolve("pen")[2].path
    for path in pen.glob("template.json"):
        path.unlink()
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    for program in (escape, "{% for a in range(10**9) %}x{% endfor %}"):
        (pen / "chat_template.jinja").write_text(program)
        reasons = [f.en for f in check(made, "pen", Settings()) if f.state == REFUSE]
        assert any("template" in reason for reason in reasons), (program, reasons)


@pytest.mark.parametrize(("free", "state"), [(10**8, REFUSE), (10**9, WARN), (10**11, OK)])
def test_a_disk_that_is_nearly_full(ws, monkeypatch, free, state):
    usage = shutil.disk_usage(ws.root)._replace(free=free)
    monkeypatch.setattr(checking.shutil, "disk_usage", lambda path: usage)
    (found,) = [f for f in check(ws, "desk", Settings()) if "of disk are free" in f.en]
    assert found.state == state


def test_a_clock_before_the_last_record(ws, monkeypatch):
    then = max(r["finished_at"] for r in ws.records()) - 3600
    monkeypatch.setattr(checking.time, "time", lambda: then)
    assert "clock is 3,600 s before" in refused(ws)


def test_a_database_that_is_damaged_is_refused_here_and_at_the_start(ws):
    path = ws.root / "jobs" / "jobs.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a TEXT)")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 200)
    database.close()
    path.chmod(0o600)
    self_check(ws)
    assert refused(ws) == ""
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 6] = b"\xff" * 4096 * 5
    path.write_bytes(data)
    assert "jobs.db is damaged" in refused(ws)
    with pytest.raises(OnsilError, match=r"jobs\.db is damaged"):
        self_check(ws)


def test_no_notice_where_others_read_the_answers(ws, monkeypatch):
    off = AIMark(False)
    assert "not be told" in refused(ws, Settings("0.0.0.0", mark=off))
    assert "not marked" in warned(ws, Settings(mark=off)) and refused(ws, Settings(mark=off)) == ""


def test_at_the_terminal_the_exit_code_says_it_and_nothing_is_served(ws, monkeypatch, tmp_path):
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    file = tmp_path / "serve.py"
    file.write_text(
        "from onsil.graph import model\nfrom onsil.serving.deployment import App\n"
        "app = App()\napp.serve('/v1/ask', model('desk'))\n"
    )
    for what in ("desk", str(file)):
        for more, code, word in (
            ((), 0, "0 refused"),
            (("--host", "0.0.0.0"), 1, "refuse  No TLS"),
            (("--no-ai-notice", "--host", "0.0.0.0"), 1, "not be told"),
        ):
            said = CliRunner().invoke(app, ["serve", what, "--check", *more])
            assert said.exit_code == code and word in said.output, said.output
            assert "http://" not in said.output


def test_a_check_is_quick_and_changes_nothing(ws):
    before = sorted((p, p.stat().st_mtime_ns) for p in ws.root.rglob("*"))
    began = time.process_time()
    check(ws, "desk", Settings())
    assert time.process_time() - began < 5
    assert sorted((p, p.stat().st_mtime_ns) for p in ws.root.rglob("*")) == before
