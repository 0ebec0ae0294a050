"""A folder of files becomes documents: what is there, what was read, what was left and why.

`scan` lists the folder and hashes every file; the list is the identity of the result, so the same
files anywhere give the same documents. `read_files` reads exactly those bytes, each file in a
child process with limits (`sandbox`). A file that cannot be read never stops the rest: it is
listed in `skipped.jsonl` with its reason, because a document that silently is not there is a
question nobody will be able to answer later. Files inside files (archives, attachments) are
documents of their own, `archive.zip/규정.hwp`, down to a depth and up to a size.

Hidden names, office lock files (`~$…`) and `gold.jsonl` (questions to test with, not a document)
are not looked at. Symbolic links are not followed: inside the folder they would count a file
twice, outside it they would bring in what nobody put there.
"""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from onsil.documents.formats import (
    LEGACY,
    MEMBERS,
    READERS,
    Reader,
    known_suffixes,
    suffix_of,
)
from onsil.documents.members import Member, free_path
from onsil.documents.office import convert
from onsil.documents.sandbox import Parsed, Sandbox, sandbox
from onsil.documents.structure import promote_headings, title_of
from onsil.documents.tables import titles_apart
from onsil.documents.types import Document, FileRef, write_documents
from onsil.errors import OnsilError, say
from onsil.lineage import Artifact, Run, Workspace, stage

__all__ = ["READERS", "Reader", "read", "read_files", "read_folder", "scan"]

QUESTIONS = "gold.jsonl"
LARGEST = 512 * 2**20  # bytes of a file, and of all that is unpacked from it
DEEPEST = 3  # archives in archives
NAMED = 10  # files that could not be read, in the terminal; the report has all
UNREADABLE = ""  # the hash of a file that could not be opened


def read(ws: Workspace, folder: Path) -> Artifact:
    """Read every document under `folder` into an artifact of `documents.jsonl`."""
    return read_files(ws, files=scan(folder), run={"source": folder})


@stage(version=12)
def read_files(*, files: list[FileRef], out: Path, run: Run) -> dict:
    """Read the listed files; `documents.jsonl` holds what was read, `skipped.jsonl` the rest."""
    documents, skipped = read_folder(run.source, files)
    write_documents(documents, out / "documents.jsonl")
    with (out / "skipped.jsonl").open("w", encoding="utf-8") as f:
        for row in skipped:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    for line in _told(len(documents), skipped):
        run.say(line)
    formats = Counter(document.format for document in documents)
    return {
        "documents": len(documents),
        "skipped": len(skipped),
        "formats": dict(sorted(formats.items())),
    }


def _told(documents: int, skipped: list[dict]) -> Iterator[str]:
    """How many were read, and the first of those that were not, with their reasons."""
    if not skipped:
        yield say(f"{documents} documents read", f"문서 {documents}건을 읽었습니다")
        return
    yield say(
        f"{documents} documents read, {len(skipped)} files skipped:",
        f"문서 {documents}건을 읽었고, {len(skipped)}건은 읽지 못했습니다:",
    )
    for row in skipped[:NAMED]:
        yield f"  {row['path']}: {say(row['reason_en'], row['reason_ko'])}"
    if more := len(skipped[NAMED:]):
        yield say(f"  and {more} more: see the report", f"  그 밖에 {more}건: 성적표에 있습니다")


def check_folder(folder: Path) -> dict[str, Path]:
    """The files under a folder by path. Raises OnsilError where there is none of them, or it."""
    if not folder.is_dir():
        raise _no_folder(folder)
    if files := _files(folder):
        return files
    raise _empty(folder)


def scan(folder: Path) -> list[FileRef]:
    """The files under `folder`, sorted by NFC path, each with the hash of its bytes."""
    files = check_folder(folder)
    return [FileRef(path, _digest(file)) for path, file in sorted(files.items())]


def read_folder(folder: Path, files: Iterable[FileRef]) -> tuple[list[Document], list[dict]]:
    """Documents in the order of `files`, and a row with a reason for every file left out."""
    on_disk = _files(folder)
    documents, skipped = [], []
    with sandbox() as box:
        for ref in files:
            reading = _Reading(box, documents, skipped)
            try:
                data = _bytes(ref, on_disk.get(ref.path))
            except OnsilError as error:
                skipped.append(_row(ref, error))
            else:
                reading.file(ref, data)
    return documents, skipped


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:  # listed all the same, and skipped with this as the reason when it is read
        return UNREADABLE


def _bytes(ref: FileRef, file: Path | None) -> bytes:
    """The bytes that were listed, or why they are not to be had."""
    if file is None:
        raise _changed()
    if ref.sha256 == UNREADABLE:
        raise _unreadable()
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise _too_large(size)
        data = file.read_bytes()
    except OSError as error:
        raise _unreadable() from error
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise _changed()
    return data


class _Reading:
    """One file of the folder with all that is inside it; counts what was unpacked, and gives no
    two members one path."""

    def __init__(self, box: Sandbox, documents: list[Document], skipped: list[dict]):
        self.box, self.documents, self.skipped = box, documents, skipped
        self.unpacked = 0
        self.paths: dict[str, int] = {}

    def file(self, ref: FileRef, data: bytes, depth: int = 0) -> None:
        try:
            parsed = self.box.parse(suffix_of(ref.path), data)
            form = READERS[parsed.suffix][0] if parsed.suffix in READERS else parsed.suffix[1:]
            if parsed.suffix in LEGACY:
                modern = convert(parsed.suffix, data)
                parsed = self.box.parse(LEGACY[parsed.suffix], modern)
            if parsed.suffix not in MEMBERS or parsed.blocks or not parsed.members:
                self.documents.append(_document(ref, form, parsed))
        except OnsilError as error:
            self.skipped.append(_row(ref, error))
            return
        for member in parsed.members:
            self.member(ref, member, depth + 1)

    def member(self, holder: FileRef, member: Member, depth: int) -> None:
        path = free_path(f"{holder.path}/{member.name}", self.paths)
        ref = FileRef(path, hashlib.sha256(member.data).hexdigest())
        self.unpacked += len(member.data)
        error = member.error
        if depth > DEEPEST:
            error = _too_deep()
        elif self.unpacked > LARGEST:
            error = _too_large(self.unpacked)
        if error is not None:
            self.skipped.append(_row(ref, error))
        else:
            self.file(ref, member.data, depth)


def _files(folder: Path) -> dict[str, Path]:
    """Relative path as `FileRef` spells it -> file, or a folder that could not be listed.

    Paths are NFC: macOS stores names decomposed, and they must still be found. Linux can hold both
    spellings beside each other; then the decomposed one keeps the path it has on disk.
    """
    spelled = [(_spelled(file.relative_to(folder)), file) for file in _walked(folder)]
    found: dict[str, Path] = {}
    for path, file in sorted(spelled, key=lambda s: not unicodedata.is_normalized("NFC", s[0])):
        normal = unicodedata.normalize("NFC", path)
        found[path if normal in found else normal] = file
    return found


def _walked(folder: Path) -> Iterator[Path]:
    refused: list[Path] = []

    def remember(error: OSError) -> None:
        refused.append(Path(os.fspath(error.filename)))

    for here, folders, names in os.walk(folder, onerror=remember):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not os.path.islink(os.path.join(here, name))
        )
        for name in sorted(names):
            file = Path(here) / name
            if name.startswith((".", "~$")) or name == QUESTIONS or os.path.islink(file):
                continue
            if os.path.isfile(file) or not os.path.lexists(file):  # not even to be looked at
                yield file
    yield from refused


def _spelled(path: Path) -> str:
    """Names are bytes on Linux, and a disk from Windows may hold them in CP949."""
    raw = os.fsencode(path.as_posix())
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp949", "replace")


def _document(ref: FileRef, form: str, parsed: Parsed) -> Document:
    apart = (part for block in parsed.blocks for part in titles_apart(block))
    blocks = tuple(promote_headings(apart))
    if not any(b.text.strip() or b.rows for b in blocks):
        raise _no_text()
    title = parsed.title.strip() or title_of(blocks) or Path(ref.path).stem
    return Document(ref.path, ref.sha256, form, title, blocks)


def _row(ref: FileRef, error: OnsilError) -> dict:
    en, ko = (
        " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in said)
        for said in (error.en, error.ko)
    )
    return {"path": ref.path, "sha256": ref.sha256, "reason_en": en, "reason_ko": ko}


def _changed() -> OnsilError:
    return OnsilError(
        en=(
            "changed while being read",
            "The bytes are not the ones that were listed, so the record would be wrong.",
            "Run it again when nobody is writing to the file.",
        ),
        ko=(
            "읽는 도중에 파일이 바뀌었습니다.",
            "목록을 만들 때와 내용이 달라 기록이 틀리게 됩니다.",
            "파일을 쓰는 작업이 끝난 뒤 다시 실행해 주세요.",
        ),
    )


def _no_text() -> OnsilError:
    return OnsilError(
        en=("the file holds no text", "There is nothing to read in it.", "Leave it out."),
        ko=("글이 없는 파일입니다.", "읽을 내용이 없습니다.", "폴더에서 빼도 됩니다."),
    )


def _unreadable() -> OnsilError:
    return OnsilError(
        en=(
            "it may not be opened",
            "The operating system refuses it (permissions, a path too long, a broken disk).",
            "Give yourself the right to read it, or move it, and run again.",
        ),
        ko=(
            "파일이나 폴더를 열 수 없습니다.",
            "운영체제가 읽기를 허락하지 않습니다(권한, 지나치게 긴 경로, 디스크 오류 등).",
            "읽기 권한을 주거나 다른 곳으로 옮긴 뒤 다시 실행해 주세요.",
        ),
    )


def _too_large(size: int) -> OnsilError:
    return OnsilError(
        en=(
            f"it has {size:,} bytes, unpacked",
            f"At most {LARGEST:,} are read from one file with all that is inside it.",
            "Split it, or take out the part you need.",
        ),
        ko=(
            f"압축을 푼 크기가 {size:,}바이트입니다.",
            f"파일 하나에서 안에 든 것까지 모두 {LARGEST:,}바이트까지만 읽습니다.",
            "나누어 저장하거나 필요한 부분만 넣어 주세요.",
        ),
    )


def _too_deep() -> OnsilError:
    return OnsilError(
        en=(
            f"it lies inside more than {DEEPEST} archives",
            "So deep a nesting is a mistake or made to exhaust readers.",
            "Unpack the outer archive.",
        ),
        ko=(
            f"압축 파일이 {DEEPEST}겹 넘게 겹친 안에 있습니다.",
            "실수이거나 일부러 만든 파일로 보고 더 풀지 않습니다.",
            "바깥 압축 파일을 풀어서 넣어 주세요.",
        ),
    )


def _no_folder(folder: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder} is not a folder",
            "Documents are read from a folder, with everything below it.",
            "Give the folder that holds your documents.",
        ),
        ko=(
            f"{folder} 폴더가 없습니다.",
            "문서는 폴더 단위로, 하위 폴더까지 모두 읽습니다.",
            "문서가 들어 있는 폴더를 지정해 주세요.",
        ),
    )


def _empty(folder: Path) -> OnsilError:
    known = known_suffixes()
    return OnsilError(
        en=(
            f"{folder} has no files in it",
            "There is nothing to grow from; hidden files and links are not counted.",
            f"Put documents there ({known}).",
        ),
        ko=(
            f"{folder} 폴더에 파일이 없습니다.",
            "숨김 파일과 바로 가기(링크)는 세지 않으므로 읽을 문서가 없습니다.",
            f"문서({known})를 넣고 다시 실행해 주세요.",
        ),
    )
