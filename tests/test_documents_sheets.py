"""Tables and slides: CSV, Excel, PowerPoint, catalogues, data sets, notebooks."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import openpyxl
import pytest
import zstandard
from office_files import slides, workbook

from onsil.documents.delimited import read_csv, separator
from onsil.documents.formats import parse, suffix_of
from onsil.documents.json_lines import read_jsonl
from onsil.documents.notebook import read_ipynb
from onsil.documents.po import read_po
from onsil.documents.pptx import read_pptx
from onsil.documents.types import Block
from onsil.documents.xlsx import read_xlsx
from onsil.errors import OnsilError
from onsil.retrieval.passages import table_lines

# --- csv ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["cp949", "utf-8-sig", "utf-16"])
def test_csv_in_the_encodings_of_excel(encoding: str):
    data = '부서,담당자,비고\r\n총무과,김하늘,"전화, 방문\n모두 가능"\r\n\r\n인사과,박바다,\r\n'
    assert read_csv(data.encode(encoding))[1] == [
        Block(
            "table",
            rows=(
                ("부서", "담당자", "비고"),
                ("총무과", "김하늘", "전화, 방문\n모두 가능"),
                ("인사과", "박바다", ""),
            ),
        )
    ]


@pytest.mark.parametrize("parted", [",", "\t", ";", "|"])
def test_the_separator_is_the_one_that_parts_evenly(parted: str):
    rows = [["이름", "금액", "주소"], ["가", "1,200", "서울; 중구"], ["나", "3", "부산 | 서구"]]
    if parted in ";|":
        rows = [[cell.replace(parted, " ") for cell in row] for row in rows]
    text = "\n".join(
        parted.join(f'"{cell}"' if parted in cell else cell for cell in row) for row in rows
    )
    assert separator(text) == parted


def test_a_line_over_the_table_does_not_mislead():
    text = "2026년 현황\n부서,전화,비고\n총무,1,가\n인사,2,나\n"
    assert separator(text) == ","


def test_a_separator_that_is_said_is_obeyed():
    rows = read_csv("sep=;\r\n이름;값, 단위\r\n가;1, 원\r\n".encode())[1][0].rows
    assert rows == (("이름", "값, 단위"), ("가", "1, 원"))


def test_a_single_column_is_paragraphs_and_an_empty_file_is_nothing():
    assert read_csv("첫째 줄\n둘째 줄\n".encode())[1] == [
        Block("paragraph", "첫째 줄"),
        Block("paragraph", "둘째 줄"),
    ]
    assert read_csv(b"\n\n")[1] == []


# --- xlsx ---------------------------------------------------------------------------------------


def test_sheets_are_headings_and_merged_cells_are_repeated():
    title, blocks = read_xlsx(workbook())
    assert title == "예산"
    assert blocks == [
        Block("heading", "2026년", 1),
        Block(
            "table",
            rows=(
                ("구분", "구분", "금액", "비율", "기준일"),
                ("인건비", "정규직", "1200000", "25.60%", "2026-11-20"),
                ("인건비", "계약직", "0.3", "TRUE", "2026-11-20 09:30"),
            ),
        ),
        Block("heading", "둘째", 1),
        Block("table", rows=(("메모",),)),
    ]


@pytest.mark.parametrize(
    "value, form, shown",
    [
        (247000, "#,##0", "247,000"),
        (247000, '#,##0"원"', "247,000원"),
        (5000, "[$₩-412]#,##0", "₩5,000"),
        (12345, "_-* #,##0_-;-* #,##0_-", "12,345"),
        (-5, "#,##0;[Red]-#,##0", "-5"),
        (1234.5, "#,##0.00", "1,234.50"),
        (0.15, "0%", "15%"),
        (0.155, "0.0%", "15.5%"),
        (3, '0"명"', "3명"),
        (3.25, "General", "3.25"),
        (0.5, "# ?/?", "0.5"),
    ],
)
def test_numbers_are_written_as_their_format_shows_them(value, form, shown):
    import openpyxl

    book, stream = openpyxl.Workbook(), io.BytesIO()
    sheet = book.active
    assert sheet is not None
    sheet.append(["항목", "값"])
    sheet.append(["가", value])
    sheet["B2"].number_format = form
    book.save(stream)
    assert read_xlsx(stream.getvalue())[1][1].rows[1] == ("가", shown)


def test_a_title_over_the_whole_table_is_a_paragraph():
    import openpyxl

    book, stream = openpyxl.Workbook(), io.BytesIO()
    sheet = book.active
    assert sheet is not None
    for row in (
        ["사용료(단위: 원)"],
        ["시설", "평일", None],
        ["시설", "반일", "종일"],
        ["마당", 8, 15],
    ):
        sheet.append(row)
    sheet.merge_cells("A1:C1")
    sheet.merge_cells("B2:C2")
    sheet.merge_cells("A2:A3")
    book.save(stream)
    _, title, table = read_xlsx(stream.getvalue())[1]
    assert title == Block("paragraph", "사용료(단위: 원)")
    assert table_lines(table.rows) == ["마당 · 평일 반일: 8 / 평일 종일: 15"]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (("보증금", "5%", "5%", "계약 때"), "보증금 · 비율: 5% / 기한: 계약 때"),  # one cell
        (("보증금", "보증금", "5%", "5%"), "보증금 · 비율: 보증금 / 비율: 5% / 기한: 5%"),
        (("총무팀",) * 4, "총무팀"),  # across the table
        (("", "", "", ""), None),
    ],
)
def test_a_cell_merged_across_columns_is_said_once(row, line):
    heads = ("항목", "비율", "비율", "기한")
    assert table_lines((heads, row)) == ([line] if line else [])


def test_a_stray_cell_at_the_far_end_costs_nothing():
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet["A1"], sheet["B2"], sheet["XFD1048576"] = "처음", "둘째", "끝"
    sheet.merged_cells.add("A3:XFD1048575")
    sheet.merged_cells.add("A1:A1048576")
    out = io.BytesIO()
    book.save(out)
    assert read_xlsx(out.getvalue())[1][1].rows == (
        ("처음", "", ""),
        ("처음", "둘째", ""),
        ("처음", "", "끝"),
    )


@pytest.mark.parametrize("read", [read_xlsx, read_pptx])
def test_encrypted_and_false_packages_are_named(read):
    ole = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)
    with pytest.raises(OnsilError, match="encrypted with a password"):
        read(ole + "EncryptedPackage".encode("utf-16-le"))
    for data in (ole, b"not a zip"):
        with pytest.raises(OnsilError, match="is no"):
            read(data)


# --- pptx ---------------------------------------------------------------------------------------


def test_slides_give_titles_text_tables_and_notes():
    title, blocks = read_pptx(slides())
    assert title == ""  # the library's default title is nobody's
    assert blocks == [
        Block("heading", "추진 배경", 1),
        Block("paragraph", "첫째 항목"),
        Block("paragraph", "둘째 항목"),
        Block("paragraph", "발표자 메모"),
        Block("table", rows=(("구분", "구분", "일정"), ("", "", "2월"))),
        Block("paragraph", "묶인 글상자"),
    ]


# --- data sets, notebooks, catalogues -----------------------------------------------------------


def test_json_lines_keep_what_is_text():
    rows = [
        {
            "id": "a-17",
            "url": "https://example.kr/가나",
            "본문": "연차는 15일이다.",
            "제목": "연차",
        },
        {"messages": [{"role": "user", "content": "몇 일인가요?"}, {"content": "열닷새입니다"}]},
        ["two words", 3, None, "code"],
    ]
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert read_jsonl(data.encode())[1] == [
        Block("heading", "연차", 1),
        Block("paragraph", "연차는 15일이다."),
        Block("paragraph", "몇 일인가요?"),
        Block("paragraph", "열닷새입니다"),
        Block("paragraph", "two words"),
    ]
    with pytest.raises(OnsilError, match="line 2 is not JSON"):
        read_jsonl(b'{"a": 1}\n{"a": \n')


def test_notebook_cells():
    cells = [
        {"cell_type": "markdown", "source": ["# 분석\n", "\n", "**자료**를 읽는다."]},
        {"cell_type": "code", "source": "x = 1\nprint(x)", "outputs": [{"text": "하나"}]},
        {"cell_type": "raw", "source": "버림"},
    ]
    assert read_ipynb(json.dumps({"cells": cells, "metadata": {"title": "노트"}}).encode()) == (
        "노트",
        [
            Block("heading", "분석", 1),
            Block("paragraph", "자료를 읽는다."),
            Block("paragraph", "x = 1\nprint(x)"),
        ],
    )
    for data in (b'{"worksheets": []}', b"[", b"[]"):
        with pytest.raises(OnsilError, match="not a notebook"):
            read_ipynb(data)


def test_catalogue_rows():
    text = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#. a comment
#: file.c:1
msgctxt "menu"
msgid "Open \"%s\""
msgstr "“%s” 열기"

msgid ""
"two "
"parts\n"
msgstr "두 "
"부분\n"

msgid "one file"
msgid_plural "%d files"
msgstr[0] "파일 %d개"

msgid "not yet"
msgstr ""

#~ msgid "old"
#~ msgstr "옛것"
"""
    assert read_po(text.encode())[1] == [
        Block(
            "table",
            rows=(
                ('Open "%s"', "“%s” 열기"),
                ("two parts", "두 부분"),
                ("one file\n%d files", "파일 %d개"),
                ("not yet", ""),
            ),
        )
    ]


def test_real_notebooks_catalogues_and_rst_keep_their_hangul(onsil_data: Path):
    with (onsil_data / "raw-docs" / "raw-docs.tar.zst").open("rb") as packed:
        stream = zstandard.ZstdDecompressor().stream_reader(packed)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            counts: Counter[str] = Counter()
            for member in archive:
                suffix = suffix_of(member.name)
                if (
                    suffix not in (".po", ".ipynb", ".rst")
                    or (file := archive.extractfile(member)) is None
                ):
                    continue
                data = file.read()
                _, blocks, _ = parse(suffix, data)
                cells = [cell for block in blocks for row in block.rows for cell in row]
                kept = hangul("".join([block.text for block in blocks] + cells))
                counts.update(
                    {suffix: 1, f"{suffix} in": hangul(data.decode()), f"{suffix} out": kept}
                )
    assert counts[".po"] == counts[".ipynb"] == counts[".rst"] == 12
    assert counts[".ipynb out"] == counts[".ipynb in"] > 15_000
    assert counts[".po out"] > 0.99 * counts[".po in"] > 16_000  # obsolete entries go
    assert counts[".rst out"] > 0.98 * counts[".rst in"] > 11_000  # comments and targets go


def hangul(text: str) -> int:
    return sum("가" <= c <= "힣" for c in text)
