"""HWP 5 files written by hand, so that tests need no file of anybody's.

`compound` writes an OLE compound file of the plainest kind (MS-CFB, version 3: one storage level,
no mini stream, every stream padded to at least the 4,096 bytes that keep it out of it). The rest
writes the records the tests talk about, and scrambles a section the way 배포용 files are.
"""

import struct
import zlib
from itertools import pairwise

from onsil.documents.hwp_distribution import _expanded, _sbox, _times

SECTOR = 512
END, FREE, FAT = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD


def compound(streams: dict[str, bytes]) -> bytes:
    """A compound file of `streams`, whose names may have one storage before a slash."""
    entries: list[tuple[str, int, list[int], int, int]] = []  # name, type, children, start, size
    sectors: list[bytes] = []
    chain: list[int] = []

    def store(data: bytes) -> int:
        start = len(sectors)
        parts = [data[i : i + SECTOR].ljust(SECTOR, b"\0") for i in range(0, len(data), SECTOR)]
        sectors.extend(parts)
        chain.extend([*range(start + 1, start + len(parts)), END])
        return start

    entries.append(("Root Entry", 5, [], END, 0))
    folders: dict[str, int] = {}
    for path, data in streams.items():
        folder, _, name = path.rpartition("/")
        if folder and folder not in folders:
            folders[folder] = len(entries)
            entries[0][2].append(len(entries))
            entries.append((folder, 1, [], 0, 0))
        padded = data.ljust(4096, b"\0")
        entries[folders.get(folder, 0)][2].append(len(entries))
        entries.append((name, 2, [], store(padded), len(padded)))
    directory = store(_directory(entries))
    count = 1
    while (len(sectors) + count) * 4 > count * SECTOR:
        count += 1
    first = len(sectors)
    table = chain + [FAT] * count
    table += [FREE] * (count * SECTOR // 4 - len(table))
    fat = struct.pack(f"<{len(table)}I", *table)
    header = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(16)
    header += struct.pack("<5H6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<9I", 0, count, directory, 0, 4096, END, 0, END, 0)
    places = [*range(first, first + count)]
    header += struct.pack("<109I", *places, *[FREE] * (109 - count))
    return header + b"".join(sectors) + fat


def _directory(entries: list[tuple[str, int, list[int], int, int]]) -> bytes:
    right = {}
    for _, _, children, _, _ in entries:
        right |= dict(pairwise(children))
    out = b""
    for number, (name, kind, children, start, size) in enumerate(entries):
        text = name.encode("utf-16-le") + b"\0\0"
        out += text.ljust(64, b"\0") + struct.pack("<HBB", len(text), kind, 1)
        out += struct.pack("<3I", FREE, right.get(number, FREE), children[0] if children else FREE)
        out += bytes(36) + struct.pack("<IQ", start, size)
    return out


# --- records ------------------------------------------------------------------------------------


def record(tag: int, level: int, data: bytes = b"") -> bytes:
    if len(data) < 0xFFF:
        return struct.pack("<I", tag | level << 10 | len(data) << 20) + data
    return struct.pack("<II", tag | level << 10 | 0xFFF << 20, len(data)) + data


def paragraph(text: str, level: int = 0, shape: int = 0, style: int = 0) -> bytes:
    """A paragraph; the marks are `\\t`, `\\n` and whatever `anchor` made."""
    raw = b"".join(
        struct.pack("<8H", 9, *[0] * 6, 9) if c == "\t" else c.encode("utf-16-le", "surrogatepass")
        for c in text
    )
    head = struct.pack("<IIHBBHHHI", len(raw) // 2 + 1, 0, shape, style, 0, 1, 0, 1, 0)
    return record(0x42, level, head) + record(0x43, level + 1, raw + b"\r\0")


def anchor(mark: int, name: str) -> str:
    """The eight units that hold the place of a control; its name is text-like, as in real files."""
    low, high = struct.unpack("<HH", name.encode("ascii")[::-1])
    return "".join(map(chr, (mark, low, high, 0, 0, 0, 0, mark)))


def control(name: str, level: int, data: bytes = b"") -> bytes:
    return record(0x47, level, name.encode("ascii")[::-1] + data)


def text_list(
    level: int, *paragraphs: bytes, cell: tuple[int, int, int, int] | None = None
) -> bytes:
    """A list header (of a cell: column, row, columns, rows) and its paragraphs, on one level."""
    place = struct.pack("<4H", *cell) + bytes(18) if cell else b""
    return record(0x48, level, struct.pack("<II", len(paragraphs), 0) + place) + b"".join(
        paragraphs
    )


def counted(text: str) -> bytes:
    return struct.pack("<H", len(text)) + text.encode("utf-16-le")


def styles(shapes: list[int], names: list[str]) -> bytes:
    """`DocInfo`: paragraph shapes (0 body text, n an outline level) and styles by name."""
    out = b""
    for level in shapes:
        out += record(0x19, 1, struct.pack("<I", (1 << 23 | (level - 1) << 25) if level else 0))
    for name in names:
        out += record(0x1A, 1, counted(name) + counted("") + bytes(8))
    return out


def hwp_file(*sections: bytes, flags: int = 1, info: bytes = b"", title: str = "") -> bytes:
    """A whole file; bit 0 of `flags` compresses, bit 2 makes it a distribution document."""

    def kept(data: bytes) -> bytes:
        if not flags & 1:
            return data
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(data) + packer.flush()

    header = b"HWP Document File".ljust(32, b"\0") + struct.pack("<II", 0x05010001, flags)
    streams = {"FileHeader": header, "DocInfo": kept(info)}
    for number, section in enumerate(sections):
        if flags & 4:
            streams[f"ViewText/Section{number}"] = scramble(kept(section).ljust(4096, b"\0"))
        else:
            streams[f"BodyText/Section{number}"] = kept(section)
    if title:
        streams["\x05HwpSummaryInformation"] = properties(title)
    return compound(streams)


def properties(title: str) -> bytes:
    """A property set (MS-OLEPS) with one property, the title."""
    text = title.encode("utf-16-le") + b"\0\0"
    section = struct.pack("<IIII", 24 + len(text), 1, 2, 16)
    section += struct.pack("<II", 31, len(title) + 1) + text
    return struct.pack("<HHI16xI16xI", 0xFFFE, 0, 0, 1, 48) + section


# --- distribution -------------------------------------------------------------------------------


def scramble(section: bytes, seed: int = 0x1234567A, key: bytes = b"0123456789abcdef") -> bytes:
    """A section as a distribution document keeps it: the key's record, then AES-128-ECB."""
    plain = bytearray(256)
    plain[4 + (seed & 15) : 20 + (seed & 15)] = key
    state, mask = seed, b""
    while len(mask) < 256:
        numbers = []
        for _ in range(2):
            state = (state * 214013 + 2531011) % 2**32
            numbers.append(state >> 16 & 0x7FFF)
        mask += bytes([numbers[0] & 0xFF]) * ((numbers[1] & 0xF) + 1)
    hidden = bytes(a ^ b for a, b in zip(plain, mask, strict=False))
    padded = section.ljust(-(-len(section) // 16) * 16, b"\0")
    blocks = (padded[i : i + 16] for i in range(0, len(padded), 16))
    return record(0x1C, 0, struct.pack("<I", seed) + hidden[4:]) + b"".join(
        encrypt(block, key) for block in blocks
    )


def encrypt(block: bytes, key: bytes) -> bytes:
    """AES-128 of one block, in the words of FIPS 197 (the reader only decrypts)."""
    sbox = [int(x) for x in _sbox()]
    rounds = [[int(x) for x in row] for row in _expanded(key, _sbox())]
    state = [a ^ b for a, b in zip(block, rounds[0], strict=True)]
    for number in range(1, 11):
        state = [sbox[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 10:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                for r in range(4):
                    mixed.append(
                        _times(2, a[r])
                        ^ _times(3, a[(r + 1) % 4])
                        ^ a[(r + 2) % 4]
                        ^ a[(r + 3) % 4]
                    )
            state = mixed
        state = [a ^ b for a, b in zip(state, rounds[number], strict=True)]
    return bytes(state)
