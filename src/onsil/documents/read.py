"""A folder of files becomes documents: what is there, what was read, what was left and why.

`scan` lists the folder and hashes every file; the list is the identity of the result, so the same
files anywhere give the same documents. `read_files` reads exactly those bytes. A file that cannot
be read never stops the rest: it is listed in `skipped.jsonl` with its reason, because a document
that silently is not there is a question nobody will be able to answer later.

Hidden names, office lock files (`~$…`) and `gold.jsonl` (questions to test with, not a document)
are not looked at. Symbolic links are not followed: inside the folder they would count a file
twice, outside it they would bring in what nobody put there.
"""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from onsil.documents.structure import promote_headings
from onsil.documents.types import Block, Document, FileRef, write_documents
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage

Reader = Callable[[bytes], tuple[str, list[Block]]]
QUESTIONS = "gold.jsonl"
ELSEWHERE = {  # formats people will try, with the way out
    ".doc": ("old Word", "Save it as .docx in Word.", "워드에서 .docx로 저장해 주세요."),
}


def _markdown(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.markdown import read_markdown

    return read_markdown(data)


def _text(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.text import read_text

    return read_text(data)


def _html(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.html import read_html

    return read_html(data)


def _docx(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.docx import read_docx

    return read_docx(data)


def _hwpx(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.hwpx import read_hwpx

    return read_hwpx(data)


def _hwp(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.hwp import read_hwp

    return read_hwp(data)


def _pdf(data: bytes) -> tuple[str, list[Block]]:
    from onsil.documents.pdf import read_pdf

    return read_pdf(data)


READERS: dict[str, tuple[str, Reader]] = {
    ".md": ("markdown", _markdown),
    ".markdown": ("markdown", _markdown),
    ".txt": ("text", _text),
    ".html": ("html", _html),
    ".htm": ("html", _html),
    ".docx": ("docx", _docx),
    ".hwpx": ("hwpx", _hwpx),
    ".hwp": ("hwp", _hwp),
    ".pdf": ("pdf", _pdf),
}


def read(ws: Workspace, folder: Path) -> Artifact:
    """Read every document under `folder` into an artifact of `documents.jsonl`."""
    return read_files(ws, files=scan(folder), run={"source": folder})


@stage(version=1)
def read_files(*, files: list[FileRef], out: Path, run: Run) -> dict:
    """Read the listed files; `documents.jsonl` holds what was read, `skipped.jsonl` the rest."""
    documents, skipped = read_folder(run.source, files)
    write_documents(documents, out / "documents.jsonl")
    with (out / "skipped.jsonl").open("w", encoding="utf-8") as f:
        for row in skipped:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    run.say(f"{len(documents)} documents read, {len(skipped)} files skipped")
    formats = Counter(document.format for document in documents)
    return {
        "documents": len(documents),
        "skipped": len(skipped),
        "formats": dict(sorted(formats.items())),
    }


def scan(folder: Path) -> list[FileRef]:
    """The files under `folder`, sorted by NFC path, each with the hash of its bytes."""
    if not folder.is_dir():
        raise _no_folder(folder)
    files = _files(folder)
    if not files:
        raise _empty(folder)
    return [
        FileRef(path, hashlib.sha256(file.read_bytes()).hexdigest())
        for path, file in sorted(files.items())
    ]


def read_folder(folder: Path, files: Iterable[FileRef]) -> tuple[list[Document], list[dict]]:
    """Documents in the order of `files`, and a row with a reason for every file left out."""
    on_disk = _files(folder)
    documents, skipped = [], []
    for ref in files:
        try:
            documents.append(_document(ref, on_disk.get(ref.path)))
        except OnsilError as error:
            skipped.append(_row(ref, " ".join(error.en), " ".join(error.ko)))
        except Exception as error:  # a parser met a file its authors did not; the rest must go on
            what = f"{type(error).__name__}: {error}"
            skipped.append(
                _row(
                    ref,
                    f"the reader stopped at something it does not know ({what})",
                    f"읽는 도중 알 수 없는 내용을 만나 멈추었습니다({what}).",
                )
            )
    return documents, skipped


def _files(folder: Path) -> dict[str, Path]:
    """NFC relative path -> file. macOS stores names decomposed; they must still be found."""
    found: dict[str, Path] = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not (Path(here) / name).is_symlink()
        )
        for name in sorted(names):
            file = Path(here) / name
            if name.startswith((".", "~$")) or name == QUESTIONS or file.is_symlink():
                continue
            if file.is_file():
                found[unicodedata.normalize("NFC", file.relative_to(folder).as_posix())] = file
    return found


def _document(ref: FileRef, file: Path | None) -> Document:
    suffix = Path(ref.path).suffix.lower()
    if suffix not in READERS:
        raise _unknown(suffix)
    data = file.read_bytes() if file is not None else b""
    if file is None or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise _changed()
    form, reader = READERS[suffix]
    title, found = reader(data)
    blocks = tuple(promote_headings(found))
    if not any(b.text.strip() or b.rows for b in blocks):
        raise _no_text()
    headings = (block.text for block in blocks if block.kind == "heading")
    title = title.strip() or next(headings, "") or Path(ref.path).stem
    return Document(ref.path, ref.sha256, form, title, blocks)


def _row(ref: FileRef, en: str, ko: str) -> dict:
    return {"path": ref.path, "sha256": ref.sha256, "reason_en": en, "reason_ko": ko}


def _unknown(suffix: str) -> OnsilError:
    known = ", ".join(sorted(READERS))
    name, en, ko = ELSEWHERE.get(
        suffix, ("unknown", f"Known are {known}.", f"읽을 수 있는 형식은 {known}입니다.")
    )
    shown = suffix or "(no suffix)"
    return OnsilError(
        en=(f"{shown} files are not read", f"There is no reader for this format ({name}).", en),
        ko=(
            f"{suffix or '확장자가 없는'} 파일은 읽지 않습니다.",
            "이 형식을 읽는 기능이 없습니다.",
            ko,
        ),
    )


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
    known = ", ".join(sorted(READERS))
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
