"""What a decoder grown from noise learns: convolutions under attention, attention alone, a trigram.

    python benchmarks/wirings.py [--minutes 4] [--toy]

Four corpora (the handbook; raw-docs, and three megabytes each of the statutes and the technical
documentation of $ONSIL_DATA), each read, curated and planned as `onsil grow --base none` does; then
the stage that pretrains decoders, once with `hybrid_shape` and once with `decoder_shape` in its
place: the same plan, so the same width, depth, steps and batches. The measure is bits per byte of
the held-out documents; the Kneser-Ney trigram reads the same tokens. One seed. The rows are also
what forecasts of a plan rest on (`training/scaling.py`). Appends to
benchmarks/results/wirings.jsonl.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
RESULTS = ROOT / "benchmarks" / "results" / "wirings.jsonl"
DATA = Path(os.environ.get("ONSIL_DATA", ROOT.parent / "shared" / "data"))
SLICE = 3_000_000


def slice_of(name: str, folder: Path, size: int) -> None:
    """The first texts of a file of text-ko, a file each."""
    import zstandard

    folder.mkdir()
    with (DATA / "text-ko" / f"{name}.jsonl.zst").open("rb") as f:
        reader = zstandard.ZstdDecompressor(max_window_size=2**25).stream_reader(f)
        for number, line in enumerate(io.TextIOWrapper(reader, "utf-8")):
            text = json.loads(line)["text"]
            (folder / f"{number:05}.md").write_text(text, encoding="utf-8")
            size -= len(text.encode())
            if size <= 0:
                return


def unpack(archive: Path, folder: Path) -> None:
    import zstandard

    with (
        archive.open("rb") as f,
        zstandard.open(f) as plain,
        tarfile.open(fileobj=plain, mode="r|") as parts,
    ):
        parts.extractall(folder, filter="data")


def measured(folder: Path, home: Path, minutes: float) -> dict:
    """Both wirings on the documents of a folder."""
    from onsil.grow import gather
    from onsil.lineage import Workspace
    from onsil.models.shape import decoder_shape, hybrid_shape
    from onsil.training import pretraining
    from onsil.training.plan import load_plan, make_plan

    ws = Workspace(home)
    held = gather(ws, folder, "measured", None)
    common = {"corpus": held.corpus, "tokenizer": held.tokenizer}
    plan = make_plan(ws, **common, lessons=held.lessons, minutes=minutes)
    told = load_plan(plan)
    corpus = json.loads((held.corpus / "report.json").read_text(encoding="utf-8"))
    row = {"bytes": corpus["bytes"], "width": told.width, "depth": told.depth}
    row |= {"passes": told.decoder_epochs}
    for name, make in (("hybrid", hybrid_shape), ("attention", decoder_shape)):
        pretraining.hybrid_shape = make
        apart = Workspace(home / name)  # the two have one key
        start = time.process_time()
        made = pretraining.pretrain(apart, **common, plan=plan, base=None, kind="decoder")
        notes = json.loads((made / "notes.json").read_text(encoding="utf-8"))
        row |= {"trigram": notes["ngram_bits_per_byte"], "steps": notes["steps"]}
        row[name] = {
            "bits": round(notes["heldout_bits_per_byte"], 4),
            "weights": notes["parameters"],
            "cpu_s": round(time.process_time() - start, 1),
        }
    pretraining.hybrid_shape = hybrid_shape
    return row


def main() -> None:
    from recorded import circumstances

    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--toy", action="store_true", help="small, to see that it runs; no row")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"handbook": ROOT / "examples" / "handbook"}
        if not asked.toy:
            folders["raw-docs"] = Path(scratch) / "raw-docs"
            unpack(DATA / "raw-docs" / "raw-docs.tar.zst", folders["raw-docs"])
        for name in ("law-ko", "tech-ko"):
            folders[name] = Path(scratch) / name
            slice_of(name, folders[name], 200_000 if asked.toy else SLICE)
        found = {}
        for name, folder in folders.items():
            minutes = 0.2 if asked.toy else asked.minutes
            found[name] = measured(folder, Path(scratch) / f"{name}.home", minutes)
            print(name, json.dumps(found[name]), flush=True)
    row = {"minutes": asked.minutes, "corpora": found} | circumstances()
    if not asked.toy:
        with RESULTS.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
