"""Korean personal identifiers, found by shape and masked by name.

Resident and foreigner numbers (date and seventh digit; those issued since 2020-10 carry no
checksum, so none is asked for), phones, e-mail, cards (Luhn), bank accounts (only near a word that
says so). Names and addresses need judgement and are left alone. Masking is one way: no raw value
is kept anywhere.
"""

import re
from collections import Counter
from dataclasses import dataclass

LABELS = {
    "rrn": "[주민등록번호]",
    "email": "[이메일]",
    "card": "[카드번호]",
    "phone": "[전화번호]",
    "account": "[계좌번호]",
}
GAP = r"\s?[-–—.]?\s?"
RRN = re.compile(
    r"(?<!\d)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\s?[-–—]?\s?[0-9]\d{6}(?!\d)"
)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.ASCII)
CARD = re.compile(r"(?<!\d)\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{1,4}(?!\d)|(?<!\d)\d{15,16}(?!\d)")
AREA = r"0(?:1[016789]|2|[3-6][1-5]|70|50\d?)"
PHONE = re.compile(
    rf"(?<![\d-])(?:\+82[\s-]?(?:\(0\))?1?\d{{1,2}}|\({AREA}\)|{AREA})"
    rf"{GAP}\d{{3,4}}{GAP}\d{{4}}(?![\d-]*\d)"
    r"|(?<![\d-])1[568]\d{2}\s?-\s?\d{4}(?![\d-]*\d)"
)
ACCOUNT = re.compile(r"(?<![\d-])\d{2,6}(?:-\d{2,8}){1,4}(?![\d-])|(?<![\d-])\d{10,14}(?![\d-])")
BANK = re.compile(r"계좌|은행|입금|예금|송금|농협|신협|새마을금고|우체국|카카오뱅크|토스뱅크")
NEAR = 25


@dataclass(frozen=True)
class Found:
    start: int
    end: int
    kind: str


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        n = int(digit) * (2 if place % 2 else 1)
        total += n - 9 if n > 9 else n
    return total % 10 == 0


def _half_width(text: str) -> str:
    """The same length with full-width digits and signs as ASCII, so that positions agree."""
    return text.translate({code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)})


def find(text: str) -> list[Found]:
    """Identifiers in order, not overlapping; where two kinds fit, the first of `LABELS` wins."""
    text = _half_width(text)
    candidates: list[Found] = []
    for kind, pattern in (("rrn", RRN), ("email", EMAIL), ("card", CARD), ("phone", PHONE)):
        for match in pattern.finditer(text):
            digits = re.sub(r"\D", "", match.group())
            if kind == "card" and not (13 <= len(digits) <= 16 and _luhn(digits)):
                continue
            candidates.append(Found(match.start(), match.end(), kind))
    for match in ACCOUNT.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        around = text[max(0, match.start() - NEAR) : match.end() + NEAR]
        date = re.fullmatch(r"(?:19|20)\d{2}-\d{1,2}(?:-\d{1,2})?", match.group())
        if 10 <= len(digits) <= 16 and BANK.search(around) and not date:
            candidates.append(Found(match.start(), match.end(), "account"))
    order = list(LABELS)
    kept: list[Found] = []
    for one in sorted(candidates, key=lambda f: (order.index(f.kind), f.start)):
        if all(one.end <= other.start or one.start >= other.end for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda f: f.start)


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with a label in place of each identifier, and how many of each kind there were."""
    parts, last, counts = [], 0, Counter()
    for found in find(text):
        parts += [text[last : found.start], LABELS[found.kind]]
        counts[found.kind] += 1
        last = found.end
    return "".join([*parts, text[last:]]), counts
