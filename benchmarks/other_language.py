"""Questions in one language about documents in the other, with and without the list of both.

    python benchmarks/other_language.py

`other_language.jsonl` has them: asked by somebody who read the documents of the example folders and
nothing else of onsil, neither the list of words nor what people asked in the documents' language.
How often a passage that says the answer stands first, among five and among twenty, with 95 %
bootstrap intervals over questions, and what the list makes of it, paired. Nothing was chosen by
these. Appends a row to benchmarks/results/other_language.jsonl.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recorded import append, circumstances

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.evaluation.metrics import interval
from onsil.lineage import Workspace
from onsil.retrieval import concepts
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import passages_of
from onsil.retrieval.ranking import CANDIDATES, find

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = Path(__file__).with_suffix(".jsonl")
RECALL_AT = (1, 5, 20)
listed = concepts.groups


def tie(wanted: bool) -> None:
    """Look words up in the list of both languages, or have it empty."""
    concepts.groups = lambda name: listed(name) if wanted or name != concepts.BOTH else []
    for cached in (concepts._korean, concepts._english):
        cached.cache_clear()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def plain(text: str) -> str:
    return " ".join(text.split())


def found(index: BM25, row: dict) -> list[float]:
    hits = find(index, row["question"], CANDIDATES)
    told = [
        hit.passage.document == row["document"] and plain(row["says"]) in plain(hit.passage.text)
        for hit in hits
    ]
    return [float(any(told[:k])) for k in RECALL_AT]


def main() -> None:
    asked = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    folders = sorted({row["folder"] for row in asked})
    seen: dict[bool, dict[str, list]] = {True: {}, False: {}}
    with TemporaryDirectory() as scratch:
        ws = Workspace(scratch)
        for folder in folders:
            documents = load_corpus(
                curate(ws, documents=read(ws, ROOT / "examples" / folder))
            ).documents
            for wanted in seen:
                tie(wanted)
                index = BM25(passages_of(documents))
                for row in asked:
                    if row["folder"] == folder:
                        seen[wanted].setdefault(folder, []).append(found(index, row))
    tie(True)
    table: dict = {}
    for name in (*folders, "all"):
        with_list, without = (
            [found for folder in (folders if name == "all" else [name]) for found in each[folder]]
            for each in (seen[True], seen[False])
        )
        table[name] = {"questions": len(with_list)}
        for i, k in enumerate(RECALL_AT):
            one, other = ([row[i] for row in rows] for rows in (with_list, without))
            gain = [a - b for a, b in zip(one, other, strict=True)]
            told = {"with": one, "without": other, "gain": gain}
            table[name][f"@{k}"] = {key: interval(values, mean) for key, values in told.items()}
    print(json.dumps(table, indent=1))
    append("other_language", {**circumstances(), "table": table})


if __name__ == "__main__":
    main()
