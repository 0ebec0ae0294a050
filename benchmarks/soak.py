"""Half an hour of everything at once, and whether the server is the same afterwards.

    python benchmarks/soak.py                    30 minutes, four callers, a row of results
    python benchmarks/soak.py --minutes 1        proves that it runs; too short for a verdict
    python benchmarks/soak.py --minutes 1 --leak proves that a leak is found

A real server of a tiny model that writes (random weights) is asked for chats, streams, streams that
are abandoned in the middle, completions, vectors, jobs, metrics, and for what is no request at all,
drawn by a seed. Its resident memory and open descriptors are read from /proc once a second. After
the warm-up, a third of the run, in which caches with bounds fill up, each is fitted by a line; the
interval of its slope comes from drawing blocks of the run anew (moving-block bootstrap, Künsch
1989), because neighbouring samples are not independent. It fails when the low end of the interval
means more growth over the measured time than `ALLOWED`, when an answer has a status it must not
have, or when the server does not drain and end with 0 afterwards. Descriptors are of connections
too, so each caller keeps one or none.

Left out: load. `serving.py` measures speed; here nobody hurries.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.jsonl"
CALLERS, WARM, SEED, ROUNDS = 4, 1 / 3, 1, 1_000
ALLOWED = {"rss": 0.02, "descriptors": 3.0}  # share of the memory; descriptors
QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"
LEAK = """
import os
from onsil.serving import request_log
plain, kept = request_log.line, []
def line(seen):
    kept.append(bytearray(100_000))
    kept.append(os.open("/dev/null", os.O_RDONLY))
    return plain(seen)
from onsil.serving import operations
operations.line = line
"""


def tiny(home: Path) -> None:
    """A chat model with random weights, as `pen`."""
    from onsil.lineage import Run, Workspace, stage
    from onsil.models.checkpoint import save
    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer
    from onsil.tokenizer.templates import ONSIL
    from onsil.tokenizer.train import train
    from onsil.tokenizer.turns import mark_ids, save_template

    @stage(version=1)
    def soaked_pen(*, width: int, out: Path, run: Run) -> dict:
        words = train(
            [QUESTION, "Which tree? abcdefghijklmnopqrstuvwxyz {}[]:,.0123456789"] * 3, 500
        )
        words.save(str(out / "tokenizer.json"))
        save(
            Transformer(decoder_shape(words.get_vocab_size(), width, 2, 512)).initialise(0), out, {}
        )
        save_template(ONSIL, out)
        marks = mark_ids(words, ONSIL)
        ends = {"eos_token_id": marks[ONSIL.stop], "pad_token_id": marks[ONSIL.pad]}
        (out / "generation_config.json").write_text(json.dumps(ends))
        return {}

    ws = Workspace(home)
    ws.register("pen", soaked_pen(ws, width=64))


# -- traffic --------------------------------------------------------------------------------------

Ask = Callable[[httpx.Client, random.Random], int]


def chat(client: httpx.Client, draw: random.Random) -> int:
    turns = [{"role": "user", "content": QUESTION * draw.randint(1, 3)}]
    limit = {"max_tokens": draw.randint(1, 24), "seed": draw.randint(0, 9)}
    body = {"model": "pen", "messages": turns} | limit
    return client.post("/v1/chat/completions", json=body).status_code


def stream(client: httpx.Client, draw: random.Random, whole: bool = True) -> int:
    body = {"model": "pen", "prompt": QUESTION, "max_tokens": 48, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        for n, _ in enumerate(response.iter_lines()):
            if not whole and n > draw.randint(0, 6):
                break
        return response.status_code


def abandoned(client: httpx.Client, draw: random.Random) -> int:
    return stream(client, draw, whole=False)


def vectors(client: httpx.Client, draw: random.Random) -> int:
    body = {"model": "pen", "input": [QUESTION] * draw.randint(1, 3)}
    return client.post("/v1/embeddings", json=body).status_code


def schema(client: httpx.Client, draw: random.Random) -> int:
    """Another schema every time: what is kept of them must be bounded."""
    form = {"type": "object", "properties": {f"a{draw.random()}": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": form}}
    turns = [{"role": "user", "content": "?"}]
    body = {"model": "pen", "messages": turns, "max_tokens": 8, "response_format": wanted}
    return client.post("/v1/chat/completions", json=body).status_code


def nonsense(client: httpx.Client, draw: random.Random) -> int:
    text = draw.choice(
        (b"{", b"[" * 5_000, b"null", b"\xff\xfe", b'{"model": "pen", "temperature": -1}', b"{}")
    )
    return client.post("/v1/chat/completions", content=text).status_code


def stranger(client: httpx.Client, draw: random.Random) -> int:
    wrong = {"Authorization": f"Bearer {draw.random()}"}
    return client.get(f"/nowhere/{draw.random()}", headers=wrong).status_code


def looks(client: httpx.Client, draw: random.Random) -> int:
    path = draw.choice(
        ("/metrics", "/v1/models", "/v1/models/pen", "/health", "/ready", "/monitor")
    )
    return client.get(path).status_code


def job(client: httpx.Client, draw: random.Random) -> int:
    turns = {"model": "pen", "messages": [{"role": "user", "content": "?"}], "max_tokens": 4}
    headers = {"Idempotency-Key": f"{draw.random()}"}
    body = {"kind": "chat.completions", "input": turns}
    made = client.post("/v1/jobs", json=body, headers=headers)
    if made.status_code == 202:
        client.get(f"/v1/jobs/{made.json()['id']}")
    return made.status_code


# What is asked, how often, and what may come back. 503 is a promise kept: come back later.
TRAFFIC: list[tuple[Ask, int, set[int]]] = [
    (chat, 6, {200, 503}),
    (stream, 4, {200, 503}),
    (abandoned, 4, {200, 503}),
    (schema, 1, {200, 503}),
    (vectors, 2, {200, 503}),
    (nonsense, 4, {400, 503}),
    (stranger, 2, {401}),
    (looks, 2, {200}),
    (job, 2, {202, 503}),
]


def call(address: str, key: str, seed: int, until: float, said: Counter, wrong: list[str]) -> None:
    """One caller, until the clock says so: counts of (what, status), and what should not be."""
    draw = random.Random(seed)
    weights = [weight for _, weight, _ in TRAFFIC]
    headers = {"Authorization": f"Bearer {key}"}
    while time.monotonic() < until:
        # A connection for a while and then another: both ways are the server's to keep clean.
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            for _ in range(draw.randint(1, 20)):
                ask, _, allowed = draw.choices(TRAFFIC, weights)[0]
                try:
                    status = ask(client, draw)
                except httpx.HTTPError as e:
                    wrong.append(f"{ask.__name__}: {type(e).__name__}")
                    continue
                said[ask.__name__, status] += 1
                if status not in allowed:
                    wrong.append(f"{ask.__name__}: {status}")
                if time.monotonic() > until:
                    break


# -- samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """Growth in an hour with its 95 % interval, and over the measured time at least."""

    per_hour: float
    low: float
    high: float
    least: float
    mean: float

    def grows(self, allowed: float) -> bool:
        return self.least > allowed


def sampled(pid: int, until: float, every: float) -> np.ndarray:
    """(N, 3): seconds, bytes resident, open descriptors."""
    rows, page = [], os.sysconf("SC_PAGE_SIZE")
    while time.monotonic() < until:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        rows.append((time.monotonic(), resident, len(os.listdir(f"/proc/{pid}/fd"))))
        time.sleep(every)
    return np.array(rows)


def slope(seconds: np.ndarray, values: np.ndarray, seed: int = SEED) -> Slope:
    """The line through samples, its interval from blocks of the residuals drawn anew."""
    line = np.polyfit(seconds, values, 1)
    left = values - np.polyval(line, seconds)
    size = max(2, round(len(left) ** 0.5))
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, len(left) - size + 1, (ROUNDS, -(-len(left) // size)))
    blocks = starts[:, :, None] + np.arange(size)
    noise = left[blocks.reshape(ROUNDS, -1)[:, : len(left)]]
    found = np.polyfit(seconds, np.polyval(line, seconds)[:, None] + noise.T, 1)[0]
    low, high = np.percentile(found, [2.5, 97.5])
    measured = seconds[-1] - seconds[0]
    return Slope(*(3600 * float(x) for x in (line[0], low, high)), low * measured, values.mean())


# -- the run --------------------------------------------------------------------------------------


def soak(home: Path, minutes: float, leak: bool) -> dict:
    """Serve, ask, sample, drain: what was found. Raises RuntimeError when it does not begin."""
    tiny(home)
    program = f"{LEAK if leak else ''}\nfrom onsil.cli import main\nmain()"
    running = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "pen", "--port", "0"],
        env=os.environ | {"ONSIL_HOME": str(home), "OMP_NUM_THREADS": "1", "ONSIL_LANG": "en"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    told = "".join(running.stdout.readline() for _ in range(3))
    link = re.search(r"http://\S+(?=/sign-in)", told)
    if link is None:
        running.kill()
        raise RuntimeError(f"the server did not begin: {told}")
    key = (home / "key").read_text().strip()
    said: Counter = Counter()
    wrong: list[str] = []
    until = time.monotonic() + 60 * minutes
    callers = [
        threading.Thread(target=call, args=(link.group(), key, SEED + n, until, said, wrong))
        for n in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        samples = sampled(running.pid, until, min(1.0, minutes))
    finally:
        for caller in callers:
            caller.join()
        running.terminate()
        ended = running.wait(60)
        running.stdout.close()
    return judged(samples, said, wrong, ended) | {"minutes": minutes, "leak": leak}


def judged(samples: np.ndarray, said: Counter, wrong: list[str], ended: int) -> dict:
    """Slopes after the warm-up, and everything that speaks against the server."""
    seconds = samples[:, 0] - samples[0, 0]
    after = seconds >= WARM * seconds[-1]
    rss, descriptors = (slope(seconds[after], samples[after, n]) for n in (1, 2))
    against = Counter(wrong)
    if rss.grows(ALLOWED["rss"] * rss.mean):
        against[f"memory grows by {rss.per_hour / 2**20:,.0f} MiB an hour"] = 1
    if descriptors.grows(ALLOWED["descriptors"]):
        against[f"descriptors grow by {descriptors.per_hour:,.0f} an hour"] = 1
    if ended:
        against[f"the server ended with {ended}"] = 1
    return {
        "requests": sum(said.values()),
        "answers": {f"{what} {status}": n for (what, status), n in sorted(said.items())},
        "rss": asdict(rss),
        "descriptors": asdict(descriptors),
        "against": dict(against),
    }


def printed(found: dict) -> str:
    rss, files = found["rss"], found["descriptors"]
    mib = {k: v / 2**20 for k, v in rss.items()}
    return (
        f"{found['requests']:,} requests in {found['minutes']:g} minutes\n"
        f"memory {mib['mean']:,.0f} MiB, {mib['per_hour']:+,.1f} MiB/h "
        f"({mib['low']:+,.1f} to {mib['high']:+,.1f})\n"
        f"descriptors {files['mean']:.0f}, {files['per_hour']:+.1f}/h "
        f"({files['low']:+.1f} to {files['high']:+.1f})\n"
        + "\n".join(f"AGAINST: {what} ({n})" for what, n in found["against"].items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--leak", action="store_true", help="plant one; the run must fail")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder) / "ws", asked.minutes, asked.leak)
    print(printed(found))
    if not asked.leak and asked.minutes >= 30:
        from recorded import circumstances

        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as f:
            f.write(json.dumps(found | circumstances(), ensure_ascii=False) + "\n")
    sys.exit(1 if found["against"] else 0)


if __name__ == "__main__":
    main()
