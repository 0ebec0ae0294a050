"""The workspace: where artefacts, their records and their names live.

    .onsil/
      format              the layout's number; another number is refused
      objects/ab/cdef…/   bytes, addressed by their digest, read-only by convention
      records/KEY.json    what made them: stage, version, arguments, inputs, code, machine, time
      names/desk/         v1.json, v2.json …, aliases.json
      work/KEY/           a stage under way: `out/` starts empty, `scratch/` outlives a crash
      locks/KEY           one holder per stage at a time
      locks/workspace     shared by all that make something; `gc --delete` wants it alone

Everything is a file finished by one rename, so a killed process leaves either the old state or the
new one. The key addresses the record, the content addresses the bytes; a name points at both.
"""

import fcntl
import inspect
import json
import os
import re
import resource
import shutil
import sys
import time
import unicodedata
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.lineage.machine import machine
from onsil.lineage.refusals import (
    damaged_aliases,
    damaged_version,
    lost_version,
    no_folder,
    none_found,
)
from onsil.lineage.spelling import (
    Artifact,
    canonical,
    folder_digest,
    identity_key,
    spell,
    sync,
    sync_folder,
    write_atomically,
)

FORMAT = "1"
PROMISED = {
    "object", "stage", "version", "arguments", "notes", "ancestry", "code", "seconds",
    "cpu_seconds", "finished_at",
}  # fmt: skip
NAME = re.compile(r"[\w가-힣][\w가-힣.-]{0,63}")


class Run:
    """Where and how a stage runs: nothing in here may change its bytes.

    `scratch` survives a crash and is handed back on the next attempt; `say` prints progress; the
    rest is whatever the caller passed in `run={...}`, of which the record keeps `origin`: the
    artefact whose content was passed on as a literal. `ancestry` is what a file made here may
    carry away: digests, versions and literals of everything upstream, no file names, no clock.
    """

    def __init__(self, scratch: Path, ancestry: dict[str, Any], place: dict[str, Any]):
        self.scratch, self.ancestry = scratch, ancestry
        self.source: Path = Path(place.get("source", "."))
        self.say: Callable[[str], None] = place.get("say") or (lambda text: None)


class Workspace:
    """A folder of artefacts. Safe to open from several processes at once.

    `say` prints progress; `joules` tells what the machine has drawn so far, where somebody can read
    it: each record then keeps what its stage drew.
    """

    def __init__(self, root: str | Path, say: Callable[[str], None] | None = None):
        self.root, self.say = Path(root), say
        self.joules: Callable[[], float | None] = lambda: None
        self._held = False
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is in it is private
        except (FileExistsError, NotADirectoryError) as e:
            raise no_folder(self.root) from e
        for part in ("objects", "records", "names", "work", "locks"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        marker = self.root / "format"
        if not marker.exists():
            write_atomically(marker, FORMAT + "\n")
        found = marker.read_text().strip()
        if found != FORMAT:
            raise OnsilError(
                en=(
                    f"{self.root} is a workspace of format {found!r}, not {FORMAT!r}.",
                    "Reading it with the wrong rules could damage it.",
                    "Use the onsil version that made it, or set $ONSIL_HOME to a new folder.",
                ),
                ko=(
                    f"{self.root}는 형식 {FORMAT!r}이 아니라 {found!r}인 작업 공간입니다.",
                    "다른 규칙으로 읽으면 내용이 손상될 수 있습니다.",
                    "만들 때 쓴 onsil 버전을 쓰거나 $ONSIL_HOME을 새 폴더로 지정해 주세요.",
                ),
            )

    @classmethod
    def find(cls, say: Callable[[str], None] | None = None) -> "Workspace":
        """`$ONSIL_HOME`, else the nearest `.onsil` upwards from here. Raises OnsilError where there
        is none: who only looks must not leave an empty one that hides the real one."""
        root = _place()
        if not root.is_file() and not (root / "format").exists():
            raise none_found(root)
        return cls(root, say)

    @classmethod
    def found_or_new(cls, say: Callable[[str], None] | None = None) -> "Workspace":
        """The one that `find` finds, else a new one at `$ONSIL_HOME` or here."""
        return cls(_place(), say)

    # -- artefacts and records ------------------------------------------------------------------

    def artifact(self, digest: str, key: str = "") -> Artifact:
        return Artifact(digest, self.root / "objects" / digest[:2] / digest[2:], key)

    def is_whole(self, made: Artifact) -> bool:
        return made.path.exists() and folder_digest(made.path) == made.digest

    def whole(self, made: Artifact) -> Path:
        """The folder of an artefact, hashed first. Raises OnsilError when it is not what was made:
        a model with one wrong byte answers wrongly without saying so."""
        if not self.is_whole(made):
            raise OnsilError(
                en=(
                    f"{made.path} is damaged or missing.",
                    f"It no longer has the digest it was made with ({made.digest[:12]}).",
                    "Run `onsil grow` as before: only what is damaged is made again.",
                ),
                ko=(
                    f"{made.path}이(가) 손상되었거나 없습니다.",
                    f"만들 때의 다이제스트({made.digest[:12]})와 다릅니다.",
                    "`onsil grow`를 전과 같이 실행하면 손상된 것만 다시 만듭니다.",
                ),
            )
        return made.path

    def record(self, key: str) -> dict[str, Any] | None:
        """What made a result. A file that cannot be read, or lacks what is promised, is none: the
        stage runs again."""
        found = _parsed(self.root / "records" / f"{key}.json") or {}
        return found if found.get("key") == key and found.keys() >= PROMISED else None

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record that can be read, in the order of their keys."""
        for path in sorted((self.root / "records").glob("*.json")):
            if record := self.record(path.stem):
                yield record

    def unreadable(self) -> list[Path]:
        """Files of records that are none, which no list of records can count in."""
        found = sorted((self.root / "records").glob("*.json"))
        return [path for path in found if self.record(path.stem) is None]

    def ancestry(self, spelled: dict[str, Any], stage: str, version: int, key: str) -> dict:
        """Digests, versions and literals of a stage and all its ancestors, by key."""
        nodes: dict[str, Any] = {}
        for parent in inputs_of(spelled):
            if record := self.record(parent["key"]):
                nodes |= record["ancestry"]["nodes"]
        nodes[key] = {"stage": f"{stage}@{version}", "arguments": without_paths(spelled)}
        return {"made_by": key, "nodes": nodes}

    def make(
        self, fn: Callable, version: int, arguments: dict[str, Any], place: dict[str, Any]
    ) -> Artifact:
        """The artefact of `fn(**arguments)`: the one made before, or a new one, exactly once."""
        stage_name, spelled = fn.__name__, spell(arguments)
        key = identity_key(stage_name, version, spelled)
        self.hold()
        with self.lock(key):
            if done := self.record(key):
                made = self.artifact(done["object"], key)
                if self.is_whole(made):
                    return made
            work = self.root / "work" / key
            out, scratch = work / "out", work / "scratch"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            ancestry = self.ancestry(spelled, stage_name, version, key)
            start, cpu, drawn = time.time(), time.process_time(), self.joules()
            notes = fn(**arguments, out=out, run=Run(scratch, ancestry, {"say": self.say} | place))
            made = self.keep(out, key)
            now = self.joules()
            record = {
                "key": key,
                "object": made.digest,
                "stage": stage_name,
                "version": version,
                "arguments": spelled,
                "origin": spell(place.get("origin")),
                "notes": spell(notes or {}),
                "ancestry": ancestry,
                "code": {"module": fn.__module__, "source": source_digest(inspect.getsource(fn))},
                "seconds": round(time.time() - start, 3),
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "joules": None if drawn is None or now is None else round(now - drawn, 3),
                "finished_at": round(time.time(), 3),
                "peak_rss_mb": round(peak_megabytes()),
                "machine": machine(),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            }
            text = json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True)
            write_atomically(self.root / "records" / f"{key}.json", text + "\n")
            shutil.rmtree(work, ignore_errors=True)
            return made

    def keep(self, out: Path, key: str) -> Artifact:
        """Move a finished folder to its address: fsync all of it, then one rename."""
        made = self.artifact(folder_digest(out), key)
        with self.lock("objects"):  # another stage may finish with the same bytes
            if not self.is_whole(made):
                shutil.rmtree(made.path, ignore_errors=True)  # a damaged one makes room
                sync_folder(out)
                made.path.parent.mkdir(exist_ok=True)
                os.rename(out, made.path)
                sync(made.path.parent)
        return made

    def hold(self) -> None:
        """Make something here: until this process ends or forgets the workspace, what it has made
        and not yet named is no garbage. Waits while garbage is being removed."""
        if not self._held:
            handle = self._open_lock()
            self._let_go = weakref.finalize(self, os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_SH)
            self._held = True

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else makes anything here; if so, nobody begins to meanwhile."""
        if self._held:
            self._let_go()
            self._held = False
        handle = self._open_lock()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            nobody = True
        except BlockingIOError:
            nobody = False
        try:
            yield nobody
        finally:
            os.close(handle)

    def _open_lock(self) -> int:
        return os.open(self.root / "locks" / "workspace", os.O_RDONLY | os.O_CREAT, 0o600)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold a stage alone, across processes. The kernel lets go when a holder dies."""
        with (self.root / "locks" / key).open("w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self.say:
                    self.say(
                        f"… {key[:12]} 다른 프로세스를 기다립니다 · waiting for another process"
                    )
                fcntl.flock(f, fcntl.LOCK_EX)
            yield

    # -- names ----------------------------------------------------------------------------------

    def register(self, name: str, made: Artifact) -> str:
        """Give `made` the next version of `name` (`v1`, `v2` …); the same bytes keep theirs."""
        name = proper_name(name)
        folder = self.root / "names" / name
        folder.mkdir(exist_ok=True)
        with self.lock(f"name-{name}"):
            versions = self.versions(name)
            for version, entry in versions.items():
                if entry["object"] == made.digest:
                    return version
            version = f"v{max((int(v[1:]) for v in versions), default=0) + 1}"
            entry = {"object": made.digest, "key": made.key, "at": round(time.time(), 3)}
            write_atomically(folder / f"{version}.json", json.dumps(entry) + "\n")
            return version

    def versions(self, name: str) -> dict[str, dict[str, Any]]:
        """`{version: entry}` of one name, oldest first. Raises OnsilError for a damaged file."""
        files = (self.root / "names" / name).glob("v*.json")
        files = (path for path in files if path.stem[1:].isdecimal())  # «v1 (1).json» is no version
        ordered = sorted(files, key=lambda p: int(p.stem[1:]))
        entries = {p.stem: _parsed(p) or {} for p in ordered}
        for version, entry in entries.items():
            if not {"object", "key", "at"} <= entry.keys():
                raise damaged_version(self.root / "names" / name / f"{version}.json")
        return entries

    def aliases(self, name: str) -> dict[str, str]:
        """`{alias: version}` of one name. Raises OnsilError for a damaged file."""
        path = self.root / "names" / name / "aliases.json"
        if not path.exists():
            return {}
        if (found := _parsed(path)) is None:
            raise damaged_aliases(path)
        return found

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.resolve(f"{name}@{version}")
        with self.lock(f"name-{name}"):
            aliases = self.aliases(name) | {alias: version}
            path = self.root / "names" / name / "aliases.json"
            write_atomically(path, json.dumps(aliases, sort_keys=True) + "\n")

    def names(self) -> list[str]:
        found = (p.name for p in (self.root / "names").iterdir() if p.is_dir())
        return sorted(n for n in found if self.versions(n))

    def resolve(self, reference: str) -> tuple[str, str, Artifact]:
        """`desk`, `desk@v3` or `desk@champion` → (name, version, artefact); a bare name is the
        champion, else the newest version."""
        name, _, wanted = unicodedata.normalize("NFC", reference).partition("@")
        versions = self.versions(name) if NAME.fullmatch(name) else {}
        if not versions:
            known = self.names()
            near = get_close_matches(name, known, n=1)
            raise OnsilError(
                en=(
                    f"Nothing here is called {name!r}.",
                    f"Known names: {', '.join(known) or 'none yet'}.",
                    f"Did you mean {near[0]!r}?"
                    if near
                    else f"Grow one: onsil grow FOLDER --name {name}",
                ),
                ko=(
                    f"{name!r}라는 이름이 없습니다.",
                    f"있는 이름: {', '.join(known) or '아직 없음'}.",
                    f"혹시 {near[0]!r}인가요?"
                    if near
                    else f"새로 만들려면: onsil grow 폴더 --name {name}",
                ),
            )
        aliases = self.aliases(name)
        version = aliases.get(wanted or "champion", wanted or list(versions)[-1])
        if version not in versions and version in aliases.values():
            raise lost_version(self.root / "names" / name / "aliases.json", version)
        if version not in versions:
            choices = ", ".join([*versions, *aliases])
            raise OnsilError(
                en=(f"{name} has no version {wanted!r}.", "", f"It has: {choices}."),
                ko=(f"{name}에는 {wanted!r} 버전이 없습니다.", "", f"있는 버전: {choices}."),
            )
        entry = versions[version]
        return name, version, self.artifact(entry["object"], entry["key"])


def _place() -> Path:
    """`$ONSIL_HOME`, else the nearest `.onsil` upwards from here, else where a new one would be."""
    if home := os.environ.get("ONSIL_HOME"):
        return Path(home)
    here = Path.cwd()
    known = (folder / ".onsil" for folder in (here, *here.parents))
    return next((root for root in known if root.is_dir()), here / ".onsil")


def _parsed(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None for no file and for one that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def proper_name(name: str) -> str:
    """A name as it is kept. Raises OnsilError for what cannot be one."""
    name = unicodedata.normalize("NFC", name)
    if not NAME.fullmatch(name):
        raise OnsilError(
            en=(
                f"{name!r} cannot be a model's name.",
                "A name is typed in commands and becomes a folder.",
                "Use letters, digits, - _ . and at most 64 characters.",
            ),
            ko=(
                f"{name!r}는 모델 이름으로 쓸 수 없습니다.",
                "이름은 명령에 적고 폴더 이름이 됩니다.",
                "글자, 숫자, - _ . 만 써서 64자 안으로 지어 주세요.",
            ),
        )
    return name


def stage(version: int) -> Callable[[Callable], Callable[..., Artifact]]:
    """Mark a function as a stage: `fn(*, literals and artefacts, out, run)`.

    Bump `version` when what it means changes, not when it is tidied. Call it as
    `fn(workspace, **arguments, run={...})`; defaults count as if they were written out.
    """

    def mark(fn: Callable) -> Callable[..., Artifact]:
        signature = inspect.signature(fn)

        @wraps(fn)
        def call(ws: Workspace, *, run: dict[str, Any] | None = None, **arguments) -> Artifact:
            given = signature.bind(**arguments, out=None, run=None)
            given.apply_defaults()
            own = {k: v for k, v in given.arguments.items() if k not in ("out", "run")}
            return ws.make(fn, version, own, run or {})

        return call

    return mark


def parents_of(record: dict[str, Any]) -> list[dict[str, str]]:
    """The artefacts that a result was made from: its inputs, and the origin of its literals."""
    return list(inputs_of([record["arguments"], record.get("origin")]))


def inputs_of(spelled: Any) -> Iterator[dict[str, str]]:
    """Every input artefact in spelled arguments, in order."""
    if isinstance(spelled, dict):
        if spelled.keys() == {"artifact", "key"}:
            yield spelled
        else:
            for value in spelled.values():
                yield from inputs_of(value)
    elif isinstance(spelled, list):
        for value in spelled:
            yield from inputs_of(value)


def without_paths(spelled: Any) -> Any:
    """Spelled arguments fit to travel: a FileRef keeps its digest and loses its path."""
    if isinstance(spelled, dict):
        if spelled.keys() == {"FileRef"}:
            return {"sha256": spelled["FileRef"]["sha256"]}
        return {k: without_paths(v) for k, v in spelled.items()}
    return [without_paths(v) for v in spelled] if isinstance(spelled, list) else spelled


def peak_megabytes() -> float:
    """The most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def source_digest(source: str) -> str:
    """Digest of a function's source, by its syntax: comments and layout do not count."""
    import ast
    import hashlib
    import textwrap

    return hashlib.sha256(ast.dump(ast.parse(textwrap.dedent(source))).encode()).hexdigest()


__all__ = ["Artifact", "Run", "Workspace", "canonical", "stage"]
