"""Questions to the records: what made this, is it whole, what changed, who saw this document.

Nothing here runs a stage or imports torch: answering must cost nothing.
"""

import ast
import importlib.util
import json
import shutil
import struct
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.lineage.spelling import Artifact, file_digest, folder_digest
from onsil.lineage.workspace import Workspace, inputs_of, source_digest

METADATA_KEY = "onsil"


def history(ws: Workspace, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(depth, record) of a result and everything upstream of it, nearest first, each once."""
    seen: set[str] = set()
    queue = [(0, key)]
    while queue:
        depth, key = queue.pop(0)
        record = ws.record(key)
        if key in seen or record is None:
            continue
        seen.add(key)
        yield depth, record
        queue += [(depth + 1, parent["key"]) for parent in inputs_of(record["arguments"])]


def verify(ws: Workspace, key: str) -> list[dict[str, Any]]:
    """Re-hash a result and all its ancestors: one row each, `ok` true or false with the reason."""
    rows = []
    for _, record in history(ws, key):
        made = ws.artifact(record["object"])
        found = folder_digest(made.path) if made.path.exists() else None
        reason = "missing" if found is None else "" if found == made.digest else "changed"
        row = {"stage": record["stage"], "key": record["key"], "object": made.digest}
        rows.append(row | {"ok": not reason, "reason": reason})
    return rows


def drift(ws: Workspace, key: str) -> list[str]:
    """Stages in the history whose source reads differently today, as `module.stage`."""
    changed = []
    for _, record in history(ws, key):
        module, name = record["code"]["module"], record["stage"]
        source = _current_source(module, name)
        if source is None or source_digest(source) != record["code"]["source"]:
            changed.append(f"{module}.{name}")
    return changed


def _current_source(module: str, name: str) -> str | None:
    """The text of a stage function, decorator and all, without importing its module or the
    packages around it."""
    path = None if module == "__main__" else _file_of(module)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8")
    for node in _statements(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    return None


def _file_of(module: str) -> Path | None:
    """Where a module lies; of what it is in, only the outermost is looked for by import's rules."""
    outermost, *inner = module.split(".")
    spec = importlib.util.find_spec(outermost)
    if spec is None:
        return None
    if not inner:
        return Path(spec.origin) if spec.origin else None
    places = (Path(folder, *inner) for folder in spec.submodule_search_locations or ())
    found = (file for at in places for file in (at.with_suffix(".py"), at / "__init__.py"))
    return next((file for file in found if file.is_file()), None)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement, outer before inner; expressions, most of a tree, are not walked."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, inner, []))


def children(ws: Workspace, made: Artifact, stage: str) -> list[dict[str, Any]]:
    """Records of `stage` that took `made` as a direct input, newest first."""
    found = [
        record
        for record in ws.records()
        if record["stage"] == stage
        and any(i["artifact"] == made.digest for i in inputs_of(record["arguments"]))
    ]
    return sorted(found, key=lambda record: -record["finished_at"])


def affected(ws: Workspace, document: str) -> list[dict[str, Any]]:
    """Every record downstream of a document, given by path, file name or (prefix of) digest.

    Each row has stage, key, object and the names that point at it. A document no read ever saw
    is an error that lists near paths.
    """
    document = unicodedata.normalize("NFC", document)
    records = list(ws.records())
    hit: set[str] = set()
    for record in records:
        for ref in record["arguments"].get("files", []):
            file = ref.get("FileRef", {})
            path, digest = file.get("path", ""), file.get("sha256", "")
            by_digest = len(document) >= 8 and digest.startswith(document)
            if by_digest or document in (path, path.rsplit("/", 1)[-1]):
                hit.add(record["key"])
    if not hit:
        raise OnsilError(
            en=(
                f"No corpus here has seen {document!r}.",
                "A document is found by its path inside the folder, its file name or its SHA-256.",
                "onsil lineage NAME lists what a model was made from.",
            ),
            ko=(
                f"{document!r} 문서를 읽은 말뭉치가 없습니다.",
                "문서는 폴더 안 경로, 파일 이름, SHA-256으로 찾습니다.",
                "onsil lineage 이름 으로 모델이 읽은 문서를 볼 수 있습니다.",
            ),
        )
    grown = True
    while grown:
        new = {
            r["key"]
            for r in records
            if r["key"] not in hit and any(i["key"] in hit for i in inputs_of(r["arguments"]))
        }
        hit, grown = hit | new, bool(new)
    called: dict[str, list[str]] = {}
    for name in ws.names():
        for version, entry in ws.versions(name).items():
            called.setdefault(entry["object"], []).append(f"{name}@{version}")
    return [
        {
            "stage": r["stage"],
            "key": r["key"],
            "object": r["object"],
            "names": called.get(r["object"], []),
        }
        for r in sorted(records, key=lambda r: r["finished_at"])
        if r["key"] in hit
    ]


def diff(ws: Workspace, key_a: str, key_b: str) -> list[dict[str, Any]]:
    """What differs between two results: per stage, the arguments that are not equal."""

    def by_stage(key: str) -> dict[str, dict[str, Any]]:
        return {record["stage"]: record for _, record in history(ws, key)}

    a, b = by_stage(key_a), by_stage(key_b)
    rows = []
    for name in [*a, *(n for n in b if n not in a)]:
        left, right = a.get(name), b.get(name)
        if left is None or right is None:
            rows.append({"stage": name, "only_in": "a" if left else "b"})
        elif left["object"] != right["object"]:
            left_args, right_args = left["arguments"], right["arguments"]
            changed = {
                k: [left_args.get(k), right_args.get(k)]
                for k in sorted({*left_args, *right_args})
                if left_args.get(k) != right_args.get(k)
            }
            rows.append({"stage": name, "arguments": changed})
    return rows


def collect_garbage(ws: Workspace, delete: bool) -> dict[str, list[str]]:
    """Objects, records and abandoned work that no name reaches; removed when `delete`.

    Reports made from a named model are kept with it.
    """
    live: set[str] = set()
    for name in ws.names():
        for entry in ws.versions(name).values():
            roots = [entry["key"]]
            model = ws.artifact(entry["object"])
            roots += [
                r["key"] for s in ("evaluate", "write_report") for r in children(ws, model, s)
            ]
            for root in roots:
                live |= {record["key"] for _, record in history(ws, root)}
    records = list(ws.records())
    live_objects = {r["object"] for r in records if r["key"] in live}
    dead = {
        "records": [r["key"] for r in records if r["key"] not in live],
        "objects": sorted(
            p.parent.name + p.name
            for p in (ws.root / "objects").glob("*/*")
            if p.parent.name + p.name not in live_objects
        ),
        "work": sorted(p.name for p in (ws.root / "work").iterdir()),
    }
    if delete:
        for key in dead["work"]:
            with ws.lock(key):
                shutil.rmtree(ws.root / "work" / key, ignore_errors=True)
        for key in dead["records"]:
            (ws.root / "records" / f"{key}.json").unlink(missing_ok=True)
        for digest in dead["objects"]:
            shutil.rmtree(ws.artifact(digest).path, ignore_errors=True)
    return dead


def file_lineage(path: Path) -> dict[str, Any]:
    """What a weights file says of itself, away from any workspace.

    Reads the safetensors header only (8 bytes little-endian length, then JSON; see the
    safetensors format description). Raises OnsilError for another file or a header without it.
    """
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > 100_000_000:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(f.read(length))
        said = header["__metadata__"][METADATA_KEY]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as e:
        raise OnsilError(
            en=(
                f"{path} carries no onsil lineage ({type(e).__name__}: {e}).",
                "Only safetensors files that onsil wrote can say what made them.",
                "Give a .safetensors file of a grown model, or a name: onsil models",
            ),
            ko=(
                f"{path}에는 onsil 이력이 없습니다({type(e).__name__}: {e}).",
                "onsil이 쓴 safetensors 파일만 무엇으로 만들었는지 말할 수 있습니다.",
                "만든 모델의 .safetensors 파일이나 이름을 주세요: onsil models",
            ),
        ) from e
    return {"sha256": file_digest(path)} | json.loads(said)
