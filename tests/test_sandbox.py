"""Files from outside: bombs, loops, crashes, locks. Each costs its own row and nothing else."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hwp_files import hwp_file, paragraph
from office_files import hwpx_file, p, pdf_file, t, word_file, workbook

from onsil.documents import read_folder, scan
from onsil.documents.kinds import kind_of
from onsil.documents.office import convert
from onsil.documents.packages import check_size
from onsil.documents.sandbox import Limits, Sandbox, sandbox
from onsil.documents.types import Document
from onsil.errors import OnsilError

ROOT = Path(__file__).resolve().parents[1]


def zipped(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def reading(folder: Path, **files: bytes) -> tuple[dict[str, Document], dict[str, str]]:
    """Write files (`a_b` is `a.b`), read the folder: documents and reasons by path."""
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    documents, skipped = read_folder(folder, scan(folder))
    assert all(row["reason_ko"] for row in skipped)
    return {d.path: d for d in documents}, {row["path"]: row["reason_en"] for row in skipped}


# --- the child ----------------------------------------------------------------------------------


def test_one_child_reads_many_files():
    with sandbox() as box:
        first = box.parse(".md", b"# one")
        child = box.child
        assert child is not None
        with pytest.raises(OnsilError, match="not text"):
            box.parse(".txt", bytes(range(256)) * 4)
        assert box.parse(".md", b"# two").title == "" and box.child is child
    assert first.blocks[0].text == "one"
    assert box.child is None and child.poll() is not None


def test_the_child_wakes_up_without_torch():
    code = "import sys, onsil.documents.sandbox_child as c; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


SLOW = b"|a|b|\n|-|-|\n" + b"|`x`|*y*|\n" * 300_000  # seconds of work


def kill(box: Sandbox) -> None:
    time.sleep(0.2)
    assert box.child is not None
    os.kill(box.child.pid, signal.SIGSEGV)


def test_a_child_that_dies_is_named_and_replaced():
    with sandbox() as box:
        assert box.parse(".md", b"# warm").blocks[0].text == "warm"
        box.worn = False  # or the file would be tried once more
        threading.Thread(target=kill, args=(box,)).start()
        with pytest.raises(OnsilError, match=r"crashed on it \(SIGSEGV\)"):
            box.parse(".md", SLOW)
        assert box.parse(".md", b"# again").blocks[0].text == "again"


def test_what_kills_a_child_that_has_read_others_is_tried_once_more():
    with sandbox() as box:
        box.parse(".md", b"# warm")
        threading.Thread(target=kill, args=(box,)).start()
        assert len(box.parse(".md", SLOW[:1_000_000]).blocks[0].rows) > 90_000


def test_processor_time_is_bounded_for_each_file_and_not_for_all():
    with sandbox(Limits(cpu=1)) as box:
        with pytest.raises(OnsilError, match="1 seconds of processor time"):
            box.parse(".md", SLOW)
        start = os.times().children_user
        for _ in range(24):
            box.parse(".md", SLOW[: len(SLOW) // 60])
    assert os.times().children_user - start > 1  # together more than one file may take


def test_the_clock_is_bounded():
    start = time.monotonic()
    with sandbox(Limits(wall=1)) as box:
        with pytest.raises(OnsilError, match="more than 1 seconds"):
            box.parse(".md", SLOW * 2)
        assert box.parse(".md", b"# next").blocks[0].text == "next"
    assert time.monotonic() - start < 10


def test_memory_is_bounded():
    with sandbox(Limits(memory=256 * 2**20)) as box:
        assert box.parse(".md", b"# small").blocks[0].text == "small"
        with pytest.raises(OnsilError, match="256 MB of memory"):
            box.parse(".md", b"a b\n\n" * 8_000_000)
        assert box.parse(".md", b"# next").blocks[0].text == "next"


def test_reading_in_a_child_costs_little(tmp_path: Path):
    folder = ROOT / "examples" / "handbook"
    start = time.monotonic()
    documents, skipped = read_folder(folder, scan(folder))
    assert len(documents) == 58 and not skipped
    assert time.monotonic() - start < 5  # a child for each file would take longer


# --- packages that unpack too far ---------------------------------------------------------------


def bomb(name: str) -> bytes:
    return zipped({name: bytes(64 * 2**20)})


@pytest.mark.parametrize(
    ("suffix", "part"),
    [
        ("docx", "word/document.xml"),
        ("hwpx", "Contents/section0.xml"),
        ("xlsx", "xl/workbook.xml"),
        ("pptx", "ppt/presentation.xml"),
        ("odt", "content.xml"),
        ("zip", "a.txt"),
    ],
)
def test_zip_bombs_are_refused_by_their_directory(tmp_path: Path, suffix: str, part: str):
    documents, reasons = reading(tmp_path, **{f"bomb_{suffix}": bomb(part), "a_md": b"# kept"})
    assert "67,108,864 bytes in all" in reasons[f"bomb.{suffix}"]
    assert list(documents) == ["a.md"]


def test_ordinary_packages_pass():
    for data in (word_file(), hwpx_file(p(t("글"))), zipped({"a.txt": b"0" * 10_000_000})):
        check_size(data, ".zip")


def test_packages_that_were_cut_or_changed_are_named(tmp_path: Path):
    good = workbook()
    spoilt = bytearray(good)
    at = good.index(b"xl/worksheets/sheet1.xml") + 200
    spoilt[at : at + 20] = bytes(20)
    _, reasons = reading(tmp_path, cut_xlsx=good[:-30], spoilt_xlsx=bytes(spoilt))
    assert "is no .xlsx package" in reasons["cut.xlsx"]
    assert "this .xlsx is damaged" in reasons["spoilt.xlsx"]


def test_depth_and_entities_end(tmp_path: Path):
    deep = "<hp:p><hp:run>" * 3_000 + "</hp:run></hp:p>" * 3_000
    documents, reasons = reading(
        tmp_path,
        deep_hwpx=hwpx_file(deep),
        deep_html=b"<div>" * 50_000 + b"x",
        entities_odt=zipped(
            {
                "content.xml": b'<!DOCTYPE a [<!ENTITY b "1234567890">'
                + b"".join(
                    b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in range(99, 108)
                )
                + b"]><a>&k;</a>"
            }
        ),
    )
    assert "Excessive depth" in reasons["deep.hwpx"] or "nested too deep" in reasons["deep.hwpx"]
    assert "entities.odt" in reasons
    assert "deep.html" in reasons or documents["deep.html"].blocks[0].text == "x"


# --- archives and mails -------------------------------------------------------------------------


def test_members_are_documents_with_a_path_of_their_own(tmp_path: Path):
    inner = zipped({"안쪽.md": "# 안쪽".encode(), "more.exe": b"MZ"})
    outer = zipped(
        {
            unicodedata.normalize("NFD", "규정/휴가.hwp"): hwp_file(paragraph("연차는 15일이다.")),
            "../../climb.txt": "오르지 않는다".encode(),
            "inner.zip": inner,
            "bad.docx": b"PK\3\4",
            "__MACOSX/._x": b"x",
            "n" * 5_000 + ".txt": b"text",
        }
    )
    documents, reasons = reading(tmp_path, archive_zip=outer)
    assert {path: d.title for path, d in documents.items()} == {
        "archive.zip/climb.txt": "climb",
        "archive.zip/inner.zip/안쪽.md": "안쪽",
        "archive.zip/규정/휴가.hwp": "휴가",
    }
    assert len({d.sha256 for d in documents.values()}) == 3
    long = next(path for path in reasons if "nnnn" in path)
    assert "5,004 characters" in reasons.pop(long) and len(long) < 1_100
    assert ".exe files are not read" in reasons.pop("archive.zip/inner.zip/more.exe")
    assert "not a DOCX" in reasons.pop("archive.zip/bad.docx")
    assert reasons == {}


def test_cp949_names_of_korean_archives(tmp_path: Path):
    name = "똠방각하.txt".encode("cp949")
    data = zipped({"x" * len(name): "글".encode()}).replace(b"x" * len(name), name)
    documents, _ = reading(tmp_path, a_zip=data)
    assert list(documents) == ["a.zip/똠방각하.txt"]


def test_locked_members_and_damaged_ones_cost_themselves_alone(tmp_path: Path):
    data = bytearray(zipped({"a.txt": b"locked", "b.txt": b"kept"}, zipfile.ZIP_STORED))
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag of the first entry of the directory
    spoilt = zipped({"a.txt": b"spoilt", "b.txt": b"kept"}, zipfile.ZIP_STORED)
    documents, reasons = reading(
        tmp_path, locked_zip=bytes(data), spoilt_zip=spoilt.replace(b"spoilt", b"spoilT")
    )
    assert set(documents) == {"locked.zip/b.txt", "spoilt.zip/b.txt"}
    assert "encrypted with a password" in reasons["locked.zip/a.txt"]
    assert "cannot be unpacked" in reasons["spoilt.zip/a.txt"]


def test_archives_in_archives_end_somewhere(tmp_path: Path):
    data = zipped({"a.txt": b"deep"})
    for _ in range(5):
        data = zipped({"in.zip": data})
    documents, reasons = reading(tmp_path, nest_zip=data)
    assert documents == {} and len(reasons) == 1
    assert "inside more than 3 archives" in next(iter(reasons.values()))


def test_attachments_are_members(tmp_path: Path):
    mail = (
        b"Subject: s\nContent-Type: multipart/mixed; boundary=B\n\n--B\n\nhello\n--B\n"
        b'Content-Disposition: attachment; filename="' + "규정.md".encode("cp949") + b'"\n\n'
        b"# rules\n--B--\n"
    )
    documents, reasons = reading(tmp_path, m_eml=mail)
    assert {path: d.blocks[-1].text for path, d in documents.items()} == {
        "m.eml": "hello",
        "m.eml/규정.md": "rules",
    }
    assert reasons == {}


# --- pdf ----------------------------------------------------------------------------------------


def pdf(*objects: str, trailer: str = "") -> bytes:
    """A PDF of these objects, the first of them its catalogue; PDFium finds the rest."""
    body = "%PDF-1.4\n" + "".join(f"{n} 0 obj\n{o}\nendobj\n" for n, o in enumerate(objects, 1))
    return f"{body}trailer<</Root 1 0 R{trailer}>>\n%%EOF".encode("latin-1")


CATALOGUE = "<</Type/Catalog/Pages 2 0 R>>"


def drawing(twice: str) -> bytes:
    """A page that draws a form that draws itself."""
    form = f"/X Do {twice}"
    return pdf(
        CATALOGUE,
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</XObject<</X 5 0 R>>>>>>",
        "<</Length 5>>stream\n/X Do\nendstream",
        "<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 5 0 R>>>>"
        f"/Length {len(form)}>>stream\n{form}\nendstream",
    )


LOOPS = {
    "pages": pdf(CATALOGUE, "<</Type/Pages/Kids[2 0 R]/Count 1>>"),
    "parents": pdf(
        CATALOGUE,
        "<</Type/Pages/Kids[3 0 R]/Count 2/Parent 3 0 R>>",
        "<</Type/Pages/Kids[2 0 R]/Count 1/Parent 2 0 R>>",
    ),
    "count": pdf(CATALOGUE, "<</Type/Pages/Kids[]/Count 2000000000>>"),
    "form": drawing(""),
    "length": pdf(
        CATALOGUE,
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/Contents[4 0 R 4 0 R]>>",
        "<</Length 4 0 R>>stream\nBT ET\nendstream",
    ),
    "reference": pdf("2 0 R", "1 0 R"),
    "filters": pdf(
        CATALOGUE,
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/Contents 4 0 R>>",
        f"<</Length 4/Filter[{'/FlateDecode' * 5_000}]>>stream\nabcd\nendstream",
    ),
}


def test_pdf_objects_that_point_at_one_another_end(tmp_path: Path):
    for name, data in LOOPS.items():
        (tmp_path / f"{name}.pdf").write_bytes(data)
    start = time.monotonic()
    documents, reasons = reading(tmp_path, good_pdf=pdf_file([(700, 12, "Body.")]))
    assert list(documents) == ["good.pdf"]
    assert set(reasons) == {f"{name}.pdf" for name in LOOPS}
    assert time.monotonic() - start < 20


def test_a_library_that_takes_all_memory_is_stopped():
    with sandbox(Limits(memory=256 * 2**20)) as box:
        with pytest.raises(OnsilError, match="crashed on it"):
            box.parse(".pdf", drawing("/X Do"))
        assert box.parse(".md", b"# next").blocks[0].text == "next"


def test_a_pdf_under_a_password_is_named(tmp_path: Path):
    lock = f"/Encrypt<</Filter/Standard/V 1/R 2/O<{'41' * 32}>/U<{'42' * 32}>/P -4>>/ID[<00><00>]"
    data = pdf(
        CATALOGUE,
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R>>",
        trailer=lock,
    )
    _, reasons = reading(tmp_path, locked_pdf=data)
    assert "encrypted with a password" in reasons["locked.pdf"]


# --- names and places ---------------------------------------------------------------------------


def test_both_spellings_of_a_name_are_read(tmp_path: Path):
    names = [unicodedata.normalize(form, "규정.md") for form in ("NFC", "NFD")]
    for name, text in zip(names, ("# 하나", "# 둘"), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    if len(list(tmp_path.iterdir())) == 2:  # a Mac has one name for both
        documents, _ = reading(tmp_path)
        assert sorted(d.title for d in documents.values()) == ["둘", "하나"]


def test_names_that_are_not_utf8_are_shown_in_cp949(tmp_path: Path):
    raw = os.fsencode(tmp_path) + b"/" + "규정.md".encode("cp949")
    with open(raw, "wb") as f:
        f.write(b"# rules")
    documents, _ = reading(tmp_path)
    assert list(documents) == ["규정.md"]


@pytest.mark.parametrize("letters", [200, 190])
def test_paths_too_long_to_open_are_named(tmp_path: Path, letters: int):
    inside = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):  # nearly 5,000 characters, more than a path may have
        os.mkdir("d" * letters, dir_fd=inside)
        deeper = os.open("d" * letters, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
        os.close(os.open("x" * 200 + ".exe", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
    os.close(inside)
    documents, reasons = reading(tmp_path, a_md=b"# kept")
    assert list(documents) == ["a.md"]
    refused = [path for path, why in reasons.items() if "may not be opened" in why]
    assert any(path.endswith(".exe") for path in refused)
    assert any(path.endswith("d") for path in refused)


def test_links_in_a_ring_and_pipes_are_not_files(tmp_path: Path):
    (tmp_path / "self.md").symlink_to(tmp_path / "self.md")
    (tmp_path / "one.md").symlink_to(tmp_path / "two.md")
    (tmp_path / "two.md").symlink_to(tmp_path / "one.md")
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe.md")
    documents, reasons = reading(tmp_path, a_md=b"# kept")
    assert list(documents) == ["a.md"] and reasons == {}


# --- old Office formats -------------------------------------------------------------------------


def test_old_suffixes_on_other_formats_need_no_libreoffice(tmp_path: Path):
    page = "<html><body><table><tr><td>부서</td><td>전화</td></tr></table></body></html>"
    documents, _ = reading(
        tmp_path, a_xls=page.encode("cp949"), b_doc=word_file(), c_doc=b"{\\rtf1 text\\par}"
    )
    assert {path: d.format for path, d in documents.items()} == {
        "a.xls": "html",
        "b.doc": "docx",
        "c.doc": "rtf",
    }
    assert documents["a.xls"].blocks[0].rows == (("부서", "전화"),)
    assert kind_of(".ppt", bytes.fromhex("d0cf11e0a1b11ae1")) == ".ppt"


def test_without_libreoffice_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OnsilError, match="only where LibreOffice is installed") as caught:
        convert(".xls", b"")
    assert ".xlsx" in caught.value.en[2] and ".xlsx" in caught.value.ko[2]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('cp "$SAMPLE" "${outdir}/document.docx"', ""),
        ("exit 3", "exit code 3"),
        ("sleep 60 & sleep 60", "more than 1 seconds"),
    ],
)
def test_a_converter_is_given_a_folder_and_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
):
    """A script stands in for LibreOffice, which lives outside; this is how it is called."""
    program = tmp_path / "soffice"
    find = 'while [ $# -gt 0 ]; do [ "$1" = --outdir ] && outdir="$2"; shift; done'
    program.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    program.chmod(0o755)
    (tmp_path / "sample").write_bytes(word_file())
    monkeypatch.setenv("SAMPLE", str(tmp_path / "sample"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("onsil.documents.office.SECONDS", 1)
    old = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600)
    if said:
        with pytest.raises(OnsilError) as caught:
            convert(".doc", old)
        assert said in caught.value.en[0]
    else:
        documents, _ = reading(tmp_path, old_doc=old)
        assert (documents["old.doc"].format, documents["old.doc"].title) == ("doc", "인사 규정")


def test_old_files_through_libreoffice(onsil_data: Path):
    import shutil

    if not (shutil.which("soffice") or shutil.which("libreoffice")):
        pytest.skip("LibreOffice (soffice) is not on the PATH")
    with sandbox() as box:
        data = (onsil_data / "documents" / "doc" / "lorem-ipsum.doc").read_bytes()
        blocks = box.parse(".docx", convert(".doc", data)).blocks
        assert any("Lorem ipsum dolor sit amet" in block.text for block in blocks)
        data = (onsil_data / "documents" / "xls" / "valid.xls").read_bytes()
        assert any(block.rows for block in box.parse(".xlsx", convert(".xls", data)).blocks)
