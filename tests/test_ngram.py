"""Kneser-Ney against its definition, against simpler models, and against its own file."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from onsil.errors import OnsilError
from onsil.models.ngram import NGram, Seen, _discounts
from onsil.models.weights import stable_bytes

KO = [
    "쓰지 않은 연차는 다음 해에 10일까지 이월할 수 있다.",
    "쓰지 않은 병가는 다음 해에 이월할 수 없다.",
    "국내 출장의 일비는 하루 25,000원으로 한다.",
    "국외 출장의 일비는 하루 50,000원으로 한다.",
    "병가는 연간 60일 이내로 한다. 7일을 넘는 병가에는 진단서를 내야 한다.",
    "연차는 연간 15일로 한다. 2년을 넘는 직원에게는 하루를 더한다.",
]


def random_text(seed: int, tokens: int = 900, vocabulary: int = 60) -> list[list[int]]:
    """Skewed, so that grams of count 1, 2, 3, 4 and more exist at every order."""
    draw = random.Random(seed)
    texts: list[list[int]] = [[] for _ in range(12)]
    for _ in range(tokens):
        text = draw.choice(texts)
        near = text[-1] if text else 0
        text.append(min(vocabulary - 1, int(draw.paretovariate(0.6)) - 1 + near % 3))
    return texts


def defined(texts: list[list[int]], order: int, vocabulary: int, context, token) -> float:
    """P(token | context) written from the definition in Chen & Goodman (1998), the slow way: lists
    of occurrences, sets of left neighbours, and recursion."""
    grams = []
    for text in texts:
        padded = [-1] * (order - 1) + list(text)
        grams += [tuple(padded[i : i + order]) for i in range(len(text))]

    def table(n: int) -> dict[tuple, int]:
        if n == order:
            return {g: grams.count(g) for g in set(grams)}
        longer = {g[-n - 1 :] for g in grams}
        return {g: len({x[0] for x in longer if x[1:] == g}) for g in {x[1:] for x in longer}}

    def p(history: tuple, n: int) -> float:
        if n == 0:
            return 1 / vocabulary
        counts = table(n)
        of = Counter(counts.values())
        y = of[1] / (of[1] + 2 * of[2])
        d = [
            0,
            1 - 2 * y * of[2] / of[1],
            2 - 3 * y * of[3] / of[2],
            3 - 4 * y * of[4] / of[3],
        ]
        followers = {g[-1]: c for g, c in counts.items() if g[:-1] == history}
        lower = p(history[1:], n - 1)
        total = sum(followers.values())
        if not total:
            return lower
        count = followers.get(token, 0)
        gamma = sum(d[min(c, 3)] for c in followers.values()) / total
        return max(count - d[min(count, 3)], 0) / total + gamma * lower

    padded = [-1] * (order - 1) + list(context)
    return p(tuple(padded[len(padded) - order + 1 :]), order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_are_those_of_the_definition(order):
    texts = random_text(1)
    model = NGram(texts, order, 60)
    for n, table in model.counts.items():
        assert {1, 2, 3, 4} <= set(table.values()), "the text must exercise every discount"
        assert all(0.1 < d < k for k, d in enumerate(model.discounts[n]) if k), (
            "and none at a bound"
        )
    draw = random.Random(2)
    places = [(t, i) for t in texts for i in (0, 1, 7, 20)] + [([59, 58], 2), ([0, 59], 2)]
    for text, i in places:
        token = draw.choice([*text[i : i + 1], draw.randrange(60)])
        wanted = defined(texts, order, 60, text[:i], token)
        assert math.isclose(model.probability(text[:i], token), wanted, rel_tol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bits_of_a_text_are_those_of_its_tokens(order):
    texts = random_text(6)
    model = NGram(texts[1:], order, 60)
    wanted = -sum(math.log2(model.probability(texts[0][:i], t)) for i, t in enumerate(texts[0]))
    assert math.isclose(model.bits(texts[0]), wanted, rel_tol=1e-12)


def test_discounts_by_hand():
    """n1..n4 = 8, 4, 2, 1: Y = 8/16, D1 = 1 − 2·½·4/8, D2 = 2 − 3·½·2/4, D3+ = 3 − 4·½·1/2."""
    counts = [1] * 8 + [2] * 4 + [3] * 2 + [4]
    table = Counter({(i,): c for i, c in enumerate(counts)})
    assert _discounts(table) == (0.0, 0.5, 1.25, 2.0)


def syllables(texts: list[str]) -> tuple[list[list[int]], int]:
    letters = {c: i for i, c in enumerate(sorted(set("".join(texts))))}
    return [[letters[c] for c in text] for text in texts], len(letters)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_every_conditional_sums_to_one(order):
    ids, vocabulary = syllables(KO)
    model = NGram(ids, order, vocabulary)
    draw = random.Random(0)
    for k in range(100):
        text = draw.choice(ids)
        at = draw.randrange(len(text))
        context = text[:at] if k % 2 else [draw.randrange(vocabulary) for _ in range(at % 7)]
        total = sum(model.probability(context, t) for t in range(vocabulary))
        assert abs(total - 1) < 1e-9


def add_one_bits(train: list[list[int]], held: list[int], vocabulary: int, order: int) -> float:
    """Laplace: (c + 1) / (total + vocabulary), the control that smoothing must beat."""
    grams, contexts = Counter(), Counter()
    for ids in train:
        padded = (-1,) * (order - 1) + tuple(ids)
        for i in range(len(ids)):
            grams[padded[i : i + order]] += 1
            contexts[padded[i : i + order - 1]] += 1
    padded = (-1,) * (order - 1) + tuple(held)
    bits = 0.0
    for i in range(len(held)):
        seen = grams[padded[i : i + order]] + 1
        bits -= math.log2(seen / (contexts[padded[i : i + order - 1]] + vocabulary))
    return bits


def check_floor(train: list[list[int]], held: list[list[int]], vocabulary: int, order: int) -> dict:
    """Bits per token of Kneser-Ney, add-one and unigram on the same held-out tokens."""
    tokens = sum(map(len, held))
    kn, unigram = (NGram(train, n, vocabulary) for n in (order, 1))
    got = {
        "kneser-ney": sum(map(kn.bits, held)) / tokens,
        "add-one": min(
            sum(add_one_bits(train, h, vocabulary, n) for h in held) / tokens
            for n in range(1, order + 1)
        ),
        "unigram": sum(map(unigram.bits, held)) / tokens,
    }
    assert got["kneser-ney"] < got["add-one"] and got["kneser-ney"] < got["unigram"]
    return got


def test_better_than_add_one_and_unigram_on_our_own_sentences():
    ids, vocabulary = syllables(KO)
    for k in range(len(ids)):
        check_floor(ids[:k] + ids[k + 1 :], [ids[k]], vocabulary, 3)


def test_better_than_add_one_and_unigram_on_real_korean(onsil_data):
    zstandard = pytest.importorskip("zstandard")
    path = onsil_data / "text-ko" / "law-ko.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs text-ko/law-ko.jsonl.zst in $ONSIL_DATA")
    with zstandard.open(path, "rt", encoding="utf-8") as f:
        texts = [json.loads(line)["text"][:3000] for line in itertools.islice(f, 30)]
    ids = [list(t.encode()) for t in texts]
    check_floor(ids[:24], ids[24:], 256, 6)


# -- on disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 3])
def test_the_same_probabilities_back_and_equal_models_are_equal_bytes(order, tmp_path):
    texts = random_text(3)
    model = NGram(texts, order, 60)
    model.save(tmp_path / "a", {"made_by": "test"})
    NGram(texts[::-1], order, 60).save(tmp_path / "b", {"made_by": "test"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = NGram.load(tmp_path / "a")
    assert (again.order, again.vocabulary) == (order, 60)
    for text in texts:
        assert again.bits(text) == model.bits(text)
    code = (
        "import sys; from pathlib import Path; from onsil.models.ngram import NGram\n"
        "NGram.load(Path(sys.argv[1])).save(Path(sys.argv[2]), {'made_by': 'test'})"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a", tmp_path / "c"], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_model_of_nothing_is_uniform_and_can_be_kept(tmp_path):
    NGram([], 3, 8).save(tmp_path / "none", {})
    assert NGram.load(tmp_path / "none").probability([1, 2], 3) == 1 / 8


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.ngram"
    model = NGram(random_text(4), 2, 60)
    model.save(path, {})
    whole, tensors = path.read_bytes(), load_file(path)
    about = {"order": "2", "vocabulary": "60"}
    bad = {
        "not safetensors": b"{}",
        "cut off": whole[:-9],
        "no counts": stable_bytes({"grams": tensors["grams"]}, about),
        "no order": stable_bytes(tensors, {"vocabulary": "60"}),
        "another order": stable_bytes(tensors, about | {"order": "3"}),
        "id too large": stable_bytes(tensors, about | {"vocabulary": "9"}),
        "too few counts": stable_bytes(tensors | {"counts": tensors["counts"][1:]}, about),
        "count zero": stable_bytes(tensors | {"counts": tensors["counts"] * 0}, about),
        "scalar": stable_bytes(tensors | {"counts": torch.tensor(1)}, about),
        "fractions": stable_bytes(tensors | {"counts": tensors["counts"] + 0.5}, about),
    }
    for what, data in bad.items():
        path.write_bytes(data)
        with pytest.raises(OnsilError, match=r"model\.ngram") as error:
            NGram.load(path)
        assert "n-gram" in error.value.ko[0], what
    with pytest.raises(OnsilError, match="absent"):
        NGram.load(tmp_path / "absent")


# -- overlap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 13])
def test_overlap_is_the_share_of_grams_counted_the_slow_way(n):
    draw = random.Random(5)
    train = [[draw.randrange(500) for _ in range(60)] for _ in range(20)]
    mixed = train[3][10:40] + [draw.randrange(500) for _ in range(30)] + train[7][:20]
    grams = {tuple(t[i : i + n]) for t in train for i in range(len(t) - n + 1)}
    own = [tuple(mixed[i : i + n]) for i in range(len(mixed) - n + 1)]
    wanted = sum(g in grams for g in own) / len(own)
    assert 0.2 < wanted < 0.8 and Seen(train, n).overlap(mixed) == wanted


def test_overlap_of_a_copy_a_stranger_and_a_text_too_short_to_tell():
    ids, _ = syllables(KO)
    seen = Seen(ids[:4])
    assert seen.overlap(ids[0]) == 1.0
    assert seen.overlap(ids[5]) == 0.0
    assert seen.overlap(ids[0][:12]) is None
    assert seen.overlap(ids[0][:13][::-1]) == 0.0  # the same tokens in another order
    assert Seen([]).overlap(ids[0]) == 0.0
