"""One spelling for one text: NFC and a few logged mappings, never NFKC.

NFKC would turn ㅋㅋㅋ into conjoining jamo and break chat and official text. NFC joins the
syllables that macOS takes apart; then full-width ASCII becomes half-width, the many middle dots
become one, invisible characters go and spaces are evened out. Each rule counts what it changed.
"""

import re
import unicodedata
from collections import Counter

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
MIDDLE_DOTS = re.compile(r"[・･⋅‧•](?=[^\s])|(?<=[가-힣])ㆍ(?=[가-힣])")
INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060\ufeff\u00ad]")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000\t]")
RULES = (
    ("full-width", re.compile("[\uff01-\uff5e]"), lambda m: chr(FULL_WIDTH[ord(m.group())])),
    ("middle dot", MIDDLE_DOTS, lambda m: "·"),
    ("invisible", INVISIBLE, lambda m: ""),
    ("line end", re.compile("\r\n?|\u2028|\u2029"), lambda m: "\n"),
    ("control", CONTROL, lambda m: ""),
    ("space", SPACES, lambda m: " "),
    ("space run", re.compile(r" {2,}| +(?=\n)"), lambda m: " " if "  " in m.group() else ""),
)


def normalize(text: str) -> tuple[str, Counter[str]]:
    """The text in its one spelling, and how often each rule acted. Applying it twice is once."""
    counts: Counter[str] = Counter()
    joined = unicodedata.normalize("NFC", text)
    if joined != text:
        counts["NFC"] += 1
    # A joiner inside an emoji sequence is part of the emoji; alone it is invisible dirt.
    joined = joined.replace("\u200d", "\ue000")
    for name, pattern, replace in RULES:
        joined, n = pattern.subn(replace, joined)
        if n:
            counts[name] += n
    return joined.replace("\ue000", "\u200d"), counts
