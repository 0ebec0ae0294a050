"""What the digits of an identifier must satisfy: checksums, possible dates, and what is no number
of its kind although it has the shape (`pii_patterns`).

A check is given the matched text and whether a word of its kind stands near.
"""

import re
from collections.abc import Callable

# -- checksums ----------------------------------------------------------------------------------


def _weighted(digits: str, weights: str) -> int:
    return sum(int(d) * int(w) for d, w in zip(digits, weights, strict=False))


def luhn(digits: str) -> bool:
    doubled = "0246813579"
    return sum(int(doubled[int(d)] if i % 2 else d) for i, d in enumerate(digits[::-1])) % 10 == 0


def resident_checksum(digits: str) -> bool:
    top = 13 if digits[6] in "5678" else 11
    return (top - _weighted(digits[:12], "234567892345") % 11) % 10 == int(digits[12])


def corporation_checksum(digits: str) -> bool:
    return (10 - _weighted(digits[:12], "121212121212") % 10) % 10 == int(digits[12])


def business_checksum(digits: str) -> bool:
    total = _weighted(digits[:9], "137137135") + int(digits[8]) * 5 // 10
    return (10 - total % 10) % 10 == int(digits[9])


def _bar_code(digits: str) -> bool:
    return (10 - _weighted(digits[:12], "131313131313") % 10) % 10 == int(digits[12])


# -- checks: the matched text and whether a word of the kind stands near ------------------------

Check = Callable[[str, bool], bool]
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
OLDEST, NEWEST = 26, 35  # two-digit years: nobody before 1926 without a separator, none past 2035


def digits_of(text: str) -> str:
    return "".join(c for c in text if "0" <= c <= "9")


def _date(front: str) -> bool:
    month = int(front[2:4])
    return 1 <= month <= 12 and 1 <= int(front[4:6]) <= DAYS[month - 1]


def resident(text: str, word: bool) -> bool:
    digits = digits_of(text)
    if word:
        return True
    year, seventh = int(digits[:2]), digits[6]
    if not _date(digits) or seventh in "90" or (seventh in "3478" and year > NEWEST):
        return False
    if resident_checksum(digits) and not _bar_code(digits):
        return True
    if "." in text:  # a coordinate: 200101.1234567
        return False
    bare = text.isdigit()
    if bare and digits.startswith("880") and _bar_code(digits):
        return False
    return not (bare and seventh in "1256" and year < OLDEST)


def resident_labelled(text: str, word: bool) -> bool:
    """After its word alone; fewer digits lost leading zeros, as where a sheet kept a number."""
    kept = digits_of(text.removesuffix(".0"))
    digits = kept.zfill(13)
    return word and _date(digits) and digits[6] in ("3478" if kept != digits else "12345678")


def front_half(text: str, word: bool) -> bool:
    return word and _date(text)


def half_masked(text: str, word: bool) -> bool:
    return _date(digits_of(text)) or word


def corporation(text: str, word: bool) -> bool:
    digits = digits_of(text)
    return corporation_checksum(digits) and (word or "-" in text)  # «321234 4159876» is a place


def card(text: str, word: bool) -> bool:
    digits = digits_of(text)
    return digits[0] in "234569" and luhn(digits)


def business(text: str, word: bool) -> bool:
    digits = digits_of(text)
    return business_checksum(digits) and (word or not text.isdigit())


YEARS = re.compile(r"(?:19|20)\d\d")


def phone(text: str, word: bool) -> bool:
    if word:
        return True
    if text.isdigit():
        return text.startswith("010") and len(text) == 11
    tail = re.findall(r"\d+", text)[-2:]
    return text.startswith("01") or not all(YEARS.fullmatch(t) for t in tail)


def phone_run(text: str, word: bool) -> bool:
    return word or re.match("01[16789]", text) is not None


NATIONAL = {
    *(1522, 1533, 1544, 1551, 1555, 1566, 1577, 1588, 1599, 1600, 1611, 1644, 1660, 1661, 1666),
    *(1668, 1670, 1688, 1800, 1811, 1833, 1855, 1866, 1877, 1899),
}


def national(text: str, word: bool) -> bool:
    """15xx-1234; without a word it must not read as a span of years (1592-1598)."""
    head, tail = int(digits_of(text)[:4]), int(digits_of(text)[4:])
    if word:
        return True
    return "-" in text and head in NATIONAL and not head < tail < head + 300


def local_phone(text: str, word: bool) -> bool:
    return word and not YEARS.match(text)


def landline(text: str, word: bool) -> bool:
    """After its word alone; «31-2024-0012» is a number of that year."""
    return word and not YEARS.fullmatch(re.findall(r"\d+", text)[1])


ACCOUNT_NOT = re.compile(
    r"(?:19|20)\d\d[-. ](?:0?[1-9]|1[0-2])[-. ](?:0?[1-9]|[12]\d|3[01])(?!\d)"  # dates
    r"|97[89][-. ]?\d{1,5}[-. ]"  # ISBN
    r"|0(?:1[016789]|2|[3-6][1-5]|70|80|50\d)[-. ]?\d{3,4}[-. ]?\d{4}$"  # phones
)


def passport_spaced(text: str, word: bool) -> bool:
    return word and not all(YEARS.fullmatch(t) for t in re.findall(r"\d+", text))


def account(text: str, word: bool) -> bool:
    return word and 10 <= len(digits_of(text)) <= 16 and not ACCOUNT_NOT.match(text)


def always(text: str, word: bool) -> bool:
    return True


def labelled(text: str, word: bool) -> bool:
    return word
