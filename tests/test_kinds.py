"""Files under a wrong name: what is read depends on the bytes where they cannot be mistaken."""

import io
import zipfile
from pathlib import Path

import pytest
from hwp_files import compound, hwp_file, paragraph
from office_files import hwpx_file, p, pdf_file, slides, t, word_file, workbook

from onsil.documents import read_folder, scan
from onsil.documents.kinds import kind_of

OPEN = b"openxmlformats-officedocument."
RTF = b"{\\rtf1\\ansi\\ansicpg949 hello\\par}"
SAMPLES = {
    "hwp": hwp_file(paragraph("연차는 15일이다.")),
    "hwpx": hwpx_file(p(t("연차는 15일이다."))),
    "docx": word_file(),
    "xlsx": workbook(),
    "pptx": slides(),
    "pdf": pdf_file([(72, 700, "hello")]),
    "rtf": RTF,
}
NAMES = ("a", "a.bin", "a.txt", "a.doc", "a.xls", "a.hwp", "a.docx", "a.xlsx", "a.pdf", "a.zip")


def archive(**members: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as package:
        for name, text in members.items():
            package.writestr(name.replace("__", "/").replace("_", "."), text)
    return held.getvalue()


@pytest.mark.parametrize("form", SAMPLES)
def test_a_file_is_read_as_what_its_bytes_are(tmp_path: Path, form: str):
    for name in NAMES:
        (tmp_path / name).write_bytes(SAMPLES[form])
    documents, skipped = read_folder(tmp_path, scan(tmp_path))
    assert skipped == []
    assert {d.path: d.format for d in documents} == dict.fromkeys(NAMES, form)
    assert len({d.blocks for d in documents}) == 1


@pytest.mark.parametrize(
    ("stream", "suffix"),
    [("WordDocument", ".doc"), ("Workbook", ".xls"), ("PowerPoint Document", ".ppt")],
)
def test_old_office_files_are_known_by_their_main_stream(stream: str, suffix: str):
    data = compound({stream: bytes(600)})
    assert {kind_of(name, data) for name in ("", ".txt", ".hwp", ".xls", ".docx")} == {suffix}


def test_what_is_embedded_in_a_document_does_not_name_it():
    sheet_inside = compound({"ObjectPool/_1/Workbook": bytes(600), "WordDocument": bytes(600)})
    assert kind_of(".bin", sheet_inside) == ".doc"
    assert kind_of(".bin", compound({"ObjectPool/_1/Workbook": bytes(600)})) == ".bin"


@pytest.mark.parametrize(
    ("suffix", "data", "kind"),
    [
        (".zip", archive(rules_md="# 휴가"), ".zip"),  # an archive has no part that says whose
        (".jar", archive(META__MANIFEST_MF="x"), ".jar"),
        (".epub", archive(mimetype="application/epub+zip"), ".epub"),
        (".txt", b"PDF files begin with %PDF-", ".txt"),
        (".txt", b"%PDF-1.7 is how a PDF begins.", ".txt"),
        (".txt", b"HWP Document File is how a file of HWP begins.", ".txt"),
        (".md", b"{\\rtf1 is how RTF begins}", ".md"),
        (".zip", archive(Contents__header_xml="<a/>", rules_txt="x"), ".zip"),
        (".hwp", archive(mimetype="x", Contents__section0_xml="<a/>"), ".hwpx"),
        (".txt", "한글 문서입니다.".encode("cp949"), ".txt"),
        (".md", b"<html><table>", ".md"),  # text has no mark that cannot be mistaken
        (".hwp", b"PK\3\4 cut off", ".hwp"),
        (".hwp", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(60), ".hwp"),
        (".docx", compound({"EncryptedPackage": bytes(600)}), ".docx"),
        (".xls", compound({"EncryptedPackage": bytes(600)}), ".xlsx"),
    ],
)
def test_otherwise_the_name_says(suffix: str, data: bytes, kind: str):
    assert kind_of(suffix, data) == kind


def test_a_spreadsheet_nobody_reads_is_named_whatever_it_is_called(tmp_path: Path):
    data = archive(mimetype="application/vnd.oasis.opendocument.spreadsheet")
    (tmp_path / "a.xlsx").write_bytes(data)
    _, (row,) = read_folder(tmp_path, scan(tmp_path))
    assert ".ods" in row["reason_en"] and ".xlsx로 저장" in row["reason_ko"]


@pytest.mark.parametrize(
    ("name", "data", "plain", "macros"),
    [
        (
            "a.docm",
            word_file(),
            OPEN + b"wordprocessingml.document",
            b"ms-word.document.macroEnabled",
        ),
        ("a.dotx", word_file(), b"wordprocessingml.document", b"wordprocessingml.template"),
        ("a.xlsm", workbook(), OPEN + b"spreadsheetml.sheet", b"ms-excel.sheet.macroEnabled"),
        (
            "a.pptm",
            slides(),
            OPEN + b"presentationml.presentation",
            b"ms-powerpoint.presentation.macroEnabled",
        ),
    ],
)
def test_templates_and_files_with_macros_are_read(tmp_path: Path, name, data, plain, macros):
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(held, "w") as package:
        for part in before.namelist():
            content = before.read(part)
            if part == "[Content_Types].xml":
                content = content.replace(plain + b".main", macros + b".main")
                assert macros in content
            package.writestr(part, content)
    (tmp_path / name).write_bytes(held.getvalue())
    (document,), skipped = read_folder(tmp_path, scan(tmp_path))
    assert skipped == [] and document.format == {"d": "docx", "x": "xlsx", "p": "pptx"}[name[2]]
