"""What a file is: its bytes say so where they cannot be mistaken, else its name does.

People rename files, mail systems drop suffixes, and web systems export pages and text called .xls.
A PDF, an RTF, a compound file (hwp, doc, xls, ppt) and an Office package begin with marks that no
text has but one about them, which goes on as text does, and inside a container the name of its main
part says whose it is. Text has no such mark: of that only what is called .doc, .xls or .ppt, and is
not, is told apart. The answer is the suffix whose reader is to be used.
"""

import io
import re
import zipfile

from onsil.documents.delimited import is_delimited
from onsil.documents.formats import LEGACY
from onsil.documents.packages import OLE

PDF, ZIP, HWP = b"%PDF-", b"PK\x03\x04", b"HWP Document File"
PDF_OBJECT = re.compile(rb"\d\s+\d+\s+obj\b")
RTF = re.compile(rb"\{\\rtf\d?\s*[\\{]")
OLD_HWP = re.compile(re.escape(HWP) + rb" V\d\.\d\d \x1a")  # version 3 and older
STREAMS = {  # at the top of a compound file; what is embedded in a document lies deeper
    "WordDocument": ".doc",
    "Workbook": ".xls",
    "Book": ".xls",
    "PowerPoint Document": ".ppt",
}
PARTS = {"word/document.xml": ".docx", "xl/workbook.xml": ".xlsx", "ppt/presentation.xml": ".pptx"}
MIMETYPES = {
    b"application/hwp+zip": ".hwpx",
    b"application/vnd.oasis.opendocument.text": ".odt",
    b"application/vnd.oasis.opendocument.spreadsheet": ".ods",
    b"application/vnd.oasis.opendocument.presentation": ".odp",
}
LONGEST_MIMETYPE = 100
HWPX_BODY = "Contents/section0.xml"
PAGE = re.compile(rb"<(?:!doctype html|html|head|body|meta|table)\b")
XML_BOOK = re.compile(rb"<(?:\w+:)?workbook\b")  # of Excel 2003; it has tables too
LOOKED_AT = 64 * 2**10  # bytes; a page may have its style before its table


def kind_of(suffix: str, data: bytes) -> str:
    """The suffix a file called `suffix` should have had, or its own where its bytes do not tell."""
    if data.startswith(PDF) and PDF_OBJECT.search(data):
        return ".pdf"
    if OLD_HWP.match(data):
        return ".hwp"
    if data.startswith(OLE):
        return _in_compound(suffix, data)
    if data.startswith(ZIP):
        return _in_package(data) or LEGACY.get(suffix, suffix)
    start = start_of(data)
    if RTF.match(start) or (suffix in LEGACY and start.startswith(b"{\\rtf")):
        return ".rtf"  # what is called .doc is no text about RTF
    if suffix not in LEGACY:
        return suffix
    if start.startswith(b"<"):
        return ".html" if PAGE.search(start) and not is_xml_book(suffix, start) else suffix
    return ".csv" if suffix == ".xls" and is_delimited(data) else suffix


def _in_compound(suffix: str, data: bytes) -> str:
    import olefile

    try:
        with olefile.OleFileIO(io.BytesIO(data)) as ole:
            found = next((kind for name, kind in STREAMS.items() if ole.exists(name)), None)
            if found is None and ole.exists("EncryptedPackage"):
                return LEGACY.get(suffix, suffix)
            if found is None and ole.exists("FileHeader"):
                header = ole.openstream("FileHeader").read(len(HWP))
                found = ".hwp" if header == HWP else None
    except (OSError, OverflowError, ValueError):  # damaged: the reader of its name says how
        return suffix
    return found or suffix


def _in_package(data: bytes) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            names = set(package.namelist())
            if "mimetype" in names:
                with package.open("mimetype") as part:
                    if kind := MIMETYPES.get(part.read(LONGEST_MIMETYPE).strip()):
                        return kind
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError):
        return None  # damaged, or its first part under a password: the reader of its name says how
    if HWPX_BODY in names:
        return ".hwpx"
    if "[Content_Types].xml" not in names:
        return None
    return next((kind for part, kind in PARTS.items() if part in names), None)


def start_of(data: bytes) -> bytes:
    """The first of a text in small letters, without marks; UTF-16 loses its zeros."""
    return data[:LOOKED_AT].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()


def is_xml_book(suffix: str, start: bytes) -> bool:
    return suffix == ".xls" and start.startswith(b"<") and XML_BOOK.search(start) is not None
