"""Core-seconds to a loss: ours beside nanochat, nanoGPT, Hugging Face's Trainer and litgpt.

    python benchmarks/training.py prepare HOME
    python benchmarks/training.py cell HOME SIDE [--seed 0] [--steps N] [--peer FOLDER] [--set k=v]
    python benchmarks/training.py report         what each run came to, and docs/training.svg

Everybody reads the same 35 MB of Korean (technical documentation and statutes of $ONSIL_DATA) under
the same 4,096 tokens, in rows of 256, 2,048 tokens a step, on one thread or two, judged by the same
function: bits per byte of the same held-out rows, each row alone. The clock is processor time of
the process and its children; it starts when the model is made, so compiling is inside it, and
stands still while the judge works. A peer runs its own code from a folder outside this project:
nanochat's and nanoGPT's own scripts, litgpt's `pretrain`, transformers' Trainer; only where rows
come from and who judges is put in their place (`training_peers.py`). A cell is one run; it appends
its whole curve to benchmarks/results/training.jsonl.
"""

import argparse
import io
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # compile here, where the clock sees it

import numpy as np
import torch
from recorded import circumstances, commit
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
RESULTS = ROOT / "benchmarks" / "results" / "training.jsonl"
MEGABYTES, VOCABULARY, ROW, ROWS = 35, 4_096, 256, 8
HELD_ROWS = 384
CURVES = ROOT / "docs" / "training.svg"  # of each side the last long run on one thread
LOOK = """
text { font: 13px sans-serif; fill: #333 } .end { text-anchor: end } .mid { text-anchor: middle }
path { fill: none } .grid { stroke: #ddd } .axis { stroke: #666 } .line { stroke-width: 2 }
.line.s0 { stroke: #2f6b3d } .dot.s0 { fill: #2f6b3d }
.line.s1 { stroke: #b5532a; stroke-dasharray: 7 3 } .dot.s1 { fill: #b5532a }
.line.s2 { stroke: #3b5b92; stroke-dasharray: 2 3 } .dot.s2 { fill: #3b5b92 }
.line.s3 { stroke: #777; stroke-dasharray: 9 3 2 3 } .dot.s3 { fill: #777 }
.line.s4 { stroke: #8c1c4b; stroke-dasharray: 14 4 } .dot.s4 { fill: #8c1c4b }
"""


def prepare(home: Path) -> None:
    """train.npy and val.npy (uint16 ids, documents closed by their end), bytes.npy, tokenizer."""
    import zstandard

    from onsil.tokenizer.train import specials_of, train

    data = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data")) / "text-ko"
    texts: list[str] = []
    for name, share in (("tech-ko", 1.0), ("law-ko", 1.0)):
        with (data / f"{name}.jsonl.zst").open("rb") as f:
            reader = zstandard.ZstdDecompressor(max_window_size=2**25).stream_reader(f)
            rows = [json.loads(line) for line in io.TextIOWrapper(reader, "utf-8")]
        random.Random(name).shuffle(rows)
        budget = share * (MEGABYTES * 1e6 - sum(len(t.encode()) for t in texts))
        for row in rows:
            if budget <= 0:
                break
            texts.append(row["text"])
            budget -= len(row["text"].encode())
    random.Random(0).shuffle(texts)
    held, learnt = texts[:80], texts[80:]
    words = train(learnt, VOCABULARY)
    end = specials_of(words).end
    home.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", learnt), ("val", held)):
        ids = [i for e in words.encode_batch(some) for i in (*e.ids, end)]
        np.save(home / f"{name}.npy", np.array(ids, dtype=np.uint16))
    sizes = [len(words.decode([i]).encode()) if i != end else 0 for i in range(VOCABULARY)]
    spelled = {v: k for k, v in words.get_vocab().items()}
    for i in range(VOCABULARY):  # a token that is part of a letter decodes to a replacement sign
        if "�" in words.decode([i]):
            sizes[i] = len(spelled[i])
    np.save(home / "bytes.npy", np.array(sizes, dtype=np.int64))
    words.save(str(home / "tokenizer.json"))
    size = sum(len(t.encode()) for t in held)
    told = np.load(home / "bytes.npy")[np.load(home / "val.npy")].sum()
    assert abs(told / size - 1) < 1e-3, (told, size)
    print(home, len(learnt), "documents", np.load(home / "train.npy").size, "tokens")


class Clock:
    """Processor seconds of this process and its children since it was made, less the pauses."""

    def __init__(self):
        self.paused, self.zero = 0.0, self.now()

    @staticmethod
    def now() -> float:
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system

    def seconds(self) -> float:
        return self.now() - self.zero - self.paused


class Judge:
    """Keeps the curve: (tokens read, core-seconds, bits per byte)."""

    def __init__(self, home: Path):
        ids = np.load(home / "val.npy").astype(np.int64)
        rows = len(ids) // (ROW + 1)
        cut = torch.from_numpy(ids[: rows * (ROW + 1)]).view(rows, ROW + 1)
        self.rows = cut[:: max(1, rows // HELD_ROWS)][:HELD_ROWS]
        self.bytes = torch.from_numpy(np.load(home / "bytes.npy"))
        self.clock, self.curve = Clock(), []

    @torch.no_grad()
    def note(self, tokens: int, nats_of: Callable) -> float:
        """`nats_of(x, y)` → nats of each target, B T float32."""
        seconds, start = self.clock.seconds(), self.clock.now()
        nats, size = 0.0, 0
        for rows in self.rows.split(ROWS):
            x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
            nats += float(nats_of(x, y).double().sum())
            size += int(self.bytes[y].sum())
        bits = nats / math.log(2) / size
        self.curve.append([tokens, round(seconds, 1), round(bits, 4)])
        print(json.dumps(self.curve[-1]), flush=True)
        self.clock.paused += self.clock.now() - start
        return bits


def batches(home: Path, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ROWS × ROW inputs and targets, every row of the corpus once, in the order of a seed."""
    ids = np.load(home / "train.npy").astype(np.int64)
    rows = torch.from_numpy(ids[: len(ids) // (ROW + 1) * (ROW + 1)]).view(-1, ROW + 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for chosen in order.split(ROWS):
        if len(chosen) == ROWS:
            yield rows[chosen][:, :-1].contiguous(), rows[chosen][:, 1:].contiguous()


def ours(home: Path, judge: Judge, told: argparse.Namespace) -> dict:
    """The product's own loop and objective, with the shape and the recipe for speed; with `--set
    preset=hybrid` the default decoder (untied) and its recipe for training from noise, with
    `preset=decoder` the same without convolutions, with `compiled=true` in compiled stretches.
    `--set` also changes a word of the shape or of the recipe."""
    from contextlib import nullcontext
    from dataclasses import replace

    from onsil.models.compiling import compiled
    from onsil.models.shape import decoder_shape, hybrid_shape, race_shape
    from onsil.models.transformer import Transformer
    from onsil.training.loop import train
    from onsil.training.objectives import Batch, token_loss
    from onsil.training.optim import FAST, FAST_PEAK, RACE

    data = list(batches(home, told.seed))
    judge.clock = Clock()
    words = dict(told.set)
    peak, compile = words.pop("rate", FAST_PEAK), words.pop("compiled", False)
    preset = str(words.pop("preset", "race"))
    race, usual = preset == "race", {"decoder": decoder_shape, "hybrid": hybrid_shape}
    make, recipe, size = (race_shape, RACE, (128, 2)) if race else (usual[preset], FAST, (192, 4))
    shape = make(VOCABULARY, words.pop("width", size[0]), words.pop("depth", size[1]), ROW)
    shape = replace(shape, tied=False, **{k: v for k, v in words.items() if hasattr(shape, k)})
    recipe = replace(recipe, **{k: v for k, v in words.items() if hasattr(recipe, k)})
    model = Transformer(shape, "bf16").initialise(told.seed, wide=race)

    def batch_of(x, y):
        return Batch(x.view(1, -1), [ROW] * len(x), y.view(1, -1))

    def nats(x, y):
        hidden_TD = model.encode(x.view(1, -1), lengths=[ROW] * len(x))[0]
        return F.cross_entropy(model.logits(hidden_TD), y.flatten(), reduction="none")

    stretches = compiled(model, ROWS * ROW) if compile else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, stretches:
        parameters = dict(model.named_parameters())
        loss_of = lambda k: token_loss(model, batch_of(*data[k]))  # noqa: E731
        named = {"names_of": lambda k: [f"batch {k}"], "data": f"seed {told.seed}"}
        for step in train(parameters, loss_of, told.steps, peak, Path(scratch), 1, recipe, **named):
            if step.number % told.every == 0 or step.number == told.steps:
                judge.note(step.number * ROWS * ROW, nats)
    return {"parameters": sum(p.numel() for p in parameters.values()), "dtype": "bf16"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["prepare", "cell", "report"])
    parser.add_argument("home", type=Path, nargs="?")
    parser.add_argument("side", nargs="?", default="ours")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    parser.add_argument("--set", action="append", default=[], type=pair)
    told = parser.parse_args()
    if told.what == "prepare":
        return prepare(told.home)
    if told.what == "report":
        return report()
    if done(told):
        return print("this cell was run before")
    torch.set_num_threads(told.threads)
    judge = Judge(told.home)
    if told.side == "ours":
        extra = ours(told.home, judge, told)
    else:
        import training_peers

        extra = getattr(training_peers, told.side)(told.home, judge, told)
    row = {
        "side": told.side, "seed": told.seed, "steps": told.steps, "threads": told.threads,
        "set": dict(told.set), "note": told.note, **extra, "curve": judge.curve,
        **circumstances(),
    }  # fmt: skip
    with RESULTS.open("a") as f:
        f.write(json.dumps(row) + "\n")


def done(told: argparse.Namespace) -> bool:
    """Whether this very cell was run before at this commit: a run that was cut off goes on."""
    rows = (
        [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    )
    wanted = (told.side, told.seed, told.steps, told.threads, dict(told.set), commit())
    keys = ("side", "seed", "steps", "threads", "set", "commit")
    return any(tuple(row[k] for k in keys) == wanted for row in rows)


def seconds_to(curve: list, bits: float) -> float | None:
    """Core-seconds at which a curve first reaches `bits` a byte, in a straight line between two
    points of it; None if it never does."""
    before = None
    for _, seconds, now in curve:
        if now <= bits:
            if before is None:
                return seconds
            along = (before[1] - bits) / max(1e-9, before[1] - now)
            return before[0] + along * (seconds - before[0])
        before = (seconds, now)
    return None


def report() -> None:
    """For each peer's run: where it ended, and our core-seconds to there over its own."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    mine = [row for row in rows if row["side"] == "ours"]
    for row in rows:
        _, seconds, bits = row["curve"][-1]
        name = f"{row['side']} {row.get('dtype', '')} seed {row['seed']} {row['set']}"
        name += f" threads {row['threads']}"
        line = f"{name}: {row['parameters']:,} parameters, {bits} bits/byte in {seconds} core-s"
        if row["side"] != "ours":
            reached = [seconds_to(m["curve"], bits) for m in mine if m["threads"] == row["threads"]]
            ratios = [round(s / seconds, 3) for s in reached if s is not None]
            line += f"; ours to there ÷ its own: {ratios}"
        print(line)
    long = (row for row in rows if row["steps"] >= 1000 and row["threads"] == 1)
    last = {row["side"]: row for row in long}
    CURVES.write_text(drawn(list(last.values())), encoding="utf-8")


def drawn(rows: list[dict]) -> str:
    """Bits per byte over core-seconds, without the beginning, as a drawing that stands alone."""
    from onsil.evaluation.report_svg import Line, line_chart

    lines = [
        Line(
            f"{row['side']}, {row['parameters'] / 1e6:.1f} million weights, {row['steps']:,} steps",
            [(seconds, bits) for _, seconds, bits in row["curve"] if bits < 2.2],
        )
        for row in rows
    ]
    chart = line_chart(("", ""), "core-seconds", "bits per byte", lines)
    drawing = chart[chart.index("<svg") : chart.index("</svg>")]
    return (
        drawing.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).replace(
            ">", f"><style>{LOOK}</style>", 1
        )
        + "</svg>\n"
    )


def pair(text: str) -> tuple[str, object]:
    key, value = text.split("=", 1)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    main()
