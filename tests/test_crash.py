"""A workspace survives death at every point, and the test of that would notice if it did not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crash_points.py")


def torn(folder: Path, mutation: str) -> tuple[int, list[int]]:
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, mutation], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return found["points"], found["torn"]


def test_no_death_at_any_point_changes_the_result(tmp_path):
    points, broken = torn(tmp_path, "none")
    assert points >= 30 and broken == []


@pytest.mark.parametrize("mutation", ["no_folder_sync", "no_file_sync", "in_place", "copied"])
def test_a_missing_sync_or_rename_is_noticed(tmp_path, mutation):
    """The same enumeration with one safeguard taken away finds workspaces that do not recover."""
    assert torn(tmp_path, mutation)[1]
