"""The rule teacher: what it asks of a passage, and what it leaves alone."""

import json
import random
from pathlib import Path

import pytest

from onsil.evaluation.examination import FEWEST, questions_from_lessons
from onsil.instruction.lessons import Lesson, lessons_of, said_otherwise, topic_of
from onsil.lineage import Artifact
from onsil.retrieval.concepts import concepts
from onsil.retrieval.passages import Passage


def taught(text: str, heading: str = "제4조(수당)", document: str = "규정.hwp") -> list[Lesson]:
    passage = Passage(document, heading, f"규정 > {heading}", text)
    return [one for n in range(8) for one in lessons_of(passage, "train", random.Random(n))]


def said(lesson: Lesson) -> str:
    assert lesson.answer is not None
    return lesson.passage[slice(*lesson.answer)]


def test_a_cell_is_asked_for_by_its_row_and_column():
    found = taught("과장 · 식비: 12,000원 / 2024: 9,000원")
    assert {(said(one), one.kind) for one in found} == {("12,000원", "table"), ("9,000원", "table")}
    assert any("과장" in one.question and "2024" in one.question for one in found)


def test_a_sheet_of_numbers_names_nothing_to_ask_for():
    assert taught("46 · 0.346006231671526: lb / #VALUE!: 12 / 3: 4") == []
    assert taught("#VALUE! · 식비: 12,000원") == []


def test_english_is_asked_in_english():
    found = taught(
        'The term "vendor" means any person who sells to the agency. Vendors are paid within 30 '
        "days. The Travel Desk approves it.\nEngineer · Daily rate: 120 USD",
        "Article 3 – Travel expenses",
        "rules.docx",
    )
    kinds = {"definition", "table", "procedure", "number", "who"}
    assert {one.kind for one in found} == kinds
    said_of = {kind: {said(one) for one in found if one.kind == kind} for kind in kinds}
    assert said_of["number"] == {"30 days"} and said_of["who"] == {"The Travel Desk"}
    asked = [one.question for one in found if one.kind == "number"]
    assert any("vendors are paid" in q.lower() for q in asked)
    assert not any("article" in one.question.lower() for one in found)
    assert not any("가" <= letter <= "힣" for one in found for letter in one.question)
    meanings = {said(one) for one in found if one.kind == "definition"}
    assert meanings == {"any person who sells to the agency"}


def test_an_amount_in_english_is_asked_once_and_not_told():
    found = taught("Staff work 40 hours a week and lift 23kg.", "2 Who may lift", "rules.docx")
    numbers = [one for one in found if one.kind == "number"]
    assert {said(one) for one in numbers} == {"40 hours", "23kg"}
    assert not any("23kg" in one.question for one in numbers if said(one) == "23kg")


@pytest.mark.parametrize(
    ("heading", "topic"),
    [
        ("Article 3 – Annual leave", "Annual leave"),
        ("4.2. Claims", "Claims"),
        ("2 Who may drive", "Who may drive"),
        ("E-mail rules", "E-mail rules"),
        ("Part time work", "Part time work"),
        ("90 days notice", "90 days notice"),
        ("제12조(연차의 이월)", "연차의 이월"),
    ],
)
def test_a_topic_is_a_heading_without_its_number(heading, topic):
    assert topic_of(heading) == topic


def test_english_words_are_said_otherwise():
    said_as = {said_otherwise("the annual leave", random.Random(n)) for n in range(20)}
    assert "the annual leave" in said_as and len(said_as) > 3
    assert all(concepts(said) & concepts("annual leave") for said in said_as)


def test_a_file_name_is_no_subject():
    text = "이 장에서는 변수를 어떻게 쓰는지 차례로 설명한다."
    assert taught(text, "chapter04", "docx/chapter04.docx") == []
    assert {one.kind for one in taught(text, "변수", "docx/chapter04.docx")} == {"procedure"}


# -- what is examined when a folder brings no questions of its own ---------------------------------


def kept(folder: Path, held: int, learnt: int = 200) -> Artifact:
    rows = [
        {
            "question": f"{random.Random(n).getrandbits(200):x}",
            "passage": "열흘이다.",
            "answer": [0, 2],
            "document": f"{n}.md",
            "heading": "이월",
            "kind": "number",
            "split": "heldout" if n < held else "train",
        }
        for n in range(held + learnt)
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "lessons.jsonl").write_text("".join(lines), encoding="utf-8")
    return Artifact("", folder)


@pytest.mark.parametrize(("held", "documents"), [(FEWEST, FEWEST), (FEWEST - 1, 2 * FEWEST)])
def test_held_out_lessons_are_examined_where_there_are_enough(tmp_path, held, documents):
    """A handful would tell nothing."""
    asked = [q for q in questions_from_lessons(kept(tmp_path, held)) if q.answerable]
    about = {q.places[0][0] for q in asked}
    assert len(asked) == documents and (about <= {f"{n}.md" for n in range(held)}) == (
        held >= FEWEST
    )
