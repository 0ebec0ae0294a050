"""Fixtures shared by all tests. Real data is read from $ONSIL_DATA, never copied here."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ONSIL_LANG"] = "en"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def onsil_data() -> Path:
    """The folder of real data; a test that needs it says so when it is not there."""
    folder = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs real data: set $ONSIL_DATA")
    return folder
