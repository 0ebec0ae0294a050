"""Everyday words and the words of the rule book as one: 야근 is 초과근무, 월급 is 보수.

Somebody who asks does not know what the rule calls it, and the two share no syllable. The groups
stand in `office_words.txt`, written by hand; a text's concepts are the groups that any of its
words belongs to. Matching is by literal form, without an analyser, so that a compound
(초과근무수당) has the concept of its part. English words stand in `english_words.txt` and are
matched by their stems (bank holidays are a public holiday).
"""

import re
from functools import cache
from importlib.resources import files
from operator import itemgetter

from onsil.retrieval.stems import stem

LATIN = re.compile("[a-z]+")
KOREAN, ENGLISH = "office_words.txt", "english_words.txt"
MARK = "§"  # a concept is written §초과근무: no word of a text begins so


@cache
def groups(name: str) -> list[list[str]]:
    """The groups of a list as written, marks and all."""
    lines = (files("onsil.retrieval") / name).read_text(encoding="utf-8")
    return [group for line in lines.splitlines() if (group := line.split("#")[0].split())]


Form = tuple[int, bool, str]  # its place in the list, only at the start of a word, its concept


@cache
def _forms() -> tuple[dict[str, Form], dict[str, tuple[int, ...]]]:
    """Every form as it may be spelled; and for two characters the lengths of what begins with them:
    a place of a text is looked up once a length, however many forms there are."""
    forms: dict[str, Form] = {}
    for group in groups(KOREAN):
        for written in group:
            form, first = written.removeprefix("^"), written.startswith("^")
            for spelled in (form.replace("_", " "), form.replace("_", "")):
                place, marked, name = forms.get(spelled, (len(forms), first, concept(group[0])))
                forms[spelled] = (place, marked and first, name)
    lengths: dict[str, set[int]] = {}
    for form in forms:
        lengths.setdefault(form[:2], set()).add(len(form))
    return forms, {begin: tuple(sorted(some)) for begin, some in lengths.items()}


def concept(name: str) -> str:
    return MARK + name.removeprefix("^").replace("_", "")


@cache
def _english() -> tuple[dict[tuple[str, ...], str], dict[str, int]]:
    """Stems of every English form → its concept; and of the forms that begin with a stem, how many
    stems the longest has."""
    forms, longest = {}, dict[str, int]()
    for group in groups(ENGLISH):
        for form in group:
            stems = tuple(map(stem, LATIN.findall(form.lower())))
            forms[stems] = concept(group[0])
            longest[stems[0]] = max(longest.get(stems[0], 0), len(stems))
    return forms, longest


def _english_at(text: str) -> list[tuple[int, int, str]]:
    words = list(LATIN.finditer(text))
    if not words:
        return []
    (forms, longest), stems = _english(), [stem(word.group()) for word in words]
    return [
        (words[i].start(), words[j].end(), name)
        for i, first in enumerate(stems)
        for j in range(i, min(i + longest.get(first, 0), len(words)))
        if (name := forms.get(tuple(stems[i : j + 1])))
    ]


def concepts_at(text: str) -> list[tuple[int, int, str]]:
    """(start, end, concept) of every form in a text, in order of start and then of the list."""
    forms, lengths = _forms()
    text = text.lower().replace("\n", " ")
    found = _english_at(text)
    for i in range(len(text) - 1):
        if (some := lengths.get(text[i : i + 2])) is None:
            continue
        inside = i > 0 and "가" <= text[i - 1] <= "힣"
        here = []
        for n in some:
            form = forms.get(text[i : i + n])
            if form is None or i + n > len(text) or (form[1] and inside):
                continue
            latin = text[i].isascii() or text[i + n - 1].isascii()
            if not (latin and inside_latin(text, i, i + n)):
                here.append((form[0], n, form[2]))
        found += [(i, i + n, name) for _, n, name in sorted(here)]
    return sorted(found, key=itemgetter(0))


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
def other_words(name: str) -> dict[str, list[str]]:
    """Of a list, concept → its words that can stand in for one another inside a sentence: of the
    Korean ones the plain ones."""
    return {
        concept(group[0]): [form.replace("_", " ") for form in group]
        if name == ENGLISH
        else [word for word in group if not set(word) & set("^_")]
        for group in groups(name)
    }
