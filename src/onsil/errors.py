"""The one error a user sees: what was wrong, why it matters, what to do next.

An error is raised where the outside comes in (a file, a name, a flag) with the offending value in
it, in English and in Korean; the reader's locale chooses. Inside the rooms types are trusted.
"""

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
