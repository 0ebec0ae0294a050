"""What a graph costs beside its steps: processor time and latency of four steps in a row and three
side by side, at every placement, beside Ray Serve and BentoML.

    python benchmarks/graph_overhead.py [--peer-env PYTHON] [--toy] [--no-ray]

A step adds one to a number in a small JSON value and nothing else, so what is measured is the
graph: one request after the other, closed loop. Processor time is of this process and all below it
(workers, actors, Ray's own), for wall time on a shared machine says more about the neighbours.
`--peer-env` is the Python of a virtual environment with ray[serve], bentoml and psutil; a peer that
cannot be imported there is left out and named. Every row is appended to
benchmarks/results/graph_overhead.jsonl, with the ratio of each peer to the placement that does the
same: BentoML's services in one process to `inline`, Ray Serve to `ray`.
"""

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
from graph_peers import VALUE, measured  # noqa: E402

from onsil.graph import compile, par, step  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "graph_overhead.jsonl"
PEERS = ROOT / "benchmarks" / "graph_peers.py"
REQUESTS = {"inline": 20_000, "pool": 3_000, "process": 2_000, "ray": 1_000}
BESIDE = {"ray_serve": "ray", "bentoml": "inline"}


def one_more(value: dict[str, Any]) -> dict[str, Any]:
    """A step that does next to nothing."""
    return value | {"n": value["n"] + 1}


def total(votes: dict[str, Any]) -> dict[str, int]:
    """What three of them come to."""
    return {"n": sum(vote["n"] for vote in votes.values())}


STEPS = [step(one_more, name=f"step{n}") for n in range(4)]
SERIAL = STEPS[0] >> STEPS[1] >> STEPS[2] >> STEPS[3]
PARALLEL = par(*STEPS[:3], join=total)


async def ours(placement: Any, requests: int) -> dict[str, Any]:
    """Both graphs at one placement."""
    made = {}
    for name, graph, checked in (
        ("serial", SERIAL, VALUE | {"n": 5}),
        ("parallel", PARALLEL, {"answer": {"n": 6}, "voted": ["step0", "step1", "step2"]}),
    ):
        with contextlib.closing(compile(graph, placement)) as run:
            await run.ready()

            async def ask(value: dict[str, Any], run=run) -> Any:
                return (await run(value)).value

            checked = checked | ({"errors": {}} if "voted" in checked else {})
            made[name] = await measured(ask, requests, checked)
    return made


def theirs(python: Path, peer: str, requests: int) -> dict[str, Any] | None:
    """The same by a peer, in its own environment; None when it is not there."""
    there = subprocess.run([python, "-c", f"import {peer.replace('_', '.')}"], capture_output=True)
    if there.returncode:
        print(f"{peer}: cannot be imported by {python}, left out")
        return None
    run = subprocess.run(
        [python, PEERS, peer, str(requests)], capture_output=True, text=True, timeout=600
    )
    if run.returncode:
        print(f"{peer}: broke\n{run.stderr[-2000:]}")
        return None
    return json.loads(run.stdout.splitlines()[-1])


def ratios(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How much more the other costs: processor time and median latency."""
    return {
        f"{shape}_{of}": round(other[shape][of] / mine[shape][of], 2)
        for shape in ("serial", "parallel")
        for of in ("cpu_us", "p50_us")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-env", type=Path, help="a Python that has ray[serve] and bentoml")
    parser.add_argument("--toy", action="store_true", help="few requests, nothing written")
    parser.add_argument("--no-ray", action="store_true", help="leave our own Ray placement out")
    told = parser.parse_args()
    divisor = 50 if told.toy else 1
    placements = [p for p in REQUESTS if p != "ray" or not told.no_ray]
    made = {p: asyncio.run(ours(p, REQUESTS[p] // divisor)) for p in placements}
    where = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }
    rows = [{"side": f"onsil {p}"} | found | where for p, found in made.items()]
    for peer, same in BESIDE.items() if told.peer_env else ():
        found = theirs(told.peer_env, peer, REQUESTS[same] // divisor)
        if found is not None:
            row = {"side": peer} | found | where
            if same in made:
                row["times_onsil"] = {"placement": same} | ratios(made[same], found)
            rows.append(row)
    for row in rows:
        print(json.dumps(row))
    if not told.toy:
        with RESULTS.open("a", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
