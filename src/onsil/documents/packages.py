"""Zipped formats at the door: is it the package it claims to be, and how large does it unpack?

Office files, and archives, are zip files. Before a reader opens one, its directory is looked at:
a package that claims to unpack to very much more than a document would is refused, by its total or
by its ratio. A zip file cannot unpack to more than its directory says (Python stops there), so the
claim is a bound. An Office file under a password is no zip but an OLE container, and is named.
"""

import io
import zipfile

from onsil.errors import OnsilError

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
LARGEST = 512 * 2**20  # bytes of all parts together
STEEPEST = 200  # times the file's own size; XML packs 10 to 50 times
SMALL = 16 * 2**20  # below this no ratio is dangerous
MOST_PARTS = 20_000


def check_package(data: bytes, suffix: str) -> None:
    """Refuse what is encrypted, is no package, or would unpack to too much."""
    if data.startswith(OLE) and ENCRYPTED in data:
        raise _encrypted(suffix)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise _no_package(suffix)
    check_size(data, suffix)


def check_size(data: bytes, suffix: str) -> None:
    """Refuse a zip bomb; what is no zip file is somebody else's to refuse."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        parts = package.infolist()
        total = sum(part.file_size for part in parts)
    steep = total > SMALL and total > STEEPEST * len(data)
    if total > LARGEST or steep or len(parts) > MOST_PARTS:
        raise _bomb(suffix, len(data), total, len(parts))


def damaged(suffix: str, what: str) -> OnsilError:
    return OnsilError(
        en=(
            f"this {suffix} is damaged ({what})",
            "It was cut off or changed on its way here and cannot be unpacked.",
            "Copy it again from where it came, or open it in its program and save it again.",
        ),
        ko=(
            f"손상된 {suffix} 파일입니다({what}).",
            "옮기는 동안 잘렸거나 내용이 바뀌어 압축을 풀 수 없습니다.",
            "원본을 다시 복사하거나, 만든 프로그램에서 열어 다시 저장해 주세요.",
        ),
    )


def _encrypted(suffix: str) -> OnsilError:
    name = suffix.lstrip(".").upper()
    return OnsilError(
        en=(
            f"this {name} is encrypted with a password",
            "Its text cannot be read without the password.",
            "Open it in its program, remove the password, save it again.",
        ),
        ko=(
            f"암호가 걸린 {name} 파일입니다.",
            "암호 없이는 본문을 읽을 수 없습니다.",
            "만든 프로그램에서 열어 암호를 해제하고 다시 저장해 주세요.",
        ),
    )


def _no_package(suffix: str) -> OnsilError:
    return OnsilError(
        en=(
            f"this file is called {suffix} but is no {suffix} package",
            "It is an older format under another name, or it is damaged.",
            f"Open it in its program and save it as {suffix}.",
        ),
        ko=(
            f"이름은 {suffix}이지만 {suffix} 형식이 아닙니다.",
            "예전 형식의 이름만 바꾸었거나 파일이 손상되었습니다.",
            f"만든 프로그램에서 열어 {suffix} 형식으로 다시 저장해 주세요.",
        ),
    )


def _bomb(suffix: str, packed: int, total: int, parts: int) -> OnsilError:
    return OnsilError(
        en=(
            f"this {suffix} of {packed:,} bytes claims {parts:,} parts of {total:,} bytes in all",
            f"At most {LARGEST:,} bytes, {MOST_PARTS:,} parts and {STEEPEST} times the packed size"
            " are unpacked; more is made to exhaust memory.",
            "Leave it out, or unpack it yourself and add what you need.",
        ),
        ko=(
            f"{packed:,}바이트인 이 {suffix} 파일은 풀면 {parts:,}개, {total:,}바이트가 됩니다.",
            f"{LARGEST:,}바이트, {MOST_PARTS:,}개, 압축 전의 {STEEPEST}배까지만 풉니다. 그보다 크면"
            " 메모리를 바닥내려고 만든 파일로 봅니다.",
            "폴더에서 빼거나, 직접 풀어서 필요한 파일만 넣어 주세요.",
        ),
    )
