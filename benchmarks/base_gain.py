"""What a base gains: two grown models of the same documents, one from it, one from noise.

    python benchmarks/base_gain.py HOME_FROM_BASE HOME_FROM_NOISE NAME GOLD

Each trained reader of each model answers the same questions in the same order, its gate calibrated
on dev; differences are of test, paired by question, 95 % bootstrap intervals. Bits per byte are of
the held-out documents, as each grow noted them. Appends to benchmarks/results/base_gain.jsonl.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recorded import append, circumstances

from onsil.corpus import load_corpus
from onsil.evaluation.examination import NEURAL, examine
from onsil.evaluation.metrics import paired_difference
from onsil.evaluation.questions import load_gold
from onsil.lineage import Workspace, history
from onsil.retrieval.answering import load_reader_named
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import passages_of


def examined(home: Path, name: str, gold: Path) -> tuple[dict, dict, dict, str]:
    """(test rows by reader, scorecards, bits per byte, what was examined)."""
    ws = Workspace(home)
    _, version, model = ws.resolve(name)
    index = BM25(passages_of(load_corpus(model / "corpus").documents))
    readers = {reader: load_reader_named(reader, model.path) for reader in NEURAL}
    rows, _, cards = examine(index, readers, load_gold(gold))
    notes = [r["notes"] for _, r in history(ws, model.key) if r["stage"] == "pretrain"]
    bits = next(n for n in notes if "heldout_bits_per_byte" in n)
    kept = {k: v for k, v in bits.items() if k.endswith("bits_per_byte")}
    return rows, cards, kept, f"{name}@{version} {model.digest}"


def main(base: Path, noise: Path, name: str, gold: Path) -> None:
    told = circumstances()
    ours, theirs = (examined(home, name, gold) for home in (base, noise))
    row = {
        **told,
        "models": {"base": ours[3], "noise": theirs[3]},
        "bits_per_byte": {"base": ours[2], "noise": theirs[2]},
        "readers": {
            reader: {
                "base": ours[1][reader]["test"]["f1"],
                "noise": theirs[1][reader]["test"]["f1"],
                "gain": paired_difference(ours[0][reader]["test"], theirs[0][reader]["test"]),
                "gain_dev": paired_difference(ours[0][reader]["dev"], theirs[0][reader]["dev"]),
            }
            for reader in NEURAL
        },
    }
    append("base_gain", row)
    print(json.dumps(row, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
