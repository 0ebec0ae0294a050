"""What every row of `benchmarks/results/` says beside its figures, and how it gets there."""

import json
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line for line in lines if line.startswith("model name")]
    return named[0].split(":")[1].strip() if named else platform.machine()


def circumstances() -> dict[str, str]:
    """Commit, day, versions and processor: what a figure needs to be read later. Taken before a
    long run, so that its commit is the code that ran."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "processor": processor(),
    }


def append(name: str, row: dict[str, Any]) -> None:
    """A row more in `benchmarks/results/{name}.jsonl`."""
    file = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    with file.open("a", encoding="utf-8") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")
