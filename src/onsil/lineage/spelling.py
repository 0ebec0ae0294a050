"""One spelling per value, one digest per spelling, one digest per folder.

A stage's identity is its name, its version and its arguments. Two processes, two machines and two
years apart must spell equal arguments equally, so whatever has no stable spelling is refused.
"""

import dataclasses
import enum
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A finished result: a folder of bytes that never change, addressed by their digest.

    `digest` is the SHA-256 of names and contents, `key` the identity of the stage that made it
    (two different stages may make the same bytes: equality is by digest alone).
    """

    digest: str
    path: Path = dataclasses.field(compare=False)
    key: str = dataclasses.field(compare=False, default="")

    def __truediv__(self, part: str) -> Path:
        return self.path / part


def spell(value: Any) -> Any:
    """The one JSON spelling of an argument.

    Raises OnsilError for a value without a stable spelling: a function, a set, an object with an
    address in its repr, NaN, a dictionary whose keys are not strings.
    """
    if isinstance(value, Artifact):
        return {"artifact": value.digest, "key": value.key}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: spell(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {type(value).__qualname__: own}
    if isinstance(value, enum.Enum):
        return {type(value).__qualname__: spell(value.value)}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: spell(v) for k, v in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [spell(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise _unstable(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise _unstable(value)


def _unstable(value: Any) -> OnsilError:
    kind = type(value).__qualname__
    return OnsilError(
        en=(
            f"{value!r} ({kind}) cannot be an argument of a stage.",
            "An artefact is known by its arguments, and this one has no spelling that is the same "
            "in every process.",
            "Pass a number, a string, a list, a dataclass or an Enum; if it only says where or how "
            "to run, pass it in run={...}.",
        ),
        ko=(
            f"{value!r}({kind})는 단계의 인자로 쓸 수 없습니다.",
            "산출물은 인자로 식별하는데, 이 값은 실행할 때마다 표기가 달라집니다.",
            "수, 문자열, 목록, dataclass, Enum 가운데 하나로 넘기고, 실행 위치만 뜻한다면 "
            "run={...}에 넣어 주세요.",
        ),
    )


def identity_key(stage: str, version: int, spelled: dict[str, Any]) -> str:
    """SHA-256 of the stage's name, version and spelled arguments (keys of inputs left out).

    Inputs count by content: two ways to the same bytes are one identity.
    """

    def by_content(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"artifact", "key"}:
                return {"artifact": value["artifact"]}
            return {k: by_content(v) for k, v in value.items()}
        return [by_content(v) for v in value] if isinstance(value, list) else value

    identity = [stage, version, by_content(spelled)]
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )


def file_digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the sorted relative names and contents of every file under `folder`."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n".encode())
    return total.hexdigest()


def sync_folder(folder: Path) -> None:
    """fsync every file and folder under `folder`, so that a later rename cannot outlive them."""
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, also after a crash: write, fsync, rename, fsync."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(draft, path)
    sync(path.parent)
