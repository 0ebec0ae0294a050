"""The server beside its own engine and beside llama.cpp's server, on the same weights.

    python benchmarks/serving.py prepare HOME --width 512 --depth 8
    PEER_PYTHON benchmarks/serving_peers.py HOME/model HOME/model.gguf
    python benchmarks/serving.py run HOME --streams 1 8 32 --peer LLAMA_CPP_BUILD/bin

Sides take turns, a round each: `http` (onsil serve), `bare` (the same engine called directly in a
process of its own), `llama` (llama-server -np 8). Every request: a prompt of 100 ids, 64 tokens
streamed, greedy, the end token forbidden; closed loop, then open loop at 0.7 of the best rate.
Before anything is timed all sides must write the same tokens after the same prompt. Processor time
is of the server's process alone; the caller has the other core. One row a cell is appended to
benchmarks/results/serving.jsonl with the load of the machine before it.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import recorded
from recorded import circumstances
from serving_load import at, closed, goodput, opened, told

ROOT = Path(__file__).resolve().parents[1]
PROMPT, TOKENS, ROUNDS, SEED, SLOTS = 100, 64, 5, 1, 8
FEWEST = 10  # requests of a round
FIRST, GAP = 1.0, 0.1  # the promise (SLO): seconds to the first text, seconds between tokens


def prepare(home: Path, width: int, depth: int) -> None:
    """A random decoder as a folder, and registered in a workspace as `pen`."""
    from onsil.lineage import Workspace
    from onsil.models.checkpoint import save
    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer
    from onsil.release import load_checkpoint
    from onsil.tokenizer import load_tokenizer

    words = ROOT / "base" / "tokenizer.json"
    size = load_tokenizer(words.parent).get_vocab_size()
    folder = home / "model"
    folder.mkdir(parents=True)
    save(Transformer(decoder_shape(size, width, depth, 2048)).initialise(SEED), folder, {})
    (folder / "tokenizer.json").write_bytes(words.read_bytes())
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    ws = Workspace(home / "ws")
    ws.register("pen", load_checkpoint(ws, folder))


def prompts(count: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(300, 3_000) for _ in range(PROMPT)] for _ in range(count)]


def bodies(side: str, count: int, seed: int) -> list[dict[str, Any]]:
    more = {"logit_bias": {"0": -100}} if side == "http" else {"ignore_eos": True}
    told = {"model": "pen", "max_tokens": TOKENS, "temperature": 0, "stream": True}
    told["stream_options"] = {"include_usage": True}
    return [told | more | {"prompt": ids} for ids in prompts(count, seed)]


# ── sides ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def http(home: Path, threads: int) -> Iterator[tuple[str, str, psutil.Process]]:
    """`onsil serve`: its address, the headers that let in, the process."""
    environment = os.environ | {"ONSIL_HOME": str(home / "ws"), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "onsil", "serve", "pen", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout is not None
        said = "".join(made.stdout.readline() for _ in range(3))
        address = next(word for word in said.split() if word.startswith("http")).removesuffix("/v1")
        key = (home / "ws" / "key").read_text().strip()
        try:
            yield address, f"Authorization: Bearer {key}\r\n", psutil.Process(made.pid)
        finally:
            made.terminate()


@contextmanager
def llama(home: Path, threads: int, peer: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """llama-server with as many slots."""
    import httpx

    port = str(random.Random(os.getpid()).randrange(20_000, 60_000))
    command = [str(peer / "llama-server"), "-m", str(home / "model.gguf"), "--port", port]
    command += ["-np", str(SLOTS), "-c", str(SLOTS * 2048), "-t", str(threads), "--no-webui"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as made:  # type: ignore[call-overload]
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        try:
            yield address, "", psutil.Process(made.pid)
        finally:
            made.terminate()


def bare(home: Path) -> None:
    """The engine without a server, in a process of its own: a line in, a run, a line out."""
    from onsil.inference.engine import Request
    from onsil.inference.loading import load_engine
    from onsil.inference.sampling import Sampling

    engine = load_engine(home / "model", SLOTS).engine
    how = Sampling(logit_bias=((0, -100.0),))
    for line in sys.stdin:
        wanted = json.loads(line)
        left = list(reversed(prompts(wanted["count"], wanted["seed"])))
        firsts: list[float] = []
        written: list[int] = []

        def caller(left=left, firsts=firsts, written=written) -> None:
            while left:
                began, first = time.perf_counter(), True
                for piece in engine.submit(Request(tuple(left.pop()), TOKENS, how)):
                    if first and piece.text:  # as an event has it
                        firsts.append(time.perf_counter() - began)
                        first = False
                    written.extend(token.id for token in piece.tokens)

        began, spent = time.perf_counter(), time.process_time()
        callers = [threading.Thread(target=caller) for _ in range(wanted["streams"])]
        for one in callers:
            one.start()
        for one in callers:
            one.join()
        seconds = time.perf_counter() - began
        row = {
            "tokens_per_s": round(len(written) / seconds, 2),
            "cpu_ms_per_token": round(1e3 * (time.process_time() - spent) / len(written), 3),
            "ttft_ms": [round(1e3 * at(sorted(firsts), q), 2) for q in (0.5, 0.99)],
            "ids": written[:TOKENS],
        }
        print("BARE " + json.dumps(row), flush=True)


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def measured(side: str, place: tuple, streams: int, count: int, seed: int) -> dict[str, Any]:
    """One round of a served side, closed loop."""
    address, headers, process = place
    asked = bodies(side, count, seed)
    began, before = time.perf_counter(), spent(process)
    found = asyncio.run(closed(address, headers, asked, streams))
    seconds = time.perf_counter() - began
    row = told(found, seconds)
    tokens = sum(h.tokens for h in found)
    cpu = 1e3 * (spent(process) - before) / max(tokens, 1)
    memory = process.memory_info().rss / 2**20
    return row | {"cpu_ms_per_token": round(cpu, 3), "rss_mib": round(memory)}


def first_words(side: str, place: tuple) -> list[int]:
    """What a side writes after the first prompt, greedy."""
    import httpx

    address, headers, _ = place
    told = dict([headers.strip().split(": ")]) if headers else {}
    body = bodies(side, 1, SEED)[0] | {"stream": False}
    if side == "llama":
        body |= {"n_predict": TOKENS, "return_tokens": True}
        return httpx.post(f"{address}/completion", json=body, timeout=300).json()["tokens"]
    body |= {"logprobs": 0}
    said = httpx.post(f"{address}/v1/completions", json=body, headers=told, timeout=300).json()
    return said["choices"][0]["logprobs"]["tokens"]


def run(home: Path, streams: list[int], peer: Path | None, threads: int, rounds: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    child = subprocess.Popen(
        [sys.executable, __file__, "bare", str(home)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def directly(many: int, count: int, seed: int) -> dict[str, Any]:
        assert child.stdin is not None and child.stdout is not None
        print(json.dumps({"streams": many, "count": count, "seed": seed}), file=child.stdin)
        child.stdin.flush()
        line = next(line for line in child.stdout if line.startswith("BARE "))
        return json.loads(line[5:])

    from contextlib import ExitStack

    with ExitStack() as stack:
        places = {"http": stack.enter_context(http(home, threads))}
        if peer is not None:
            places["llama"] = stack.enter_context(llama(home, threads, peer))
        direct = directly(1, 1, SEED)["ids"]
        if peer is not None:
            theirs = first_words("llama", places["llama"])
            alike = next(
                (n for n, (a, b) in enumerate(zip(direct, theirs, strict=False)) if a != b), TOKENS
            )
            print(f"the first {alike} of {TOKENS} tokens are the same as llama.cpp's")
            assert alike >= TOKENS // 2, (direct[:8], theirs[:8])
        for many in streams:
            count = max(FEWEST, 2 * many)
            rows: dict[str, list[dict]] = {side: [] for side in ["bare", *places]}
            load = os.getloadavg()[0]
            for turn in range(rounds + 1):  # the first warms
                for side in rows:
                    seed = SEED + 100 * turn
                    one = (
                        directly(many, count, seed)
                        if side == "bare"
                        else measured(side, places[side], many, count, seed)
                    )
                    one.pop("ids", None)
                    if turn:
                        rows[side].append(one)
            append({"streams": many, "threads": threads, "load": load} | summed(rows))
        for side, place in places.items():
            open_loop(side, place, threads)
        child.terminate()


def summed(rows: dict[str, list[dict]]) -> dict[str, Any]:
    """Medians over the rounds, and the ratios round by round."""
    found: dict[str, Any] = {}
    for side, each in rows.items():
        found[side] = {
            key: (
                [statistics.median(one[key][n] for one in each) for n in range(len(each[0][key]))]
                if isinstance(each[0][key], list)
                else statistics.median(one[key] for one in each)
            )
            for key in each[0]
        }
        if side != "bare":
            by = "bare" if side == "http" else "llama"
            ours = rows["http"]
            ratios = [
                a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(ours, rows[by], strict=True)
            ]
            found[f"http ÷ {by}, tokens/s"] = round(statistics.median(ratios), 3)
            ratios = [
                a["cpu_ms_per_token"] / b["cpu_ms_per_token"]
                for a, b in zip(ours, rows[by], strict=True)
            ]
            found[f"http ÷ {by}, CPU per token"] = round(statistics.median(ratios), 3)
            later = [a["ttft_ms"][0] - b["ttft_ms"][0] for a, b in zip(ours, rows[by], strict=True)]
            found[f"http − {by}, TTFT ms"] = round(statistics.median(later), 2)
    return found


def open_loop(side: str, place: tuple, threads: int) -> None:
    """Goodput under the promise, at 0.7 of the rate that eight streams reached."""
    address, headers, _ = place
    asked = bodies(side, 4 * SLOTS, SEED + 7)
    began = time.perf_counter()
    asyncio.run(closed(address, headers, asked[: 2 * SLOTS], SLOTS))
    rate = 0.7 * 2 * SLOTS / (time.perf_counter() - began)
    began = time.perf_counter()
    found = asyncio.run(opened(address, headers, asked, rate, SEED))
    seconds = time.perf_counter() - began
    good = goodput(found, seconds, FIRST, GAP)
    row = {"open loop": side, "threads": threads, "rate": round(rate, 3)} | told(found, seconds)
    append(row | {"goodput": round(good, 3), "promise_s": [FIRST, GAP]})


def append(row: dict[str, Any], results: str = "serving") -> None:
    about = circumstances() | {"cores": os.cpu_count(), "seed": SEED}
    print(json.dumps(row, ensure_ascii=False, indent=1))
    recorded.append(results, row | about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "run", "bare"])
    parser.add_argument("home", type=Path)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    told = parser.parse_args()
    if told.what == "prepare":
        prepare(told.home, told.width, told.depth)
    elif told.what == "bare":
        bare(told.home)
    else:
        run(told.home, told.streams, told.peer, told.threads, told.rounds)


if __name__ == "__main__":
    main()
