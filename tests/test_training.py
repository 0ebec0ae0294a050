"""Objectives, the loop, the n-gram floor, the tokenizer and the renderer."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted import PLANTED
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models.ngram import NGram
from onsil.models.shape import decoder_shape, encoder_shape, hybrid_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET, render_pair
from onsil.tokenizer.train import CLS, END, MASK, SEP, SPECIALS, load_tokenizer, train
from onsil.training.loop import Step, pretraining, report_progress
from onsil.training.loop import train as train_loop
from onsil.training.objectives import (
    causal_batch,
    masked_batch,
    pieces_of,
    schedule,
    token_loss,
)
from onsil.training.pretraining import bits_per_byte

TEXT = [
    "쓰지 않은 연차는 다음 해에 10일까지 이월할 수 있다.",
    "국내 출장의 일비는 하루 25,000원으로 한다.",
    "병가는 연간 60일 이내로 한다. 7일을 넘는 병가에는 진단서를 내야 한다.",
] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train(TEXT, 600).save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


# -- tokenizer and renderer ---------------------------------------------------------------------


def test_every_syllable_hanja_and_emoji_comes_back(tokenizer):
    syllables = "".join(chr(c) for c in range(0xAC00, 0xD7A4))
    for text in (
        syllables,
        "ㅋㅋㅋ ㆍ ㅏ",
        "漢字 樂 大韓民國",
        "👩‍👩‍👧 🇰🇷 🌱",
        " 앞뒤 공백 \n\n\t",
    ):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_text_that_spells_a_special_token_is_text(tokenizer):
    assert not set(tokenizer.encode("<|end|><|mask|>").ids) & set(range(len(SPECIALS)))


def test_the_target_points_at_the_answer(tokenizer):
    passage = TEXT[0]
    at = passage.index("10일")
    task = render_pair(tokenizer, "연차는 며칠까지 이월되나요?", passage, (at, at + 3), True)
    a, b = task.target
    assert "10일" in passage[task.starts[a] : task.ends[b]]
    assert len(passage[task.starts[a] : task.ends[b]]) <= 6
    assert task.ids[0] == CLS and task.ids[-1] == SEP and task.ids.count(SEP) == 2


def test_no_answer_or_a_cut_answer_points_at_cls(tokenizer):
    long = TEXT[2] * 20 + "끝은 99일이다."
    at = long.index("99일")
    assert render_pair(tokenizer, "며칠?", long, None, True).target == (0, 0)
    cut = render_pair(tokenizer, "며칠?", long, (at, at + 3), True, context=64)
    assert cut.target == (0, 0) and len(cut.ids) <= 64


def test_segments_mark_the_letters_both_share(tokenizer):
    task = render_pair(tokenizer, "이월", TEXT[0])
    shared = {
        TEXT[0][a:b]
        for s, a, b in zip(task.segments, task.starts, task.ends, strict=True)
        if s == 2
    }
    assert shared and all("이월" in x or x.strip() in "이월" for x in shared)


# -- objectives ---------------------------------------------------------------------------------


def documents(seed: int = 0, n: int = 30) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(5, 90) for _ in range(draw.randrange(0, 70))] for _ in range(n)]


def test_no_token_is_dropped_and_each_after_the_first_is_a_target_once():
    for ids in documents():
        targets = [
            t
            for piece in pieces_of([ids], 16)
            for t in causal_batch([piece]).targets[0].tolist()
            if t != NO_TARGET
        ]
        assert targets == [*ids, END][1:]


def test_the_schedule_is_a_function_of_the_seed_and_covers_everything():
    sizes = [len(p) for p in pieces_of(documents(), 16)]
    steps = schedule(sizes, 64, 3, seed=1)
    assert steps == schedule(sizes, 64, 3, seed=1) != schedule(sizes, 64, 3, seed=2)
    assert sorted(i for s in steps for i in s) == sorted(list(range(len(sizes))) * 3)
    assert all(sum(sizes[i] for i in s) <= 64 or len(s) == 1 for s in steps)


def test_masking_rates():
    piece = [random.Random(0).randrange(5, 500) for _ in range(20_000)]
    batch = masked_batch([piece], 500, "0-0")
    hidden, wanted = batch.ids[0], batch.targets[0]
    chosen = wanted != NO_TARGET
    assert abs(float(chosen.float().mean()) - 0.15) < 0.001
    assert abs(float((hidden[chosen] == MASK).float().mean()) - 0.8) < 0.03
    assert abs(float((hidden[chosen] == wanted[chosen]).float().mean()) - 0.1) < 0.03
    assert torch.equal(hidden[~chosen], torch.tensor(piece)[~chosen])


def test_a_token_is_replaced_by_any_other_alike_and_by_no_special_one():
    vocabulary, seen = len(SPECIALS) + 40, Counter()
    for seed in range(300):
        piece = [random.Random(seed).randrange(len(SPECIALS), vocabulary) for _ in range(400)]
        batch = masked_batch([piece], vocabulary, str(seed))
        changed = (batch.ids != torch.tensor([piece])) & (batch.ids != MASK)
        seen.update(batch.ids[changed].tolist())
    assert set(seen) == set(range(len(SPECIALS), vocabulary))
    assert max(seen.values()) < 2 * sum(seen.values()) / 40


@pytest.mark.parametrize("make", [decoder_shape, encoder_shape])
def test_the_chunked_loss_is_the_whole_loss(make, monkeypatch):
    monkeypatch.setattr("onsil.training.objectives.LOSS_CHUNK", 7)
    model = Transformer(make(97, 128, 2, 64)).initialise(3)
    batch = masked_batch([d for d in documents(4) if d], 97, "s")
    total, targets = token_loss(model, batch)
    (total / targets).backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits = model(batch.ids, lengths=batch.lengths)[0]
    naive = F.cross_entropy(logits, batch.targets[0], ignore_index=NO_TARGET)
    naive.backward()
    assert abs(float((total / targets - naive).detach())) < 1e-5
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(ours[name], p.grad, atol=1e-5), name


@pytest.mark.parametrize("z", [0.0, 1e-4, 0.1])
def test_the_loss_of_z_is_autograds(z, monkeypatch):
    """Cross-entropy + z · log² Z (PaLM §5): the value with and without gradients, and those."""
    monkeypatch.setattr("onsil.training.objectives.LOSS_CHUNK", 7)
    model = Transformer(decoder_shape(97, 128, 2, 64)).initialise(3)
    with torch.no_grad():
        model.head.weight.mul_(20)  # so that Z is not the same everywhere
    batch = causal_batch([d for d in documents(4) if d])
    total, targets = token_loss(model, batch, z)
    total.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        assert float(token_loss(model, batch, z)[0]) == pytest.approx(total.item(), rel=1e-5)
    model.zero_grad()
    told = batch.targets[0] != NO_TARGET
    logits = model(batch.ids, lengths=batch.lengths)[0][told]
    log_z = logits.logsumexp(-1)
    naive = F.cross_entropy(logits, batch.targets[0][told], reduction="sum")
    assert float((log_z.square() * z).sum().detach()) >= z * targets
    naive = naive + z * log_z.square().sum()
    naive.backward()
    assert total.item() == pytest.approx(naive.item(), rel=1e-5)
    for name, p in model.named_parameters():
        if p.grad is not None:
            scale = float(p.grad.abs().max())
            assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-5 * scale), name


def test_a_small_z_is_not_lost_in_bf16():
    """It changes probabilities by less than the type can tell; together they still say it."""
    wanted = None
    for compute in ("fp32", "bf16"):
        model = Transformer(decoder_shape(97, 128, 2, 64), compute).initialise(3)
        batch, found = causal_batch([d for d in documents(4) if d]), []
        for z in (0.0, 1e-4):
            model.zero_grad()
            token_loss(model, batch, z)[0].backward()
            found.append(model.head.weight.grad.clone())
        moved = (found[1] - found[0]).flatten()
        wanted = moved if wanted is None else wanted
    assert 0.5 < float(moved @ wanted / wanted.square().sum()) < 1.5  # as far as it should


# -- the loop -----------------------------------------------------------------------------------


def run(scratch, compute="fp32", stop_after=None, threads=1):
    torch.set_num_threads(threads)
    model = Transformer(decoder_shape(97, 128, 2, 64), compute).initialise(0)
    pieces = pieces_of([d for d in documents(7) if d], 32)
    steps = schedule([len(p) for p in pieces], 128, 2, 0)

    def loss_of(k):
        return token_loss(model, causal_batch([pieces[i] for i in steps[k]]))

    parameters = dict(model.named_parameters())
    for step in train_loop(
        parameters, loss_of, len(steps), 1e-3, scratch, checkpoints=5, **PLANTED
    ):
        if step.number == stop_after:
            break
    torch.set_num_threads(1)
    return model.state_dict()


@pytest.mark.parametrize(("compute", "threads"), [("fp32", 1), ("bf16", 2)])
@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_stopped_and_resumed_is_bitwise_never_stopped(tmp_path, compute, threads, stop_after):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole", compute, threads=threads)
    run(tmp_path / "parts", compute, stop_after, threads)
    parts = run(tmp_path / "parts", compute, threads=threads)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


@pytest.mark.parametrize(("total", "targets"), [(float("nan"), 3), (float("inf"), 3), (1.0, 0)])
def test_the_loop_stops_on_a_bad_step_and_keeps_the_weights(tmp_path, total, targets):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(OnsilError, match="step 1"):
        loss_of = lambda k: (weight.sum() * total, targets)  # noqa: E731
        list(train_loop({"w": weight}, loss_of, 3, 0.1, tmp_path, **PLANTED))
    assert torch.equal(weight.data, torch.ones(2, 2))


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_no_numbers_are_never_kept(tmp_path, steps):
    weight = torch.nn.Parameter(torch.full((2,), 3e38))
    loss_of = lambda k: ((weight * -1e-3).sum(), 1)  # noqa: E731
    with pytest.raises(OnsilError, match="step 1: weights are not finite"):
        list(train_loop({"w": weight}, loss_of, steps, 3e38, tmp_path, **PLANTED))
    assert not list(tmp_path.iterdir())


# -- the n-gram floor ---------------------------------------------------------------------------


def test_every_conditional_sums_to_one_seen_or_not():
    model = NGram([[*d, END] for d in documents(1)], 3, 97)
    draw = random.Random(0)
    for _ in range(100):
        context = [draw.randrange(97) for _ in range(draw.randrange(4))]
        assert math.isclose(sum(model.probability(context, t) for t in range(97)), 1, rel_tol=1e-9)


def test_context_helps_and_more_than_nothing_is_learned(tokenizer):
    ids = [tokenizer.encode(t).ids for t in TEXT]
    held = tokenizer.encode("쓰지 않은 병가는 다음 해에 이월할 수 있다.").ids
    one, three = NGram(ids, 1, 600), NGram(ids, 3, 600)
    assert three.bits(held) < one.bits(held) < len(held) * math.log2(600)


@torch.no_grad()
def test_a_model_that_knows_nothing_pays_an_even_guess_for_every_token(tokenizer):
    """Wherever the text is cut, and for the first token too, which nothing stands before."""
    ids, size = [tokenizer.encode(t).ids for t in TEXT], sum(len(t.encode()) for t in TEXT)
    model = Transformer(hybrid_shape(600, 64, 1, 128)).initialise(0)
    for weights in model.parameters():
        weights.zero_()
    even = sum(len(d) + 1 for d in ids) * math.log2(600) / size  # one more: the end
    for context in (4, 128):
        pieces = pieces_of(ids, context)
        assert bits_per_byte(model, pieces, size, len(ids)) == pytest.approx(even, rel=1e-3)
    assert bits_per_byte(model, [], 0, 0) is None


@pytest.mark.parametrize(
    ("language", "decoder", "encoder", "told"),
    [
        ("en", "language model", "reading model", "2/2 · loss 0.500 · "),
        ("ko", "언어 모델", "읽기 모델", "2/2 · 손실 0.500 · "),
    ],
)
def test_progress_is_told_in_the_readers_language(monkeypatch, language, decoder, encoder, told):
    monkeypatch.setenv("ONSIL_LANG", language)
    assert decoder in pretraining("decoder") and encoder in pretraining("encoder")
    said: list[str] = []
    steps = [Step(n, 0.5, 1, 1.0) for n in (1, 2)]
    assert list(report_progress(iter(steps), 2, said.append, pretraining("encoder"), 20)) == steps
    (line,) = said
    assert told in line and encoder in line
    assert any("가" <= c <= "힣" for c in line) is (language == "ko")


@pytest.mark.parametrize("kept", [97 * 20, 1 << 23])
def test_narrow_scores_give_the_heads_gradient_in_one_product_or_in_several(kept, monkeypatch):
    monkeypatch.setattr("onsil.training.objectives.LOSS_CHUNK", 7)
    monkeypatch.setattr("onsil.training.objectives.KEPT_SCORES", kept)
    batch = causal_batch([d for d in documents(4) if d])
    found = []
    for compute in ("fp32", "bf16"):
        model = Transformer(decoder_shape(97, 128, 2, 64), compute).initialise(3)
        model.embedding.weight.data.mul_(5)
        total, _ = token_loss(model, batch)
        wanted = (model.head.weight, model.blocks[0].mlp.up.weight)
        found.append((float(total.detach()), torch.autograd.grad(total, wanted)))
    (true_loss, true_back), (loss, back) = found
    assert loss == pytest.approx(true_loss, rel=2e-3)
    for one, true in zip(back, true_back, strict=True):
        assert float((one - true).norm() / true.norm()) < 0.02
