"""Finding and reading: concepts, ranking, the typed reader."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onsil.retrieval.answering import SHOWN, _shown
from onsil.retrieval.asked import BEFORE_SAID, kinds_asked
from onsil.retrieval.bm25 import BM25, coverage, marks, terms
from onsil.retrieval.concepts import KOREAN, concept, concepts, concepts_at, groups
from onsil.retrieval.gate import EVIDENCE
from onsil.retrieval.passages import Passage, cells_of, sentences, table_lines
from onsil.retrieval.ranking import find, told_apart
from onsil.retrieval.readers import best_sentence, typed_sentence


def passage(heading: str, text: str, title: str = "취업규칙", superseded: bool = False) -> Passage:
    return Passage(f"{title}.md", heading, f"{title} > {heading}", text, superseded)


RULES = [
    passage("제11조(초과근무)", "초과근무는 당일 17시까지 신청하고 팀장의 승인을 받는다."),
    passage("제12조(보수)", "보수는 매월 20일에 지급한다. 감봉은 보수의 3분의 1을 줄인다."),
    passage("통근버스를 타려면 신청해야 하나요", "통근버스는 신청하지 않고 탑니다.", "질문"),
    passage(
        "제2조(정의)",
        '쓰는 말의 뜻은 다음과 같다.\n"휴가저축"이란 쓰지 않은 휴가를 쌓는 것을 말한다.\n'
        '"연차휴가"란 1년간 일한 직원에게 주는 휴가를 말한다.',
    ),
    passage("제8조(휴가저축)", "휴가저축은 한 해 10일까지 한다. 휴가저축 내역은 매년 알린다."),
    passage(
        "제4조(전결)",
        "전결권자는 다음 표와 같다.\n국외 출장 명령 · 부원장: 전결\n연차휴가 승인 · 팀장: 전결",
        "전결규정",
    ),
    passage(
        "제6조(구매)",
        "구매 전결은 다음 표와 같다.\n물품 구매 5백만원 미만 · 팀장: 전결\n"
        "물품 구매 5백만원 이상 3천만원 미만 · 부장: 전결\n물품 구매 3천만원 이상 · 원장: 전결",
        "전결규정",
    ),
    passage("제5조(숙박비)", "구분 · 1급: 100,000원 / 2급: 80,000원", "여비규정"),
    passage("제7조(회의)", "위원회의 위원장은 부원장으로 하고 위원은 7명으로 한다.", "위원회규정"),
    passage("제9조(이월)", "연차는 5일까지 이월한다.", "옛 휴가규정", True),
    passage("제9조(이월)", "연차는 10일까지 이월한다.", "새 휴가규정"),
]


@pytest.fixture(scope="module")
def index() -> BM25:
    return BM25(RULES)


def answer(index: BM25, question: str) -> tuple[str, str]:
    reading = typed_sentence(index, question, find(index, question))
    assert reading is not None
    return reading.answer, reading.passage.heading


# -- concepts -----------------------------------------------------------------------------------


def test_everyday_word_and_rule_word_are_one_concept():
    assert concepts("야근하려면") & concepts("초과근무수당")
    assert concepts("월급이 언제 나와요") & concepts("보수는 매월 지급한다")
    assert not concepts("온실 은하수 구렁이")


def test_marked_forms_match_only_where_a_word_begins():
    assert concept("휴가") in concepts("3일 쉬려고요")
    assert concept("휴가") not in concepts("못쉬려고")
    assert concepts("시간외 근무") == concepts("시간외근무") != frozenset()


@pytest.mark.parametrize(
    ("name", "begins", "inside"),
    [("이번주", "금주의 식단", "예금주 확인"), ("축구장", "공 차는 곳", "제공 차량")],
)
def test_a_short_form_is_no_part_of_another_word(name, begins, inside):
    assert concept(name) in concepts(begins)
    assert concept(name) not in concepts(inside)


def test_positions_are_those_of_the_text():
    text = "이번 주 야근\n신청"
    assert [text[a:b] for a, b, name in concepts_at(text) if "초과" in name] == ["야근"]


def test_a_form_of_two_words_is_found_with_and_without_its_space():
    for group in groups(KOREAN):
        for form in (form.removeprefix("^") for form in group if "_" in form):
            for gap in ("", " "):
                assert concept(group[0]) in concepts(form.replace("_", gap)), form


def test_a_form_written_with_and_without_its_mark_is_found_anywhere():
    assert concept("응급") in concepts("비응급")


def test_of_forms_that_begin_at_one_place_the_first_of_the_list_comes_first():
    """초과 is a form of its own, and 초과근무 stands before it."""
    assert [name for _, _, name in concepts_at("초과근무")][:1] == [concept("초과근무")]


def test_no_form_belongs_to_two_concepts_and_every_group_has_two_forms():
    """A form in two groups would make their words mean the same."""
    owners: dict[str, set[str]] = {}
    for group in groups(KOREAN):
        forms = {form.removeprefix("^").replace("_", "") for form in group}
        assert len(forms) > 1, group
        for form in forms:
            assert len(form) > 1, group
            owners.setdefault(form, set()).add(concept(group[0]))
    assert [form for form, names in owners.items() if len(names) > 1] == []


def test_a_word_that_asks_is_no_word_of_the_subject():
    """«누구인가요» would want 구인, «언제예요» 제예, and be missed in every passage."""
    index = BM25(RULES)
    for question in (
        "보수는 누구인가요?",
        "보수는 언제예요?",
        "보수가 얼마인지요?",
        "보수는 며칠이죠",
    ):
        assert [list(word.idf) for word in index.words(question)] == [[question[:2], question[1:3]]]


# -- coverage and ranking -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text("가나다라 abc12", max_size=30), st.text("가나다라 abc12", max_size=60))
def test_coverage_is_a_share_and_grows_with_the_text(question, text):
    words = BM25(RULES).words(question)
    some, more = coverage(words, marks(text)), coverage(words, marks(text) | marks(question))
    assert 0 <= some <= more <= 1 + 1e-12
    assert not words or more == pytest.approx(1)


def test_a_question_finds_the_rule_that_shares_no_syllable_with_it(index):
    assert not set(terms("야근")) & set(terms(RULES[0].text))
    assert find(index, "야근하려면 어떻게 하죠")[0].passage is RULES[0]


def test_a_heading_about_another_subject_speaks_against_its_passage(index):
    """«신청해야 하나요» is all that the question shares with the one about the bus."""
    hits = find(index, "야근은 언제까지 신청해야 하나요")
    assert hits[0].passage is RULES[0]


def test_the_rule_in_force_goes_before_the_one_it_replaced(index):
    assert answer(index, "연차는 며칠까지 이월되나요") == ("10일까지", "제9조(이월)")


def test_order_does_not_depend_on_hash_seed_or_time(index):
    first = [h.fit for h in find(index, "출장 명령은 누가 결재하나요")]
    assert first == [h.fit for h in find(BM25(RULES), "출장 명령은 누가 결재하나요")]
    assert first == sorted(first, reverse=True)


def test_without_leaves_a_document_out(index):
    hits = find(index, "통근버스는 신청하나요", without="질문.md")
    assert all(hit.passage.document != "질문.md" for hit in hits)


@pytest.mark.parametrize("question", ["", "   ", "?!", "🙂", "xyz zzz", "ㅋㅋㅋ"])
def test_a_question_that_says_nothing_finds_nothing_or_something_harmless(index, question):
    hits = find(index, question)
    assert best_sentence(index, question, hits) is None or hits


# -- the typed reader ---------------------------------------------------------------------------


def test_asked_what_it_is_the_definition_answers_without_its_frame(index):
    assert answer(index, "휴가저축이 뭔가요?") == ("쓰지 않은 휴가를 쌓는 것", "제2조(정의)")


def test_a_mark_in_a_table_answers_with_its_column(index):
    assert answer(index, "국외 출장 명령은 누가 최종 결재하나요?")[0] == "부원장"


@pytest.mark.parametrize(
    ("amount", "who"), [("2천만원어치", "부장"), ("300만원어치", "팀장"), ("1억원어치", "원장")]
)
def test_the_row_whose_range_holds_the_amount_answers(index, amount, who):
    assert answer(index, f"물품을 {amount} 사려는데 누가 결재하나요")[0] == who


def test_a_cell_is_chosen_by_the_column_the_question_names(index):
    assert answer(index, "숙박비는 2급이 얼마예요")[0] == "80,000원"


def test_what_the_question_says_is_no_answer(index):
    assert answer(index, "위원회 위원장은 누구예요")[0] == "부원장"


@pytest.mark.parametrize(
    ("question", "text", "found"),
    [
        ("위원은 몇 명이에요", "7명으로 한다", True),
        ("몇 살부터 되나요", "만 55세 이상", True),
        ("몇 번까지 돼요", "주 2회 한다", True),
        ("몇 기가까지 올라가나요", "파일 하나는 4GB까지 올린다", True),
        ("누가 정해요", "기록보존부가 정한다", True),
        ("누가 정해요", "전부를 기획전시실에서 정한다", False),
        ("조명은 몇 럭스예요", "온도는 18도로 한다", False),
        ("언제 나오나요", "매월 25일에 준다", True),
        ("어디서 받아요", "본관 1층 안내데스크에서 준다", True),
        ("어느 회의실에서 해요", "본관 3층 로비에서 한다", True),
    ],
)
def test_kind_asked(question, text, found):
    import re

    patterns = kinds_asked(question)
    assert patterns and any(re.search(p, text) for p in patterns) is found


def test_how_many_days_is_a_number_of_days_before_it_is_a_date():
    text = "연차는 최대 10일까지 이월할 수 있다.\n이월한 연차는 다음 해 6월 30일까지 쓴다."
    index = BM25([passage("제12조(연차의 이월)", text)])
    assert answer(index, "연차는 며칠까지 이월되나요?")[0] == "10일까지"
    assert answer(index, "이월한 연차는 언제까지 쓰나요?")[0] == "6월 30일까지"


def test_a_year_of_the_calendar_is_no_length_of_time():
    text = "개막식은 2025년 10월 13일 16시에 한다.\n보존 기간은 5년이다."
    index = BM25([passage("전시", text)])
    assert answer(index, "개막식은 며칠에 하나요?")[0] == "2025년 10월 13일"
    assert answer(index, "보존 기간은 얼마 동안인가요?")[0] == "5년"


@pytest.mark.parametrize(
    ("text", "question", "said"),
    [
        # «월 3회» is no date.
        (
            "외부 강의는 월 3회, 월 6시간을 넘을 수 없다.",
            "외부 강의는 한 달에 몇 번까지 가나요?",
            "3회",
        ),
        ("통신비는 월 20,000원을 준다.", "통신비는 얼마인가요?", "20,000원"),
        ("긴급구매는 3백만원까지 할 수 있다.", "긴급구매는 얼마까지 되나요?", "3백만원까지"),
        # An amount before a share; a size or a share where no amount is.
        (
            "주택자금은 연 2퍼센트의 이율로 30,000,000원까지 빌려준다.",
            "주택자금은 얼마까지 빌려주나요?",
            "30,000,000원까지",
        ),
        (
            "첨부파일은 50메가바이트까지 보낸다.",
            "첨부파일 용량은 얼마까지예요?",
            "50메가바이트까지",
        ),
        ("지체상금률은 1,000분의 1.25로 한다.", "지체상금률이 얼마예요?", "1,000분의 1.25"),
        # Who it is by name, from … to, where something is handed in.
        ("담당 사서는 금보라(내선 2711)로 한다.", "사서 선생님 성함이 뭐예요?", "금보라"),
        ("신청은 시설관리팀장이 받는다.", "신청은 누가 받아요?", "시설관리팀장"),
        (
            "협업시간은 오전 10시부터 11시 30분까지로 한다.",
            "협업시간은 몇 시부터 몇 시까지인가요?",
            "오전 10시부터 11시 30분까지",
        ),
        ("열쇠는 근무시간이 지나면 당직실에 반납한다.", "열쇠는 어디에 반납해요?", "당직실"),
        ("여름에는 7월 넷째 주 닷새를 쉰다.", "여름에는 언제 쉬나요?", "7월 넷째 주"),
        ("총회는 7월 넷째 주 월요일에 연다.", "총회는 언제 여나요?", "7월 넷째 주 월요일"),
        ("종무식은 12월 마지막 주에 한다.", "종무식은 언제 해요?", "12월 마지막 주"),
        # The day of a date is no length of time.
        ("신청은 3월 1일부터 받는다.", "신청은 며칠부터 받아요?", "3월 1일"),
        ("외부 강의는 월3회까지 할 수 있다.", "외부 강의는 몇 번까지 하나요?", "3회까지"),
        ("복사는 장마다 5백 원을 받는다.", "복사는 얼마예요?", "5백 원"),
        ("포상금은 2천만 원까지 준다.", "포상금은 얼마까지예요?", "2천만 원까지"),
        ("출장비는 하루 50달러를 준다.", "출장비는 하루에 얼마예요?", "50달러"),
        ("담당 사서는 금보라 ☎ 2711로 한다.", "사서 선생님 이름은 뭐예요?", "금보라"),
        ("접수는 금보라 주무관(내선 2711)이 한다.", "접수는 누가 해요?", "금보라 주무관"),
        # The end of a longer word is no name.
        ("사서는 안내데스크(내선 9)다.", "사서 성함이 뭐예요?", "사서는 안내데스크(내선 9)다."),
        ("첨부파일은 50MB 이하로 보낸다.", "첨부파일은 얼마까지예요?", "50MB 이하"),
        ("전시실은 50럭스로 밝힌다.", "전시실 밝기는 얼마예요?", "50럭스"),
        ("접수 담당자는 접수팀이다.", "접수 담당자는요?", "접수팀"),
        ("열람은 10:00~11:30에 한다.", "열람은 몇 시부터 몇 시까지 해요?", "10:00~11:30"),
        ("열람은 10:00~11:30에 한다.", "열람은 몇 시에서 몇 시 사이예요?", "10:00~11:30"),
        ("문은 9시 반에 연다.", "문은 몇 시에 열어요?", "9시 반"),
        ("신고는 누리집 «민원 신고»에 올린다.", "신고는 어디에 올려요?", "누리집 «민원 신고»"),
    ],
)
def test_the_thing_asked_for_is_cut_out(text, question, said):
    assert answer(BM25([passage("제5조(안내)", text)]), question)[0] == said


@pytest.mark.parametrize(
    ("question", "fits"),
    [
        ("본관 5층은 어느 계단으로 대피해요?", True),
        ("본관 9층은 어느 계단으로 대피해요?", False),
        ("본관 25층은 어느 계단으로 대피해요?", False),
        ("2관5층은 어느 계단으로 대피해요?", True),  # of a place with two numbers the last
        ("R-01은 어느 계단에 있나요?", True),
        ("R-22는 어느 계단에 있나요?", False),
        ("본관 5층에서 30명은 어느 계단으로 대피해요?", True),  # an amount need not be said
        ("대피 안내는 3부를 어느 계단에 두나요?", True),
        ("r-01은 어느 계단에 있나요?", True),
        ("본관 125 층은 어느 계단으로 대피해요?", True),
        ("7층은 어느 계단으로 대피해요?", True),  # a heading says it
        ("30호실은 어느 계단으로 대피해요?", False),
    ],
)
def test_nothing_fits_what_is_known_by_a_number_that_no_document_says(question, fits):
    text = (
        "본관 5 층은 동쪽 계단으로 대피한다.\n본관 125층은 없다.\n소화기 R-01은 동쪽 계단에 둔다."
    )
    index = BM25([passage("제3조(대피)", text), passage("7층", "서쪽 계단으로 대피한다.")])
    reading = typed_sentence(index, question, find(index, question))
    assert reading and (reading.features[0] > 0) is fits
    assert (reading.features[2] > 0) is fits
    assert fits or not any(reading.features[:4])


def test_in_a_folder_of_one_page_a_word_that_is_there_tells_nearly_as_much():
    """With df = n = 1 it would tell a fifth of what an unknown one does, and cover nothing."""
    index = BM25([passage("제5조(숙박비)", "숙박비는 1박에 7만 원까지 준다.")])
    assert index.idf("숙박") > index.idf("없는") / 2


def test_what_asks_inside_of_a_word_leaves_it_a_word():
    assert len(BM25(RULES).words("임진왜란 전시")) == 2


def test_asked_what_it_was_before_the_passage_that_says_so_goes_first():
    index = BM25(
        [
            passage("제4조(관람료)", "관람료는 어른 한 사람에 5,000원으로 한다."),
            passage("부칙", "어른 관람료는 3,000원에서 5,000원으로 올렸다."),
        ]
    )
    assert answer(index, "어른 관람료는 얼마예요?")[1] == "제4조(관람료)"
    for question in ("어른 관람료는 원래 얼마였어요?", "어른 관람료는 예전에 얼마였어요?"):
        assert answer(index, question)[1] == "부칙"
    assert BEFORE_SAID.search("관람료: 3,000원 → 5,000원")


def test_a_line_that_explains_its_first_words_may_be_lettered():
    for mark in ("", "가. ", "2) "):
        line = f"{mark}공유 링크: 계정이 없어도 본다."
        assert told_apart(line, "공유 링크가 뭐예요?") == 1.0


@pytest.mark.parametrize("asks", ["이 뭔데요?", "은 뭐죠", "은 뭐지?", "이 뭔 소리예요?"])
def test_however_its_meaning_is_asked_for_the_definition_answers(index, asks):
    assert answer(index, f"휴가저축{asks}") == ("쓰지 않은 휴가를 쌓는 것", "제2조(정의)")


def test_what_the_gate_judges_by_is_what_its_names_say():
    """The kind is looked for in the best line: 7만 원 in another is not what was asked for."""
    text = "숙박비는 원장이 정한다.\n식비는 7만 원이다."
    index = BM25([passage("제5조(금액)", text, "숙박 규정")])

    def judged(question: str) -> dict[str, float]:
        reading = typed_sentence(index, question, find(index, question))
        assert reading
        return dict(zip(EVIDENCE, reading.features, strict=True))

    amount, whether = judged("숙박비는 얼마예요?"), judged("숙박비를 정하나요?")
    assert (amount["asked"], amount["none asked"]) == (-1.0, 0.0)
    assert (whether["asked"], whether["none asked"]) == (0.0, 1.0)
    assert judged("식비는 얼마예요?")["asked"] == 1.0
    assert amount["covered"] > amount["headings"] > 0  # by the title, which says 숙박


def test_of_two_meanings_in_one_line_the_one_asked_for_is_given():
    text = (
        '이 규정에서 "전보"란 부서를 바꾸는 것을 말하고, "파견"이란 다른 기관에서 일하게 하는 '
        "것을 말한다."
    )
    index = BM25([passage("제2조(정의)", text), passage("제3조(전보)", "전보는 원장이 한다.")])
    assert answer(index, "파견이란 무엇인가요?")[0] == "다른 기관에서 일하게 하는 것"
    assert answer(index, "전보가 뭐예요?")[0] == "부서를 바꾸는 것"


@pytest.mark.parametrize(
    ("line", "question", "said"),
    [
        (
            "- 격층 운행: 홀수 층에만 서는 것",
            "격층 운행이라던데 무슨 소리예요?",
            "홀수 층에만 서는 것",
        ),
        ("- 격층 운행: 홀수 층에만 서는 것", "격층 운행이면 어떻게 타나요?", "홀수 층에만 서는 것"),
        (
            '5. "수료"란 학점을 모두 얻은 상태를 말한다.',
            "수료는 어떤 상태죠?",
            "학점을 모두 얻은 상태",
        ),
        # What is counted is asked for, or another word.
        ("- 격층 운행: 7월 1일부터 홀수 층", "격층 운행은 언제부터예요?", "7월 1일"),
        ("- 격층 운행: 홀수 층에만 서는 것", "홀수 층에는 어떻게 가나요?", None),
    ],
)
def test_a_word_explained_is_answered_by_what_it_is(line, question, said):
    index = BM25([passage("3. 말", f"승강기를 바꾼다.\n{line}")])
    assert answer(index, question)[0] == (said or line)


def test_a_sheet_that_says_its_unit_once_is_answered_by_cell():
    rows = (
        ("시설", "평일 종일", "주말 종일", "허가 부서"),
        ("잔디마당", "190,000", "247,000", "기획조정실"),
        ("영상녹화실", "50,000", "65,000", "정보화팀"),
    )
    text = "사용료(단위: 원), 넘기면 15%를 더한다.\n" + "\n".join(table_lines(rows))
    index = BM25([passage("사용료", text), passage("제1조(목적)", "시설을 빌려준다.")])
    assert answer(index, "주말에 잔디마당 종일 빌리면 얼마예요?")[0] == "247,000"
    assert answer(index, "잔디마당은 어느 부서 허가를 받나요?")[0] == "기획조정실"
    assert answer(index, "잔디마당 주말 종일은 언제 되나요?")[0] != "247,000"


def test_cells_are_read_back_from_the_line_they_were_written_in():
    rows = (("구분", "1급", "2급"), ("숙박비", "10원", "8원"))
    assert cells_of(table_lines(rows)[0]) == [("1급", "10원"), ("2급", "8원")]
    assert cells_of("가운뎃점 · 없는 칸") == cells_of("그냥 문장이다.") == []


# -- passages and what is shown of them ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("사업기간은 2023. 11. 30. 까지다. 늦으면 안 된다.", 2),
        ("접수는 2025. 3. 4.(화) 18:00까지 한다.", 1),
        ("1. 첫째 항목 가. 둘째 항목", 1),
        ("가. 과업개요를 쓴다. 나. 일정을 쓴다.", 2),
        ("그것은 내 것. 이것은 네 것이다.", 2),
        ("It ended in 2023. The next began.", 2),
        ("그는 갔다. 나는 왔다!\n우리는?", 3),
    ],
)
def test_a_point_in_a_date_or_after_a_mark_ends_no_sentence(text, found):
    assert len(sentences(text)) == found and "".join(sentences(text)) == re.sub(
        r"(?<=[다것]\.) |(?<=2023\.) (?=T)|\n", "", text
    )


def test_a_date_as_offices_write_it_is_answered_whole():
    index = BM25(
        [
            passage(
                "2. 과업개요", "가. 사업명: 음악축제 나. 사업기간: 계약일부터 2023. 11. 30. 까지"
            ),
            passage("3. 제출", "제안서는 방문하여 낸다."),
        ]
    )
    assert answer(index, "사업기간은 언제까지인가요?")[0] == "2023. 11. 30"


def test_what_is_shown_beside_an_answer_has_the_answer_in_it():
    text = "앞말이다.\n" + "가나다 " * 80 + "10일까지 이월한다.\n뒷말이다."
    assert "10일까지" in _shown(text, "10일까지") and len(_shown(text, "10일까지")) <= SHOWN + 2
    assert _shown(text, "") == _shown(text, "없는 말") == text[:SHOWN].replace("\n", " ")
    assert _shown("짧다. 10일까지다.", "10일까지") == "짧다. 10일까지다."


def test_a_latin_form_is_not_found_inside_a_longer_word():
    assert concepts("AI로 쓴 글") and not concepts("email mail aid") & concepts("AI로 쓴 글")
    pc = concept("피씨")  # nor one that only ends in Latin
    assert pc in concepts("업무용PC를") and pc not in concepts("업무용PCB를")
