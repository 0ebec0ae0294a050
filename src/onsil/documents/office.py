"""Old Office formats (doc, xls, ppt) by way of LibreOffice, where it is installed.

These formats are closed books that LibreOffice has learned to read; it rewrites a file as its
modern kind and the reader of that kind takes over. Each conversion has a profile and a folder of
its own, a bound on time, and macros stay off (LibreOffice runs none of an untrusted document
without asking, and headless there is nobody to ask). Left alone, LibreOffice fetches a linked
picture from the network, so the profile blocks links and sends what remains to a proxy where nobody
listens. A workbook is opened by its own filter, because a damaged one would otherwise come back as
a sheet of letters. What only is called so (see `kinds`) needs no LibreOffice. A workbook in XML
(Excel 2003) does; it is rewritten as UTF-8 first, and one with a document type, which could name
other files, is refused.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from onsil.documents.formats import LEGACY
from onsil.documents.kinds import is_xml_book, start_of
from onsil.documents.packages import OLE
from onsil.documents.text import decode
from onsil.errors import OnsilError

SECONDS = 180
BOOKS = (  # the stream that holds a workbook, its name in UTF-16, and the filter that reads it
    (re.compile(rb"w\0o\0r\0k\0b\0o\0o\0k\0\0\0", re.I), "MS Excel 97"),
    (re.compile(rb"b\0o\0o\0k\0\0\0", re.I), "MS Excel 95"),
)
_PROXY = "".join(
    f'<prop oor:name="ooInet{kind}ProxyName" oor:op="fuse"><value>127.0.0.1</value></prop>'
    f'<prop oor:name="ooInet{kind}ProxyPort" oor:op="fuse"><value>1</value></prop>'
    for kind in ("HTTP", "HTTPS", "FTP")
)
PROFILE = f"""<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry">
<item oor:path="/org.openoffice.Office.Common/Security/Scripting">
<prop oor:name="BlockUntrustedRefererLinks" oor:op="fuse"><value>true</value></prop>
<prop oor:name="MacroSecurityLevel" oor:op="fuse"><value>3</value></prop>
</item>
<item oor:path="/org.openoffice.Inet/Settings">
<prop oor:name="ooInetProxyType" oor:op="fuse"><value>2</value></prop>
<prop oor:name="ooInetNoProxy" oor:op="fuse"><value></value></prop>
{_PROXY}
</item>
</oor:items>
"""
XML_READER = "MS Excel 2003 XML Orcus"


def convert(suffix: str, data: bytes) -> bytes:
    """The file as its modern kind, `LEGACY[suffix]`."""
    program = shutil.which("soffice") or shutil.which("libreoffice")
    if program is None:
        raise _no_libreoffice(suffix)
    reader = []
    if is_xml_book(suffix, start_of(data)):
        data, reader = _xml_book(data), [f"--infilter={XML_READER}"]
    elif not data.startswith(OLE):
        raise _not_converted(suffix, "it does not begin like one")
    elif suffix == ".xls":
        reader = [f"--infilter={_book(data)}"]
    kind = LEGACY[suffix].lstrip(".")
    with TemporaryDirectory() as scratch:
        source = Path(scratch) / f"document{suffix}"
        source.write_bytes(data)
        settings = Path(scratch) / "profile" / "user" / "registrymodifications.xcu"
        settings.parent.mkdir(parents=True)
        settings.write_text(PROFILE, encoding="utf-8")
        profile = f"-env:UserInstallation={settings.parents[1].as_uri()}"
        command = [program, profile, "--headless", "--norestore", *reader, "--convert-to", kind]
        process = subprocess.Popen(
            [*command, "--outdir", scratch, str(source)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # soffice is a script that starts the program
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _not_converted(suffix, f"more than {SECONDS} seconds") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        made = source.with_suffix(LEGACY[suffix])
        if not made.is_file():
            raise _not_converted(suffix, f"exit code {process.returncode}")
        return made.read_bytes()


def _book(data: bytes) -> str:
    """LibreOffice's filter for a workbook. Raises OnsilError for a file that holds none."""
    for name, reader in BOOKS:
        if name.search(data):
            return reader
    raise _not_converted(".xls", "there is no workbook in it")


def _xml_book(data: bytes) -> bytes:
    """A workbook of Excel 2003 in UTF-8; LibreOffice would take every byte for that."""
    text = re.sub(r"^\s*<\?xml[^>]*>", "", decode(data)[0])
    if "<!DOCTYPE" in text:
        raise _not_converted(".xls", "it has a document type")
    if re.search(r"</(?:\w+:)?Workbook\s*>", text) is None:
        raise _not_converted(".xls", "it is cut off")
    return text.encode()


def _no_libreoffice(suffix: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{suffix} files are read only where LibreOffice is installed",
            "The format is old and closed; LibreOffice (soffice) was not found on the PATH.",
            f"Save it as {LEGACY[suffix]}, or install LibreOffice and run again.",
        ),
        ko=(
            f"{suffix} 파일은 리브레오피스(LibreOffice)가 있어야 읽습니다.",
            "오래된 비공개 형식이며, PATH에서 리브레오피스(soffice)를 찾지 못했습니다.",
            f"{LEGACY[suffix]}로 저장하거나, 리브레오피스를 설치하고 다시 실행해 주세요.",
        ),
    )


def _not_converted(suffix: str, what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"LibreOffice could not convert this {suffix} ({what})",
            "It is damaged, has a password, or is another format under this name.",
            f"Open it in its program and save it as {LEGACY[suffix]}.",
        ),
        ko=(
            f"리브레오피스가 이 {suffix} 파일을 변환하지 못했습니다({what}).",
            "손상되었거나 암호가 걸렸거나, 다른 형식의 이름만 바꾼 파일입니다.",
            f"만든 프로그램에서 열어 {LEGACY[suffix]}로 다시 저장해 주세요.",
        ),
    )
