"""The one error a user sees: what was wrong, why it matters, what to do next.

An error is raised where the outside comes in (a file, a name, a flag) with the offending value in
it, in English and in Korean; the reader's locale chooses. Inside the rooms types are trusted.
"""

import errno
import os

Message = tuple[str, str, str]


def language() -> str:
    """`ko` or `en`: `$ONSIL_LANG`, else the locale of the terminal."""
    for variable in ("ONSIL_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable, "")
        if value:
            return "ko" if value.lower().startswith("ko") else "en"
    return "en"


def say(en: str, ko: str) -> str:
    """One of two sentences, each written (not translated), by the reader's language."""
    return ko if language() == "ko" else en


class OnsilError(Exception):
    """What was wrong (with the value), why it matters, what to do next, in both languages."""

    def __init__(self, en: Message, ko: Message):
        self.en, self.ko = en, ko
        super().__init__(en[0])

    def __str__(self) -> str:
        return "\n".join(self.ko if language() == "ko" else self.en)


# What a disk can say, in English and Korean.
DISK = {
    errno.ENOSPC: (
        "The disk is full {}\nNothing finished was lost, but no more can be kept.\n"
        "Free some space and run it again (onsil gc --delete removes what no name reaches, even "
        "what this run has finished).",
        "디스크가 가득 찼습니다 {}\n끝난 결과는 그대로 있지만 더 저장할 수 없습니다.\n"
        "공간을 비우고 다시 실행해 주세요(onsil gc --delete는 이름이 없는 결과를 지우며, 방금 끝낸 "
        "것도 지웁니다).",
    ),
    errno.EROFS: (
        "This place cannot be written to: {}\nResults have nowhere to go.\n"
        "Set $ONSIL_HOME to a folder you may write to.",
        "쓸 수 없는 위치입니다: {}\n결과를 저장할 곳이 없습니다.\n"
        "$ONSIL_HOME을 쓸 수 있는 폴더로 지정해 주세요.",
    ),
    errno.EACCES: (
        "You may not read this, or not write here: {}\nThe system keeps it from this account.\n"
        "Change its permissions, or set $ONSIL_HOME to a folder that is yours.",
        "읽거나 쓸 권한이 없습니다: {}\n이 계정으로는 열 수 없는 위치입니다.\n"
        "권한을 바꾸거나, $ONSIL_HOME을 본인 폴더로 지정해 주세요.",
    ),
}
DISK[errno.EDQUOT], DISK[errno.EPERM] = DISK[errno.ENOSPC], DISK[errno.EACCES]
OTHER = (
    "The system could not do it: {}\n{}\nSee that the path is right, then run it again.",
    "시스템이 처리하지 못했습니다: {}\n{}\n경로가 맞는지 확인하고 다시 실행해 주세요.",
)


def of_the_system(error: OSError) -> str:
    """The same three lines for what the system would not do: where, why, what to do next."""
    words = DISK.get(error.errno or 0, OTHER)
    place = str(error.filename or "")
    place = place if len(place) <= 200 else f"{place[:199]}…"
    return say(*(w.format(place, error.strerror or error) for w in words))
