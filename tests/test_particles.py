"""Particles agree with the word before them."""

import random

import pytest

from onsil.instruction.lessons import lessons_of, said_otherwise
from onsil.instruction.particles import PAIRS, agreeing, followed, particle
from onsil.retrieval.passages import Passage


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("여비", "는 가 를 와 로 란"),
        ("금액", "은 이 을 과 으로 이란"),
        ("서울", "은 이 을 과 로 이란"),
        ("식비(1인)", "는 가 를 와 로 란"),
        ("회의실 [본관]", "은 이 을 과 로 이란"),
        ("«야근»", "은 이 을 과 으로 이란"),
        ("2024", "는 가 를 와 로 란"),
        ("10", "은 이 을 과 으로 이란"),
        ("제7", "은 이 을 과 로 이란"),
        ("15%", "는 가 를 와 로 란"),
        ("PC", "는 가 를 와 로 란"),
        ("URL", "은 이 을 과 로 이란"),
        ("", "는 가 를 와 로 란"),
    ],
)
def test_the_particle_agrees(word, forms):
    closed, open_ = (list(pair) for pair in zip(*PAIRS, strict=True))
    for asked in (closed, open_):
        assert [particle(word, form) for form in asked] == forms.split()


def test_pairs_written_out():
    assert agreeing("접수번호은/는 금액이/가 얼마인가요?") == "접수번호는 금액이 얼마인가요?"
    assert agreeing("은/는 그대로") == "는 그대로"
    assert agreeing("연차이란/란?") == "연차란?"


def test_a_particle_after_another_word():
    assert followed("월급", "를 언제 주나요?") == "을 언제 주나요?"
    assert followed("급여", "으로 받나요") == "로 받나요"
    assert followed("보수", "이월은 어떻게") == "이월은 어떻게"  # no particle, a word's beginning
    assert followed("보수", " 얼마") == " 얼마"


def test_questions_of_lessons_agree():
    text = "숙박비 · 한도: 70,000원 / 증빙: 영수증\n접수번호 · 비고: 없음 / 담당: 총무팀"
    passage = Passage("여비표.md", "숙박비와 식비", "여비표 > 숙박비와 식비", text)
    asked = {
        lesson.question
        for seed in range(60)
        for lesson in lessons_of(passage, "train", random.Random(seed))
    }
    assert any("숙박비는 " in question for question in asked)
    assert any(question.startswith("접수번호는 ") for question in asked)
    for wrong in ("숙박비은", "접수번호은", "한도이 ", "한도은", "담당가", "비고은"):
        assert not [question for question in asked if wrong in question], wrong
    assert not [question for question in asked if "/" in question]


def test_a_word_that_is_exchanged_takes_its_particle_along():
    """월급 may become 보수: «월급은» then «보수는», in the middle of a question as at its end."""
    asked = {
        said_otherwise(question, random.Random(seed))
        for question in ("월급은 출장비로 받나요", "출장비를 언제 주나요", "어디에 월급을")
        for seed in range(200)
    }
    assert len(asked) > 10
    for question in asked:
        for word in question.split():
            for closed, open_ in PAIRS[:3]:
                if word.endswith((closed, open_)) and len(word) > 2:
                    assert word.endswith(particle(word[:-1], closed)), question


def test_no_lesson_asks_for_the_number_of_a_row():
    row = "환승센터명 · NO: 1 / 구분: 필수 / 연번: 3 / 순번: 4 / Notes: 있음"
    passage = Passage("표.hwpx", "항목", "표 > 항목", row)
    lessons = [x for seed in range(20) for x in lessons_of(passage, "train", random.Random(seed))]
    assert {x.passage[slice(*x.answer)] for x in lessons if x.answer} == {"필수", "있음"}
