"""Everyday words and the words of the rule book as one: 야근 is 초과근무, 월급 is 보수.

Somebody who asks does not know what the rule calls it, and the two share no syllable. The groups
stand in `office_words.txt`, written by hand; a text's concepts are the groups that any of its
words belongs to. Matching is by literal form, without an analyser, so that a compound
(초과근무수당) has the concept of its part.
"""

from functools import cache
from importlib.resources import files

MARK = "§"  # a concept is written §초과근무: no word of a text begins so


@cache
def _groups() -> list[list[str]]:
    """The groups as written, marks and all."""
    lines = (files("onsil.retrieval") / "office_words.txt").read_text(encoding="utf-8")
    return [group for line in lines.splitlines() if (group := line.split("#")[0].split())]


@cache
def _forms() -> dict[str, list[tuple[str, bool, str]]]:
    """First two characters → (form, only at the start of a word, concept)."""
    table: dict[str, list[tuple[str, bool, str]]] = {}
    for group in _groups():
        for written in group:
            form, first = written.removeprefix("^"), written.startswith("^")
            for spelled in {form.replace("_", " "), form.replace("_", "")}:
                table.setdefault(spelled[:2], []).append((spelled, first, concept(group[0])))
    return table


def concept(name: str) -> str:
    return MARK + name.removeprefix("^").replace("_", "")


def concepts_at(text: str) -> list[tuple[int, int, str]]:
    """(start, end, concept) of every form in a text, in order of start."""
    table = _forms()
    text = text.lower().replace("\n", " ")
    found = []
    for i in range(len(text) - 1):
        for form, first, name in table.get(text[i : i + 2], ()):
            inside = first and i and "가" <= text[i - 1] <= "힣"
            if text.startswith(form, i) and not inside and not inside_latin(text, i, i + len(form)):
                found.append((i, i + len(form), name))
    return found


def inside_latin(text: str, start: int, end: int) -> bool:
    """Whether a form stands in the middle of a longer Latin word (ai in email)."""

    def joined(at: int) -> bool:
        return 0 < at < len(text) and all(
            c.isascii() and c.isalpha() for c in text[at - 1 : at + 1]
        )

    return joined(start) or joined(end)


def concepts(text: str) -> frozenset[str]:
    return frozenset(name for _, _, name in concepts_at(text))


@cache
def other_words() -> dict[str, list[str]]:
    """Concept → its plain words, those that can stand in for one another inside a sentence."""
    return {
        concept(group[0]): [word for word in group if not set(word) & set("^_")]
        for group in _groups()
    }
