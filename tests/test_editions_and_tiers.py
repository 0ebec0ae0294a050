"""Which edition is in force however that is written; values in tiers; lines cut between words."""

import pytest

from onsil.corpus.pii import mask
from onsil.documents.types import Block, Document
from onsil.retrieval.asked import kinds_asked
from onsil.retrieval.bm25 import BM25
from onsil.retrieval.passages import (
    LONGEST,
    cells_of,
    in_force,
    passages_of,
    rule_name,
    table_lines,
)
from onsil.retrieval.ranking import find
from onsil.retrieval.readers import typed_sentence
from onsil.retrieval.values import Range, fits, quantities, ranges, same_values

OLD, NEW = "숙박비는 18만원으로 한다.", "숙박비는 12만원으로 한다."


def rule(title: str, *texts: str, path: str = "a.md", rows: tuple = ()) -> Document:
    blocks = [Block("paragraph", text) for text in texts]
    return Document(
        path, "", "md", title, (*blocks, *([Block("table", rows=rows)] if rows else ()))
    )


def answer(documents: list[Document], question: str) -> str:
    index = BM25(passages_of(tuple(documents), (2026, 11, 23)))
    return typed_sentence(index, question, find(index, question)).answer


def test_the_edition_in_force_is_quoted_however_its_day_is_written():
    spelled = {
        "시행일자: {}. {}. 1.": "여비 규정",
        "시행일: {}/{}/01": "여비 규정",
        "개정일자 : {}-{}-01": "여비 규정",
        "시행일: {}. {}. 1.": "여비 규정 v1.{}",
        "시행일: {}. {}. 1. ": "여비 규정({}. 3. 1.)",
        "": "여비 규정 [시행 {}. {}. 1.]",
        "시행일 : {}. {}. 1.": "여비 규정(제{}차 개정)",
        "개정: {}. {}. 1.": "여비 규정 제{}판",
    }
    for line, title in spelled.items():
        two = [
            rule(title.format(year, month), line.format(year, month), said, path=f"{year}.md")
            for year, month, said in ((2024, 7, OLD), (2025, 3, NEW))
        ]
        assert answer(two, "숙박비는 얼마인가요?") == "12만원", (line, title)


def test_a_cover_table_tells_the_day_and_a_plan_does_not():
    rows = (("문서번호", "A-1"), ("시행일", "2025. 3. 1."))
    assert in_force(rule("여비 규정", rows=rows)) == (2025, 3, 1)
    assert in_force(rule("여비 규정", "다음 개정: 2026. 1. 1. 예정")) == (0, 0, 0)
    assert (
        rule_name(rule("여비 규정(3차 개정)")) == rule_name(rule("여비 규정 제4판")) == "여비규정"
    )


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("10~20만원", 100_000, 200_000),
        ("1.5~2만원", 15_000, 20_000),
        ("1~3억원", 10**8, 3 * 10**8),
        ("50만원~100만원", 500_000, 1_000_000),
        ("5천~1만원", 5_000, 10_000),
        ("500~1만원", 500, 10_000),
    ],
)
def test_the_scale_at_the_end_of_a_range_is_that_of_both_ends(text: str, low: float, high: float):
    assert ranges(text) == [Range(low, high, "원")]


def test_years_and_months_are_of_one_kind():
    assert [q.value for q in quantities("1년 6개월")] == [18]
    assert [q.value for q in quantities("1년 이상, 6개월 미만")] == [12, 6]
    assert [q.value for q in quantities("2년, 24개월")] == [24, 24]
    tiers = ["6개월 이상 1년 미만", "1년 이상 3년 미만", "3년 이상"]
    for asked, fit in (("8개월", 0), ("18개월", 1), ("1년 6개월", 1), ("24개월", 1), ("4년", 2)):
        assert [fits(f"근속 {asked}이면?", tier) > 0 for tier in tiers] == [
            n == fit for n in range(3)
        ]
    assert same_values("1년", "12개월")


def test_a_long_line_is_cut_between_words_and_a_row_between_cells():
    for pad in range(440, 452):
        long = "가나다라 " * 200
        text = f"{long[:pad]} 1,350,000원으로 한다. " + "그 밖의 일은 따로 정한다 " * 3
        found = [p.text for p in passages_of((rule("여비", text),))]
        assert any("1,350,000원으로" in one for one in found)
        assert all(len(one) <= LONGEST for one in found)
    heads = ("이름", *(f"열{n}" for n in range(60)))
    rows = (heads, ("총무과", *(f"값 {n} 번" for n in range(60))))
    found = passages_of((rule("표", rows=rows),))
    cells = [cell for p in found for line in p.text.split("\n") for cell in cells_of(line)]
    assert cells == [(f"열{n}", f"값 {n} 번") for n in range(60)] and len(found) > 1
    assert all(p.text.startswith("총무과 · ") for p in found)


def test_strokes_inside_a_cell_part_no_cells():
    rows = (("강좌", "요일", "시간"), ("서예", "월 / 수 / 금", "10:00"))
    assert cells_of(table_lines(rows)[0]) == [("요일", "월/수/금"), ("시간", "10:00")]


def test_what_is_asked_for_decides_before_what_is_said_beside_it():
    papers = [
        rule("환급", "신청서를 내면 7일 이내에 수강료 50,000원을 환급한다."),
        rule("접수", "접수는 2025. 3. 10.부터 받으며 매일 18시에 마감한다.", path="b.md"),
        rule("정산", "출장자는 돌아온 날부터 5일 이내에 여비를 정산한다.", path="c.md"),
    ]
    assert answer(papers, "환급까지 얼마나 걸려요?") == "7일 이내"
    assert answer(papers, "접수는 몇 시에 마감하나요?") == "18시"
    assert answer(papers, "15일 이내 출장은 여비를 며칠 안에 정산하나요?") == "5일 이내"
    assert kinds_asked("수강료는 얼마예요?") != kinds_asked("환급에 얼마나 걸려요?")


@pytest.mark.parametrize("head", ["예금 잔액(원)", "입금액", "이체한도(원)", "송금 금액"])
def test_amounts_are_no_account_numbers(head: str):
    assert "1250000000" in mask(f"{head}: 1250000000")[0]


def test_accounts_beside_those_words_are_masked_still():
    assert "110-123-456789" not in mask("입금 계좌: 신한 110-123-456789")[0]
    assert "11012345678901" not in mask("예금 계좌번호 11012345678901")[0]
