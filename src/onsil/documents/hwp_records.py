"""The container of binary HWP 5: compound file, streams, records.

An HWP 5 file is an OLE compound file. `FileHeader` says how the streams are kept: compressed (raw
deflate), encrypted with a password, or for distribution (배포용), where the sections stand in
`ViewText` and are scrambled with a key that is in the file itself. `DocInfo` holds the styles,
`BodyText/Section0…` the text. A stream is a row of records, each with a tag, a level and a size;
the levels make a tree. The layout is the one Hancom publishes (한글 문서 파일 형식 5.0).

Left out: files under a password or DRM, whose key is not in the file, and HWP 3 and older, which
are no compound files; each is refused by name.
"""

import io
import re
import zlib
from dataclasses import dataclass, field
from struct import error as struct_error
from struct import iter_unpack, unpack_from
from typing import TYPE_CHECKING

from onsil.errors import OnsilError

if TYPE_CHECKING:
    from olefile import OleFileIO

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
SIGNATURE = b"HWP Document File"
SECTION = re.compile(r"Section(\d+)$")
LARGEST = 256 * 2**20  # bytes of one unpacked stream
DEEPEST = 200  # levels of records; a table in a table in a table needs about twenty

COMPRESSED, PASSWORD, DISTRIBUTION = 1 << 0, 1 << 1, 1 << 2
DRM = 1 << 4 | 1 << 8 | 1 << 10  # DRM, encrypted with a certificate, DRM with a certificate

PARA_SHAPE, STYLE, DISTRIBUTE_DOC_DATA = 0x19, 0x1A, 0x1C
PARA_HEADER, PARA_TEXT, CTRL_HEADER, LIST_HEADER = 0x42, 0x43, 0x47, 0x48
TABLE, EQEDIT = 0x4D, 0x58
TITLE, UTF16 = 2, 31  # of a property set: the number of the title, the type of its string


@dataclass
class Record:
    """One record with the records below it; the root of a stream has tag 0."""

    tag: int
    data: bytes
    children: list["Record"] = field(default_factory=list)


@dataclass(frozen=True)
class HwpFile:
    """The streams that hold text: styles, sections in order, the title of the properties."""

    info: Record
    sections: list[Record]
    title: str


def open_hwp(data: bytes) -> HwpFile:
    """Unpack the streams of an HWP 5 file, or say which kind of HWP this is instead."""
    import olefile

    if data.startswith(SIGNATURE):
        raise _older(data[len(SIGNATURE) : len(SIGNATURE) + 6].decode("ascii", "replace").strip())
    if not data.startswith(OLE):
        raise _not_hwp(data)
    try:
        with olefile.OleFileIO(io.BytesIO(data)) as ole:
            return _opened(ole, data)
    except (OSError, OverflowError, ValueError, zlib.error) as error:  # what olefile raises
        raise _damaged(str(error)[:200]) from error


def _opened(ole: "OleFileIO", data: bytes) -> HwpFile:
    if not ole.exists("FileHeader"):
        raise _not_hwp(data)
    header = ole.openstream("FileHeader").read()
    if not header.startswith(SIGNATURE) or len(header) < 40:
        raise _not_hwp(data)
    flags = unpack_from("<I", header, 36)[0]
    if flags & PASSWORD:
        raise _encrypted()
    if flags & DRM:
        raise _drm()
    folder = "ViewText" if flags & DISTRIBUTION else "BodyText"
    numbered = sorted(
        (int(match[1]), path)
        for path in ole.listdir()
        if len(path) == 2 and path[0] == folder and (match := SECTION.match(path[1]))
    )
    if not numbered:
        raise _damaged(f"no {folder}/Section0")
    sections = []
    for _, path in numbered:
        stream = ole.openstream(path).read()
        if flags & DISTRIBUTION:
            from onsil.documents.hwp_distribution import descramble

            stream = descramble(stream)
        sections.append(tree(_inflated(stream, flags, "/".join(path))))
    info = tree(_inflated(ole.openstream("DocInfo").read(), flags, "DocInfo"))
    return HwpFile(info, sections, _title(ole))


def _inflated(stream: bytes, flags: int, name: str) -> bytes:
    if not flags & COMPRESSED:
        return stream
    inflate = zlib.decompressobj(-15)
    unpacked = inflate.decompress(stream, LARGEST)
    if inflate.unconsumed_tail:
        raise _too_large(name)
    return unpacked


def _title(ole: "OleFileIO") -> str:
    """The title of the property set, read here: olefile would follow any count a file claims."""
    name = "\x05HwpSummaryInformation"
    if not ole.exists(name):
        return ""
    properties = ole.openstream(name).read(2**16)
    try:
        start = unpack_from("<I", properties, 44)[0]
        count = min(unpack_from("<I", properties, start + 4)[0], 100)
        for number, offset in iter_unpack("<II", properties[start + 8 : start + 8 + 8 * count]):
            kind, length = unpack_from("<II", properties, start + offset)
            if number == TITLE and kind == UTF16:
                text = properties[start + offset + 8 : start + offset + 8 + 2 * length]
                return text.decode("utf-16-le", "replace").strip("\0 \r\n\t")
    except struct_error:  # cut off; the text of the document does not depend on it
        return ""
    return ""


def tree(stream: bytes) -> Record:
    """The records of a stream under one root, each below the last one of a lower level."""
    root = Record(0, b"")
    open_at = [root]  # open_at[n] is where a record of level n belongs
    at = 0
    while at + 4 <= len(stream):
        head = unpack_from("<I", stream, at)[0]
        at += 4
        tag, level, size = head & 0x3FF, head >> 10 & 0x3FF, head >> 20
        if size == 0xFFF and at + 4 <= len(stream):
            size = unpack_from("<I", stream, at)[0]
            at += 4
        if level > DEEPEST:
            raise _damaged(f"records nested {level} levels deep")
        record = Record(tag, stream[at : at + size])
        at += size
        del open_at[level + 1 :]
        open_at[-1].children.append(record)
        open_at.append(record)
    return root


def _encrypted() -> OnsilError:
    return OnsilError(
        en=(
            "this HWP is encrypted with a password",
            "Its text cannot be read without the password.",
            "Open it in 한글, remove the password, save it again.",
        ),
        ko=(
            "암호가 걸린 HWP 파일입니다.",
            "암호 없이는 본문을 읽을 수 없습니다.",
            "한글에서 열어 문서 암호를 해제하고 다시 저장해 주세요.",
        ),
    )


def _drm() -> OnsilError:
    return OnsilError(
        en=(
            "this HWP is protected by DRM or a certificate",
            "The key to its text is not in the file.",
            "Ask whoever protects it for a copy without protection.",
        ),
        ko=(
            "문서 보안(DRM)이나 인증서로 암호화된 HWP 파일입니다.",
            "본문을 푸는 열쇠가 파일 안에 없습니다.",
            "문서 보안을 관리하는 부서에서 보안을 해제한 사본을 받아 주세요.",
        ),
    )


def _older(version: str) -> OnsilError:
    return OnsilError(
        en=(
            f"this is HWP {version.lstrip('V')}, the format of 한글 97 and before",
            "Only HWP 5 (한글 2002 and later) and HWPX are read.",
            "Open it in 한글 and save it as .hwp or .hwpx.",
        ),
        ko=(
            f"한글 97 이전에 쓰던 HWP {version.lstrip('V')} 파일입니다.",
            "HWP 5(한글 2002 이후)와 HWPX만 읽습니다.",
            "한글에서 열어 .hwp나 .hwpx로 다시 저장해 주세요.",
        ),
    )


def _not_hwp(data: bytes) -> OnsilError:
    start = data[:8].hex(" ")
    return OnsilError(
        en=(
            f"this file is called .hwp but is not an HWP 5 document (it begins {start})",
            "It is another format under this name, or it is damaged.",
            "Open it in 한글 and save it as .hwp or .hwpx.",
        ),
        ko=(
            f"이름은 .hwp이지만 HWP 5 문서가 아닙니다(첫 바이트 {start}).",
            "다른 형식의 이름만 바꾸었거나 파일이 손상되었습니다.",
            "한글에서 열어 .hwp나 .hwpx로 다시 저장해 주세요.",
        ),
    )


def _damaged(what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"this HWP is damaged ({what})",
            "Its text cannot be taken out whole.",
            "Open it in 한글 and save it again.",
        ),
        ko=(
            f"손상된 HWP 파일입니다({what}).",
            "본문을 온전히 꺼낼 수 없습니다.",
            "한글에서 열어 다시 저장해 주세요.",
        ),
    )


def _too_large(name: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{name} in this HWP unpacks to more than {LARGEST:,} bytes",
            "That is no document and could exhaust memory.",
            "Save the document again in 한글, or leave it out.",
        ),
        ko=(
            f"이 HWP 안의 {name}이(가) 압축을 풀면 {LARGEST:,}바이트를 넘습니다.",
            "문서로 보기 어렵고 메모리가 모자랄 수 있습니다.",
            "한글에서 다시 저장하거나 폴더에서 빼 주세요.",
        ),
    )
