"""What a reader might drop without a word: notes, rows, figures, sentences around a comment."""

import io
import time
import zipfile

import openpyxl
import pytest
from office_files import pdf_file, word_file

from onsil.corpus.deduplicate import repeated_lines
from onsil.documents.delimited import read_csv
from onsil.documents.docx import read_docx
from onsil.documents.html import read_html
from onsil.documents.lines import paragraphs
from onsil.documents.markdown import read_markdown
from onsil.documents.pdf import read_pdf
from onsil.documents.rst import read_rst
from onsil.documents.tables import titles_apart
from onsil.documents.types import Block, Document
from onsil.documents.xlsx import read_xlsx


def said(blocks: list[Block]) -> list[str | tuple[tuple[str, ...], ...]]:
    return [block.rows or block.text for block in blocks]


# --- Markdown, reStructuredText -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "연차는 15일이다.[^1]\n\n[^1]: 임원은 제외한다.",
            ["연차는 15일이다.", "임원은 제외한다."],
        ),
        ("[비고]: 수습 직원은 제외한다.", ["[비고]: 수습 직원은 제외한다."]),
        ("[문의]: 총무팀", ["[문의]: 총무팀"]),
        ('[docs]: https://example.kr/a "안내"\n글', ["글"]),
        ("`<!--` 로 시작한다.\n\n병가는 30일이다.", ["<!-- 로 시작한다.", "병가는 30일이다."]),
        ("연차는 15일. <!-- 메모\n둘째 --> 병가는 30일.", ["연차는 15일. 병가는 30일."]),
        ("값이 <!-- 보다 작다.\n\n끝.", ["값이 <!-- 보다 작다.", "끝."]),
        ("```npm install```을 한다.\n\n끝.", ["npm install을 한다.", "끝."]),
        ("- 첫째\n- 둘째\n---\n끝", ["첫째", "둘째", "끝"]),
        ("> 인용\n---\n끝", ["인용", "끝"]),
        ("번호 900101-1******", ["번호 900101-1******"]),
        ("**굵게** 그리고 *기울여*", ["굵게 그리고 기울여"]),
    ],
)
def test_markdown_keeps_what_only_looks_like_a_mark(text: str, found: list[str]):
    blocks = read_markdown(text.encode())[1]
    assert said(blocks) == found and {block.kind for block in blocks} == {"paragraph"}


def test_restructured_notes_captions_and_listed_tables():
    text = """연차는 15일이다 [1]_.

.. [1] 임원은 제외한다.
.. [나] 수습은 11일이다.

.. figure:: a.png
   :width: 10

   그림 1. 조직도

.. csv-table:: 여비
   :header: 구분, 금액

   국내, "50,000원"

.. 이것은 주석이다.
"""
    assert said(read_rst(text.encode())[1]) == [
        "연차는 15일이다.",
        "임원은 제외한다.",
        "수습은 11일이다.",
        "그림 1. 조직도",
        "여비",
        (("구분", "금액"), ("국내", "50,000원")),
    ]


# --- HTML -----------------------------------------------------------------------------------------


def test_a_form_around_a_page_is_read_and_its_fields_are_not():
    page = """<form id="all"><p>숙박비는 10만원이다.</p><input value="검색">
    <textarea>적는 곳</textarea><table><tr><td>가</td><td>1</td></tr>
    <tr hidden><td>숨김</td><td>2</td></tr>
    <tr><td>나</td><td style="display: none">9</td><td>3</td></tr></table></form>"""
    assert said(read_html(page.encode())[1]) == ["숙박비는 10만원이다.", (("가", "1"), ("나", "3"))]


@pytest.mark.parametrize("encoding", ["cp949", "utf-8"])
@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "utf-16", "no-such"])
def test_a_charset_that_cannot_be_meant_is_not_believed(encoding: str, declared: str):
    page = f'<meta charset="{declared}"><p>연차는 15일이다. 병가는 30일이다.</p>'
    assert said(read_html(page.encode(encoding))[1]) == ["연차는 15일이다. 병가는 30일이다."]


def test_a_western_page_is_read_as_it_says():
    page = '<meta charset="iso-8859-1"><p>Le congé est de dix jours, payé à l’avance.</p>'
    page = page.replace("’", "'")
    assert said(read_html(page.encode("latin-1"))[1]) == [
        "Le congé est de dix jours, payé à l'avance."
    ]


# --- Word -----------------------------------------------------------------------------------------

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def with_body(body: str, notes: str = "") -> bytes:
    """A DOCX with another body, and footnotes if there are any."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word_file())) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name == "word/document.xml":
                part = f"<w:document {W}><w:body>{body}</w:body></w:document>".encode()
            if name == "[Content_Types].xml" and notes:
                kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes"
                more = (
                    f'<Override PartName="/word/footnotes.xml" ContentType="{kind}+xml"/></Types>'
                )
                part = part.replace(b"</Types>", more.encode())
            if name == "word/_rels/document.xml.rels" and notes:
                where = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
                more = f'<Relationship Id="rIdN" Type="{where}/footnotes" Target="footnotes.xml"/>'
                part = part.replace(b"</Relationships>", f"{more}</Relationships>".encode())
            new.writestr(name, part)
        if notes:
            new.writestr("word/footnotes.xml", f"<w:footnotes {W}>{notes}</w:footnotes>")
    return out.getvalue()


def run(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_word_notes_follow_the_paragraph_with_their_mark():
    body = run("연차는 15일이다.").replace(
        "</w:p>", '<w:r><w:footnoteReference w:id="2"/></w:r></w:p>'
    )
    told = {"1": "남의 것", "2": "임원은 30일."}
    notes = "".join(f'<w:footnote w:id="{n}">{run(t)}</w:footnote>' for n, t in told.items())
    found = said(read_docx(with_body(body + run("끝"), notes))[1])
    assert found == ["연차는 15일이다.", "임원은 30일.", "끝"]


def test_word_rows_in_content_controls_are_read_and_deleted_rows_are_not():
    def row(*cells: str, about: str = "") -> str:
        return f"<w:tr>{about}{''.join(f'<w:tc>{run(cell)}</w:tc>' for cell in cells)}</w:tr>"

    gone = row("옛", "1", about='<w:trPr><w:del w:id="1" w:author="a"/></w:trPr>')
    held = f"<w:sdt><w:sdtContent>{row('나', '2')}</w:sdtContent></w:sdt>"
    body = f"<w:tbl>{row('가', '금액')}{gone}{held}</w:tbl><w:customXml>{run('안')}</w:customXml>"
    assert said(read_docx(with_body(body))[1]) == [(("가", "금액"), ("나", "2")), "안"]


# --- PDF ------------------------------------------------------------------------------------------


def test_pdf_figures_at_the_edges_of_pages_are_no_running_heads():
    def page(n: int) -> list[tuple[int, int, str]]:
        lines = ["Leave Rules 2026", f"Total sales: {n * 130} units", f"Body {'abc'[n % 3]}."]
        lines += [f"Net profit: {n * 7} million", f"{n * 1000 + 7 * n}"]
        return [(740 - 14 * i, 12, line) for i, line in enumerate(lines)] + [(30, 9, f"{n}")]

    text = " ".join(b.text for b in read_pdf(pdf_file(*map(page, range(1, 5))))[1])
    for n in range(1, 5):
        assert f"Total sales: {n * 130} units" in text and f"Net profit: {n * 7} million" in text
    assert "Leave Rules" not in text  # the same on each page
    assert not text.rstrip().endswith(" 4")  # it counts the pages


def test_pdf_pages_that_end_in_a_total_or_begin_with_a_year():
    def page(*lines: str) -> list[tuple[int, int, str]]:
        return [(740 - 40 * i, 12, line) for i, line in enumerate(lines)]

    one = page("2026", "Travel", "1200", "Total", "3400")
    other = page("Sick leave", "civil")
    text = " ".join(b.text for b in read_pdf(pdf_file(one, other))[1])
    assert all(word in text for word in ("2026", "3400", "civil"))


# --- sheets ---------------------------------------------------------------------------------------


def book(rows: list[list[str]], merged: str = "") -> bytes:
    made = openpyxl.Workbook()
    sheet = made.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    if merged:
        sheet.merge_cells(merged)
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def tables(data: bytes) -> list[tuple[tuple[str, ...], ...]]:
    return [block.rows for block in read_xlsx(data)[1] if block.kind == "table"]


def test_cells_that_say_the_same_are_no_merged_title():
    rows = [["근속", "일수"], ["2년", "1일"], ["3년", "3년"], ["-", "-"], ["5년", "5일"]]
    assert tables(book(rows)) == [tuple(map(tuple, rows))]
    titled = read_xlsx(book([["여비", ""], *rows], "A1:B1"))[1]
    assert said(titled)[1:] == ["여비", tuple(map(tuple, rows))]


def test_two_tables_of_one_sheet_keep_their_own_heads():
    first = [["품목", "단가"], ["용지", "25,000원"], ["토너", "80,000원"]]
    second = [["직급", "숙박비"], ["과장", "100,000원"], ["부장", "150,000원"]]
    assert tables(book([*first, [], *second])) == [
        tuple(map(tuple, first)),
        tuple(map(tuple, second)),
    ]
    names = [["부서", "담당"], ["총무", "김"], [], ["기획", "박"], ["재무", "이"]]
    (one,) = tables(book(names))
    assert one == tuple(tuple(row) for row in names if row)


def test_a_year_that_has_only_begun_is_a_record():
    heads = ["연도", *(f"{m}월" for m in range(1, 13))]
    rows = (tuple(heads), ("2025", *map(str, range(12))), ("2026", "310", "310", "325", *[""] * 9))
    (table,) = titles_apart(Block("table", rows=rows))
    assert table.rows == rows
    noted = (*rows, ("비고", "잠정", *[""] * 11))
    assert [block.kind for block in titles_apart(Block("table", rows=noted))][-1] == "paragraph"


def test_tabs_part_cells_whatever_commas_amounts_have():
    data = "인건비\t1,200,000\n재료비\t3,400,000\n".encode()
    assert said(read_csv(data)[1]) == [(("인건비", "1,200,000"), ("재료비", "3,400,000"))]


# --- plain lines, and lines on every page ---------------------------------------------------------


def test_columns_drawn_with_spaces_stay_lines():
    lines = [f"김철{c}    총무과 서무담당    내선 12{n}4    2층" for n, c in enumerate("수호민")]
    assert paragraphs(lines) == lines


def test_long_wrapped_text_takes_time_in_proportion():
    def spent(many: int) -> float:
        lines = [
            "이 규정은 모든 임직원과 방문객에게 두루 적용되는 것으로 보고 그 밖의 경우를"
        ] * many
        begun = time.process_time()
        assert len(paragraphs(lines)) == 1
        return time.process_time() - begun

    spent(500)
    assert spent(8_000) < 40 * max(spent(1_000), 0.005)


def test_what_tells_something_is_no_boilerplate():
    texts = [
        "이 규정은 2025년 3월 1일부터 시행한다.",
        "담당 부서: 총무과",
        "위원은 다섯 명으로 한다.",
    ]
    stamp = "이 문서는 내부용이며 배포를 금합니다."
    blocks = tuple(Block("paragraph", text) for text in [*texts, stamp, "대외 유출 금지"])
    documents = [Document(f"{n}.md", "", "md", f"규정 {n}", blocks) for n in range(4)]
    assert set(repeated_lines(documents)) == {stamp, "대외 유출 금지"}
