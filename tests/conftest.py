"""Fixtures shared by all tests. Real data is read from $ONSIL_DATA, never copied here."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ONSIL_LANG"] = "en"
ROOT = Path(__file__).resolve().parents[1]
ALLOWED = [
    line
    for line in Path(__file__).with_name("allowed_skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
SKIPPED: dict[str, str] = {}


@pytest.fixture(scope="session")
def onsil_data() -> Path:
    """The folder of real data; a test that needs it says so when it is not there."""
    folder = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs real data: set $ONSIL_DATA")
    return folder


def pytest_runtest_logreport(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        SKIPPED[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")


pytest_collectreport = pytest_runtest_logreport  # a whole file may be skipped, too


def pytest_sessionfinish(session: pytest.Session) -> None:
    if any(reason not in ALLOWED for reason in SKIPPED.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    """What was not run and why; a reason that is not on the list fails the run."""
    for test, reason in sorted(SKIPPED.items()):
        verdict = "" if reason in ALLOWED else "   NOT on tests/allowed_skips.txt"
        terminalreporter.write_line(f"not run: {test}: {reason}{verdict}")
