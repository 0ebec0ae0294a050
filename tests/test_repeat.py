"""A run repeated: by its plan in another workspace, by the same command, under another name."""

import json
from pathlib import Path

import pytest
from commands import run

from onsil.evaluation.report import page_of
from onsil.grow import NO_BASE, Grown, grow
from onsil.lineage import Workspace, children, collect_garbage, history
from onsil.training.energy import Meter
from onsil.training.request import Request

OFFICE = Path(__file__).parent / "fixtures" / "office"
ASKED = Request(size=100_000, tokens=4_000, minutes=0.0)


def quiet(text: str) -> None:
    pass


def again(ws: Workspace, name: str, plan: str | None = None) -> Grown:
    return grow(ws, OFFICE, name, Request() if plan else ASKED, plan, NO_BASE, quiet)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Workspace, Grown]:
    """`desk`, grown by a plan that was made for it."""
    ws = Workspace(tmp_path_factory.mktemp("first") / "ws")
    return ws, again(ws, "desk")


def test_the_made_plan_gives_the_same_bytes_elsewhere(first, tmp_path):
    ws, grown = first
    (made,) = (r for _, r in history(ws, grown.model.key) if r["stage"] == "make_plan")
    text = (ws.artifact(made["object"]) / "plan.json").read_text(encoding="utf-8")
    elsewhere = Workspace(tmp_path / "ws")
    spelled_otherwise = json.dumps(json.loads(text))
    assert again(elsewhere, "desk", spelled_otherwise).model.digest == grown.model.digest
    stages = [r["stage"] for _, r in history(elsewhere, elsewhere.resolve("desk")[2].key)]
    assert "adopt_plan" in stages and "make_plan" not in stages


def test_the_same_command_makes_nothing_again(first):
    ws, grown = first
    collect_garbage(ws, delete=True)  # the plan was made from: no garbage, and not made anew
    before = {record["key"]: record["finished_at"] for record in ws.records()}
    assert again(ws, "desk") == grown
    assert {record["key"]: record["finished_at"] for record in ws.records()} == before


def test_energy_that_was_measured_once_stays_measured(tmp_path, monkeypatch):
    """On a machine that can be read; the second time nothing runs, and the report is the same."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text("0\n")
    monkeypatch.setattr("onsil.grow.Meter", lambda: Meter(zone.parent))

    def spends(text: str) -> None:
        """Each line that is told costs a joule."""
        (zone / "energy_uj").write_text(f"{int((zone / 'energy_uj').read_text()) + 10**6}\n")

    ws = Workspace(tmp_path / "ws")
    one, two = (grow(ws, OFFICE, "desk", ASKED, None, NO_BASE, spends) for _ in range(2))
    assert one == two
    (report,) = children(ws, one.model, "write_report")
    energy = report["arguments"]["outcome"]["energy"]
    assert energy["whole"]["source"] == energy["training"]["source"] == "measured"
    assert 0 < 3600 * energy["training"]["watt_hours"] <= 3600 * energy["whole"]["watt_hours"] < 100


def test_memory_in_the_report_is_that_of_the_processes_that_trained(first):
    """Not that of the process which wrote it: there, all may have been done before."""
    ws, grown = first
    peaks = {r["stage"]: r["peak_rss_mb"] for _, r in history(ws, grown.model.key)}
    (report,) = children(ws, grown.model, "write_report")
    outcome = report["arguments"]["outcome"]
    trained = max(peaks[stage] for stage in ("pretrain", "finetune", "instruct"))
    assert outcome["training_peak_rss_mb"] == trained < 10_000
    assert outcome["peak_rss_mb"] == max(trained, peaks["evaluate"])


def test_the_report_is_of_the_name_that_was_asked(first, monkeypatch, capsys):
    ws, grown = first
    other = again(ws, "other")
    assert other.model == grown.model and other.report != grown.report
    assert page_of(ws, grown.model, "desk") == grown.report / "report.html"
    assert page_of(ws, grown.model, "other") == other.report / "report.html"
    assert page_of(ws, grown.model, "nobody") is None
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    for name, report in (("desk@v1", grown.report), ("other", other.report)):
        assert run(monkeypatch, "report", name) == 0
        assert capsys.readouterr().out.strip().endswith(str(report / "report.html"))


def test_lineage_says_where_the_plan_and_the_documents_are(first, monkeypatch, capsys):
    ws, _ = first
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    assert run(monkeypatch, "lineage", "desk") == 0
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert "휴가규정.md" in (ws.root / said["5 documents"]).read_text(encoding="utf-8")
    assert json.loads((ws.root / said["plan"]).read_text())["threads"] >= 1


def test_a_report_whose_card_is_gone_is_three_lines(first, tmp_path, monkeypatch, capsys):
    ws, grown = first
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    aside = tmp_path / "card"
    grown.card.path.rename(aside)
    try:
        assert run(monkeypatch, "report", "desk") == 1
    finally:
        aside.rename(grown.card.path)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 3 and str(grown.card.path) in said[0]
