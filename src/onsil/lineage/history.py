"""Questions to the records: what made this, is it whole, has its source changed, what is garbage.

Nothing here runs a stage or imports torch: answering must cost nothing.
"""

import ast
import importlib.util
import json
import shutil
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.lineage.spelling import Artifact, file_digest, folder_digest, identity_key
from onsil.lineage.workspace import Workspace, parents_of, source_digest

METADATA_KEY = "onsil"


def _walk(ws: Workspace, key: str) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """(depth, key, record) of a result and everything upstream, nearest first, each once; the
    record is None where it is missing or cannot be read."""
    seen: set[str] = set()
    queue = [(0, key)]
    while queue:
        depth, key = queue.pop(0)
        if key in seen:
            continue
        seen.add(key)
        record = ws.record(key)
        yield depth, key, record
        if record:
            queue += [(depth + 1, parent["key"]) for parent in parents_of(record)]


def history(ws: Workspace, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(depth, record) of a result and everything upstream of it, nearest first, each once."""
    yield from ((depth, record) for depth, _, record in _walk(ws, key) if record)


def unrecorded(ws: Workspace, key: str) -> list[str]:
    """Keys in the history of a result whose record is missing or cannot be read; what lies
    upstream of them is not known."""
    return [key for _, key, record in _walk(ws, key) if key and record is None]


def no_record(ws: Workspace, key: str, name: str, version: str) -> OnsilError:
    """What is said where one of them is needed for a version of a name. To grow again helps only
    where everything upstream still has the same bytes: from others comes another key."""
    path = ws.root / "records" / f"{key}.json"
    entry = ws.root / "names" / name / f"{version}.json"
    return OnsilError(
        en=(
            f"{path} is missing or damaged.",
            f"It says what a part of {name}@{version} was made from, which nothing else here does.",
            "Run `onsil grow` as before. If this is said again, it cannot be made any more: put it "
            f"back from a backup, or give {name}@{version} up and delete {entry}.",
        ),
        ko=(
            f"{path}이(가) 없거나 손상되었습니다.",
            f"{name}@{version}의 한 부분을 무엇으로 만들었는지는 이 기록에만 적혀 있습니다.",
            "`onsil grow`를 전과 같이 실행해 주세요. 그래도 이 말이 나오면 다시 만들 수 없는 "
            f"기록입니다. 백업에서 되돌리거나, {name}@{version}을(를) 포기하고 {entry}을(를) "
            "지워 주세요.",
        ),
    )


def verify(ws: Workspace, key: str, digest: str = "") -> list[dict[str, Any]]:
    """Re-hash a result and all its ancestors: one row each, `ok` true or false with the reason.
    `digest` is what a name says that the result has.

    `missing`: the bytes are gone; `no record`: a record is, or cannot be read, and its key alone is
    known; `changed`: the bytes are not those that were made or used; `edited`: the record's stage,
    version or arguments are not those that its key was made from.
    """
    rows = []
    for _, record in history(ws, key):
        rows.append(_row(record, _fault(ws, record)))
        for parent in parents_of(record):
            row = {"stage": "", "key": parent["key"], "object": parent["artifact"]}
            found = ws.record(parent["key"])
            if found is None:
                rows.append(_row(row, "no record"))
            elif found["object"] != parent["artifact"]:
                rows.append(_row(row | {"stage": found["stage"]}, "changed"))
    if not rows:
        rows.append(_row({"stage": "", "key": key, "object": ""}, "no record"))
    elif digest and (record := ws.record(key)) and record["object"] != digest:
        reason = "changed" if ws.artifact(digest).path.exists() else "missing"
        rows.append(_row(record | {"object": digest}, reason))
    return list({(row["key"], row["object"], row["reason"]): row for row in rows}.values())


def _row(record: dict[str, Any], reason: str) -> dict[str, Any]:
    told = {name: record[name] for name in ("stage", "key", "object")}
    return told | {"ok": not reason, "reason": reason}


def _fault(ws: Workspace, record: dict[str, Any]) -> str:
    """What is wrong with a result, in a word, or nothing."""
    made = ws.artifact(record["object"])
    if not made.path.exists():
        return "missing"
    if folder_digest(made.path) != made.digest:
        return "changed"
    spelled = identity_key(record["stage"], record["version"], record["arguments"])
    return "" if spelled == record["key"] else "edited"


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
        and any(parent["artifact"] == made.digest for parent in parents_of(record))
    ]
    return sorted(found, key=lambda record: -record["finished_at"])


def collect_garbage(ws: Workspace, delete: bool) -> dict[str, list[str]]:
    """Objects, records and abandoned work that no name reaches; removed when `delete`.

    Reports made from a named model are kept with it. Raises OnsilError when something is to be
    removed while another process makes something: what that has made has no name yet; and when a
    record that a name reaches is missing or cannot be read: what lies upstream of it would count
    as garbage.
    """
    if not delete:
        return _garbage(ws)
    with ws.alone() as nobody:
        if not nobody:
            raise _under_way()
        dead = _garbage(ws)
        for key in dead["work"]:
            shutil.rmtree(ws.root / "work" / key, ignore_errors=True)
        for key in dead["records"]:
            (ws.root / "records" / f"{key}.json").unlink(missing_ok=True)
        for digest in dead["objects"]:
            shutil.rmtree(ws.artifact(digest).path, ignore_errors=True)
    return dead


def _garbage(ws: Workspace) -> dict[str, list[str]]:
    live: set[str] = set()
    used: set[str] = set()  # what names and what they were made from hold, also if made anew since
    for name in ws.names():
        for version, entry in ws.versions(name).items():
            roots = [entry["key"]]
            used.add(entry["object"])
            model = ws.artifact(entry["object"])
            roots += [
                r["key"] for s in ("evaluate", "write_report") for r in children(ws, model, s)
            ]
            for root in roots:
                if lost := unrecorded(ws, root):
                    raise no_record(ws, lost[0], name, version)
                for _, record in history(ws, root):
                    live.add(record["key"])
                    used |= {record["object"], *(p["artifact"] for p in parents_of(record))}
    return {
        "records": sorted(
            p.stem for p in (ws.root / "records").glob("*.json") if p.stem not in live
        ),
        "objects": sorted(
            p.parent.name + p.name
            for p in (ws.root / "objects").glob("*/*")
            if p.parent.name + p.name not in used
        ),
        "work": sorted(p.name for p in (ws.root / "work").iterdir()),
    }


def _under_way() -> OnsilError:
    return OnsilError(
        en=(
            "A run is under way in this workspace.",
            "What it has finished has no name yet and would be removed under it.",
            "Run this again when it is done; stop it only if what it has finished may go too.",
        ),
        ko=(
            "이 작업 공간에서 다른 작업이 실행되고 있습니다.",
            "그 작업이 끝낸 결과에는 아직 이름이 없어서 지금 지우면 함께 지워집니다.",
            "끝난 뒤 다시 실행해 주세요. 작업을 멈추고 실행하면 끝낸 결과도 함께 지워집니다.",
        ),
    )


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
