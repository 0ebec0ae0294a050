"""Every reader over every way of finding, by type of question, on the gold of a grown model.

    ONSIL_HOME=… python benchmarks/readers_retrievers.py handbook examples/handbook/gold.jsonl

Gates are calibrated on dev for each pair; figures are of test, 95 % bootstrap intervals. Appends
one row to benchmarks/results/readers_retrievers.jsonl and prints a table in Markdown.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from onsil.corpus import load_corpus
from onsil.evaluation.examination import by_type, examine
from onsil.evaluation.questions import load_gold
from onsil.lineage import Workspace
from onsil.retrieval import bm25
from onsil.retrieval.answering import load_reader_named
from onsil.retrieval.bm25 import BM25, coverage, marks
from onsil.retrieval.passages import passages_of, sentences
from onsil.retrieval.ranking import Hit, find

ROOT = Path(__file__).resolve().parents[1]
READERS = ("best_sentence", "typed_sentence", "span_encoder", "verified_sentence", "generator")


def in_order_found(index: BM25, question: str, limit: int = 5, without: str | None = None):
    """BM25's own order: no ranking after it."""
    words = index.words(question)
    hits = []
    for score, i in index.search(question, limit, without):
        passage = index.passages[i]
        lines = sentences(passage.text) or [passage.text]
        best = max(lines, key=lambda line: coverage(words, marks(f"{passage.heading}\n{line}")))
        hits.append(Hit(passage, score, coverage(words, index.marks(i)), best))
    return hits


def main(name: str, gold: Path) -> None:
    ws = Workspace.find()
    _, version, model = ws.resolve(name)
    index = BM25(passages_of(load_corpus(model / "corpus").documents))
    questions = load_gold(gold)
    readers = {reader: load_reader_named(reader, model.path) for reader in READERS}
    table = {}
    weights = bm25.CONCEPT_FOUND, bm25.CONCEPT_COVERS
    for way, (found, covers), search in (
        ("BM25 on syllable pairs", (0.0, 0.0), in_order_found),
        ("… and concepts", weights, in_order_found),
        ("… and ranking", weights, find),
    ):
        bm25.CONCEPT_FOUND, bm25.CONCEPT_COVERS = found, covers
        rows, _, cards = examine(index, readers, questions, search)
        for reader in READERS:
            table[f"{way} | {reader}"] = {
                "test": cards[reader]["test"],
                "dev": cards[reader]["dev"],
                "by_type": by_type(rows[reader]["test"]),
            }
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    row = {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "model": f"{name}@{version} {model.digest}",
        "questions": len(questions),
        "table": table,
    }
    with (ROOT / "benchmarks" / "results" / "readers_retrievers.jsonl").open("a") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")
    show(table)


def show(table: dict) -> None:
    kinds = sorted({k for row in table.values() for k in row["by_type"]})
    print(
        "| found by | read by | F1 | citation | answered | abstained | " + " | ".join(kinds) + " |"
    )
    print("|---" * (6 + len(kinds)) + "|")
    for pair, row in table.items():
        way, reader = pair.split(" | ")
        test = row["test"]
        cells = [
            "–" if not test[key] else f"{test[key][0]:.3f} [{test[key][1]:.3f}, {test[key][2]:.3f}]"
            for key in ("f1", "citation_answerable", "answered_share", "abstained_share")
        ]
        types = [f"{row['by_type'][k]['f1']:.2f}" if k in row["by_type"] else "–" for k in kinds]
        print("| " + " | ".join([way, reader, *cells, *types]) + " |")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
