"""Files called .xls that web systems export: pages and delimited text under that name."""

from pathlib import Path

import pytest

from onsil.documents.kinds import kind_of
from onsil.documents.read import read_folder, scan

TABLE = "<table><tr><td>품목</td><td>금액</td></tr><tr><td>연필</td><td>100</td></tr></table>"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (f"<body>{TABLE}</body>", "html"),
        (f"<div>{TABLE}</div>", "html"),
        (f"<!-- made by a system --><html>{TABLE}</html>", "html"),
        (f"<style>{'td{border:1px}' * 2_000}</style>{TABLE}", "html"),
        (f'<?xml version="1.0" encoding="euc-kr"?>\n<html><body>{TABLE}</body></html>', "html"),
        ("품목\t금액\r\n연필\t100\r\n", "csv"),
        ('품목,금액\r\n연필,"100"\r\n', "csv"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "utf-16"])
def test_exports_called_xls_are_read_as_what_they_are(tmp_path: Path, text, form, encoding):
    (tmp_path / "a.xls").write_bytes(text.encode(encoding))
    (document,), skipped = read_folder(tmp_path, scan(tmp_path))
    assert skipped == [] and document.format == form
    assert document.blocks[0].rows == (("품목", "금액"), ("연필", "100"))


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("d0cf11e0a1b11ae1") + b"<html><table>",
        b"\x09\x08\x10\x00\x00\x06\x05\x00" * 100,
        "내보내기에 실패했습니다. 다시 시도하십시오.".encode(),
        "첫째 줄\n둘째 줄, 쉼표가 하나\n셋째 줄\n".encode(),
        b'<?xml version="1.0"?><list><item>a, b</item>\n<item>c, d</item></list>',
    ],
)
def test_what_is_neither_stays_what_it_says(data: bytes):
    assert kind_of(".xls", data) == ".xls"


def test_delimited_text_is_looked_for_under_xls_alone():
    assert kind_of(".doc", "가,나\n다,라\n".encode()) == ".doc"
