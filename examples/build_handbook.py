"""Build the binary files of the example handbook from sources anyone can read.

The handbook of the invented 한빛기록원 is what a small Korean institute really keeps: rules in
Markdown, Word, 한글 (HWPX) and PDF, pages from an intranet, text files in three encodings. Markdown
files stand in `handbook/` as they are; every other file is built from the source of the same name
in `handbook_sources/` (`보수규정.hwpx.md` becomes `보수규정.hwpx`).

The built files are committed and tests never rebuild them. DOCX, HWPX, HTML and text come out the
same to the byte on every machine; a PDF depends on the browser that printed it, so PDFs are only
rebuilt on request: `python examples/build_handbook.py --pdf` needs chromium and the Nanum fonts.

Everyone and everything in it is invented. The personal data planted for the masking to find is
listed in `handbook_pii.json`; resident numbers carry wrong check digits, so they are nobody's.

Left out: everything the sources do not use. A line is a heading (`#`), a row of a table (`|`) or
a paragraph.
"""

import html
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from xml.sax.saxutils import escape

from docx import Document
from docx.oxml.ns import qn

HERE = Path(__file__).resolve().parent
SOURCES, HANDBOOK = HERE / "handbook_sources", HERE / "handbook"
ENCODINGS = {"차량관리지침.txt": "cp949", "당직근무지침.txt": "utf-16"}
FIXED_TIME = (2025, 6, 2, 9, 0, 0)
ARTICLE = re.compile(r"(제\d+조\([^)]*\))(.*)$")
Part = tuple[int, str] | list[list[str]]  # (heading level, 0 for a paragraph; text) or a table


def parts(source: str) -> Iterator[Part]:
    """The headings, paragraphs and tables of a source, in order."""
    rows: list[list[str]] = []
    for line in [*source.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
            continue
        if rows:
            yield rows
            rows = []
        if line.strip():
            marks = re.match(r"#*", line).group()
            yield len(marks), line[len(marks) :].strip()


def docx(source: str) -> bytes:
    """Headings as Word headings; the head of an article in bold, as rules are usually typed."""
    document = Document()
    document.styles["Normal"].font.name = "맑은 고딕"
    fonts = document.styles["Normal"].element.rPr.rFonts
    fonts.set(qn("w:eastAsia"), "맑은 고딕")
    for part in parts(source):
        if isinstance(part, list):
            table = document.add_table(len(part), len(part[0]), style="Table Grid")
            for row, texts in zip(table.rows, part, strict=True):
                for cell, text in zip(row.cells, texts, strict=True):
                    cell.text = text
            continue
        level, text = part
        if level:
            document.add_heading(text, level)
            continue
        paragraph = document.add_paragraph()
        article = ARTICLE.match(text)
        if article:
            paragraph.add_run(article[1]).bold = True
        paragraph.add_run(article[2] if article else text)
    properties = document.core_properties
    properties.author = "한빛기록원"
    properties.title = source.splitlines()[0].lstrip("# ")
    properties.created = properties.modified = datetime(*FIXED_TIME)
    buffer = io.BytesIO()
    document.save(buffer)
    with zipfile.ZipFile(buffer) as package:
        return _zip([(name, package.read(name)) for name in package.namelist()])


def _zip(files: list[tuple[str, bytes]]) -> bytes:
    """A zip with fixed times; `mimetype` is stored, as packages that start with it require."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, data in files:
            info = zipfile.ZipInfo(name, FIXED_TIME)
            stored = name == "mimetype"
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            package.writestr(info, data)
    return buffer.getvalue()


XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
OWPML = "http://www.hancom.co.kr/hwpml/2011/"
VERSION = (
    XML + '<hv:HCFVersion xmlns:hv="http://www.hancom.co.kr/hwpml/2011/version" '
    'tagetApplication="WORDPROCESSOR" major="5" minor="1" micro="0" buildNumber="1" os="1" '
    'xmlVersion="1.4" application="onsil example" appVersion="1"/>'
)
CONTAINER = (
    XML + '<ocf:container xmlns:ocf="urn:oasis:names:tc:opendocument:xmlns:container">'
    '<ocf:rootfiles><ocf:rootfile full-path="Contents/content.hpf" '
    'media-type="application/hwpml-package+xml"/></ocf:rootfiles></ocf:container>'
)


def hwpx(source: str) -> bytes:
    """The smallest OWPML package that a reader of 한글 files understands."""
    blocks = list(parts(source))
    title = escape(source.splitlines()[0].lstrip("# "))
    content = (
        XML + '<opf:package xmlns:opf="http://www.idpf.org/2007/opf/" version="1.4">'
        f"<opf:metadata><opf:title>{title}</opf:title><opf:language>ko</opf:language>"
        "</opf:metadata><opf:manifest>"
        '<opf:item id="header" href="Contents/header.xml" media-type="application/xml"/>'
        '<opf:item id="section0" href="Contents/section0.xml" media-type="application/xml"/>'
        '</opf:manifest><opf:spine><opf:itemref idref="section0"/></opf:spine></opf:package>'
    )
    body = "".join(
        _hp_table(part) if isinstance(part, list) else _hp_p(part[1], part[0]) for part in blocks
    )
    section = f'{XML}<hs:sec xmlns:hs="{OWPML}section" xmlns:hp="{OWPML}paragraph">{body}</hs:sec>'
    files = {
        "mimetype": "application/hwp+zip",
        "version.xml": VERSION,
        "META-INF/container.xml": CONTAINER,
        "Contents/content.hpf": content,
        "Contents/header.xml": _hp_header(),
        "Contents/section0.xml": section,
    }
    return _zip([(name, text.encode()) for name, text in files.items()])


def _hp_header() -> str:
    """Paragraph shapes: 0 is body text, 1 to 3 are outline levels."""
    shapes = '<hh:paraPr id="0"><hh:heading type="NONE" idRef="0" level="0"/></hh:paraPr>'
    for level in (1, 2, 3):
        heading = f'<hh:heading type="OUTLINE" idRef="0" level="{level - 1}"/>'
        shapes += f'<hh:paraPr id="{level}">{heading}</hh:paraPr>'
    return (
        f'{XML}<hh:head xmlns:hh="{OWPML}head" version="1.4" secCnt="1"><hh:refList>'
        '<hh:fontfaces itemCnt="1"><hh:fontface lang="HANGUL" fontCnt="1">'
        '<hh:font id="0" face="함초롬바탕" type="TTF" isEmbedded="0"/></hh:fontface></hh:fontfaces>'
        '<hh:charProperties itemCnt="1"><hh:charPr id="0" height="1000" textColor="#000000"/>'
        f'</hh:charProperties><hh:paraProperties itemCnt="4">{shapes}</hh:paraProperties>'
        '<hh:styles itemCnt="1"><hh:style id="0" type="PARA" name="바탕글" paraPrIDRef="0" '
        'charPrIDRef="0"/></hh:styles></hh:refList></hh:head>'
    )


def _hp_p(text: str, level: int = 0) -> str:
    return (
        f'<hp:p id="0" paraPrIDRef="{level}" styleIDRef="0"><hp:run charPrIDRef="0">'
        f"<hp:t>{escape(text)}</hp:t></hp:run></hp:p>"
    )


def _hp_table(rows: list[list[str]]) -> str:
    trs = ""
    for r, row in enumerate(rows):
        trs += "<hp:tr>"
        for c, text in enumerate(row):
            trs += (
                f'<hp:tc header="{int(r == 0)}" borderFillIDRef="1"><hp:subList id="" '
                f'textDirection="HORIZONTAL">{_hp_p(text)}</hp:subList>'
                f'<hp:cellAddr colAddr="{c}" rowAddr="{r}"/>'
                '<hp:cellSpan colSpan="1" rowSpan="1"/></hp:tc>'
            )
        trs += "</hp:tr>"
    return (
        '<hp:p id="0" paraPrIDRef="0" styleIDRef="0"><hp:run charPrIDRef="0">'
        f'<hp:tbl id="0" rowCnt="{len(rows)}" colCnt="{len(rows[0])}" borderFillIDRef="1">'
        f"{trs}</hp:tbl></hp:run></hp:p>"
    )


def page(source: str, intranet: bool) -> str:
    """An HTML page: with the menus of an intranet around it, or bare for printing."""
    title = html.escape(source.splitlines()[0].lstrip("# "))
    body = "\n".join(_html(part) for part in parts(source))
    if intranet:
        body = (
            "<nav><a href='/'>한빛누리</a> <a href='/rules'>규정</a> <a href='/board'>게시판</a>"
            f"</nav>\n<main>\n{body}\n</main>\n"
            "<footer>한빛기록원 사내망 · 이 화면은 내부망에서만 열립니다.</footer>"
        )
    style = (
        "body{font-family:'NanumGothic',sans-serif;font-size:10.5pt;line-height:1.6;word-break:keep-all}"
        "h1{font-size:17pt}h2{font-size:13pt}table{border-collapse:collapse}"
        "td,th{border:1px solid #444;padding:3px 9px}@page{margin:22mm 20mm}"
    )
    return (
        f"<!DOCTYPE html>\n<html lang='ko'>\n<head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{style}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(part: Part) -> str:
    if not isinstance(part, list):
        level, text = part
        tag = f"h{level}" if level else "p"
        return f"<{tag}>{html.escape(text, quote=False)}</{tag}>"
    rows = []
    for r, row in enumerate(part):
        tag = "td" if r else "th"
        rows.append(
            "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) + "</tr>"
        )
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def pdf(source: str) -> bytes:
    """The page as chromium prints it, with the part of the Nanum font that it uses embedded."""
    with tempfile.TemporaryDirectory() as folder:
        printed, out = Path(folder, "page.html"), Path(folder, "page.pdf")
        printed.write_text(page(source, intranet=False), encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--no-pdf-header-footer", f"--print-to-pdf={out}", printed.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        data = out.read_bytes()
    return re.sub(rb"(/(?:CreationDate|ModDate) \(D:)\d{14}", rb"\g<1>20250602090000", data)


def text(source: str) -> str:
    """Plain text: headings without marks, a table as cells between tabs."""
    lines = []
    for part in parts(source):
        if isinstance(part, list):
            lines += ["\t".join(row) for row in part]
        else:
            lines += ["", part[1]] if part[0] else [part[1]]
    return "\r\n".join(lines).strip() + "\r\n"


def build(with_pdf: bool) -> None:
    for path in sorted(SOURCES.glob("*.md")):
        out = HANDBOOK / path.name.removesuffix(".md")
        source = path.read_text(encoding="utf-8")
        match out.suffix:
            case ".docx":
                out.write_bytes(docx(source))
            case ".hwpx":
                out.write_bytes(hwpx(source))
            case ".html":
                out.write_text(page(source, intranet=True), encoding="utf-8", newline="\n")
            case ".txt":
                out.write_bytes(text(source).encode(ENCODINGS.get(out.name, "utf-8")))
            case ".pdf" if with_pdf:
                out.write_bytes(pdf(source))


if __name__ == "__main__":
    build(with_pdf="--pdf" in sys.argv)
