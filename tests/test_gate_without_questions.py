"""A folder nobody has asked questions about: what was asked about the examples sets its gate."""

from pathlib import Path

import numpy as np
import pytest

from onsil.corpus import curate, load_corpus
from onsil.documents import read
from onsil.evaluation.examination import (
    ENOUGH,
    NEURAL,
    NON_NEURAL,
    answering,
    enough,
    examine,
    questions_from_lessons,
)
from onsil.evaluation.questions import Question, ask_all, load_gold
from onsil.instruction import write_lessons
from onsil.lineage import Artifact, Workspace
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.gate import (
    BORROWED,
    EVIDENCE,
    borrowed_evidence,
    calibrate,
    evidence_text,
)
from onsil.retrieval.passages import passages_of
from onsil.retrieval.ranking import find
from onsil.retrieval.readers import typed_sentence

EXAMPLES = Path(__file__).parents[1] / "examples"
OFFICE = {
    "휴가.md": "# 휴가 규정\n\n## 제3조(연차)\n\n연차는 다음 해로 10일까지 이월할 수 있다. 이월한 "
    "연차는 다음 해 6월 30일까지 사용한다.\n\n## 제4조(병가)\n\n병가는 연 60일까지 쓸 수 있다. "
    "진단서는 7일을 넘는 병가에만 낸다. 신청은 팀장이 승인한다.\n",
    "출장.md": "# 출장 지침\n\n## 제5조(숙박비)\n\n숙박비는 1박에 7만 원까지 지급한다. 영수증은 "
    "돌아온 날부터 5일 안에 총무팀에 낸다.\n\n## 제6조(식비)\n\n식비는 하루 2만 5천 원이다.\n",
    "회의실.md": "# 회의실 안내\n\n## 이용 시간\n\n회의실은 오전 9시부터 오후 6시까지 연다. 예약은 "
    "3일 전까지 총무팀에 신청한다.\n\n## 정원\n\n대회의실의 정원은 30명이다.\n",
    "차량.md": "# 차량 지침\n\n## 제2조(배차)\n\n배차 신청은 하루 전까지 한다. 주유비는 월 20만 "
    "원까지 지급한다.\n\n## 제3조(반납)\n\n차량은 오후 7시까지 지하 1층에 반납한다.\n",
}
NOT_THERE = (
    "사내 수영장은 몇 시까지 여나요?",
    "회사 기숙사는 며칠까지 머물 수 있나요?",
    "드론 비행 허가는 누가 승인하나요?",
    "골프장 이용료는 한 달에 얼마까지 지급하나요?",
    "헬스장 샤워실은 몇 시에 닫아요?",
    "학자금은 연 얼마까지 지급하나요?",
    "카풀 보조금은 월 얼마인가요?",
    "반려견 동반 출근은 며칠 전까지 신청해요?",
)
THERE = {
    "숙박비는 1박에 얼마까지 지급하나요?": "7만 원",
    "이월한 연차는 언제까지 사용하나요?": "6월 30일",
    "대회의실 정원은 몇 명인가요?": "30명",
}


@pytest.fixture(scope="module")
def office(tmp_path_factory) -> tuple[BM25, Artifact]:
    folder = tmp_path_factory.mktemp("office")
    for name, text in OFFICE.items():
        (folder / name).write_text(text, encoding="utf-8")
    ws = Workspace(folder / "ws")
    corpus = curate(ws, documents=read(ws, folder))
    index = BM25(passages_of(load_corpus(corpus).documents))
    return index, write_lessons(ws, corpus=corpus)


def answered(index: BM25, gate) -> list[str]:
    found = []
    for question in (*NOT_THERE, *THERE):
        reading = typed_sentence(index, question, find(index, question))
        if reading and gate.confidence(reading.features) >= gate.threshold:
            found.append(question)
    return found


def test_what_the_documents_do_not_say_is_not_answered(office):
    """Lessons alone set a gate that answers such questions, or this would show nothing."""
    index, lessons = office
    asked, readers = questions_from_lessons(lessons), {"typed_sentence": typed_sentence}
    _, helped, _ = examine(index, readers, asked, by_people=False)
    _, alone, _ = examine(index, readers, asked * ENOUGH, by_people=True)
    given = set(answered(index, helped["typed_sentence"]))
    easily = set(answered(index, alone["typed_sentence"]))
    assert given >= set(THERE), given
    assert len(given & set(NOT_THERE)) <= 2 < len(easily & set(NOT_THERE)), given


def test_a_folder_of_one_page_is_answered(tmp_path):
    """Few passages are found in it, so that none is near the right one."""
    text = "# 출장 지침\n\n숙박비는 1박에 7만 원까지 준다.\n"
    (tmp_path / "출장.md").write_text(text, encoding="utf-8")
    ws = Workspace(tmp_path / "ws")
    index = BM25(passages_of(load_corpus(curate(ws, documents=read(ws, tmp_path))).documents))
    gate = calibrate(*borrowed_evidence())
    for question, there in (
        ("숙박비는 1박에 얼마예요?", True),
        ("구내식당은 몇 시에 열어요?", False),
    ):
        reading = typed_sentence(index, question, find(index, question))
        confidence = gate.confidence(reading.features) if reading else 0.0
        assert (confidence >= gate.threshold) is there, (question, confidence, gate.threshold)


def test_enough_is_a_hundred_of_people_on_dev():
    def asked(many: int, split: str) -> list[Question]:
        return [Question(str(n), split, "?", (), (), "none") for n in range(many)]

    assert enough(asked(ENOUGH, "dev"), by_people=True)
    assert not enough(asked(ENOUGH, "dev"), by_people=False)
    assert not enough(asked(ENOUGH - 1, "dev") + asked(ENOUGH, "test"), by_people=True)


def scored(values: list[float]) -> tuple[dict, dict]:
    """A reader's card and rows, of these F1."""
    rows = {"dev": [{"f1": value, "answerable": True} for value in values]}
    return {"dev": {"f1": [sum(values) / len(values)]}}, rows


@pytest.mark.parametrize(
    ("trained", "control", "by_people", "answers"),
    [
        ([0.6, 0.5] * 30, 0.1, True, "verified_sentence"),  # better on every question
        ([1.0, 0.05] * 30, 0.1, True, "typed_sentence"),  # on average only
        ([0.6, 0.5] * 30, 0.1, False, "typed_sentence"),
        ([0.3, 0.2] * 30, 0.1, True, "typed_sentence"),
        ([0.6, 0.5] * 30, 0.55, True, "typed_sentence"),  # no better than with random weights
    ],
)
def test_a_trained_reader_answers_where_it_is_clear_of_those_without(
    trained, control, by_people, answers
):
    names = (*NON_NEURAL, *NEURAL, *(f"{name}_random" for name in NEURAL))
    f1 = {name: [0.1] * 60 for name in names} | {"verified_sentence_random": [control] * 60}
    f1 |= {"typed_sentence": [0.5, 0.4] * 30, "verified_sentence": trained}
    made = {name: scored(values) for name, values in f1.items()}
    cards, rows = ({name: one[n] for name, one in made.items()} for n in range(2))
    assert answering(cards, rows, by_people) == answers


def test_the_evidence_is_that_of_the_code_as_it_stands(tmp_path):
    """Else: python benchmarks/examples_baseline.py"""
    ws, seen = Workspace(tmp_path), []
    for name in ("handbook", "clinic", "factory", "apartment", "college", "harbour"):
        folder = EXAMPLES / name
        corpus = curate(ws, documents=read(ws, folder))
        index = BM25(passages_of(load_corpus(corpus).documents))
        questions = [q for q in load_gold(folder / "gold.jsonl") if q.split == "dev"]
        rows = ask_all(index, typed_sentence, [(q, find(index, q.text)) for q in questions])
        seen += [(row["reading"].features, row["right"]) for row in rows if row["reading"]]
    features, right = borrowed_evidence()
    assert right == [row[1] for row in seen]
    assert {len(row) for row in features} == {len(EVIDENCE)}
    assert np.allclose(features, [row[0] for row in seen], rtol=1e-3, atol=1e-3)
    assert evidence_text(zip(features, right, strict=True)) == BORROWED.read_text(encoding="utf-8")
