"""Word, HWPX, Excel, PowerPoint and PDF files written by the tests themselves."""

import datetime
import io
import zipfile

import docx
import openpyxl
import pptx
from openpyxl.styles.numbers import FORMAT_PERCENTAGE_00
from pptx.util import Inches

NS = (
    'xmlns:hp="http://www.hancom.co.kr/hwpml/2011/paragraph" '
    'xmlns:hs="http://www.hancom.co.kr/hwpml/2011/section" '
    'xmlns:hh="http://www.hancom.co.kr/hwpml/2011/head"'
)


def word_file() -> bytes:
    document = docx.Document()
    document.core_properties.title = "인사 규정"
    document.add_heading("총칙", 1)
    document.styles.add_style("제목 2", 1)
    document.add_paragraph("휴가", style="제목 2")
    table = document.add_table(2, 3)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "구분"
    table.cell(0, 2).text = "일수"
    table.cell(1, 0).text, table.cell(1, 2).text = "1년", "15"
    document.add_paragraph("첫째 항목", style="List Bullet")
    document.add_paragraph("탭\t과\n줄")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def p(inside: str, shape: int = 0) -> str:
    return f'<hp:p paraPrIDRef="{shape}"><hp:run>{inside}</hp:run></hp:p>'


def t(text: str) -> str:
    return f"<hp:t>{text}</hp:t>"


def tc(inside: str, columns: int = 1) -> str:
    span = f'<hp:cellSpan colSpan="{columns}" rowSpan="1"/>'
    return f"<hp:tc><hp:subList>{inside}</hp:subList>{span}</hp:tc>"


def tbl(*rows: str) -> str:
    return "<hp:tbl>" + "".join(f"<hp:tr>{row}</hp:tr>" for row in rows) + "</hp:tbl>"


def hwpx_file(*sections: str, doctype: str = "", **parts: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as package:
        for i, body in enumerate(sections):
            package.writestr(f"Contents/section{i}.xml", f"{doctype}<hs:sec {NS}>{body}</hs:sec>")
        package.writestr(
            "Contents/header.xml",
            f'<hh:head {NS}><hh:paraPr id="7"><hh:heading type="OUTLINE" level="1"/></hh:paraPr>'
            "</hh:head>",
        )
        for name, text in parts.items():
            package.writestr(name, text)
    return out.getvalue()


def pdf_file(*pages: list[tuple[int, int, str]], title: str = "") -> bytes:
    """A PDF written by hand: on each page (height, type size, text), in Helvetica."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, lines in enumerate(pages):
        drawn = "".join(f"BT /F {size} Tf 50 {y} Td ({text}) Tj ET\n" for y, size, text in lines)
        objects.append(
            "<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]"
            f"/Resources<</Font<</F 3 0 R>>>>/Contents {5 + 2 * i} 0 R>>"
        )
        objects.append(f"<</Length {len(drawn)}>>stream\n{drawn}endstream")
    objects.append(f"<</Title({title})>>")
    body, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    return (
        f"{body}xref\n0 {count}\n0000000000 65535 f \n{table}"
        f"trailer<</Size {count}/Root 1 0 R/Info {count - 1} 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    ).encode("latin-1")


def workbook() -> bytes:
    book = openpyxl.Workbook()
    book.properties.title = "예산"
    sheet = book.active
    assert sheet is not None
    sheet.title = "2026년"
    sheet.append(["구분", None, "금액", "비율", "기준일"])
    sheet.append(["인건비", "정규직", 1_200_000, 0.256, datetime.date(2026, 11, 20)])
    sheet.append([None, "계약직", 0.1 + 0.2, True, datetime.datetime(2026, 11, 20, 9, 30)])
    sheet["D2"].number_format = FORMAT_PERCENTAGE_00
    sheet.merge_cells("A1:B1")
    sheet.merge_cells("A2:A3")
    book.create_sheet("빈 시트")
    book.create_sheet("둘째").append(["메모"])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def slides() -> bytes:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "추진\v배경"
    slide.placeholders[1].text = "첫째 항목\n둘째 항목"
    slide.notes_slide.notes_text_frame.text = "발표자 메모"
    slide = show.slides.add_slide(show.slide_layouts[6])
    table = slide.shapes.add_table(2, 3, Inches(1), Inches(1), Inches(5), Inches(1)).table
    table.cell(0, 0).merge(table.cell(0, 1))
    for (row, column), text in {(0, 0): "구분", (0, 2): "일정", (1, 2): "2월"}.items():
        table.cell(row, column).text = text
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 100, 100).text_frame.text = "묶인 글상자"
    out = io.BytesIO()
    show.save(out)
    return out.getvalue()
