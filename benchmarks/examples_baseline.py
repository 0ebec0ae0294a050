"""The bar: what the reader without trained parts answers on the example folders.

    python benchmarks/examples_baseline.py

For each folder and split: how often a passage to cite is among the first 1, 5, 20 found, and the
scores under a gate that was set by questions about the other folders alone, as an office's own
folder would be answered that nobody has asked about. `bank` and `museum` are test and nothing was
ever fitted on them; of the others patterns and weights have seen the dev questions. Appends a row
to benchmarks/results/examples_baseline.jsonl. It also writes `BORROWED`, which sets the gate of a
folder without questions: features and outcome of every dev question.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recorded import append, circumstances

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.evaluation.metrics import interval, scorecard
from onsil.evaluation.questions import ask_all, cited_right, gated, load_gold
from onsil.lineage import Workspace
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.gate import BORROWED, calibrate, evidence_text
from onsil.retrieval.passages import passages_of
from onsil.retrieval.ranking import CANDIDATES, READ, find
from onsil.retrieval.readers import Reading, best_sentence, typed_sentence

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("handbook", "clinic", "factory", "apartment", "college", "harbour", "bank", "museum")
READERS = {"best_sentence": best_sentence, "typed_sentence": typed_sentence}
RECALL_AT = (1, 5, 20)


def asked(ws: Workspace, folder: Path) -> tuple[dict, dict]:
    """Reader → split → rows, and split → [found at 1, 5, 20] of each answerable question."""
    corpus = curate(ws, documents=read(ws, folder))
    index = BM25(passages_of(load_corpus(corpus).documents))
    rows: dict[str, dict[str, list]] = {reader: {} for reader in READERS}
    recall: dict[str, list] = {}
    for question in load_gold(folder / "gold.jsonl"):
        hits = find(index, question.text, CANDIDATES, question.without)
        if question.answerable:
            right = [cited_right(Reading("", hit.passage, ()), question) for hit in hits]
            found = [float(any(right[:k])) for k in RECALL_AT]
            recall.setdefault(question.split, []).append(found)
        for name, reader in READERS.items():
            (row,) = ask_all(index, reader, [(question, hits[:READ])])
            rows[name].setdefault(question.split, []).append(row)
    return rows, recall


def seen(rows: list[dict]) -> list[tuple[tuple[float, ...], bool]]:
    return [(row["reading"].features, row["right"]) for row in rows if row["reading"]]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main() -> None:
    rows, recall = {}, {}
    with TemporaryDirectory() as scratch:
        ws = Workspace(scratch)
        for name in FOLDERS:
            rows[name], recall[name] = asked(ws, ROOT / "examples" / name)
    dev = {name: seen(found["typed_sentence"].get("dev", [])) for name, found in rows.items()}
    BORROWED.write_text(evidence_text(row for name in FOLDERS for row in dev[name]), "utf-8")
    table: dict = {}
    for name in FOLDERS:
        gates = {}
        for reader, found in rows[name].items():
            others = [other for other in FOLDERS if other != name]
            known = [row for o in others for row in seen(rows[o][reader].get("dev", []))]
            gates[reader] = calibrate([row[0] for row in known], [row[1] for row in known])
            for split, some in found.items():
                at = table.setdefault(f"{name} {split}", {})
                at[reader] = scorecard(gated(some, gates[reader]))
        for split, found in recall[name].items():
            table[f"{name} {split}"]["found"] = {
                str(k): interval([row[n] for row in found], mean) for n, k in enumerate(RECALL_AT)
            }
    row = {
        **circumstances(),
        "folders": table,
    }
    append("examples_baseline", row)
    json.dump(row, sys.stdout, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
