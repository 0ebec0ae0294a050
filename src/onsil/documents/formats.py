"""The table of formats: a suffix (see `kinds`) says which reader, a reader turns bytes into blocks.

Readers are imported when the first file of their kind is met, so that a folder of Markdown wakes
up no Word library. A reader sees one file and returns its title and blocks. Some files hold other
files; those are listed by `MEMBERS` and read one by one, each by the reader of its own name.
"""

import importlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from onsil.documents.members import Member
from onsil.documents.packages import check_size, damaged
from onsil.documents.types import Block
from onsil.errors import OnsilError

Reader = Callable[[bytes], tuple[str, list[Block]]]
Opener = Callable[[bytes], Iterator[Member]]


def _later(module: str, name: str) -> Reader:
    def read(data: bytes) -> tuple[str, list[Block]]:
        return getattr(importlib.import_module(f"onsil.documents.{module}"), name)(data)

    return read


def _nothing(data: bytes) -> tuple[str, list[Block]]:
    """An archive says nothing itself."""
    return "", []


def _zip(data: bytes) -> Iterator[Member]:
    from onsil.documents.members import zip_members

    return zip_members(data)


def _eml(data: bytes) -> Iterator[Member]:
    from onsil.documents.mail import mail_members

    return mail_members(data)


READERS: dict[str, tuple[str, Reader]] = {
    ".md": ("markdown", _later("markdown", "read_markdown")),
    ".markdown": ("markdown", _later("markdown", "read_markdown")),
    ".txt": ("text", _later("text", "read_text")),
    ".rst": ("rst", _later("rst", "read_rst")),
    ".html": ("html", _later("html", "read_html")),
    ".htm": ("html", _later("html", "read_html")),
    ".docx": ("docx", _later("docx", "read_docx")),
    ".hwpx": ("hwpx", _later("hwpx", "read_hwpx")),
    ".hwp": ("hwp", _later("hwp", "read_hwp")),
    ".pdf": ("pdf", _later("pdf", "read_pdf")),
    ".odt": ("odt", _later("odt", "read_odt")),
    ".rtf": ("rtf", _later("rtf", "read_rtf")),
    ".xlsx": ("xlsx", _later("xlsx", "read_xlsx")),
    ".pptx": ("pptx", _later("pptx", "read_pptx")),
    ".csv": ("csv", _later("delimited", "read_csv")),
    ".tsv": ("csv", _later("delimited", "read_csv")),
    ".jsonl": ("jsonl", _later("json_lines", "read_jsonl")),
    ".ipynb": ("notebook", _later("notebook", "read_ipynb")),
    ".po": ("po", _later("po", "read_po")),
    ".eml": ("mail", _later("mail", "read_eml")),
    ".zip": ("zip", _nothing),
}
MEMBERS: dict[str, Opener] = {".zip": _zip, ".eml": _eml}
LEGACY = {".doc": ".docx", ".xls": ".xlsx", ".ppt": ".pptx"}  # converted first, by LibreOffice
ZIPPED = frozenset((".docx", ".hwpx", ".hwp", ".odt", ".xlsx", ".pptx"))
ELSEWHERE = {  # formats people will try, with the way out
    ".hml": ("HWPML", "Save it as .hwpx in 한글.", "한글에서 .hwpx로 저장해 주세요."),
    ".ods": ("OpenDocument spreadsheet", "Save it as .xlsx.", ".xlsx로 저장해 주세요."),
    ".odp": ("OpenDocument slides", "Save it as .pptx.", ".pptx로 저장해 주세요."),
    ".msg": ("Outlook mail", "Save it as .eml.", ".eml로 저장해 주세요."),
    ".7z": ("7-Zip archive", "Unpack it.", "압축을 풀어 주세요."),
    ".alz": ("ALZip archive", "Unpack it.", "압축을 풀어 주세요."),
    ".egg": ("ALZip archive", "Unpack it.", "압축을 풀어 주세요."),
}


def suffix_of(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def parse(suffix: str, data: bytes) -> tuple[str, list[Block], list[Member]]:
    """Title, blocks and members of one file; raises what the reader raises."""
    if suffix not in READERS:
        raise unknown(suffix)
    try:
        if suffix in ZIPPED:
            check_size(data, suffix)
        title, blocks = READERS[suffix][1](data)
        return title, blocks, list(MEMBERS[suffix](data)) if suffix in MEMBERS else []
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise damaged(suffix, str(error)) from error


def known_suffixes() -> str:
    return ", ".join(sorted(READERS))


def unknown(suffix: str) -> OnsilError:
    known = known_suffixes()
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
