"""Real input: 300 Korean statutes, asked for the terms they define.

    python benchmarks/statutes.py --data ../shared/data [--statutes 300] [--minutes 5] [--home DIR]

Answerable: «X이란 무엇인가요?» for definitions of those statutes. Unanswerable: the same for terms
that only other statutes define. With --home the folder of statutes and the workspace stay there,
for benchmarks/readers_retrievers.py. Appends a row to benchmarks/results/statutes.jsonl.
"""

import argparse
import io
import json
import os
import random
import re
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import zstandard
from recorded import append, circumstances

from onsil.grow import grow
from onsil.lineage import Workspace
from onsil.training.request import Request

ROOT = Path(__file__).resolve().parents[1]


def rows(path: Path) -> list[dict]:
    with path.open("rb") as f, zstandard.ZstdDecompressor().stream_reader(f) as stream:
        return [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]


def write_folder(data: Path, statutes: int, folder: Path) -> None:
    """The first `statutes` laws by id that define a term, one text file each, and gold.jsonl."""
    definitions = rows(data / "instruct" / "law-definitions-ko.jsonl.zst")
    laws = {row["path"]: row for row in rows(data / "text-ko" / "law-ko.jsonl.zst")}
    defining = sorted({d["path"] for d in definitions if d["path"] in laws})
    chosen = set(random.Random(0).sample(defining, min(statutes, len(defining))))
    names = {}
    for path in sorted(chosen):
        names[path] = re.sub(r"\W+", "", laws[path]["title"])[:60] + f"_{len(names)}.txt"
        text = laws[path]["title"] + "\n\n" + laws[path]["text"]
        (folder / names[path]).write_text(text, encoding="utf-8")
    terms = {d["term"] for d in definitions if d["path"] in chosen}
    inside = [d for d in definitions if d["path"] in chosen]
    outside = [d for d in definitions if d["path"] not in chosen and d["term"] not in terms]
    draw = random.Random(1)
    inside, outside = (draw.sample(x, min(200, len(x))) for x in (inside, outside))
    with (folder / "gold.jsonl").open("w", encoding="utf-8") as f:
        for n, d in enumerate([*inside, *outside]):
            law = d["law"]
            row = {
                "id": f"s{n}",
                "split": "dev" if n % 2 else "test",
                "question": f"{law}에서 {d['term']}이란 무엇인가요?"
                if n % 4 < 2
                else f"{d['term']}의 뜻은?",
                "answerable": n < len(inside),
                "answers": [d["definition"], re.sub(r"(을|를) 말한다\.?$", "", d["definition"])],
                "document": names.get(d["path"]),
                "heading": d["article"],
                "type": "definition",
            }
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parse.add_argument("--statutes", type=int, default=300)
    parse.add_argument("--minutes", type=float, default=5)
    parse.add_argument("--home", type=Path, help="keep folder and workspace here")
    given = parse.parse_args()
    told = circumstances()
    with tempfile.TemporaryDirectory() as scratch:
        home = given.home or Path(scratch)
        folder = home / "statutes"
        folder.mkdir(parents=True)
        write_folder(given.data, given.statutes, folder)
        start = time.monotonic()
        ws = Workspace(home / "ws")
        grown = grow(ws, folder, "statutes", Request(given.minutes))
        card = json.loads((grown.card / "card.json").read_text(encoding="utf-8"))
        row = {
            **told,
            "statutes": given.statutes,
            "minutes": given.minutes,
            "seconds": round(time.monotonic() - start),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "stage_seconds": {
                r["stage"] + str(r["arguments"].get("kind", "")): r["seconds"] for r in ws.records()
            },
            "chosen": card["chosen"],
            "readers": card["readers"],
            "difference": card["difference"],
            "language_model": {
                k: v for k, v in card["language_model"].items() if k.endswith("byte")
            },
            "documents": {k: card["corpus"][k] for k in ("documents_in", "documents_out", "bytes")},
            "skipped": card["documents"]["skipped"],
            "pii": card["corpus"]["pii"]["by_kind"],
        }
    append("statutes", row)
    print(json.dumps(row, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
