"""Words and the pieces they are spelled with: stems, jamo, n-grams, hashed buckets.

Korean glues particles to words, so an eojeol is rarer than its word. Two answers to that stand
here. A stem is an eojeol without its particle, where the text itself shows the rest with several
particles (연차를, 연차는 → 연차; never less than two syllables, so 회의 stays): no dictionary, and
wrong now and then. And n-grams find what two spellings share.

A Hangul syllable is taken apart into initial, vowel and final, with a symbol of its own where the
final is missing, so that every syllable is three symbols and a slip of one key changes one of them
(연차, 연챠). N-grams run over these symbols, over characters for other scripts, with < and > at the
ends (Bojanowski et al. 2017; over jamo: Park et al. 2018). An n-gram's row is its 32-bit FNV-1a
hash modulo the number of buckets: two n-grams may share a row, none is ever unknown.
"""

import re
from collections.abc import Container, Iterable

import numpy as np

WORD = re.compile(r"[가-힣]+|[a-z]+|\d+|[一-鿿]+")
FIRST, LAST = 0xAC00, 0xD7A3
INITIAL, VOWEL, FINAL = 0x1100, 0x1161, 0x11A7  # the block's own numbering; FINAL + 0 is unused
VOWELS, FINALS = 21, 28
NO_FINAL = "∅"
ENDINGS = """
에서는 에서의 으로서 으로써 으로부터 로부터 에게서 에서 으로 에게 까지 부터 이나 이란 보다 마다 라도
이라 은 는 이 가 을 를 의 에 와 과 도 로 만 란 나
"""
PARTICLES = sorted(ENDINGS.split(), key=len, reverse=True)
SHORTEST_STEM = 2  # syllables
START, END = "<", ">"
FNV_OFFSET, FNV_PRIME = 2166136261, 16777619


def lines_of_words(text: str) -> list[list[str]]:
    """The words of each line, lower-cased: runs of Hangul, Latin letters, digits or hanja."""
    return [found for line in text.lower().splitlines() if (found := WORD.findall(line))]


def endings(word: str) -> list[tuple[str, str]]:
    """(stem, particle) for every particle a Hangul word may end with, the longest first."""
    if not FIRST <= ord(word[0]) <= LAST:
        return []
    ends = (p for p in PARTICLES if word.endswith(p) and len(word) - len(p) >= SHORTEST_STEM)
    return [(word.removesuffix(p), p) for p in ends]


def stems(words: Iterable[str]) -> dict[str, str]:
    """The stem of each of the different words of a text: what is left without the longest particle
    whose rest stands with two or more particles, unless the word itself does."""
    words, seen = set(words), {}
    for word in words:
        for stem, particle in endings(word):
            seen.setdefault(stem, set()).add(particle)
    nouns = {stem for stem, particles in seen.items() if len(particles) >= 2}
    return {word: stem_among(nouns, word) or word for word in words}


def stem_among(known: Container[str], word: str) -> str | None:
    """The word itself, else the first of its stems, that is among `known`; None for neither."""
    if word in known:
        return word
    return next((stem for stem, _ in endings(word) if stem in known), None)


def symbols(word: str) -> str:
    """A word as n-grams see it: three symbols for a syllable, one for any other character."""
    return "".join(_jamo(c) if FIRST <= ord(c) <= LAST else c for c in word)


def _jamo(syllable: str) -> str:
    rest, final = divmod(ord(syllable) - FIRST, FINALS)
    initial, vowel = divmod(rest, VOWELS)
    return chr(INITIAL + initial) + chr(VOWEL + vowel) + (chr(FINAL + final) if final else NO_FINAL)


def ngrams(word: str, shortest: int, longest: int) -> list[str]:
    """Every n-gram of `<word>` of `shortest` to `longest` symbols, repeats kept."""
    spelled = f"{START}{symbols(word)}{END}"
    return [
        spelled[i : i + n]
        for i in range(len(spelled))
        for n in range(shortest, min(longest, len(spelled) - i) + 1)
    ]


def fnv1a(data: bytes, state: int = FNV_OFFSET) -> int:
    """The 32-bit FNV-1a hash of `data`; `state` goes on from the hash of what stands before."""
    for byte in data:
        state = ((state ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return state


def buckets_of(word: str, shortest: int, longest: int, buckets: int) -> np.ndarray:
    """The bucket (0 … buckets − 1) of every n-gram of a word, in the order of `ngrams`."""
    encoded = [c.encode() for c in f"{START}{symbols(word)}{END}"]
    found = []
    for i in range(len(encoded)):
        state = FNV_OFFSET
        for n, character in enumerate(encoded[i : i + longest], 1):
            state = fnv1a(character, state)
            if n >= shortest:
                found.append(state % buckets)
    return np.array(found, dtype=np.int64)
