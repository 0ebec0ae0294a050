"""Identifiers found: ours and ko-pii on the labelled set and on public text, side by side.

    pip install ko-pii==1.22.15
    python benchmarks/pii.py

Both read every sentence in turn, the first alternating, and are scored on the kinds that both
know (`shared`) and on all of ours. A span counts when the kind is the same and the overlap is at
least 0.8 of the union. Statutes and technical pages hold hardly any personal data, so finds per
megabyte there count false alarms. Times are CPU seconds of this process; ratios are ko-pii's time
over ours. Rules were tuned on the dev half only; the sentences of `blind` were written later, by a
hand that had not read the rules. Shares of ours have Wilson intervals of 95 %. Appends a row to
benchmarks/results/pii.jsonl.
"""

import importlib.metadata
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from recorded import append, circumstances

from onsil.corpus.pii import find

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data")) / "text-ko"
PUBLIC = {
    "law-ko": 300,
    "tech-ko": 300,
}  # documents taken evenly; ko-pii reads the first PEER bytes
PEER = 400_000
THEIRS = {
    "RRN": "rrn",
    "FRN": "rrn",
    "CORP_REG": "corporation",
    "CARD": "card",
    "DRIVER_LICENSE": "licence",
    "PHONE": "phone",
    "FAX": "phone",
    "BUSINESS_REG": "business",
    "PASSPORT": "passport",
    "MEDICAL_INSURANCE": "health",
    "VEHICLE": "plate",
    "ACCOUNT": "account",
    "EMAIL": "email",
}
Span = tuple[int, int, str]
Finder = Callable[[str], list[Span]]


def ours(text: str) -> list[Span]:
    return [(f.start, f.end, f.kind) for f in find(text)]


def theirs(text: str) -> list[Span]:
    from ko_pii import detect_all  # pyright: ignore[reportMissingImports]

    return [(r.start, r.end, THEIRS[r.label]) for r in detect_all(text, include=list(THEIRS))]


def agree(wanted: Span, found: Span) -> bool:
    common = min(wanted[1], found[1]) - max(wanted[0], found[0])
    whole = max(wanted[1], found[1]) - min(wanted[0], found[0])
    return wanted[2] == found[2] and common >= 0.8 * whole


def interval(part: int, whole: int) -> list[float]:
    """Wilson's interval of a share at 95 % (1927)."""
    z, share = 1.96, part / max(1, whole)
    around = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    middle, width = share + z * z / (2 * whole), 1 + z * z / whole
    return [round((middle - around) / width, 4), round(min(1.0, (middle + around) / width), 4)]


def count(finder: Finder, rows: list[dict], kinds: set[str]) -> dict:
    right = wanted = given = 0
    missed: Counter[str] = Counter()
    for row in rows:
        left = [s for s in finder(row["text"]) if s[2] in kinds]
        given += len(left)
        for span in (s for s in row["spans"] if s[2] in kinds):
            wanted += 1
            hit = next((s for s in left if agree(tuple(span), s)), None)
            if hit:
                left.remove(hit)
                right += 1
            else:
                missed[span[2]] += 1
    quiet = [not finder(row["text"]) for row in rows if not row["spans"]]
    return {
        "spans": wanted,
        "recall": round(right / wanted, 4),
        "recall_95": interval(right, wanted),
        "precision": round(right / max(1, given), 4),
        "precision_95": interval(right, max(1, given)),
        "missed": dict(missed),
        "negatives": len(quiet),
        "negatives_with_a_find": quiet.count(False),
    }


def times(texts: list[str], rounds: int) -> tuple[float, float]:
    """CPU seconds of both over the same texts, interleaved text by text."""
    spent = [0.0, 0.0]
    for turn in range(rounds):
        for n, text in enumerate(texts):
            for which in (0, 1) if (n + turn) % 2 else (1, 0):
                since = time.process_time()
                (ours, theirs)[which](text)
                spent[which] += time.process_time() - since
    return spent[0], spent[1]


def public(name: str, documents: int) -> dict | None:
    import zstandard

    path = DATA / f"{name}.jsonl.zst"
    if not path.is_file():
        return None
    with zstandard.open(path, "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    texts = texts[:: max(1, len(texts) // documents)][:documents]
    size = sum(len(t.encode()) for t in texts)
    kinds = Counter(kind for t in texts for _, _, kind in ours(t))
    part, taken = [], 0
    for text in texts:
        if taken < PEER:
            part.append(text)
            taken += len(text.encode())
    mine, peer = times(part, 1)
    peer_kinds = Counter(kind for t in part for _, _, kind in theirs(t))
    return {
        "bytes": size,
        "finds_per_MB": round(kinds.total() / size * 1e6, 2),
        "finds": dict(kinds),
        "peer_bytes": taken,
        "peer_finds_per_MB": round(peer_kinds.total() / taken * 1e6, 2),
        "peer_finds": dict(peer_kinds),
        "cpu_s": round(mine, 3),
        "peer_cpu_s": round(peer, 3),
        "ratio": round(peer / mine, 2),
    }


def main() -> None:
    path = ROOT / "tests" / "fixtures" / "pii" / "labelled.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    test = [r for r in rows if r["split"] == "test"]
    every = {s[2] for r in rows for s in r["spans"]}
    shared = set(THEIRS.values())
    times([r["text"] for r in rows[:20]], 1)  # both warm
    mine, peer = times([r["text"] for r in test], 3)
    row = {
        **circumstances(),
        "ko_pii": importlib.metadata.version("ko-pii"),
        "sentences": len(test),
        "all_kinds": count(ours, test, every),
        "shared": count(ours, test, shared),
        "peer_shared": count(theirs, test, shared),
        "blind": count(ours, [r for r in rows if r["split"] == "blind"], every),
        "whole": count(ours, rows, every),
        "cpu_s": round(mine, 3),
        "peer_cpu_s": round(peer, 3),
        "ratio": round(peer / mine, 2),
        "public": {name: public(name, documents) for name, documents in PUBLIC.items()},
    }
    append("pii", row)
    print(json.dumps(row, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
