"""The bar: BM25 with the two readers that have no trained part, on the handbook's gold questions.

    python benchmarks/handbook_baseline.py

Appends one row to benchmarks/results/handbook_baseline.jsonl. Gates are calibrated on dev. It
also writes what the gate of a folder without questions is set by, `EVIDENCE`.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.evaluation.examination import examine
from onsil.evaluation.questions import load_gold
from onsil.lineage import Workspace
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.gate import EVIDENCE, evidence_text
from onsil.retrieval.passages import passages_of
from onsil.retrieval.readers import best_sentence, typed_sentence

ROOT = Path(__file__).resolve().parents[1]
READERS = {"best_sentence": best_sentence, "typed_sentence": typed_sentence}


def main() -> None:
    folder = ROOT / "examples" / "handbook"
    questions = load_gold(folder / "gold.jsonl")
    with TemporaryDirectory() as scratch:
        ws = Workspace(scratch)
        corpus = curate(ws, documents=read(ws, folder))
        index = BM25(passages_of(load_corpus(corpus).documents))
        rows, _, cards = examine(index, READERS, questions)
        asked = [row for row in rows["typed_sentence"]["dev"] if row["reading"]]
        evidence = ((row["reading"].features, row["right"]) for row in asked)
        EVIDENCE.write_text(evidence_text(evidence), encoding="utf-8")
        found = {}
        for k in (1, 3, 5):
            hits = 0
            asked = [q for q in questions if q.answerable and q.split == "dev"]
            for q in asked:
                places = [index.passages[i] for _, i in index.search(q.text, k)]
                hits += any((p.document.split("/")[-1], p.heading) in q.places for p in places)
            found[f"dev_recall@{k}"] = round(hits / len(asked), 4)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    row = {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "questions": len(questions),
        "retrieval": found,
        "readers": cards,
    }
    line = json.dumps(row, ensure_ascii=False)
    out = ROOT / "benchmarks" / "results" / "handbook_baseline.jsonl"
    with out.open("a", encoding="utf-8") as f:
        f.write(line + "\n")
    json.dump(row, sys.stdout, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
