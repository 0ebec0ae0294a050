"""Binary HWP: what comes out of files written here by hand, and out of 한글's own."""

import struct
from pathlib import Path

import pytest
from hwp_files import (
    anchor,
    compound,
    control,
    counted,
    encrypt,
    hwp_file,
    paragraph,
    record,
    scramble,
    styles,
    text_list,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from onsil.documents.hwp import read_hwp
from onsil.documents.hwp_distribution import decrypt, descramble
from onsil.documents.types import Block
from onsil.errors import OnsilError

TABLE = record(0x4D, 2, struct.pack("<IHH", 0, 3, 3))


def texts(data: bytes) -> list[str]:
    return [block.text for block in read_hwp(data)[1]]


def cell(column: int, row: int, text: str, columns: int = 1, rows: int = 1) -> bytes:
    return text_list(2, paragraph(text, 2), cell=(column, row, columns, rows))


def table(*cells: bytes, before: bytes = b"") -> bytes:
    host = paragraph(anchor(11, "tbl "))
    return host + control("tbl ", 1) + before + TABLE + b"".join(cells)


@pytest.mark.parametrize(
    "flags", [0, 1, 4, 5], ids=["plain", "deflate", "배포용", "배포용 deflate"]
)
def test_text_comes_out_of_every_kind_of_stream(flags: int):
    sections = [paragraph("첫째 구역") + paragraph("둘째 줄")]
    sections += [paragraph(f"구역 {i}") for i in range(1, 11)]
    expected = ["첫째 구역", "둘째 줄", *(f"구역 {i}" for i in range(1, 11))]  # 10 comes after 9
    assert texts(hwp_file(*sections, flags=flags)) == expected


def test_marks_in_the_text():
    text = "앞\t뒤\n줄\x18끝\x1e빈\x1f칸" + anchor(22, "bokm") + "책\U00020000갈피"
    assert texts(hwp_file(paragraph(text) + control("bokm", 1))) == [
        "앞\t뒤\n줄-끝\u00a0빈 칸책\U00020000갈피"
    ]


def test_a_mark_whose_contents_look_like_text_does_not_leak():
    words = anchor(4, "%clk")  # the name of a control, 'klc%', would be two CJK characters
    assert texts(hwp_file(paragraph("가" + words + "나"))) == ["가나"]


def test_outline_levels_are_headings_by_shape_or_by_style():
    info = styles([0, 1, 3], ["바탕글", "개요 2", "Outline"])
    body = (
        paragraph("총칙", shape=1)
        + paragraph("세부", shape=2)
        + paragraph("이름으로", style=1)
        + paragraph("본문", style=2)
        + paragraph("긴 글 " * 40, shape=1)
        + paragraph("모르는 모양", shape=99, style=99)
    )
    blocks = read_hwp(hwp_file(body, info=info))[1]
    assert [(b.kind, b.level) for b in blocks] == [
        ("heading", 1),
        ("heading", 3),
        ("heading", 2),
        ("paragraph", 0),
        ("paragraph", 0),
        ("paragraph", 0),
    ]


def test_table_cells_are_laid_out_by_address_and_merged_cells_are_repeated():
    body = table(
        cell(0, 0, "구분", columns=2),
        cell(2, 0, "일수"),
        cell(1, 1, "1년"),
        cell(0, 1, "정규", rows=2),  # out of order in the file, as 한글 may leave it
        cell(2, 1, "15"),
        cell(1, 2, "2년"),
        cell(2, 2, "16"),
        before=text_list(2, paragraph("표 " + anchor(18, "atno"), 2))
        + control("atno", 3, struct.pack("<IHHHH", 4, 7, 0, 0, 0)),
    )
    assert read_hwp(hwp_file(body))[1] == [
        Block("paragraph", "표 7"),
        Block(
            "table",
            rows=(("구분", "구분", "일수"), ("정규", "1년", "15"), ("정규", "2년", "16")),
        ),
    ]


def test_a_table_in_a_cell_follows_and_a_frame_is_no_table():
    inner = (
        paragraph(anchor(11, "tbl "), 2)
        + control("tbl ", 3)
        + record(0x4D, 4, struct.pack("<IHH", 0, 1, 2))
        + text_list(4, paragraph("ㄱ", 4), cell=(0, 0, 1, 1))
        + text_list(4, paragraph("ㄴ", 4), cell=(1, 0, 1, 1))
    )
    outer = table(cell(0, 0, "가"), text_list(2, paragraph("나", 2), inner, cell=(1, 0, 1, 1)))
    assert read_hwp(hwp_file(outer))[1] == [
        Block("table", rows=(("가", "나"),)),
        Block("table", rows=(("ㄱ", "ㄴ"),)),
    ]
    frame = table(cell(0, 0, "액자 속"), cell(0, 1, "글"))
    assert texts(hwp_file(frame)) == ["액자 속", "글"]


def test_notes_boxes_equations_ruby_and_running_heads():
    script = record(0x58, 2, struct.pack("<I", 0) + counted("x`=`{a} over {b}"))
    box = control("gso ", 1) + record(0x4C, 2) + text_list(3, paragraph("글상자", 3))
    body = (
        paragraph("값은 " + anchor(11, "eqed") + " 이다" + anchor(17, "fn  "))
        + control("eqed", 1)
        + script
        + control("fn  ", 1)
        + text_list(2, paragraph("각주", 2))
        + paragraph(anchor(23, "tdut"))
        + control("tdut", 1, counted("본말") + counted("덧말"))
        + paragraph(anchor(11, "gso "))
        + box
    )
    head = paragraph(anchor(16, "head")) + control("head", 1) + text_list(2, paragraph("머리말", 2))
    hidden = paragraph(anchor(15, "tcmt")) + control("tcmt", 1) + text_list(2, paragraph("숨김", 2))
    assert texts(hwp_file(head + body + hidden, head)) == [
        "값은 x = {a} over {b} 이다",
        "각주",
        "본말",
        "글상자",
        "머리말",  # once, after everything else, though both sections have it
    ]


def test_the_title_counts_if_the_text_says_it():
    assert read_hwp(hwp_file(paragraph("휴가  규정"), title="□ 휴가 규정"))[0] == "휴가 규정"
    assert read_hwp(hwp_file(paragraph("다른 글"), title="휴가 규정"))[0] == ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (hwp_file(paragraph("가"), flags=3), "encrypted with a password"),
        (hwp_file(paragraph("가"), flags=1 | 1 << 4), "DRM"),
        (hwp_file(paragraph("가"), flags=1 | 1 << 8), "DRM"),
        (b"HWP Document File V3.00 \x1a\1\2\3\4\5", "HWP 3.00"),
        (b"HWP Document File V2.10", "HWP 2.10"),
        (hwp_file(), "no BodyText/Section0"),
        (hwp_file(paragraph("가"))[:1500], "damaged"),
        (compound({"WordDocument": b"x"}), "not an HWP 5 document"),
        (b"%PDF-1.4", "it begins 25 50 44 46"),
        (hwp_file(record(0x42, 1000)), "nested 1000 levels"),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, said: str):
    with pytest.raises(OnsilError) as caught:
        read_hwp(data)
    assert said in caught.value.en[0] and all(caught.value.ko)


def test_a_stream_that_unpacks_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("onsil.documents.hwp_records.LARGEST", 10_000)
    assert texts(hwp_file(paragraph("가" * 4_000))) == ["가" * 4_000]
    with pytest.raises(OnsilError, match="unpacks to more than 10,000 bytes"):
        read_hwp(hwp_file(paragraph("가" * 10_000)))


def test_aes_is_the_one_of_the_standard():
    key = bytes(range(16))  # FIPS 197, appendix C.1
    block = bytes.fromhex("00112233445566778899aabbccddeeff")
    sealed = bytes.fromhex("69c4e0d86a7b0430d8cdb78070b4c55a")
    assert decrypt(sealed * 3, key) == block * 3
    assert encrypt(block, key) == sealed


@settings(max_examples=20)
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))
def test_what_was_scrambled_comes_back(section: bytes, seed: int, key: bytes):
    assert descramble(scramble(section, seed, key)).startswith(section)


@settings(deadline=None)
@given(st.data())
def test_broken_bytes_end_in_text_or_in_a_named_error(data: st.DataObject):
    whole = bytearray(hwp_file(paragraph("본문") + table(cell(0, 0, "가"), cell(1, 0, "나"))))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_hwp(bytes(whole))
    except OnsilError as error:
        assert all(error.en) and all(error.ko)


def test_files_saved_by_hangul(onsil_data: Path):
    folder = onsil_data / "documents" / "hwp"
    read = {file.stem: texts(file.read_bytes()) for file in sorted(folder.glob("*.hwp"))}
    assert read["hello_world"] == ["Hello World!"]
    assert read["range"] == ["Hello World!"]
    assert read["draw_text"] == ["글상자1", "글상자2"]
    assert read["group_with_draw_text"] == ["테스트1", "테스트2"]
    assert read["dutmal"] == ["본문 입니다 본문 입니다"]
    assert read["bookmark"] == read["outline"] == []  # a bookmark and a drawing, no text
