"""The engine beside transformers' generate: tokens a second and processor time a token.

    python benchmarks/engine.py [--toy]

One random decoder in Qwen3's wiring (20.9 M weights, vocabulary 8,000) is saved, and both sides
load the same file. Prompts of 64 tokens, 64 more written greedily, no stop token; 1 stream and 8.
Sides take turns in one process with one thread, in another order each round; the first warms up.
`transformers` gets its eight prompts as one batch of one length, which is what it does best. The
texts of both sides must agree before anything is timed. Medians over rounds; ratios are of the same
round, with the middle 95 % of bootstrapped medians.

Further: what a token costs outside the model (µs); what same-bits-under-any-load costs (no row
alone, attention request by request); the time to the first token of a prompt of 1,024 tokens, new
and known; the time between tokens of a text while a prompt of 2,000 is read.
Appends one row to benchmarks/results/engine.jsonl.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
RESULTS = ROOT / "benchmarks" / "results" / "engine.jsonl"
SEED, ROUNDS, PROMPT, TOKENS, STREAMS = 1, 7, 64, 64, (1, 8)
VOCABULARY, WIDTH, DEPTH, CONTEXT = 8_000, 512, 6, 4_096


class Clock:
    """Seconds on the clock and of the processor."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def prepare(folder: Path, width: int, depth: int) -> int:
    """A random checkpoint, sharp enough to write more than one word; its weights."""
    from onsil.models.checkpoint import save
    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer

    model = Transformer(decoder_shape(VOCABULARY, width, depth, CONTEXT)).initialise(SEED)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 3
    save(model, folder, {})
    (folder / "tokenizer.json").write_bytes((ROOT / "base" / "tokenizer.json").read_bytes())
    return sum(p.numel() for p in model.parameters())


def prompts(streams: int, length: int = PROMPT) -> list[list[int]]:
    draw = random.Random(streams)
    return [[draw.randrange(10, VOCABULARY) for _ in range(length)] for _ in range(streams)]


# ── the sides: (streams, tokens) → the ids they wrote ───────────────────────────────────────────


def ours(folder: Path, compute: str):
    from onsil.inference.engine import Request
    from onsil.inference.loading import load_engine

    served = load_engine(folder, max(STREAMS), compute, cache_bytes=0)

    def write(streams: int, tokens: int) -> list[list[int]]:
        asked = [Request(tuple(ids), tokens) for ids in prompts(streams)]
        each = [served.engine.submit(request) for request in asked]
        return [[token.id for piece in stream for token in piece.tokens] for stream in each]

    return write, served


def theirs(folder: Path, compute: str):
    import transformers

    transformers.logging.set_verbosity_error()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def write(streams: int, tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts(streams))
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                min_new_tokens=tokens, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        return made[:, PROMPT:].tolist()

    return write


# ── what is measured ────────────────────────────────────────────────────────────────────────────


def speed(
    sides: dict[str, Callable], rounds: int, tokens: int
) -> dict[str, dict[str, list[float]]]:
    """{side × streams: tokens a second, processor milliseconds a token, of each round}."""
    kept: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for streams in STREAMS:
            for name in order:
                clock = Clock()
                sides[name](streams, tokens)
                wall, cpu = clock.read()
                if number:
                    row = kept.setdefault(f"{name} × {streams}", {"rate": [], "cpu": []})
                    row["rate"].append(streams * tokens / wall)
                    row["cpu"].append(1e3 * cpu / streams / tokens)
        print(f"round {number} of {rounds}", flush=True)
    return kept


def outside_the_model(served, tokens: int) -> float:
    """Microseconds a token that the engine spends around the model, eight streams, drawn."""
    from onsil.inference.engine import Request
    from onsil.inference.sampling import Sampling

    runner, inside = served.engine.runner, [0.0]
    plain = runner.step

    def step(parts):
        start = time.thread_time()
        made = plain(parts)
        inside[0] += time.thread_time() - start
        return made

    runner.step = step
    clock = Clock()
    asked = [
        served.engine.submit(Request(tuple(ids), tokens, Sampling(1.0, 0.9, n)))
        for n, ids in enumerate(prompts(8))
    ]
    for stream in asked:
        list(stream)
    _, cpu = clock.read()
    runner.step = plain
    return 1e6 * (cpu - inside[0]) / 8 / tokens


def first_token(served, length: int) -> tuple[float, float]:
    """Seconds to the first token of a new prompt and of a known one."""
    from onsil.inference.engine import Request

    ids = tuple(prompts(1, length)[0])
    found = []
    for _ in range(2):
        clock = Clock()
        next(stream := served.engine.submit(Request(ids, 1)))
        found.append(clock.read()[0])
        list(stream)
    return found[0], found[1]


def between_tokens(served, length: int) -> dict[str, float]:
    """Milliseconds between tokens of one text: median alone; median and 99th percentile while a
    prompt is read beside it."""
    from onsil.inference.engine import Request

    engine = served.engine
    first = engine.submit(Request(tuple(prompts(1)[0]), 3 * length))
    gaps: dict[str, list[float]] = {"alone": [], "beside": []}
    long, last = threading.Thread(target=lambda: list(ask())), time.perf_counter()

    def ask():
        return engine.submit(Request(tuple(prompts(1, length)[0]), 1))

    for piece in first:
        now = time.perf_counter()
        gap = 1e3 * (now - last) / max(1, len(piece.tokens))
        gaps["beside" if long.ident else "alone"].append(gap)
        last = now
        if len(gaps["alone"]) == 60 and long.ident is None:
            long.start()
        if long.ident is not None and not long.is_alive():
            first.cancel()
    long.join()
    alone, beside = sorted(gaps["alone"][10:]), sorted(gaps["beside"][1:-1])
    return {
        "alone_median": statistics.median(alone),
        "beside_median": statistics.median(beside),
        "beside_p99": beside[int(0.99 * (len(beside) - 1))],
        "steps_beside": len(beside),
    }


def cost_of_same_bits(served) -> dict[str, float]:
    """What a step would save if every product took a row alone, and if attention took all requests
    at once (texts of one length, which is its best case): shares of the step's time."""
    from onsil.inference.packing import Packed
    from onsil.inference.slots import Part

    slots = served.engine.runner
    ids = [5] * 256
    for slot in range(8):
        for start in range(0, 256, 64):
            slots.step([Part(slot, start, ids[start : start + 64], 256)])

    def seconds(parts: list[Part]) -> float:
        found = []
        for _ in range(40):
            start = time.thread_time()
            slots.step(parts)
            found.append(time.thread_time() - start)
        return statistics.median(found)

    one = [Part(0, 256, [5], 256)]
    two = seconds(one)
    products = [m for m in slots.model.modules() if isinstance(m, Packed) and not m.alone]
    for product in products:
        product.alone = True
    alone = seconds(one)
    for product in products:
        product.alone = False
    eight = seconds([Part(slot, 256, [5], 256) for slot in range(8)])
    s = slots.model.shape
    q = torch.randn(8, s.heads, 1, s.head_width)
    keys, values = slots.layers[0][0]

    def attention(rows: range, size: int) -> float:
        start = time.thread_time()
        for _ in range(50):
            for slot in rows:
                torch.nn.functional.scaled_dot_product_attention(
                    q[slot : slot + size], keys[slot : slot + size, :, :257],
                    values[slot : slot + size, :, :257], enable_gqa=True,
                )  # fmt: skip
        return s.depth * (time.thread_time() - start) / 50

    with torch.inference_mode():
        apart, together = attention(range(8), 1), attention(range(1), 8)
    return {"second_row": 1 - alone / two, "attention_apart": (apart - together) / eight}


def bootstrap(values: list[float]) -> list[float]:
    draw = random.Random(SEED)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2_000))
    return [round(statistics.median(values), 3), round(medians[50], 3), round(medians[1_949], 3)]


def over(kept: dict, above: str, below: str, what: str) -> list[float]:
    pairs = zip(kept[above][what], kept[below][what], strict=True)
    return bootstrap([a / b for a, b in pairs])


def measured(folder: Path, rounds: int, tokens: int, long: int) -> dict[str, Any]:
    sides, engines = {}, {}
    for compute in ("fp32", "bf16"):
        sides[f"onsil {compute}"], engines[compute] = ours(folder, compute)
        sides[f"transformers {compute}"] = theirs(folder, compute)
    same = [a == b for n in STREAMS for a, b in zip(
        sides["onsil fp32"](n, tokens), sides["transformers fp32"](n, tokens), strict=True
    )]  # fmt: skip
    assert sum(same) >= len(same) - 1, f"texts differ: {same}"
    kept = speed(sides, rounds, tokens)
    most, told = max(STREAMS), {}
    for compute in ("fp32", "bf16"):
        for n in STREAMS:
            pair = (f"onsil {compute} × {n}", f"transformers {compute} × {n}")
            told[f"rate over transformers, {compute} × {n}"] = over(kept, *pair, "rate")
            told[f"processor time over transformers, {compute} × {n}"] = over(kept, *pair, "cpu")
        for name in ("onsil", "transformers"):
            pair = (f"{name} {compute} × {most}", f"{name} {compute} × 1")
            told[f"{name} {compute}, {most} streams over 1"] = over(kept, *pair, "rate")
    served = engines["fp32"]
    around = outside_the_model(served, tokens)
    bits = cost_of_same_bits(served)
    served.engine.prefixes.most = 1 << 28
    cold, warm = first_token(served, long // 2)
    gaps = between_tokens(served, long)
    for one in engines.values():
        one.close()
    return {
        "tokens_a_second": {n: round(statistics.median(r["rate"]), 1) for n, r in kept.items()},
        "processor_ms_a_token": {n: round(statistics.median(r["cpu"]), 2) for n, r in kept.items()},
        "ratios": told,
        "us_a_token_outside_the_model": round(around, 1),
        "cost_of_same_bits": {name: round(share, 3) for name, share in bits.items()},
        "first_token_s": {"new": round(cold, 4), "known": round(warm, 4)},
        "ms_between_tokens": {name: round(value, 2) for name, value in gaps.items()},
        "same_texts": sum(same) / len(same),
    }


def main() -> int:
    import transformers

    parser = argparse.ArgumentParser()
    parser.add_argument("--toy", action="store_true", help="a minute's proof that it runs; no row")
    toy = parser.parse_args().toy
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as name:
        weights = prepare(Path(name), *((128, 2) if toy else (WIDTH, DEPTH)))
        sizes = (1, 16, 400) if toy else (ROUNDS, TOKENS, 2_000)
        row = measured(Path(name), *sizes)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    row |= {
        "weights": weights, "prompt": PROMPT, "tokens": sizes[1], "rounds": sizes[0], "seed": SEED,
        "date": time.strftime("%Y-%m-%d"), "processor": cpu[0].split(": ")[1] if cpu else "",
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "transformers": transformers.__version__,
        "load": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip
    print(json.dumps(row, indent=1, ensure_ascii=False))
    if not toy:
        with RESULTS.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
