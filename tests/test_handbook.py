"""The example handbook says what its gold questions claim, in the files as our readers see them."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from onsil.documents.read import read_folder, scan

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HANDBOOK = EXAMPLES / "handbook"
GOLD = [
    json.loads(line) for line in (HANDBOOK / "gold.jsonl").read_text(encoding="utf-8").splitlines()
]
ANSWERABLE = [row for row in GOLD if row["answerable"]]
UNANSWERABLE = [row for row in GOLD if not row["answerable"]]
PII = json.loads((EXAMPLES / "handbook_pii.json").read_text(encoding="utf-8"))
TYPES = {
    "number", "date", "definition", "who", "procedure", "table", "condition", "amendment", "place",
}  # fmt: skip
AMENDED = [
    ("연차휴가규정_2023.md", "연차휴가규정_2025.docx"),
    ("여비규정_2022.hwpx", "여비규정_2025.md"),
    ("재택근무지침_2021.txt", "재택근무지침_2024.hwpx"),
    ("법인카드지침_2022.html", "법인카드지침_2025.pdf"),
    ("위임전결규정_2021.md", "위임전결규정_2024.md"),
    ("자원봉사자운영지침_2022.odt", "자원봉사자운영지침_2025.hwp"),
]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@cache
def sections() -> dict[str, dict[str, str]]:
    """File name -> innermost heading -> the text under it, as the readers give it."""
    files = [ref for ref in scan(HANDBOOK) if ref.path != "gold.jsonl"]
    documents, rejected = read_folder(HANDBOOK, files)
    assert rejected == []
    found: dict[str, dict[str, str]] = {}
    for document in documents:
        under = found.setdefault(document.path, {})
        heading = ""
        for block in document.blocks:
            if block.kind == "heading":
                heading = block.text
                under.setdefault(heading, "")
                continue
            cells = " ".join(cell for row in block.rows for cell in row)
            under[heading] = f"{under.get(heading, '')} {block.text} {cells}"
    return found


def whole(document: str) -> str:
    return squeezed(" ".join(f"{h} {text}" for h, text in sections()[document].items()))


def test_the_handbook_is_as_varied_as_a_real_one():
    formats = Counter(Path(name).suffix for name in sections())
    assert sum(formats.values()) >= 55
    assert formats.keys() == {
        ".md", ".txt", ".html", ".docx", ".hwpx", ".pdf",
        ".xlsx", ".pptx", ".csv", ".odt", ".eml", ".hwp",
    }  # fmt: skip
    assert all(formats[suffix] >= 3 for suffix in (".txt", ".docx", ".hwpx", ".pdf"))


def test_gold_is_well_formed():
    assert len({row["id"] for row in GOLD}) == len(GOLD) >= 650
    assert len({row["question"] for row in GOLD}) == len(GOLD)
    assert len(ANSWERABLE) >= 380
    assert len(UNANSWERABLE) >= 250
    for row in ANSWERABLE:
        assert row["type"] in TYPES
        assert row["answers"] and all(row["answers"])
    for row in UNANSWERABLE:
        assert (row["answers"], row["document"], row["heading"]) == ([], None, None)
        assert row["type"] == "none"
        assert row["why"] in {"near-miss", "missing-entity", "off-topic"}


def test_the_test_questions_are_about_documents_of_their_own():
    """Nobody tunes on `test`: its documents came after the readers were built, and every second one
    of those that came was given to `dev`."""
    dev, test = ([row for row in GOLD if row["split"] == half] for half in ("dev", "test"))
    assert len(dev) + len(test) == len(GOLD) == 656
    assert {row["document"] for row in dev} & {row["document"] for row in test} == {None}
    for half, answerable, unanswerable in ((dev, 318, 219), (test, 64, 55)):
        types = Counter(row["type"] for row in half if row["answerable"])
        assert types.keys() == TYPES and types.total() == answerable
        why = Counter(row["why"] for row in half if not row["answerable"])
        assert why.total() == unanswerable and min(why.values()) >= 12


@pytest.mark.parametrize("row", ANSWERABLE, ids=lambda row: row["id"])
def test_every_answer_stands_under_its_heading(row: dict):
    text = squeezed(sections()[row["document"]][row["heading"]])
    for answer in row["answers"]:
        assert answer in text
    for place in row.get("also", []):
        text = squeezed(sections()[place["document"]][place["heading"]])
        assert any(answer in text for answer in row["answers"])


@pytest.mark.parametrize(("old", "new"), AMENDED)
def test_the_newer_version_is_in_force_later(old: str, new: str):
    dates = []
    for name in (old, new):
        found = re.search(r"시행일: (\d{4})년 (\d{1,2})월 (\d{1,2})일", whole(name))
        assert found, name
        dates.append(tuple(map(int, found.groups())))
    assert dates[0] < dates[1]
    asked = [row for row in ANSWERABLE if row["document"] == new and row["type"] == "amendment"]
    assert len(asked) >= 2
    assert all(row["document"] != old for row in ANSWERABLE)


def test_every_document_states_when_it_is_in_force():
    for name in sections():
        assert re.search(r"시행일: \d{4}년 \d{1,2}월 \d{1,2}일", whole(name)), name


def test_one_file_is_a_copy_and_one_nearly_so():
    copy = (HANDBOOK / "민원처리지침_사본.md").read_bytes()
    assert copy == (HANDBOOK / "민원처리지침.md").read_bytes()
    first = set(whole("교육훈련규정.md").split())
    second = set(whole("교육훈련규정_배포용.md").split())
    assert first != second
    assert len(first & second) / len(first | second) > 0.9


def test_the_planted_personal_data_is_there():
    assert Counter(row["kind"] for row in PII).keys() == {
        "rrn", "phone", "email", "card", "account",
    }  # fmt: skip
    assert len({row["path"] for row in PII}) >= 6
    for row in PII:
        assert row["value"] in whole(row["path"])


def test_no_planted_resident_number_can_belong_to_anyone():
    """Dates are valid, check digits are not: numbers from before October 2020 had to match."""
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    for row in PII:
        if row["kind"] == "rrn":
            digits = [int(c) for c in row["value"] if c.isdigit()]
            total = sum(w * d for w, d in zip(weights, digits[:12], strict=True))
            assert (11 - total % 11) % 10 != digits[12]
