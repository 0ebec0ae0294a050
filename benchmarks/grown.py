"""One row about a model that was grown: what it took and how it did, from its own records.

    ONSIL_HOME=… python benchmarks/grown.py NAME --of handbook

Appends to benchmarks/results/grown.jsonl. Nothing is measured anew: times, memory, plan and scores
are those that the stages and the examination wrote down.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from recorded import append, circumstances

from onsil.lineage import Workspace, children, history


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("name")
    parse.add_argument("--of", required=True, help="what the documents were")
    given = parse.parse_args()
    ws = Workspace.find()
    name, version, made = ws.resolve(given.name)
    records = [record for _, record in history(ws, made.key)]
    examined = next(r for r in records if r["stage"] == "evaluate")
    card = json.loads((ws.artifact(examined["object"]) / "card.json").read_text("utf-8"))
    outcome = children(ws, made, "write_report")[0]["arguments"]["outcome"]
    row = {
        **circumstances(),
        "of": given.of,
        "model": f"{name}@{version} {made.digest}",
        "seconds": {
            r["stage"] + str(r["arguments"].get("kind", "")): r["seconds"] for r in records
        },
        "peak_rss_mb": outcome["peak_rss_mb"],
        "plan": card["plan"],
        "documents": {
            "read": card["documents"]["read"],
            "skipped": len(card["documents"]["skipped"]),
            "bytes": card["corpus"]["bytes"],
            "pii": card["corpus"]["pii"]["by_kind"],
        },
        "gold": card["gold"],
        "chosen": card["chosen"],
        "readers": card["readers"],
        "difference": card["difference"],
        "bits_per_byte": {
            k: v for k, v in card["language_model"].items() if k.endswith("bits_per_byte")
        },
    }
    append("grown", row)
    print(json.dumps(row, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
