"""Questions in one language about documents in the other."""

import pytest

from onsil.retrieval.bm25 import BM25
from onsil.retrieval.concepts import BOTH, HANGUL, concepts_at, groups, other_side, ties
from onsil.retrieval.passages import Passage
from onsil.retrieval.ranking import find
from onsil.retrieval.readers import typed_sentence

KOREAN = {
    "제12조(연차의 이월)": "쓰지 못한 연차는 10일까지 다음 해로 이월할 수 있다.",
    "제16조(병가)": "병가는 연 60일을 넘지 못하며, 나흘째부터 진단서를 낸다.",
    "제11조(법인카드의 분실)": "카드를 잃어버린 직원은 2시간 안에 재무회계팀에 신고한다.",
    "제9조(주차)": "정기주차권은 월 20,000원이고 방문객은 2시간까지 무료로 주차한다.",
    "제7조(수수료)": "사본 제공 수수료는 흑백 A4 1장에 50원이다.",
}
ENGLISH = {
    "3 Annual leave": "Five days may be carried over and are used by 30 June.",
    "5 Sick pay": "After three days of sickness a doctor's note is handed in.",
    "7 Company cards": "A lost card must be reported to Finance within two hours.",
    "9 Parking": "Staff pay 20 a month; spaces 35 to 40 are for visitors.",
    "11 Customs": "Customers hand in the import entry a day before.",
}


def first(question: str, papers: dict[str, str]) -> str:
    passages = [Passage("a.md", h, f"Rules > {h}", text) for h, text in papers.items()]
    hits = find(BM25(passages), question)
    return hits[0].passage.heading if hits else ""


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("How many days of annual leave can be carried over?", "제12조(연차의 이월)"),
        ("What is the maximum number of sick days?", "제16조(병가)"),
        ("What should I do if I lose the company card?", "제11조(법인카드의 분실)"),
        ("Is parking free for visitors?", "제9조(주차)"),
        ("How much is a photocopy?", "제7조(수수료)"),
    ],
)
def test_an_english_question_finds_the_korean_rule(question: str, heading: str):
    assert first(question, KOREAN) == heading


@pytest.mark.parametrize(
    ("question", "heading"),
    [
        ("연차를 며칠까지 이월할 수 있나요?", "3 Annual leave"),
        ("병가 때 진단서는 언제 내나요?", "5 Sick pay"),
        ("법인카드를 잃어버리면 어디에 신고하나요?", "7 Company cards"),
        ("방문객은 어디에 주차하나요?", "9 Parking"),
        ("통관 서류는 언제 내나요?", "11 Customs"),
    ],
)
def test_a_korean_question_finds_the_english_rule(question: str, heading: str):
    assert first(question, ENGLISH) == heading


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("How many copies of the proposal?", "가. 제출서류 1) 제안서 12부 2) 서약서 1부"),
        ("제안서는 몇 부 제출하나요?", "1) Hand in 12 copies of the proposal within 3 days"),
    ],
)
def test_an_answer_in_the_other_language_is_the_sentence_and_no_stray_number(question, text):
    index = BM25([Passage("a.md", "3. 제안서 제출", "공고 > 3. 제안서 제출", text)])
    reading = typed_sentence(index, question, find(index, question))
    assert reading is not None and reading.answer == text


def test_where_question_and_papers_share_a_language_nothing_is_looked_up_twice():
    """A text says a tie in its own language, a question asks for it in the other."""
    said, asked = ties("연차휴가의 이월"), set(map(other_side, ties("연차는 이월되나요?")))
    assert said and asked and said.isdisjoint(asked)
    assert asked <= ties("annual leave carried over")
    assert {other_side(other_side(tie)) for tie in said} == said


def test_words_tied_to_one_word_of_another_language_are_not_one_in_their_own():
    """«cold store» is 냉동 and 저온: a question about the one is none about the other."""
    heads = ("제1조(저온)", "제2조(차량)")
    index = BM25([Passage("a.md", h, f"규정 > {h}", "냉동은 3일이다.") for h in heads])
    one, other = find(index, "냉동은 며칠인가요?")
    assert one.fit == pytest.approx(other.fit)


def test_words_that_share_a_stem_keep_their_own_meaning():
    assert ties("customs") != ties("customer") and ties("training") != ties("train")
    assert ties("customs duties") >= ties("customs")


def test_a_tie_is_no_concept_of_one_language():
    assert all(":" not in name for _, _, name in concepts_at("annual leave 연차휴가"))


def test_every_group_has_words_of_both_languages_and_no_word_stands_in_two():
    owners: dict[str, set[str]] = {}
    for group in groups(BOTH):
        korean = {form.removeprefix("^").replace("_", "") for form in group if HANGUL.search(form)}
        english = {form for form in group if not HANGUL.search(form)}
        assert korean and english and all(len(form) > 1 for form in korean), group
        assert not HANGUL.search(group[0]), group
        assert all(form.replace("_", "").isalpha() for form in english), group
        for form in korean | english:
            owners.setdefault(form, set()).add(group[0])
    assert [form for form, names in owners.items() if len(names) > 1] == []
