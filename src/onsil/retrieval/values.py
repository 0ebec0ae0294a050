"""Numbers, amounts and dates as values: 5백만원 is 5,000,000원, and 2천만원 lies in «5백만원 이상
3천만원 미만».

A quantity is a number with its unit, in one base unit for each kind (money in 원, time in days or
hours …). A range is a quantity with a bound word after it, or two with a ~ between; two that follow
each other are one range. Ranks (급) count downwards: 4급 이하 are 4급, 5급, 6급. What stands in a
date is no quantity, and what is not understood is left alone: nothing here guesses. In English a
bound stands before («over $5,000», «up to 20 kg») or after («5 years or more»); units are the same,
so «12kg» lies in «up to 20 kg» whoever asks.
"""

import math
import re
from dataclasses import dataclass

# Unit → (base unit, factor). Months stay what they are: a month is not 30 days in law.
UNITS = {
    "원": ("원", 1), "일": ("일", 1), "영업일": ("영업일", 1), "근무일": ("영업일", 1),
    "주": ("일", 7), "주일": ("일", 7), "개월": ("개월", 1), "달": ("개월", 1), "년": ("개월", 12),
    "시간": ("분", 60), "분": ("분", 1), "명": ("명", 1), "인": ("명", 1), "회": ("회", 1),
    "번": ("회", 1), "차례": ("회", 1), "세": ("세", 1), "살": ("세", 1), "퍼센트": ("%", 1),
    "프로": ("%", 1), "%": ("%", 1), "점": ("점", 1), "급": ("급", 1), "쪽": ("쪽", 1),
    "킬로미터": ("m", 1000), "km": ("m", 1000), "미터": ("m", 1), "㎡": ("㎡", 1),
    "제곱미터": ("㎡", 1), "톤": ("kg", 1000), "킬로그램": ("kg", 1), "kg": ("kg", 1),
    "그램": ("kg", 0.001), "리터": ("리터", 1), "달러": ("달러", 1),
    "도": ("도", 1), "층": ("층", 1), "권": ("권", 1), "건": ("건", 1), "개": ("개", 1),
}  # fmt: skip
ENGLISH_UNITS = {
    "dollar": ("달러", 1), "usd": ("달러", 1), "euro": ("유로", 1), "eur": ("유로", 1),
    "pound": ("파운드", 1), "gbp": ("파운드", 1), "won": ("원", 1), "krw": ("원", 1),
    "day": ("일", 1), "calendar day": ("일", 1), "business day": ("영업일", 1),
    "working day": ("영업일", 1), "week": ("일", 7), "month": ("개월", 1), "year": ("개월", 12),
    "hour": ("분", 60), "minute": ("분", 1), "people": ("명", 1), "person": ("명", 1),
    "percent": ("%", 1), "per cent": ("%", 1), "kilo": ("kg", 1), "kilogram": ("kg", 1),
    "gram": ("kg", 0.001), "tonne": ("kg", 1000), "kilometre": ("m", 1000),
    "kilometer": ("m", 1000), "metre": ("m", 1), "meter": ("m", 1), "mile": ("마일", 1),
    "litre": ("리터", 1), "liter": ("리터", 1), "page": ("쪽", 1), "degree": ("도", 1),
}  # fmt: skip
SIGNS = {"$": "usd", "€": "eur", "£": "gbp", "₩": "krw"}
SPOKEN = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
THOUSANDS = {"thousand": 10**3, "k": 10**3, "million": 10**6}
SCALED = re.compile("[십백천만억조]")
SMALL = {"십": 10, "백": 100, "천": 1000}
LARGE = {"만": 10**4, "억": 10**8, "조": 10**12}
FIGURE = r"\d[\d,]*(?:\.\d+)?"
NUMBER = rf"(?:{FIGURE}\s?[십백천]*\s?[만억조]?\s?)+"
# 백만원, 만 달러: no figure at all.
SPELLED = r"(?<![가-힣])(?:[십백천]+\s?[만억조]?|[만억조])\s?(?=원|달러)"
UNIT = "|".join(sorted(UNITS, key=len, reverse=True))
QUANTITY = re.compile(
    rf"(?<![\d.,])(?P<number>{NUMBER}|{SPELLED})(?P<unit>{UNIT})(?!의\s*\d)", re.IGNORECASE
)
ENGLISH_UNIT = "|".join(sorted(ENGLISH_UNITS, key=len, reverse=True))
ENGLISH_NUMBER = (
    rf"(?P<figure>\d+(?:,\d{{3}})*(?:\.\d+)?|\b(?:{'|'.join(SPOKEN)})\b)"
    rf"(?: ?(?P<times>{'|'.join(THOUSANDS)})\b)?"
)
ENGLISH = re.compile(
    rf"(?<![\w.,])(?P<sign>[$€£₩]|(?:usd|eur|gbp|krw)(?= ))?(?(sign) ?){ENGLISH_NUMBER}"
    rf"(?(sign)|(?: (?:or|and) (?:more|over|less|fewer|under))?[ -](?P<unit>{ENGLISH_UNIT})s?\b)",
    re.IGNORECASE,
)
PART = re.compile(rf"({FIGURE})\s?([십백천]*)\s?([만억조]?)")
TO = re.compile(rf"(?<![\d.,])(?P<number>{NUMBER})(?P<unit>{UNIT})?\s*[~∼〜～]\s*", re.IGNORECASE)
CALENDAR = re.compile(
    r"\d{4}\s*[.년/-]\s*\d{1,2}\s*[.월/-]\s*\d{1,2}(?:\s*일|\.|(?!\d))|"
    r"\d{4}년(?:\s*\d{1,2}월)?|\d{1,2}월\s*\d{1,2}일"
)
APART = 5  # characters between two bounds of one range: « and »
LONGEST_BOUND = 40  # characters before a quantity that can bound it in English
FALLING = ("급",)
NUMERIC = "0123456789,. 십백천만억조"
BOUND = re.compile(r"\s*(?:짜리|어치)?\s*(이상|이하|초과|미만|이내|까지|부터|넘|을 넘|를 넘)")
ABOVE, FROM = "over|above|more than|exceeding|exceeds?|beyond", "at least|from|minimum(?: of)?"
BELOW, UPTO = "under|below|less than|fewer than", "up to|within|at most|maximum(?: of)?"
BEFORE = re.compile(
    rf"\b(?:(?P<upto>{UPTO})|(?P<above>{ABOVE})|(?P<low>{FROM})|(?P<below>{BELOW}))\s*$",
    re.IGNORECASE,
)
NOT = re.compile(
    r"(?:\bno\s+|(?:\b(?:not|never|cannot)|n['’]t)\s+(?:(?:be|to)\s+)?(?P<far>\w+\s+){0,2})$",
    re.IGNORECASE,
)
DENIED = {"above": "upto", "below": "low"}  # what must not exceed 20 kg has up to 20
AFTER = re.compile(
    r"\s*(?:(?P<low>(?:or|and) (?:more|over|above|longer))|"
    r"(?P<upto>(?:or|and) (?:less|fewer|under|below|shorter)))\b",
    re.IGNORECASE,
)
BETWEEN = re.compile(
    rf"(?:\bbetween (?P<and>)|(?<![\w.,$€£₩]))[$€£₩]?{ENGLISH_NUMBER}"
    rf"(?:[ -](?P<unit>{ENGLISH_UNIT})s?)? ?(?(and)and|(?:to|-|–)) ?$",
    re.IGNORECASE,
)
# «Grade 3 - 10 days»: a name with a number, then what it gets.
NUMBERED = re.compile(
    r"\b(?:grade|level|class|category|band|step|stage|group|type|article|section|rule|room|floor|"
    r"zone|bay|no\.?|number) $",
    re.IGNORECASE,
)
DATE = re.compile(r"(?:(\d{4})\s*[.년/-]\s*)?(\d{1,2})\s*[.월/-]\s*(\d{1,2})(?:\s*일|(?=[^\d]|$))")


@dataclass(frozen=True)
class Quantity:
    """A number in its base unit, and where it stands."""

    value: float
    unit: str
    start: int
    end: int


@dataclass(frozen=True)
class Range:
    """From `low` to `high` in a base unit; `open_low`, `open_high`: the bound itself is out."""

    low: float
    high: float
    unit: str
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)


def number(text: str) -> float:
    """«1억 5천만» → 150,000,000; «12,500.5» → 12500.5; «백만» → 1,000,000."""
    text = text if any(c.isdigit() for c in text) else f"1{text.strip()}"
    total, small = 0.0, 0.0
    for figure, powers, large in PART.findall(text):
        value = float(figure.replace(",", ""))
        for power in powers:
            value *= SMALL[power]
        small += value
        if large:
            total, small = total + small * LARGE[large], 0.0
    return total + small


def quantities(text: str) -> list[Quantity]:
    """Every number with a unit, in order."""
    found = []
    for match in QUANTITY.finditer(text):
        unit, factor = UNITS[match["unit"].lower()]
        one = Quantity(number(match["number"]) * factor, unit, match.start(), match.end())
        if found and _goes_on(text, found[-1], one):  # «1년 6개월»
            before = found.pop()
            one = Quantity(before.value + one.value, unit, before.start, one.end)
        found.append(one)
    taken = [(q.start, q.end) for q in found]
    for match in ENGLISH.finditer(text):
        if not any(start < match.end() and match.start() < end for start, end in taken):
            sign = (match["sign"] or "").lower()
            unit, factor = ENGLISH_UNITS[SIGNS.get(sign, sign) or match["unit"].lower()]
            found.append(
                Quantity(_english_number(match) * factor, unit, match.start(), match.end())
            )
    return sorted(found, key=lambda q: q.start)


def _goes_on(text: str, years: Quantity, months: Quantity) -> bool:
    """Whether months follow years as their rest: fewer than twelve, nothing between."""
    return (
        years.unit == months.unit == "개월"
        and text[years.end - 1] == "년"
        and months.value < 12
        and not text[years.end : months.start].strip()
    )


def _english_number(match: re.Match[str]) -> float:
    figure = match["figure"].lower()
    value = SPOKEN.index(figure) + 1 if figure in SPOKEN else float(figure.replace(",", ""))
    return value * THOUSANDS[(match["times"] or "").lower()] if match["times"] else value


def undated(text: str) -> str:
    """The text with blanks where dates stand."""
    return CALENDAR.sub(lambda date: " " * len(date[0]), text)


def ranges(text: str) -> list[Range]:
    """Every bounded quantity; «A 이상 B 미만» and «A~B» are one range."""
    text = undated(text)
    found: list[tuple[Range, int, int]] = []
    for q in quantities(text):
        if (low := _from(text, q)) is not None:
            found.append((Range(low, q.value, q.unit), q.start, q.end))
            continue
        bound = BOUND.match(text, q.end)
        if bound is None:
            if (english := _in_english(text, q)) is None:
                continue
            one, start, end = english
        else:
            one, start, end = _bounded(q, bound.group(1)), q.start, bound.end()
        if found and found[-1][0].unit == q.unit and start - found[-1][2] <= APART:
            low, high = sorted((found[-1][0], one), key=lambda r: r.high < math.inf)
            if (low.high, high.low) == (math.inf, -math.inf) and low.low <= high.high:
                one = Range(low.low, high.high, q.unit, low.open_low, high.open_high)
                found.pop()
        found.append((one, start, end))
    return [one for one, _, _ in found]


def _in_english(text: str, q: Quantity) -> tuple[Range, int, int] | None:
    """The range that English words before or after a quantity make of it, and where it stands."""
    if bound := BEFORE.search(text, max(0, q.start - LONGEST_BOUND), q.start):
        start, end = bound.start(), q.end
    elif bound := AFTER.match(text, q.end):
        start, end = q.start, bound.end()
    elif bound := AFTER.search(text, q.start, q.end):  # «3 or more days»
        start, end = q.start, q.end
    else:
        return None
    said = bound.lastgroup
    if no := NOT.search(text, max(0, start - LONGEST_BOUND), start):
        if no["far"] or said not in DENIED:  # «not paid within 3 days»: who knows
            return None
        said = DENIED[said]
    low, high = (q.value, math.inf) if said in ("above", "low") else (-math.inf, q.value)
    return Range(low, high, q.unit, said == "above", said == "below"), start, end


def _from(text: str, to: Quantity) -> float | None:
    """Of «1~3급», «1급~3급» or «2 to 5 years», whose end `to` is, where it begins."""
    before = [m for m in TO.finditer(text, 0, to.start) if m.end() == to.start]
    if not before:
        english = BETWEEN.search(text, max(0, to.start - LONGEST_BOUND), to.start)
        unit = ENGLISH.fullmatch(text, to.start, to.end)
        if english is None or unit is None or NUMBERED.search(text, 0, english.start()):
            return None
        base, factor = to.unit, to.value / _english_number(unit)
        if english["unit"]:  # «between 3 days and 2 weeks»
            base, factor = ENGLISH_UNITS[english["unit"].lower()]
        low = _english_number(english) * factor
        return low if base == to.unit and low <= to.value else None
    said = QUANTITY.fullmatch(text, to.start, to.end)
    unit, factor = UNITS[(before[-1]["unit"] or text[to.start : to.end].lstrip(NUMERIC)).lower()]
    if unit != to.unit:
        return None
    figure = before[-1]["number"]
    lows = [number(figure) * factor]
    if said and not before[-1]["unit"] and not SCALED.search(figure):  # «10~20만원» from 100,000
        lows.insert(0, number(figure + said["number"].strip().lstrip("0123456789,. ")) * factor)
    return next((low for low in lows if low <= to.value), None)


def _bounded(q: Quantity, word: str) -> Range:
    falling = q.unit in FALLING
    if word == "부터" or word == ("이하" if falling else "이상"):
        return Range(q.value, math.inf, q.unit)
    if word in (("미만",) if falling else ("초과", "넘", "을 넘", "를 넘")):
        return Range(q.value, math.inf, q.unit, open_low=True)
    return Range(-math.inf, q.value, q.unit, open_high=word == ("초과" if falling else "미만"))


def same_values(a: str, b: str) -> bool:
    """Whether two answers say the same quantities and dates, at least one, in the same words."""
    (values, words), (others, also) = _said(a), _said(b)
    return bool(values) and values == others and words == also


def _said(text: str) -> tuple[list[tuple], str]:
    """The values of a text in order of kind and size, and what is left of it."""
    dates = [("date", *map(int, (y or 0, m, d))) for y, m, d in DATE.findall(text)]
    rest = DATE.sub(" ", text)
    found = [("quantity", q.unit, q.value) for q in quantities(rest)]
    return sorted(dates) + sorted(found), re.sub(
        r"[\W_]+", "", ENGLISH.sub(" ", QUANTITY.sub(" ", rest))
    )


def fits(question: str, label: str) -> float:
    """1 when a range in the label holds a value of the question in the same unit, −1 when the
    label has such a range and none holds one, 0 when they have no unit in common."""
    asked = quantities(undated(question))
    known = [r for r in ranges(label) if any(q.unit == r.unit for q in asked)]
    if not known:
        return 0.0
    return 1.0 if any(r.holds(q.value) for r in known for q in asked if q.unit == r.unit) else -1.0
