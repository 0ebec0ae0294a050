"""Everyday words and the words of the rule book as one: 야근 is 초과근무, 월급 is 보수.

Somebody who asks does not know what the rule calls it, and the two share no syllable. The groups
stand in `office_words.txt`, written by hand; a text's concepts are the groups that any of its
words belongs to. Matching is by literal form, without an analyser, so that a compound
(초과근무수당) has the concept of its part. English words stand in `english_words.txt` and are
matched by their stems (bank holidays are a public holiday).

A question in one language finds papers in the other by `both_languages.txt`, whose groups hold the
words of both. A text says the ties of its own words, each marked with the language it is said in; a
question asks for the same tie in the other language, so that nothing changes where question and
papers share one.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from operator import itemgetter

from onsil.retrieval.stems import stem

LATIN = re.compile("[a-z]+")
HANGUL = re.compile("[가-힣]")
KOREAN, ENGLISH, BOTH = "office_words.txt", "english_words.txt", "both_languages.txt"
MARK = "§"  # a concept is written §초과근무: no word of a text begins so
KOREAN_TIE, ENGLISH_TIE = "§ko:", "§en:"  # annual_leave said in Korean, in English


@cache
def groups(name: str) -> list[list[str]]:
    """The groups of a list as written, marks and all."""
    lines = (files("onsil.retrieval") / name).read_text(encoding="utf-8")
    return [group for line in lines.splitlines() if (group := line.split("#")[0].split())]


Form = tuple[int, bool, str]  # its place in the list, only at the start of a word, its concept


@cache
def _korean(name: str) -> tuple[dict[str, Form], dict[str, tuple[int, ...]]]:
    """Every form as it may be spelled; and for two characters the lengths of what begins with them:
    a place of a text is looked up once a length, however many forms there are."""
    forms: dict[str, Form] = {}
    for group, named in _named(name, korean=True):
        for written in group:
            form, first = written.removeprefix("^"), written.startswith("^")
            for spelled in (form.replace("_", " "), form.replace("_", "")):
                place, marked, name = forms.get(spelled, (len(forms), first, named))
                forms[spelled] = (place, marked and first, name)
    lengths: dict[str, set[int]] = {}
    for form in forms:
        lengths.setdefault(form[:2], set()).add(len(form))
    return forms, {begin: tuple(sorted(some)) for begin, some in lengths.items()}


def _named(name: str, korean: bool) -> Iterator[tuple[list[str], str]]:
    """The groups of a list with the concepts they are; of the list for both languages the words
    of one, and the tie as it is said in that one."""
    for group in groups(name):
        if name == BOTH:
            words = [form for form in group if bool(HANGUL.search(form)) == korean]
            yield words, (KOREAN_TIE if korean else ENGLISH_TIE) + group[0]
        else:
            yield group, concept(group[0])


def concept(name: str) -> str:
    return MARK + name.removeprefix("^").replace("_", "")


@cache
def _english(name: str) -> tuple[dict[tuple[str, ...], str], dict[str, int]]:
    """Every English form, as it is written and by its stems (customs and customers have one) → its
    concept; and of the forms that begin with a stem, how many stems the longest has."""
    forms, longest = {}, dict[str, int]()
    written = [
        (tuple(LATIN.findall(form.lower())), named)
        for group, named in _named(name, korean=False)
        for form in group
    ]
    forms.update(written)
    for words, named in written:
        stems = tuple(map(stem, words))
        forms.setdefault(stems, named)
        longest[stems[0]] = max(longest.get(stems[0], 0), len(stems))
    return forms, longest


def _english_at(text: str, name: str) -> list[tuple[int, int, str]]:
    places = list(LATIN.finditer(text))
    if not places:
        return []
    (forms, longest), words = _english(name), [place.group() for place in places]
    stems = list(map(stem, words))
    return [
        (places[i].start(), places[j].end(), found)
        for i, first in enumerate(stems)
        for j in range(i, min(i + longest.get(first, 0), len(words)))
        if (found := forms.get(tuple(words[i : j + 1])) or forms.get(tuple(stems[i : j + 1])))
    ]


def concepts_at(text: str) -> list[tuple[int, int, str]]:
    """(start, end, concept) of every form in a text, in order of start and then of the list."""
    return _found_at(text, KOREAN, ENGLISH)


def ties_at(text: str) -> list[tuple[int, int, str]]:
    """(start, end, tie) of every form in a text that has a word in the other language."""
    return _found_at(text, BOTH, BOTH)


def _found_at(text: str, korean: str, english: str) -> list[tuple[int, int, str]]:
    forms, lengths = _korean(korean)
    text = text.lower().replace("\n", " ")
    found = _english_at(text, english)
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


def ties(text: str) -> frozenset[str]:
    return frozenset(name for _, _, name in ties_at(text))


def other_side(tie: str) -> str:
    """A tie as it is said in the other language."""
    mark = ENGLISH_TIE if tie.startswith(KOREAN_TIE) else KOREAN_TIE
    return mark + tie[len(mark) :]


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
