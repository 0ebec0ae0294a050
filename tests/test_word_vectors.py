"""Word vectors: gradients, sampling, jamo, the folder, and what they know of real text."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onsil.corpus import curate, document_text, load_corpus
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.models.subwords import buckets_of, fnv1a, lines_of_words, ngrams, stems, symbols
from onsil.models.word_vectors import (
    cbow,
    fasttext,
    glove,
    load_word_vectors,
    word2vec,
)
from onsil.training.word_vectors import (
    ABSENT,
    NOISE_TIMES,
    SHARED,
    AdaGrad,
    Rows,
    Text,
    bag_gradients,
    cooccurrences,
    draw_noise,
    glove_epochs,
    glove_gradients,
    keep_probability,
    learn,
    neighbours,
    noise_ladder,
    train_word_vectors,
    vocabulary,
)

RNG = np.random.default_rng


def within_binomial(seen: int, draws: int, chance: float) -> bool:
    """Within five standard deviations: a fair draw is outside once in 1.7 million."""
    return abs(seen - draws * chance) <= 5 * math.sqrt(draws * chance * (1 - chance)) + 1e-9


# -- gradients ----------------------------------------------------------------------------------

WORDS = ["연차", "연가", "보수", "수당", "회의", "a", "rule"]


def plain_loss(bag, target, noise, rows, inside, outside):
    """The loss as the papers write it, one example after another."""
    loss = torch.zeros((), dtype=inside.dtype)
    for i, (words, true) in enumerate(zip(bag, target, strict=True)):
        known = [w for w in words if w != ABSENT]
        parts = [rows.flat[rows.starts[w] : rows.starts[w + 1]] for w in known]
        hidden = torch.stack([inside[list(p)].mean(0) for p in parts]).mean(0)
        loss = loss - torch.nn.functional.logsigmoid(hidden @ outside[true])
        for word in noise[i // SHARED]:
            if word != true:
                loss = loss - torch.nn.functional.logsigmoid(-hidden @ outside[word]) / NOISE_TIMES
    return loss


@pytest.mark.parametrize("columns", [1, 4], ids=["skip-gram", "cbow"])
@pytest.mark.parametrize("buckets", [0, 11], ids=["words", "n-grams"])
def test_gradients_of_a_batch_are_those_of_autograd(columns, buckets):
    rng = RNG(1)
    rows = Rows.of(WORDS, replace(word2vec(), buckets=buckets))
    inside = torch.from_numpy(rng.normal(size=(len(WORDS) + buckets, 5))).float()
    outside = torch.from_numpy(rng.normal(size=(len(WORDS), 5))).float()
    bag = rng.integers(0, len(WORDS), (SHARED + 3, columns))
    if columns > 1:
        bag[rng.random(bag.shape) < 0.4] = ABSENT
        bag[:, 0] = 2
    target = rng.integers(0, len(WORDS), len(bag))
    noise = rng.integers(0, len(WORDS), (2, 8))

    loss, by_in, by_out = bag_gradients(bag, target, noise, rows, inside, outside)

    for table in (inside, outside):
        table.requires_grad_()
    wanted = plain_loss(bag, target, noise, rows, inside, outside)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for table, (where, gradient) in ((inside, by_in), (outside, by_out)):
        summed = torch.zeros_like(table).index_add_(0, where, gradient)
        assert table.grad is not None
        torch.testing.assert_close(summed, table.grad, rtol=1e-4, atol=1e-5)


def test_gradients_of_glove_are_those_of_autograd():
    rng = RNG(2)
    word, context = (torch.from_numpy(rng.normal(size=(6, 5))).float() for _ in range(2))
    counts = torch.tensor([0.5, 1.0, 20.0, 99.0, 100.0, 5000.0])
    loss, by_word, by_context = glove_gradients(word, context, counts)
    for table in (word, context):
        table.requires_grad_()
    wanted = torch.zeros(())
    for w, c, x in zip(word, context, counts, strict=True):
        trust = min(1.0, (float(x) / 100) ** 0.75)
        wanted = wanted + trust * (w[:4] @ c[:4] + w[4] + c[4] - x.log()) ** 2
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(by_word, word.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_context, context.grad, rtol=1e-4, atol=1e-5)


def test_a_step_is_that_of_torch_adagrad():
    rng = RNG(3)
    table = torch.from_numpy(rng.normal(size=(6, 4))).float()
    rows = torch.tensor([4, 1, 4, 4, 0])
    ours, theirs = AdaGrad(table.clone(), 0.05), torch.nn.Parameter(table.clone())
    oracle = torch.optim.Adagrad([theirs], lr=0.05, eps=0.0, initial_accumulator_value=1e-8)
    for _ in range(3):
        gradient = torch.from_numpy(rng.normal(size=(5, 4))).float()
        theirs.grad = torch.zeros_like(table).index_add_(0, rows, gradient)
        ours.step(rows, gradient)
        oracle.step()
        torch.testing.assert_close(ours.table_ND, theirs.data, rtol=1e-5, atol=1e-6)


# -- sampling -----------------------------------------------------------------------------------


def test_noise_is_drawn_by_count_to_the_three_quarters():
    counts = np.array([1000, 300, 81, 16, 1])
    drawn = np.bincount(draw_noise(noise_ladder(counts), (500, 400), RNG(0)).ravel(), minlength=5)
    chances = counts**0.75 / (counts**0.75).sum()
    assert all(within_binomial(*x) for x in zip(drawn, [200_000] * 5, chances, strict=True))


def test_a_window_reaches_each_distance_as_often_as_a_uniform_size_does():
    """A neighbour at distance d is seen when the size drawn is at least d: (c − d + 1) / c."""
    n, window = 20_000, 5
    ids = np.arange(n, 2 * n)
    around = neighbours(ids, np.zeros(n, np.int64), window, RNG(0))
    for d in range(1, window + 1):
        for side in (ids - d, ids + d):
            seen = int((around == side[:, None]).any(1).sum())
            assert within_binomial(seen, n - d, (window - d + 1) / window)
    assert not (around == ids[:, None]).any()


def test_a_window_does_not_leave_its_line():
    ids, line = np.arange(9), np.array([0, 0, 0, 1, 2, 2, 2, 2, 2])
    for around, own in zip(neighbours(ids, line, 4, RNG(0)), line, strict=True):
        assert all(line[other] == own for other in around if other != ABSENT)


def test_frequent_words_are_thinned_out():
    counts = np.array([90_000, 9_000, 990, 10])
    keep, draws, rng = keep_probability(counts, 1e-3), 100_000, RNG(0)
    for p, count in zip(keep, counts, strict=True):
        skipped = max(0.0, 1 - math.sqrt(1e-3 / (count / counts.sum())))
        assert within_binomial(int((rng.random(draws) < p).sum()), draws, 1 - skipped)


def test_cooccurrences_count_one_over_the_distance_both_ways():
    words, _ = vocabulary([["가", "나", "가", "다"], ["다", "나"]], 1)
    row, column, count = cooccurrences(
        Text.of([["가", "나", "가", "다"], ["다", "나"]], words), 2, 3
    )
    found = {(words[r], words[c]): x for r, c, x in zip(row, column, count, strict=True)}
    wanted = {("가", "나"): 2.0, ("가", "가"): 1.0, ("가", "다"): 1.0, ("나", "다"): 1.5}
    assert found == pytest.approx(wanted | {(b, a): x for (a, b), x in wanted.items()})


def test_the_vector_of_glove_is_the_sum_of_both_tables():
    words, counts = vocabulary(LINES, 1)
    settings = replace(RECIPES["glove"], learning_rate=0.0)
    _, table = next(glove_epochs(Text.of(LINES, words), words, counts, settings, RNG(0)))
    rng, shape = RNG(0), (len(words), settings.width + 1)
    first, second = ((rng.random(shape, np.float32) - 0.5) / settings.width for _ in range(2))
    np.testing.assert_allclose(table, (first + second)[:, :-1], rtol=1e-5)


def test_a_vocabulary_is_ordered_by_count_then_spelling():
    lines = [["나", "다", "가"], ["다", "나"], ["라", "다"]]
    words, counts = vocabulary(lines, 1)
    assert words == ["다", "나", "가", "라"] and counts.tolist() == [3, 2, 1, 1]
    assert vocabulary(lines, 2)[0] == ["다", "나"]


def test_an_epoch_reads_every_line_once():
    lines = [[f"w{i}"] * (i % 7) for i in range(300)]
    words, counts = vocabulary(lines, 1)
    text = Text.of(lines, words)
    seen = np.concatenate([ids for ids, _ in text.chunks(RNG(0))])
    assert np.array_equal(np.bincount(seen, minlength=len(words)), counts)


# -- words and n-grams --------------------------------------------------------------------------


def test_a_stem_is_what_stands_with_several_particles():
    text = "연차는 연차를 연차에서 연차가 전문가 전문가는 전문가의 전문을 전문의 정도 rule"
    text += " 회의 회는 회를 규칙을"
    wanted = {"연차는": "연차", "연차에서": "연차", "전문가는": "전문가", "전문가": "전문가"}
    found = stems(text.split())
    assert wanted.items() <= found.items()
    assert all(found[word] == word for word in ("정도", "rule", "회의", "규칙을"))


def test_every_syllable_is_three_symbols_and_every_word_its_own():
    syllables = [chr(c) for c in range(0xAC00, 0xD7A4)]
    spelled = [symbols(s) for s in syllables]
    assert {len(s) for s in spelled} == {3} and len(set(spelled)) == 11_172
    assert symbols("연차") == "\u110b\u1167\u11ab\u110e\u1161∅"  # initial, vowel, final
    assert symbols("pdf2") == "pdf2"


def test_ngrams_of_a_word():
    ga = "<\u1100\u1161∅>"  # 가: initial, vowel, no final
    assert ngrams("가", 3, 6) == [ga[:3], ga[:4], ga, ga[1:4], ga[1:], ga[2:]]
    assert ngrams("hwp", 3, 4) == ["<hw", "<hwp", "hwp", "hwp>", "wp>"]


def test_fnv1a_gives_the_published_values_and_buckets_follow_it():
    published = {b"": 0x811C9DC5, b"a": 0xE40C292C, b"foobar": 0xBF9CF968}  # draft-eastlake-fnv
    assert {data: fnv1a(data) for data in published} == published
    wanted = [fnv1a(gram.encode()) % 1000 for gram in ngrams("연차휴가", 3, 6)]
    assert buckets_of("연차휴가", 3, 6, 1000).tolist() == wanted


def test_lines_of_words():
    text = "제3조(연차) PDF로\n\n— ! —\n年次 15일"
    assert lines_of_words(text) == [["제", "3", "조", "연차", "pdf", "로"], ["年次", "15", "일"]]


# -- made, kept and asked -----------------------------------------------------------------------

SMALL = {"width": 8, "epochs": 2, "fewest": 1, "subsample": 1.0, "window": 3}
RECIPES = {
    "word2vec": replace(word2vec(), **SMALL),
    "cbow": replace(cbow(), **SMALL),
    "glove": replace(glove(), **SMALL),
    "fasttext": replace(fasttext(), **SMALL | {"buckets": 500}),
}
LINES = lines_of_words(
    "연차는 다음 해로 넘긴다\n연차를 다음 해 6월까지 쓴다\n보수는 매월 20일에 준다\n"
    "수당은 보수와 함께 준다\n출장 여비는 출장 뒤 신청한다\n여비는 카드로 쓴다\n여비를 받는다\n" * 6
)


def made(settings, folder):
    vectors, _ = learn(LINES, settings)
    vectors.save(folder, {"made_by": "test"})
    return vectors


@pytest.mark.parametrize("name", RECIPES)
def test_equal_text_and_settings_give_equal_bytes_and_come_back_the_same(name, tmp_path):
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        torch.set_num_threads(2 if part == "two" else 1)
        vectors = made(RECIPES[name], tmp_path / part)
    files = [
        sorted((p.name, p.read_bytes()) for p in (tmp_path / x).iterdir()) for x in ["one", "two"]
    ]
    assert files[0] == files[1]
    again = load_word_vectors(tmp_path / "one")
    assert again.settings == vectors.settings and again.words == vectors.words
    assert np.array_equal(again.counts, vectors.counts)
    assert again.unit_VD.tobytes() == vectors.unit_VD.tobytes()
    assert again.nearest("연차를", 3) == vectors.nearest("연차를", 3)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_falls(name):
    _, curve = learn(LINES, replace(RECIPES[name], epochs=20))
    assert len(curve) == 20 and curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "cbow"),
        ("width", 6),
        ("window", 1),
        ("negatives", 2),
        ("epochs", 1),
        ("learning_rate", 0.05),
        ("fewest", 7),
        ("subsample", 1e-2),
        ("shortest", 2),
        ("longest", 4),
        ("buckets", 100),
        ("seed", 1),
    ],
)
def test_every_setting_changes_what_is_learned(field, value):
    settings = RECIPES["fasttext"]
    assert getattr(settings, field) != value
    one, two = (learn(LINES, s)[0] for s in (settings, replace(settings, **{field: value})))
    assert one.words != two.words or not np.array_equal(one.unit_VD, two.unit_VD)


def test_the_vector_of_a_word_is_the_mean_of_its_rows():
    vectors, _ = learn(LINES, RECIPES["fasttext"])
    row = vectors.words_VD[vectors.words.index("여비")]
    for word, stem, own in (("여비를", "여비", [row]), ("여바를", "여바를", [])):
        rows = [vectors.ngrams_BD[fnv1a(g.encode()) % 500] for g in ngrams(stem, 3, 6)]
        found = vectors.vector(word)
        assert found is not None
        np.testing.assert_allclose(found, np.mean(own + rows, axis=0), rtol=1e-5)


def test_nearest_leaves_the_word_itself_out_and_is_sorted():
    found = learn(LINES, RECIPES["word2vec"])[0].nearest("보수는", 50)
    assert "보수" not in [word for _, word in found]
    assert [c for c, _ in found] == sorted((c for c, _ in found), reverse=True)


def test_an_unknown_word_has_a_vector_only_with_ngrams():
    plain, grams = (learn(LINES, RECIPES[name])[0] for name in ("word2vec", "fasttext"))
    assert plain.vector("연챠를") is None
    with pytest.raises(OnsilError, match="'연챠를' is not among the") as e:
        plain.nearest("연챠를")
    assert "연챠를" in e.value.ko[0]
    assert grams.nearest("연챠를", 1)


def test_text_without_a_frequent_word_is_refused():
    with pytest.raises(OnsilError, match="No word of these 2 occurs 5 times"):
        learn([["연차", "보수"]], word2vec())


def test_impossible_settings_are_refused():
    with pytest.raises(OnsilError, match="no objective 'skip-gram'"):
        replace(word2vec(), objective="skip-gram")
    with pytest.raises(OnsilError, match="buckets of n-grams"):
        replace(glove(), buckets=10)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def fewer_words(path):
    path.write_text("".join(path.read_text().splitlines(True)[:-1]))


def another_kind(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bert"}))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("model.safetensors", cut, "SafetensorError"),
        ("vocabulary.tsv", fewer_words, "not (20, 8)"),
        ("vocabulary.tsv", lambda path: path.write_text("연차\n"), "IndexError"),
        ("config.json", another_kind, "model_type is 'bert'"),
        ("config.json", cut, "JSONDecodeError"),
        ("config.json", lambda path: path.unlink(), "FileNotFoundError"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(file, damage, said, tmp_path):
    made(RECIPES["word2vec"], tmp_path)
    damage(tmp_path / file)
    with pytest.raises(OnsilError) as e:
        load_word_vectors(tmp_path)
    assert said in str(e.value)


def test_the_stage_learns_from_all_documents_and_is_done_once(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for n in range(5):
        text = f"# 규정 {n}\n\n" + "연차를 다음 해로 넘긴다. 연차는 팀장이 승인한다.\n\n" * 3
        (folder / f"{n}.md").write_text(text + f"여비{n}호를 준다.\n", encoding="utf-8")
    kept = []
    for home in ("one", "two"):
        ws = Workspace(tmp_path / home)
        corpus = curate(ws, documents=read(ws, folder))
        made_once = train_word_vectors(ws, corpus=corpus, settings=RECIPES["fasttext"])
        assert train_word_vectors(ws, corpus=corpus, settings=RECIPES["fasttext"]) == made_once
        kept.append(made_once.digest)
        vectors = load_word_vectors(made_once.path)
        held = [d for d in load_corpus(corpus).heldout]
        words = {w for d in held for line in lines_of_words(document_text(d)) for w in line}
        assert held and all(vectors.known(word) is not None for word in words)
    assert kept[0] == kept[1]
