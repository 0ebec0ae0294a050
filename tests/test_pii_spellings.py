"""Numbers under a label as people and sheets write them, and what only stands beside one."""

import re

import pytest

from onsil.corpus.pii import find, mask, mask_document
from onsil.documents.types import Block, Document

FOUND = [
    ("주민번호 900101-1 234567", "rrn"),
    ("주민등록번호: 900101-12 34567", "rrn"),
    ("주민등록번호 900101-1234 567", "rrn"),
    ("주민번호 900101 ~ 1234567", "rrn"),
    ("주민번호 900101～1234567", "rrn"),
    ("주민번호:900101,1234567", "rrn"),
    ("주민등록번호: (900101) - (1234567)", "rrn"),
    ("주민등록번호 90 01 01-1234567", "rrn"),
    ("주민번호 90.01.01-1234567", "rrn"),
    ("주민등록번호\n900101\n1234567", "rrn"),
    ("주민등록번호 앞자리 900101 뒷자리 1234567", "rrn"),
    ("주민번호는 앞 900101 뒤 1234567이다", "rrn"),
    ("주민번호 앞 6자리: 900101, 뒤 7자리: 1234567", "rrn"),
    ("생년월일 90.1.1. 주민번호 뒷자리는 1234567이다", "rrn"),
    ("주민(앞) 900101", "rrn"),
    ("주민등록번호 501013123456", "rrn"),  # 050101-3123456
    ("주민번호\n1013123456", "rrn"),  # 000101-3123456
    ("휴대폰 1012345678", "phone"),
    ("핸드폰: 1012345678", "phone"),
    ("전화번호\n1012345678", "phone"),
    ("연락처 1012345678.0", "phone"),
    ("여권번호 M 1234 5678", "passport"),
    ("여권 M1234 5678", "passport"),
    ("여권번호 M  123 A 4567", "passport"),
    ("통관부호 P 123456789012", "customs"),
    ("통관부호는 p 1234 5678 9012", "customs"),
    ("전화 2-1234-5678", "phone"),
    ("연락처: 31-234-5678", "phone"),
    ("팩스 64.712.3456", "phone"),
    ("대표전화 70-1234-5678", "phone"),
    ("전화번호\n21234567", "phone"),
    ("연락처 312345678.0", "phone"),
    ("Tel: 5112345678", "phone"),
    ("Fax 212345678", "phone"),
    ("전화(사무실) 312345678, 312345679", "phone"),
    ("직통번호는 22345678", "phone"),
    ("아래 계좌로 입금하여 주시기 바랍니다.\n110-123-456789", "account"),
    ("아래 계좌로 입금하여 주시기 바랍니다.\n\n110123456789 (홍길동)", "account"),
    ("여권번호를 적어 주세요.\nAB1234567", "passport"),
    ("주문번호를 적는다.\n01012345678", "phone"),  # what forbids does not cross a full stop
]
LEFT = [
    "접수번호 900101-1 234567",
    "주민등록 기간 200101 ~ 201231 3명",
    "모델 900101 ~ 1234567",
    "주민번호 칸 (900101) 쪽",
    "앞자리 900101 뒷자리 1234567",
    "앞면 900101, 뒷면 1234567",
    "좌표 앞 900101 뒤 1234567",
    "주민번호 앞 6자리만 쓴다. 뒤는 1234567",
    "주민번호는 쓰지 않는다. 생년월일 900101",
    "주민번호 대신 회원번호 1234567",
    "주민(住民) 1234567명",
    "주민번호 관리 코드 202603010001",
    "주민등록번호 509913123456",  # no such day when the zero is put back
    "주민등록 인구 1012345678명",
    "가운데\n900101\n1234567",
    "전화요금 고객번호 1012345678",
    "휴대폰 할부 총액 1012345678원",
    "운송장번호 1012345678",
    "전화 상담 1,012,345,678건",
    "전화번호 대신 사번 2012345678",
    "2-1234-5678",
    "접수 312345678",
    "전화요금\n21234567",
    "전화 요금 합계\n312345678",
    "연락처는 20250301 기준",
    "전화 상담 실적 21234567",
    "전화 접수 31-2024-0012",
    "전화 접수번호 312345678",
    "팩스 발송 2-1234-5678원",
    "연락처 목록 문서번호 2-1234-5678",
    "여권 통계 A 2024 2025",
    "여권 발급 D 2024 2025",
    "통관 실적 P 1234 5678",
    "상품코드 P 123456789012",
    "상품코드 P 1234 5678 9012",
    "위 계좌로 보낸다.\n2026-03-01 10:00에 모인다",
    "은행 인가를 받는다.\n2026-0001-0002 문서를 본다",
    "계좌는 회계과가 관리한다.\n문서번호 2026-0001-0002",
    "송금은 은행에서 한다.\n1234567890원",
    "계좌 개설은 창구에서 한다.\n제2026-03-1234567호",
]


def test_as_many_are_to_be_left_as_found():
    assert len(FOUND) == len(LEFT)


@pytest.mark.parametrize(("text", "kind"), FOUND)
def test_a_labelled_number_is_found(text, kind):
    assert {f.kind for f in find(text)} == {kind}
    assert not re.search(r"\d{3}", mask(text)[0])


@pytest.mark.parametrize("text", LEFT)
def test_a_number_of_something_else_is_left(text):
    assert find(text) == []


def masked(*blocks: Block) -> tuple[Block, ...]:
    document = Document("a.md", "0" * 64, "md", "제목", blocks)
    return mask_document(document, list(range(len(blocks))), document.path)[0].blocks


def test_halves_in_two_columns_are_masked_by_their_heads():
    heads = ("성명", "주민번호(앞)", "주민번호(뒤)", "휴대폰")
    (table,) = masked(Block("table", rows=(heads, ("홍길동", "900101", "1234567", "1012345678"))))
    assert table.rows[1] == ("홍길동", "[주민등록번호]", "[주민등록번호]", "[전화번호]")


def test_halves_under_one_head_over_two_columns_are_masked():
    rows = (("성명", "주민등록번호", "주민등록번호"), ("홍길동", "900101", "1234567"))
    assert masked(Block("table", rows=rows))[0].rows[1][1:] == ("[주민등록번호]",) * 2


def test_other_columns_of_six_and_seven_digits_are_left():
    rows = (("성명", "생년월일", "금액"), ("홍길동", "900101", "1234567"))
    assert masked(Block("table", rows=rows))[0].rows == rows


def test_two_paragraphs_under_one_label_are_both_masked():
    lines = ("주민등록번호", "900101", "1234567", "1234567")
    blocks = masked(*(Block("paragraph", line) for line in lines[:3]))
    assert [b.text for b in blocks] == ["주민등록번호", "[주민등록번호]", "[주민등록번호]"]
    blocks = masked(*(Block("paragraph", line) for line in ("관리 대장", *lines[1:])))
    assert [b.text for b in blocks] == ["관리 대장", *lines[1:]]


def test_a_paragraph_that_ends_with_a_full_stop_names_the_next():
    said = Block("paragraph", "아래 계좌로 입금하여 주시기 바랍니다.")
    assert masked(said, Block("paragraph", "110123456789"))[1].text == "[계좌번호]"


@pytest.mark.parametrize(
    "number", ["2-1234-5678", "21234567", "312345678", "3112345678", "70-1234-5678"]
)
def test_a_landline_that_a_sheet_robbed_of_its_zero_is_masked_under_its_head(number):
    rows = (("부서", "담당", "전화번호", "품목번호"), ("총무과", "홍길동", number, number))
    (table,) = masked(Block("table", rows=rows))
    assert table.rows[1] == ("총무과", "홍길동", "[전화번호]", number)
