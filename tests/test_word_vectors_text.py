"""What word vectors know of real text, against controls.

Statutes teach, their glossaries ask: a hit is a glossary term with another term of the same
statute among its ten nearest words. Lines that define a term are not trained on. The control
learns from the same words in random order: same counts, no neighbours.
"""

import json
import re

import numpy as np
import pytest

from onsil.models.subwords import lines_of_words
from onsil.models.word_vectors import cbow, fasttext, glove, word2vec
from onsil.training.word_vectors import learn

RNG = np.random.default_rng
TOKENS = 300_000
DEFINES = re.compile(r"[\"“«「'][^\"”»」']{2,30}[\"”»」'](?:이란|란|이라|라)")
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
SLIPS = dict(zip("ㅏㅑㅓㅕㅗㅛㅜㅠㅐㅔ", "ㅑㅏㅕㅓㅛㅗㅠㅜㅔㅐ", strict=True))


def rows_of(path):
    zstandard = pytest.importorskip("zstandard")
    with zstandard.open(path, "rt", encoding="utf-8") as f:
        yield from map(json.loads, f)


def some_lines(path, tokens=TOKENS):
    """Lines of words from the start of a file of texts, without those that define a term."""
    lines = []
    for row in rows_of(path):
        text = row["text"].replace("ㆍ", " ").splitlines()
        for line in lines_of_words("\n".join(x for x in text if not DEFINES.search(x))):
            lines.append(line)
            tokens -= len(line)
        if tokens <= 0:
            return lines
    return lines


def interval(values) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval over items."""
    values, rng = np.asarray(values, float), RNG(0)
    drawn = values[rng.integers(0, len(values), (2_000, len(values)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@pytest.fixture(scope="module")
def statutes(onsil_data):
    return some_lines(onsil_data / "text-ko" / "law-ko.jsonl.zst")


@pytest.fixture(scope="module")
def shuffled(statutes):
    words = [word for line in statutes for word in line]
    words = iter([words[i] for i in RNG(0).permutation(len(words))])
    return [[next(words) for _ in line] for line in statutes]


@pytest.fixture(scope="module")
def related(onsil_data):
    """Term → the other one-word terms of the statutes that define it."""
    glossaries: dict[str, list[str]] = {}
    for row in rows_of(onsil_data / "instruct" / "law-definitions-ko.jsonl.zst"):
        if re.fullmatch("[가-힣]{2,}", row["term"]):
            glossaries.setdefault(row["law"], []).append(row["term"])
    found: dict[str, set[str]] = {}
    for terms in glossaries.values():
        for term in terms:
            found.setdefault(term, set()).update(set(terms) - {term})
    return found


@pytest.fixture(scope="module")
def by_words(statutes):
    return learn(statutes, word2vec())[0]


@pytest.fixture(scope="module")
def by_ngrams(statutes):
    return learn(statutes, fasttext())[0]


def hits(vectors, related, terms):
    return np.array([any(w in related[t] for _, w in vectors.nearest(t)) for t in terms])


def askable(vectors, related):
    return [t for t in related if t in vectors.place and related[t] & set(vectors.words)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [word2vec, cbow, glove, fasttext])
def test_glossary_neighbours_are_nearer_than_in_shuffled_text(recipe, statutes, shuffled, related):
    real, control = (learn(lines, recipe())[0] for lines in (statutes, shuffled))
    terms = [t for t in askable(real, related) if t in control.place]
    found, by_chance = hits(real, related, terms), hits(control, related, terms)
    more = interval(found.astype(float) - by_chance)
    print(
        f"\n{recipe.__name__}: {len(terms)} of {len(related)} terms; hit@10 {interval(found)}; "
        f"shuffled {interval(by_chance)}; difference {more}"
    )
    assert len(terms) > 100 and more[1] > 0


@pytest.mark.slow
def test_stems_find_more_glossary_neighbours_than_eojeol(statutes, related, by_words, monkeypatch):
    monkeypatch.setattr("onsil.training.word_vectors.stems", lambda words: {w: w for w in words})
    eojeol = learn(statutes, word2vec())[0]
    terms = sorted(set(askable(by_words, related)) & set(askable(eojeol, related)))
    found, before = (hits(v, related, terms) for v in (by_words, eojeol))
    more = interval(found.astype(float) - before)
    print(f"\n{len(terms)} terms known to both; stems {interval(found)}, eojeol {interval(before)}")
    print(
        f"difference {more}; {len(askable(by_words, related))} terms instead of "
        f"{len(askable(eojeol, related))}"
    )
    assert more[1] > 0


def slipped(word: str, rng) -> str:
    """The word with the vowel of one syllable typed with or without shift, or ㅐ for ㅔ."""
    places = [i for i, c in enumerate(word) if VOWELS[(ord(c) - 0xAC00) // 28 % 21] in SLIPS]
    if not places:
        return word
    i = places[rng.integers(len(places))]
    rest, final = divmod(ord(word[i]) - 0xAC00, 28)
    initial, vowel = divmod(rest, 21)
    vowel = VOWELS.index(SLIPS[VOWELS[vowel]])
    return word[:i] + chr(0xAC00 + (initial * 21 + vowel) * 28 + final) + word[i + 1 :]


def recovered(vectors, typo: str, word: str) -> bool:
    return vectors.vector(typo) is not None and vectors.nearest(typo, 1)[0][1] == word


def test_a_slip_changes_one_syllable():
    assert slipped("연차", RNG(0)) in ("얀차".replace("얀", "언"), "연챠")
    assert slipped("그", RNG(0)) == "그"


@pytest.mark.slow
def test_the_nearest_word_of_a_misspelled_word_is_the_word(by_words, by_ngrams):
    rng = RNG(0)
    words = [w for w in by_ngrams.words if re.fullmatch("[가-힣]{3,}", w)]
    words = [words[i] for i in rng.choice(len(words), 500, replace=False)]
    typos = {w: slipped(w, rng) for w in words}
    asked = [w for w in words if typos[w] != w and by_ngrams.known(typos[w]) is None]
    ours, theirs = (
        np.array([recovered(v, typos[w], w) for w in asked], float) for v in (by_ngrams, by_words)
    )
    print(
        f"\n{len(asked)} misspelled words: FastText {interval(ours)}, Word2Vec {interval(theirs)}"
    )
    assert interval(ours - theirs)[1] > 0 and len(asked) > 300


@pytest.mark.slow
def test_terms_never_seen_have_their_glossary_near(by_words, by_ngrams, related):
    """A term too rare for a row, by its n-grams alone, against a word drawn in its place."""
    known = set(by_ngrams.words)
    terms = [t for t in related if by_ngrams.known(t) is None and related[t] & known]
    drawn = [terms[i] for i in RNG(0).permutation(len(terms))]
    found = hits(by_ngrams, related, terms)
    swapped = [
        any(w in related[t] for _, w in by_ngrams.nearest(o))
        for t, o in zip(terms, drawn, strict=True)
    ]
    print(f"\n{len(terms)} unknown terms: {interval(found)}, of another term {interval(swapped)}")
    assert interval(found.astype(float) - swapped)[1] > 0
    assert all(by_words.vector(t) is None for t in terms)


def ranks(values):
    """Ranks with ties shared, for Spearman's correlation."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [word2vec, fasttext])
def test_likeness_follows_human_judgement(recipe, onsil_data):
    """WS353 in Korean, evaluation only; the control is the same pairs with shuffled scores."""
    texts = onsil_data / "text-ko"
    names = ("law-ko", "tech-ko", "reviews-ko")
    lines = [x for n in names for x in some_lines(texts / f"{n}.jsonl.zst", TOKENS // 2)]
    vectors = learn(lines, recipe())[0]
    table = (onsil_data / "word-eval" / "ws353-ko.csv").read_text(encoding="utf-8-sig")
    rows = [line.split(",") for line in table.splitlines()[1:]]
    placed = [(vectors.known(a), vectors.known(b), float(x)) for a, b, x in rows]
    known = [(a, b, x) for a, b, x in placed if a is not None and b is not None]
    ours = [float(vectors.unit_VD[a] @ vectors.unit_VD[b]) for a, b, _ in known]
    theirs, rng = ranks([x for *_, x in known]), RNG(0)
    found = np.corrcoef(ranks(ours), theirs)[0, 1]
    by_chance = [np.corrcoef(ranks(ours), rng.permutation(theirs))[0, 1] for _ in range(1_000)]
    print(
        f"\n{recipe.__name__}: {len(known)} of {len(rows)} pairs, Spearman {found:.3f}, "
        f"99 % of shuffled below {np.quantile(by_chance, 0.99):.3f}"
    )
    assert found > np.quantile(by_chance, 0.99)
