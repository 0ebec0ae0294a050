"""Grow the general base that `onsil grow` starts from: a tokenizer, a decoder and an encoder.

    python base/grow_base.py --data $ONSIL_DATA --home .onsil-base [--export base]

Text with permissive licences only, named in base/README.md with their attribution: statutes in
force (public domain; those whose definitions serve as a benchmark are left out), technical
documentation (CC BY 4.0, MIT, Apache-2.0), Python's documentation in Korean (CC0), English novels
(public domain). The encoder begins as the decoder that is shipped, looking both ways, reads hidden
words and then the rule teacher's lessons on the same text, so that it starts with a head that
points at answers. Every step is a stage: a killed run goes on, and the exported files carry their
lineage. The plan is written here, not measured, so that the run can be repeated to the bit.
"""

import argparse
import io
import json
import os
import random
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import zstandard

from onsil.corpus import curate
from onsil.documents import read
from onsil.instruction import write_lessons
from onsil.lineage import Artifact, Workspace
from onsil.tokenizer import train_tokenizer
from onsil.training.base import adopt, adopt_tokenizer, shrink
from onsil.training.finetuning import finetune
from onsil.training.plan import adopt_plan
from onsil.training.pretraining import pretrain

PLAN = {
    "width": 256,
    "depth": 8,
    "context": 512,
    "batch_tokens": 4096,
    "learning_rate": 0.001,
    "decoder_epochs": 1,
    "decoder_recipe": "muon",
    "decoder_rate": 0.01,
    "encoder_epochs": 1,
    "reader_epochs": 1,
    "reader_lessons": 60_000,
    "generator_lessons": 0,
    "compute": "bf16",
    "threads": 2,
    "compiled": False,
    "seed": 0,
    "minutes": 120.0,
    "tokens_per_second": 0,
    "predicted_seconds": 0,
}
VOCABULARY, LESSONS = 8_000, 60_000
# (file, megabytes taken); order and choice of documents are seeded.
SOURCES = (
    ("text-ko/law-ko", 30),
    ("text-ko/tech-ko", 16),
    ("text-ko/parallel-en-ko", 4),
    ("text-en/novels-en", 2),
)


def rows(path: Path) -> list[dict]:
    with path.open("rb") as f, zstandard.ZstdDecompressor().stream_reader(f) as stream:
        return [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]


def write_folder(data: Path, folder: Path) -> None:
    """One text file per document, up to each source's share."""
    law_definitions = rows(data / "instruct" / "law-definitions-ko.jsonl.zst")
    benchmark = {row["path"] for row in law_definitions}
    for name, megabytes in SOURCES:
        found = [r for r in rows(data / f"{name}.jsonl.zst") if r["path"] not in benchmark]
        texts: dict[str, list[str]] = {}
        for row in found:
            texts.setdefault(row["path"], []).append(row.get("text") or row["ko"])
        order = sorted(texts)
        random.Random(0).shuffle(order)
        taken = 0
        for n, path in enumerate(order):
            if taken >= megabytes * 1_000_000:
                break
            text = "\n\n".join(texts[path])[:400_000]
            taken += len(text.encode())
            (folder / f"{Path(name).name}-{n:05}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("--data", type=Path, required=True)
    parse.add_argument("--home", type=Path, required=True)
    parse.add_argument("--export", type=Path, help="write the base here, in int8")
    given = parse.parse_args()
    folder = given.home / "text"
    if not folder.is_dir():
        draft = given.home / "text.draft"
        draft.mkdir(parents=True, exist_ok=True)
        write_folder(given.data, draft)
        draft.rename(folder)
    ws = Workspace(given.home / "ws", say=print)
    corpus = curate(ws, documents=read(ws, folder))
    plan = adopt_plan(ws, text=json.dumps(PLAN))
    begun = given.home / "begun"  # tokenizer.json and decoder/, as they are shipped
    if not begun.is_dir():
        tokenizer = train_tokenizer(ws, corpus=corpus, vocabulary=VOCABULARY)
        words = {"corpus": corpus, "tokenizer": tokenizer, "plan": plan}
        decoder = shrink(ws, model=told(ws, pretrain(ws, **words, kind="decoder")))
        draft = given.home / "begun.draft"
        shutil.copytree(decoder.path, draft / "decoder", dirs_exist_ok=True)
        shutil.copyfile(tokenizer / "tokenizer.json", draft / "tokenizer.json")
        draft.rename(begun)
    base = adopt(ws, begun)
    tokenizer = adopt_tokenizer(ws, base=base)
    words = {"tokenizer": tokenizer, "plan": plan}
    encoder = told(ws, pretrain(ws, **words, corpus=corpus, base=base, kind="encoder"))
    lessons = write_lessons(ws, corpus=corpus, rounds=2, most=LESSONS)
    reader = shrink(ws, model=told(ws, finetune(ws, **words, encoder=encoder, lessons=lessons)))
    if given.export:
        shutil.copytree(begun, given.export, dirs_exist_ok=True)
        shutil.copytree(reader.path, given.export / "encoder", dirs_exist_ok=True)


def told(ws: Workspace, model: Artifact) -> Artifact:
    """The model, after its notes were printed."""
    print(model.path, json.dumps((ws.record(model.key) or {})["notes"]))
    return model


if __name__ == "__main__":
    main()
