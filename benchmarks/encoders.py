"""Encoders that earn their place: pretrained here on reviews, tuned, and beside what is cheaper.

    python benchmarks/encoders.py HOME [TASK …] [--cells CELL …] [--steps N] [--inner]
    python benchmarks/encoders.py HOME nsmc-test      once, when every choice is made

Korean movie reviews of $ONSIL_DATA, from nothing: a tokenizer; an encoder that guesses hidden words
and whether two runs of reviews are of one movie (Devlin et al. 2019); judges tuned on it for NSMC
(split by movie), KorSTS, 3i4K (own split, by hash), KLUE NLI and STS (five folds of the published
dev slices, by premise). None of these numbers is comparable with a published table: other splits,
other sizes. Beside each stands the same net never pretrained, a linear model over hashed character
1–5-grams, and the commonest answer.

A cell is one figure. HOME is a workspace: what is made is never made again, a killed stage goes on
from its last checkpoint, and a cell whose row is written is skipped. Choices are made on NSMC's
dev, elsewhere with `--inner`. Clock: processor seconds, one thread.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import torch
import zstandard
from intervals import accuracy, correlations
from ngram_linear import commonest, linear
from recorded import circumstances
from safetensors.torch import load_file
from torch import Tensor

from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import canonical, file_digest, write_atomically
from onsil.models.checkpoint import load
from onsil.models.heads import FIXED, LAYOUTS, Head, new_head
from onsil.models.shape import encoder_shape
from onsil.models.transformer import Transformer
from onsil.models.weights import stable_bytes
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import train as train_words
from onsil.training.base import adopt
from onsil.training.judging import (
    Judging,
    cases_of,
    cut_words,
    cuts_of,
    judge,
    tune,
)
from onsil.training.loop import report_progress, train
from onsil.training.next_sentence import sentence_batch, sentence_loss
from onsil.training.optim import Recipe
from onsil.training.samplers import SentencePair, sentence_pairs

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "benchmarks" / "results" / "encoders.jsonl"
VOCABULARY, WIDTH, DEPTH, CONTEXT = 12_000, 192, 3, 128
ROOM, BATCHES, HIDDEN, CUT, PEAK = 61, 2_700, 0.25, 0.1, 2e-3
RECIPE = Recipe(optimizer="muon", embedding=4.0)
REVIEWS = ("text-ko/reviews-ko.jsonl.zst", "nsmc/train.jsonl.zst")
STEPS, FOLDS, DRAWS = 12_000, 5, 2_000


def rows(name: str) -> Iterator[dict]:
    """The rows of one file of the data folder."""
    with (DATA / name).open("rb") as f:
        reader = zstandard.ZstdDecompressor(max_window_size=2**25).stream_reader(f)
        yield from map(json.loads, io.TextIOWrapper(reader, "utf-8"))


def digest(*names: str) -> str:
    return hashlib.sha256(b"".join((DATA / name).read_bytes() for name in names)).hexdigest()


def noise(seed: int) -> Transformer:
    """BERT's stack with norms before the branches and rotary positions, which in the first 250
    steps learnt faster than learned ones (docs/log.md)."""
    bert = encoder_shape(VOCABULARY, WIDTH, DEPTH, CONTEXT)
    shape = replace(bert, wiring="pre", positions="rotary")
    return Transformer(shape, "bf16").initialise(seed)


# ── pretraining ─────────────────────────────────────────────────────────────────────────────────


def movies() -> list[list[str]]:
    """The reviews of each movie that may be read: reviews-ko and the texts of NSMC's train."""
    by: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows(REVIEWS[0]):
        movie = row["path"].split("/")[-1].removesuffix(".json")
        by[movie] |= dict.fromkeys(line for line in row["text"].split("\n") if line.strip())
    for row in rows(REVIEWS[1]):
        by[row["movie"]][row["document"]] = None
    return [list(texts) for texts in by.values()]


class Epochs:
    """Sentence pairs of every epoch, a pure function of (seed, step). A document is a movie, a
    segment a review; steps hold pairs of one length, which attend together."""

    def __init__(self, documents: list[list[list[int]]], cuts, seed: int):
        self.documents, self.cuts, self.seed = documents, cuts, seed
        self.now: tuple[int, list[list[SentencePair]]] = (-1, [])

    def epoch(self, number: int) -> list[list[SentencePair]]:
        if self.now[0] != number:
            draw, found = random.Random(f"{self.seed}-{number}"), []
            order = list(self.documents)
            draw.shuffle(order)
            for a in range(0, len(order), 256):
                some = [[cut_words(r, self.cuts, CUT, draw) for r in d] for d in order[a : a + 256]]
                for document in some:
                    draw.shuffle(document)
                found += sentence_pairs(some, ROOM, draw)
            draw.shuffle(found)
            found.sort(key=lambda pair: len(pair.first) + len(pair.second))
            sizes = [len(pair.first) + len(pair.second) + 3 for pair in found]
            groups: list[list[SentencePair]] = [[] for _ in range(BATCHES)]
            before, total = 0, sum(sizes)
            for pair, size in zip(found, sizes, strict=True):
                groups[before * BATCHES // total].append(pair)
                before += size
            groups = [group for group in groups if group]
            random.Random(f"{self.seed}-{number}-order").shuffle(groups)
            self.now = (number, groups)
        return self.now[1]

    def step(self, k: int) -> list[SentencePair]:
        groups = self.epoch(k // BATCHES)
        return groups[k % BATCHES % len(groups)]


@stage(version=1)
def pretrain_reviews(*, data: str, steps: int, seed: int, out: Path, run: Run) -> dict:
    """tokenizer.json and an encoder with BERT's pooler, after `steps` steps; 0: as it was drawn."""
    torch.set_num_threads(1)
    clock = Clock(run.scratch)
    texts = movies()
    flat = [text for movie in texts for text in movie]
    if not (run.scratch / "tokenizer.json").exists():
        train_words(flat, VOCABULARY).save(str(run.scratch / "tokenizer.json"))
    shutil.copy(run.scratch / "tokenizer.json", out / "tokenizer.json")
    words = load_tokenizer(out)
    ids = iter([e.ids for e in words.encode_batch([text + "\n" for text in flat])])
    pairs = Epochs([[next(ids) for _ in movie] for movie in texts], cuts_of(words), seed)
    model = noise(seed)
    head = Head("next_sentence", LAYOUTS["bert"]["next_sentence"], WIDTH, FIXED["next_sentence"])
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in head.parameters():
            p.normal_(0, 0.02, generator=draw) if p.dim() > 1 else p.zero_()
    weights = dict(model.named_parameters())
    weights |= {f"nsp.{name}": p for name, p in head.named_parameters()}

    def loss_of(k: int) -> tuple[Tensor, int]:
        told = sentence_batch(pairs.step(k), VOCABULARY, f"{seed}-{k}", HIDDEN)
        return sentence_loss(model, head, told)

    named = {"names_of": lambda k: [f"step {k + 1}"], "data": file_digest(out / "tokenizer.json")}
    loop = train(weights, loss_of, steps, PEAK, run.scratch, recipe=RECIPE, **named)
    last: float | None = None
    for step in report_progress(loop, steps, run.say, "pretraining", steps * 2_304):
        last = step.loss
        clock.note(step.number)
    state = {name: p.detach() for name, p in model.state_dict().items() if name != "head.weight"}
    (out / "model.safetensors").write_bytes(stable_bytes(state, {"onsil": canonical(run.ancestry)}))
    return {"core_s": clock.spent(), "steps": steps, "loss": last}


# ── labelled rows ───────────────────────────────────────────────────────────────────────────────

RATINGS = ("1", "2", "3", "4", "9", "10")
SCORES = ("korsts", "klue-sts")  # tasks whose answer is a number
FILES = {
    "nsmc": ("nsmc/train.jsonl.zst", "nsmc/dev.jsonl.zst"),
    "nsmc-test": ("nsmc/train.jsonl.zst", "nsmc/test.jsonl.zst"),
    "korsts": ("kornlu/korsts-train.jsonl.zst", "kornlu/korsts-dev.jsonl.zst"),
    "3i4k": ("intents/3i4k-train.jsonl.zst",),
    "klue-nli": ("klue/nli.jsonl.zst",),
    "klue-sts": ("klue/sts.jsonl.zst",),
}


def part_of(text: str, parts: int) -> int:
    """Which of so many parts a text belongs to, by its hash."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % parts


def row_of(task: str, row: dict) -> dict:
    """text, other, label, and the group whose rows are drawn together in an interval."""
    match task:
        case "nsmc" | "nsmc-test":
            kind = "긍정" if row["rating"] > 5 else "부정"
            return {"text": row["document"], "label": kind, "group": row["movie"]}
        case "korsts":
            pair, label = (row["sentence1"], row["sentence2"]), float(row["score"])
        case "klue-sts":
            pair, label = (row["sentence1"], row["sentence2"]), row["labels"]["real-label"]
        case "klue-nli":
            pair, label = (row["premise"], row["hypothesis"]), row["gold_label"]
        case _:
            return {"text": row["text"], "label": row["name"], "group": row["text"]}
    return {"text": pair[0], "other": pair[1], "label": label, "group": pair[0]}


def split_rows(task: str, fold: int, inner: bool) -> tuple[list[dict], list[dict]]:
    """(train, held out) of a task. 3i4K and KLUE are split by the hash of their (first) text. With
    `inner` what is held out is a tenth of train itself, for choices."""
    parts = [[row_of(task, row) for row in rows(name)] for name in FILES[task]]
    if len(parts) == 1:
        many = 10 if task == "3i4k" else FOLDS
        parts = [
            [row for row in parts[0] if (part_of(row["group"], many) == fold) == held]
            for held in (False, True)
        ]
    if inner:
        parts = [
            [row for row in parts[0] if (part_of("inner" + row["group"], 10) == 0) == held]
            for held in (False, True)
        ]
    return parts[0], parts[1]


def names_of(task: str, learnt: Sequence[dict]) -> tuple[str, ...]:
    return ("score",) if task in SCORES else tuple(sorted({row["label"] for row in learnt}))


# ── judges ──────────────────────────────────────────────────────────────────────────────────────

NSMC = Judging(epochs=2, rate=1e-3, hidden=0.2, cut=0.1, compute="bf16", recipe=RECIPE)
JUDGING = {
    "nsmc": NSMC,
    "nsmc-test": NSMC,
    "3i4k": replace(NSMC, epochs=2),
    "korsts": replace(NSMC, epochs=5, batch_tokens=1024),
    "klue-nli": replace(NSMC, epochs=4, batch_tokens=1024),
    "klue-sts": replace(NSMC, epochs=8, batch_tokens=512),
}


def stack_of(folder: Path) -> Transformer:
    """The encoder that `pretrain_reviews` left, or that of a base."""
    if (folder / "encoder").is_dir():
        return load(folder / "encoder", "bf16")[0]
    model = noise(0)
    state = load_file(folder / "model.safetensors")
    model.load_state_dict(state | {"head.weight": state["embedding.weight"]})
    return model


@stage(version=2)
def tuned(
    *, encoder: Artifact, task: str, fold: int, inner: bool, share: float, judging: Judging,
    data: str, out: Path, run: Run,
) -> dict:  # fmt: skip
    """judge.safetensors: stack and head, tuned on a share of the train rows."""
    torch.set_num_threads(1)
    clock = Clock(run.scratch)
    learnt, _ = split_rows(task, fold, inner)
    learnt = [row for row in learnt if part_of("share" + row["text"], 1000) < 1000 * share]
    names, words = names_of(task, learnt), load_tokenizer(encoder.path)
    stack, head = new_head(stack_of(encoder.path), "token", names, seed=0)
    cases = cases_of(learnt, words, names, CONTEXT)
    loop, steps = tune(stack, head, cases, words, judging, run.scratch)
    tokens = sum(len(case.ids) for case in cases) * judging.epochs
    for step in report_progress(loop, steps, run.say, f"{task} {fold}", tokens):
        clock.note(step.number)
    state = {f"stack.{name}": p.detach() for name, p in stack.state_dict().items()}
    state |= {f"head.{name}": p.detach() for name, p in head.state_dict().items()}
    (out / "judge.safetensors").write_bytes(stable_bytes(state, {"onsil": canonical(run.ancestry)}))
    return {"core_s": clock.spent(), "rows": len(learnt), "steps": steps, "tokens": tokens}


def said_of(
    encoder: Path, made: Sequence[Path], held: list[dict], names: tuple[str, ...]
) -> Tensor:
    """What a tuned judge says of rows; of several, the one whose weights are their mean."""
    stack, head = new_head(stack_of(encoder), "token", names)
    parts = [load_file(folder / "judge.safetensors") for folder in made]
    state = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    for part, module in (("stack.", stack), ("head.", head)):
        own = {n.removeprefix(part): t for n, t in state.items() if n.startswith(part)}
        module.load_state_dict(own)
    return judge(stack, head, cases_of(held, load_tokenizer(encoder), names, CONTEXT))


class Clock:
    """Processor seconds of a stage, also of the runs that were killed, up to their last note."""

    def __init__(self, scratch: Path):
        self.file, self.start = scratch / "clock.json", time.process_time()
        self.before = json.loads(self.file.read_text()) if self.file.exists() else 0.0

    def spent(self) -> int:
        return round(self.before + time.process_time() - self.start)

    def note(self, step: int) -> None:
        if step % 50 == 0:
            write_atomically(self.file, json.dumps(self.spent()))


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def figures(task: str, scores: Tensor, held: list[dict], names: tuple[str, ...]) -> dict:
    """Accuracy, or Pearson and Spearman, each [value, low, high], 95 %."""
    groups = [row["group"] for row in held]
    if task in SCORES:
        wanted = np.array([row["label"] for row in held], float)
        return correlations(scores[:, 0].numpy().astype(float), wanted, groups, DRAWS)
    right = [names[i] == row["label"] for i, row in zip(scores.argmax(1), held, strict=True)]
    return accuracy(np.array(right), groups, DRAWS)


# ── cells ───────────────────────────────────────────────────────────────────────────────────────

CHEAP = {"commonest": commonest, "linear": linear}
AVERAGED = "pretrained, two tunings averaged"  # in two orders; Wortsman et al. 2022
BASE = "the base's encoder"  # base/, which has read no review
ENCODERS = {"pretrained": 1.0, AVERAGED: 1.0, "never pretrained": 1.0}
ENCODERS |= {"pretrained, a tenth of the rows": 0.1, "never pretrained, a tenth of the rows": 0.1}
TASKS = {task: [*CHEAP, *ENCODERS] for task in ("nsmc", "nsmc-test")}
ENCODERS[BASE] = 1.0
TASKS |= {
    task: [*CHEAP, "pretrained", "never pretrained", BASE]
    for task in ("3i4k", "korsts", "klue-nli", "klue-sts")
}


def cell(ws: Workspace, task: str, what: str, steps: int, inner: bool) -> dict:
    """One row of the results."""
    scores, held, spent, tuning_rows = [], [], Counter(), 0
    folds = FOLDS if task.startswith("klue") else 1
    many = steps if what.startswith("pretrained") else 0  # of reviews
    for fold in range(folds):
        learnt, out = split_rows(task, fold, inner)
        names = names_of(task, learnt)
        held += out
        start = time.process_time()
        if what in CHEAP:
            scores.append(CHEAP[what](learnt, out, names))
            spent["tuning"] += round(time.process_time() - start)
            tuning_rows += len(learnt)
            continue
        say = {"run": {"say": lambda t: print(t, flush=True)}}
        source = task.removesuffix("-test")
        if what == BASE:
            encoder = adopt(ws, ROOT / "base")
        else:
            encoder = pretrain_reviews(ws, data=digest(*REVIEWS), steps=many, seed=0, **say)
        made = [
            tuned(
                ws, encoder=encoder, task=source, fold=fold, inner=inner, share=ENCODERS[what],
                judging=judging_of(task, order), data=digest(FILES[task][0]), **say,
            )
            for order in range(2 if what == AVERAGED else 1)
        ]  # fmt: skip
        spent["pretraining"] = notes_of(ws, encoder).get("core_s", 0)
        spent["tuning"] += sum(notes_of(ws, one)["core_s"] for one in made)
        scores.append(said_of(encoder.path, [one.path for one in made], out, names))
        tuning_rows += notes_of(ws, made[0])["rows"]
    row: dict = {"task": task, "cell": what, "held out": "inner" if inner else "outer"}
    row |= figures(task, torch.cat(scores), held, names_of(task, held))
    if what in ENCODERS:
        row |= {"steps": many, "judging": asdict(judging_of(task))}
    row |= {"rows": tuning_rows // folds, "folds": folds, "items": len(held), "seed": 0}
    return row | {"core_s": dict(spent), "threads": 1} | circumstances()


def judging_of(task: str, order: int = 0) -> Judging:
    """How a judge is tuned. The rate is the best of three for the base's encoder, too (KorSTS's
    inner split, docs/log.md)."""
    return replace(JUDGING[task], seed=order)


def notes_of(ws: Workspace, made: Artifact) -> dict:
    record = ws.record(made.key)
    assert record is not None
    return record["notes"]


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    ask.add_argument("home", type=Path)
    ask.add_argument("tasks", nargs="*", default=[task for task in TASKS if task != "nsmc-test"])
    ask.add_argument("--cells", nargs="*", help="only these")
    ask.add_argument("--steps", type=int, default=STEPS, help="of pretraining")
    ask.add_argument("--inner", action="store_true", help="score on a tenth of train: for choices")
    asked = ask.parse_args()
    torch.set_num_threads(1)
    ws = Workspace(asked.home)
    done = asked.home / "rows"
    done.mkdir(exist_ok=True)
    for task in asked.tasks:
        for what in asked.cells or TASKS[task]:
            name = f"{task} {what} {asked.steps if what in ENCODERS else 0} {asked.inner}"
            if (done / name).exists():
                continue
            row = cell(ws, task, what, asked.steps, asked.inner)
            print(json.dumps(row, ensure_ascii=False), flush=True)
            with RESULTS.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
            write_atomically(done / name, json.dumps(row, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
