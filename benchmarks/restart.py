"""How long a restart takes beyond loading the model: SIGTERM, start again, ready.

    python benchmarks/restart.py HOME [--rounds 5]

HOME is what `serving.py prepare HOME` made. Each round ends a server with SIGTERM, starts it again
on its port, and asks `/ready` until it is 200: `drain_s` until the first process is gone,
`ready_s` and `ready_cpu_s` of the second one from its start. A third process imports the same and
then hashes and loads the model, nothing else: `load_s`, `load_cpu_s`. `rest_s` is what a restart
adds to the load; the goal is 2. Medians over the rounds are appended to
benchmarks/results/restart.jsonl.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
from serving import append, spent

CODE = """
import json, sys, time
from pathlib import Path
from onsil.inference.loading import load_engine
from onsil.lineage import Workspace
began, spent = time.perf_counter(), time.process_time()
ws = Workspace(Path(sys.argv[1]))
load_engine(ws.whole(ws.resolve("pen")[2]))
print(json.dumps([time.perf_counter() - began, time.process_time() - spent]))
"""


def started(home: Path, port: int) -> tuple[subprocess.Popen, float, float]:
    """A server that is ready, and the seconds and processor seconds until it was."""
    environment = os.environ | {"ONSIL_HOME": str(home / "ws")}
    command = [sys.executable, "-m", "onsil", "serve", "pen", "--port", str(port)]
    began = time.perf_counter()
    made = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    process = psutil.Process(made.pid)
    while made.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200:
                return made, time.perf_counter() - began, spent(process)
        except httpx.HTTPError:
            pass  # not yet listening
        time.sleep(0.01)
    raise SystemExit(f"the server ended with {made.returncode}")


def stopped(made: subprocess.Popen) -> float:
    began = time.perf_counter()
    made.terminate()
    made.wait()
    return time.perf_counter() - began


def loaded(home: Path) -> list[float]:
    """Seconds and processor seconds of the load alone."""
    command = [sys.executable, "-c", CODE, str(home / "ws")]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    load = os.getloadavg()[0]
    made, *_ = started(told.home, port)
    rows = []
    for _ in range(told.rounds):
        drain = stopped(made)
        made, ready, cpu = started(told.home, port)
        seconds, spent_loading = loaded(told.home)
        rows.append({"drain_s": drain, "ready_s": ready, "ready_cpu_s": cpu})
        rows[-1] |= {"load_s": seconds, "load_cpu_s": spent_loading}
        rows[-1] |= {"rest_s": ready - seconds, "rest_cpu_s": cpu - spent_loading}
    stopped(made)
    medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
    append({"rounds": told.rounds, "load": load} | medians, "restart")


if __name__ == "__main__":
    main()
