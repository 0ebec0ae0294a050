"""The other example folders: what their gold claims is there."""

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from onsil.documents import scan
from onsil.documents.read import read_folder
from onsil.evaluation.questions import load_gold, misplaced
from onsil.instruction.lessons import lessons_of
from onsil.retrieval.passages import passages_of

EXAMPLES = Path(__file__).parents[1] / "examples"
DEV, TEST = ("clinic", "factory", "apartment", "college", "harbour"), ("bank", "museum")
FOLDERS = dict.fromkeys(DEV, "dev") | dict.fromkeys(TEST, "test")


@cache
def documents(folder: str):
    files = [ref for ref in scan(EXAMPLES / folder) if ref.path != "gold.jsonl"]
    read, rejected = read_folder(EXAMPLES / folder, files)
    assert rejected == []
    return tuple(read)


def gold(folder: str) -> list[dict]:
    lines = (EXAMPLES / folder / "gold.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_eight_documents_and_a_hundred_and_ten_questions(folder):
    formats = Counter(Path(document.path).suffix for document in documents(folder))
    assert formats == {".md": 2, ".docx": 2, ".txt": 1, ".html": 1, ".xlsx": 1, ".csv": 1}
    rows = gold(folder)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 110
    assert {row["split"] for row in rows} == {FOLDERS[folder]}
    answerable = [row for row in rows if row["answerable"]]
    types = Counter(row["type"] for row in answerable)
    assert len(answerable) == 60 and len(types) == 9 and min(types.values()) >= 5
    why = Counter(row["why"] for row in rows if not row["answerable"])
    assert why == {"near-miss": 25, "missing-entity": 13, "off-topic": 12}
    assert all(row["answers"] == [] for row in rows if not row["answerable"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_answer_stands_in_its_document_and_every_place_is_one(folder):
    passages = passages_of(documents(folder))
    assert misplaced(passages, load_gold(EXAMPLES / folder / "gold.jsonl")) == []
    text: dict[str, str] = {}
    for p in passages:
        text[p.document] = squeezed(text.get(p.document, "") + p.text)
    for row in gold(folder):
        for answer in row["answers"]:
            assert squeezed(answer) in text[row["document"]], row["id"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_rule_teacher_asks_of_every_document(folder):
    asked = [
        lesson
        for number, passage in enumerate(passages_of(documents(folder)))
        for round_ in range(4)
        for lesson in lessons_of(passage, "train", random.Random(f"{round_}-{number}"))
    ]
    assert {lesson.document for lesson in asked} == {d.path for d in documents(folder)}
    assert {"number", "date", "table", "procedure"} <= {lesson.kind for lesson in asked}
    assert all(lesson.answer and lesson.passage[slice(*lesson.answer)] for lesson in asked)


def test_no_question_is_asked_of_two_folders():
    asked = [row["question"] for folder in (*FOLDERS, "handbook") for row in gold(folder)]
    assert len(asked) == len(set(asked))
