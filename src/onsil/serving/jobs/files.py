"""OpenAI's files: what batches read and write.

The bytes lie on the disk under their SHA-256, each content once however many names it has; the
names lie in the store, each with its owner. An upload is written aside, hashed on the way, put on
the disk for certain and only then named; a name is gone for certain before its bytes go. So a
process may die anywhere, and a file with an id is a whole file; what is left over is bytes without
a name, which `prune` finds. What a caller calls a file is kept as a word and never becomes a path.
"""

import errno
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from onsil.serving.jobs.job import NAME, DamagedFile, Full, Unavailable, Unknown
from onsil.serving.jobs.keeping import A_DAY, TOGETHER
from onsil.serving.jobs.store import JobStore

LARGEST_FILE = 100_000_000  # bytes
STALE = 24 * 3600.0  # seconds after which bytes without a name are nobody's
OLD = (  # and of no job that is kept: `file-` and 24 digits are its number, or an upload's own
    "select id, owner, sha256 from files where created < (select epoch() - ?)"
    " and not exists (select 1 from jobs where jobs.id = 'job_' || substr(files.id, 6, 24))"
    f" order by seq limit {10 * TOGETHER}"
)
INPUTS = "select payload from jobs where kind = 'batch' and state in ('ready', 'failed', 'running')"
COLUMNS = "id, filename, bytes, purpose, sha256, created"


@dataclass(frozen=True)
class File:
    """A named file; `created` in epoch seconds."""

    id: str
    filename: str
    bytes: int
    purpose: str
    sha256: str
    created: float


class TooLarge(ValueError):
    """More bytes than a file may have."""


class Incoming:
    """A file on its way in: `write`, then `FileStore.keep`; `discard` in any case."""

    def __init__(self, folder: Path, largest: int):
        descriptor, name = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(descriptor, "wb")
        self.path, self.size, self.largest = Path(name), 0, largest
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Raises TooLarge, and StoreError when the disk refuses."""
        self.size += len(data)
        if self.size > self.largest:
            raise TooLarge(f"The file is larger than {self.largest:,} bytes.")
        with disk(self.path):
            self._file.write(data)
        self._hash.update(data)

    def close(self) -> str:
        """Put it on the disk for certain; its SHA-256 in hex."""
        with disk(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        return self._hash.hexdigest()

    def discard(self) -> None:
        with suppress(OSError):  # nothing of it is needed any more, not even its last bytes
            self._file.close()
        self.path.unlink(missing_ok=True)


class FileStore:
    """The files of one store, below `folder` under the store's own name: what it names none of may
    be another's. Several machines need `folder` on a disk that they share."""

    def __init__(self, store: JobStore, folder: Path, largest: int = LARGEST_FILE):
        self.store, self.folder, self.largest = store, folder / store.identity(), largest
        self._aside = self.folder / "incoming"
        with disk(folder):
            for place in (folder, self.folder, self._aside):
                place.mkdir(parents=True, exist_ok=True, mode=0o700)
        store.also_pruned.append(self.prune)

    def incoming(self) -> Incoming:
        """Raises StoreError when the disk refuses."""
        with disk(self._aside):
            return Incoming(self._aside, self.largest)

    def keep(
        self, owner: str, incoming: Incoming, filename: str, purpose: str, identity: str = ""
    ) -> File:
        """Name what came in. With an `identity` that is there already, the first stays."""
        digest = incoming.close()
        identity = identity or f"file-{secrets.token_hex(12)}"
        with self.store.database.transaction() as run, disk(self.folder):
            self.store.database.alone(run, digest)
            if run(
                "insert into files (id, owner, filename, bytes, purpose, sha256, created)"
                " values (?, ?, ?, ?, ?, ?, epoch()) on conflict (id) do nothing returning id",
                *(identity, owner, filename, incoming.size, purpose, digest),
            ):
                place = self._place(digest)
                place.parent.mkdir(exist_ok=True, mode=0o700)
                incoming.path.replace(place)  # the same bytes, or better ones
                _sync(place.parent)
                _sync(self.folder)
        return self.get(owner, identity)

    def write(
        self, owner: str, lines: Iterable[bytes], filename: str, purpose: str, identity: str
    ) -> File:
        """A file of ours, of any size."""
        with disk(self._aside):
            incoming = Incoming(self._aside, 1 << 62)
        try:
            for line in lines:
                incoming.write(line)
            return self.keep(owner, incoming, filename, purpose, identity)
        finally:
            incoming.discard()

    def get(self, owner: str, identity: str) -> File:
        """Raises Unknown, also for somebody else's."""
        sql = f"select {COLUMNS} from files where id = ? and owner = ?"
        if NAME.fullmatch(identity):
            with self.store.database.reading() as run:
                if found := run(sql, identity, owner):
                    return File(**found[0])
        raise Unknown("file", identity)

    def listed(
        self, owner: str, limit: int, after: str | None, purpose: str | None, rising: bool
    ) -> list[File]:
        """An owner's files, the newest first or last. Raises Unknown for an `after` that is not
        there."""
        where, values = "owner = ?", [owner]
        if purpose is not None:
            where, values = f"{where} and purpose = ?", [*values, purpose]
        if after is not None:
            self.get(owner, after)
            sign = ">" if rising else "<"
            where = f"{where} and seq {sign} (select seq from files where id = ?)"
            values = [*values, after]
        order = "asc" if rising else "desc"
        sql = f"select {COLUMNS} from files where {where} order by seq {order} limit ?"
        with self.store.database.reading() as run:
            return [File(**row) for row in run(sql, *values, limit)]

    def path(self, file: File) -> Path:
        """Where its bytes lie, after they were found to be the ones that came. Raises DamagedFile,
        also when they are gone."""
        place = self._place(file.sha256)
        with disk(place):
            try:
                with place.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
            except FileNotFoundError:
                found = ""
        if found != file.sha256:
            raise DamagedFile(file.id)
        return place

    def delete(self, owner: str, identity: str) -> None:
        """Forget a name, and the bytes when nobody else has a name for them. Raises Unknown."""
        self._delete(owner, identity, self.get(owner, identity).sha256)

    def _delete(self, owner: str, identity: str, digest: str) -> None:
        with self.store.database.transaction() as run:
            run("delete from files where id = ? and owner = ?", identity, owner)
        self._let_go(self._place(digest))

    def _let_go(self, place: Path) -> None:
        """Remove bytes, unless there is a name for them."""
        with self.store.database.transaction() as run, disk(place):
            self.store.database.alone(run, place.name)
            if not run("select id from files where sha256 = ? limit 1", place.name):
                place.unlink(missing_ok=True)

    def prune(self, days: float) -> int:
        """Forget some of the files of more than `days` ago, but for those of jobs that are kept and
        the inputs of batches that are not done; how many. When there are no more, remove the bytes
        that crashes left without a name."""
        with self.store.database.reading() as run:
            old = run(OLD, days * A_DAY)
            used = {json.loads(row["payload"])["input_file_id"] for row in run(INPUTS)}
        old = [file for file in old if file["id"] not in used][:TOGETHER]
        for file in old:
            self._delete(file["owner"], file["id"], file["sha256"])
        if not old:
            self._clear_up()
        return len(old)

    def _clear_up(self) -> None:
        with disk(self.folder):
            for folder in (self._aside, *self.folder.glob("[0-9a-f][0-9a-f]")):
                stale = {path.name: path for path in folder.iterdir() if _is_stale(path)}
                if stale:
                    marks = ", ".join("?" * len(stale))
                    with self.store.database.reading() as run:
                        sql = f"select distinct sha256 from files where sha256 in ({marks})"
                        for row in run(sql, *stale):
                            del stale[row["sha256"]]
                for path in stale.values():
                    self._let_go(path)

    def _place(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_stale(path: Path) -> bool:
    with suppress(FileNotFoundError):  # another process was faster
        return time.time() - path.stat().st_mtime > STALE
    return False


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """The disk's errors as the store's."""
    try:
        yield
    except OSError as e:
        reason = f"{e.strerror} ({path.name})"
        full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise (Full if full else Unavailable)(reason) from e
