"""Distillation: every loss against a slow direct computation."""

import math
import random

import pytest
import torch

from onsil.models.shape import decoder_shape, encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.training.objectives import causal_batch, masked_batch, token_loss
from onsil.training.soft_targets import (
    Bridge,
    Kept,
    divergence,
    hidden_loss,
    kept_divergence,
    kept_loss,
    kept_of,
    layer_pairs,
    soft_loss,
    watched,
)

DRAW = random.Random(5)
PIECES = [[DRAW.randrange(5, 97) for _ in range(n)] for n in (12, 30, 7, 21)]
SENTENCES = [
    "쓰지 않은 연차는 다음 해에 10일까지 이월할 수 있다.",
    "국내 출장의 일비는 하루 25,000원으로 한다. The daily allowance is fixed.",
    "병가는 연간 60일 이내로 한다. 7일을 넘는 병가에는 진단서를 내야 한다.",
    "漢字와 이모지 👩‍👩‍👧 🌱도 글이다.\n\n\t줄이 바뀐다.",
]


def decoder(seed: int, width: int = 32, depth: int = 2, words: int = 97) -> Transformer:
    return Transformer(decoder_shape(words, width, depth, 64)).initialise(seed)


def far_apart(seed: int) -> tuple[Transformer, Transformer]:
    """A student and a larger teacher with opinions: untrained heads alone agree too much."""
    pair = decoder(seed), decoder(seed + 1, 64, 3)
    for model in pair:
        model.embedding.weight.data.mul_(2)
    return pair


def direct(student, teacher, batch, temperature: float, hard: float) -> torch.Tensor:
    """The same loss, one row and one word at a time in float64."""
    said = student(batch.ids, lengths=batch.lengths)[0].double()
    told = teacher(batch.ids, lengths=batch.lengths)[0].double().detach()
    total = torch.zeros((), dtype=torch.float64)
    for t, wanted in enumerate(batch.targets[0].tolist()):
        if wanted == NO_TARGET:
            continue
        p, q = (torch.softmax(row[t] / temperature, 0) for row in (told, said))
        kl = sum(p[v] * torch.log(p[v] / q[v]) for v in range(len(p)))
        total = total + (1 - hard) * temperature**2 * kl
        total = total - hard * torch.log_softmax(said[t], 0)[wanted]
    return total


def gradients(model: Transformer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# -- soft targets -------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.0, 0.3), (0.5, 1.0)])
@pytest.mark.parametrize("hidden_words", [False, True])
def test_the_loss_and_its_gradients_are_the_direct_ones(
    temperature, hard, hidden_words, monkeypatch
):
    monkeypatch.setattr("onsil.training.soft_targets.LOSS_CHUNK", 7)
    student, teacher = far_apart(1)
    if hidden_words:
        student, teacher = (
            Transformer(encoder_shape(97, width, 2, 64)).initialise(3) for width in (128, 192)
        )
        batch = masked_batch(PIECES, 97, "x")
    else:
        batch = causal_batch(PIECES)
    total, targets = soft_loss(student, teacher, batch, temperature, hard)
    naive = direct(student, teacher, batch, temperature, hard)
    assert targets == int((batch.targets != NO_TARGET).sum())
    assert total.item() == pytest.approx(naive.item(), rel=1e-5, abs=1e-5)
    ours, theirs = gradients(student, total), gradients(student, naive)
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4), name
    assert all(p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        again, _ = soft_loss(student, teacher, batch, temperature, hard)
    assert again.item() == pytest.approx(total.item(), rel=1e-6)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student, batch = decoder(1), causal_batch(PIECES)
    for temperature in (1.0, 3.0):
        total, _ = soft_loss(student, student, batch, temperature)
        assert total.item() == 0.0
    spread = {n: float(g.abs().max()) for n, g in gradients(student, total).items()}
    assert max(spread.values()) < 1e-5


def test_the_hard_loss_alone_is_the_loops():
    student, teacher = far_apart(2)
    batch = causal_batch(PIECES)
    total, targets = soft_loss(student, teacher, batch, hard=1.0)
    wanted, number = token_loss(student, batch)
    assert targets == number and total.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_temperature_has_its_two_limits():
    """T → ∞: half the squared distance of centred scores over V (Hinton et al. 2015, eq. 4).
    T → 0: T times what the best words differ by."""
    draw = torch.Generator().manual_seed(0)
    said, told = (torch.randn(6, 11, generator=draw, dtype=torch.float64) for _ in range(2))
    centred = (said - said.mean(1, True)) - (told - told.mean(1, True))
    hot = divergence(said, told, 1e3)
    assert float(hot) == pytest.approx(float(centred.square().sum() / 2 / 11), rel=1e-2)
    best = told.argmax(1, keepdim=True)
    apart = (said.max(1, keepdim=True).values - said.gather(1, best)).sum()
    assert float(divergence(said, told, 1e-3)) / 1e-3 == pytest.approx(float(apart), rel=1e-2)


def test_the_divergence_passes_the_gradient_check():
    draw = torch.Generator().manual_seed(0)
    said = torch.randn(3, 7, generator=draw, dtype=torch.float64, requires_grad=True)
    told = torch.randn(3, 7, generator=draw, dtype=torch.float64)
    kept = Kept(*reversed(told.log_softmax(-1).topk(3)))
    bare = lambda x: divergence(x, told, 2.0)  # noqa: E731
    assert torch.autograd.gradcheck(bare, said)
    assert torch.autograd.gradcheck(lambda x: kept_divergence(x, kept), said)


def test_rows_only_one_table_has_are_left_out():
    said, told = torch.randn(4, 9), torch.randn(4, 12)
    assert torch.equal(divergence(said, told), divergence(said, told[:, :9]))


# -- kept words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kept_words_are_a_coarser_alphabet_of_the_same_loss(temperature):
    student, teacher = far_apart(4)
    batch = causal_batch(PIECES)
    full = soft_loss(student, teacher, batch, temperature)[0].item()
    losses = []
    for top in (1, 4, 16, 97):
        kept = kept_of(teacher, batch, top, temperature)
        assert kept.ids_NK.shape == kept.logs_NK.shape == (sum(map(len, PIECES)) - 4, top)
        losses.append(kept_loss(student, batch, kept, temperature)[0].item())
    assert losses == sorted(losses) and losses[0] < 0.9 * full
    assert losses[-1] == pytest.approx(full, rel=1e-5)


def test_kept_words_against_a_sum_by_hand():
    said, told = torch.randn(5, 9).log_softmax(-1), torch.randn(5, 9).log_softmax(-1)
    kept = Kept(*reversed(told.topk(3)))
    total = 0.0
    for n in range(5):
        chosen = kept.ids_NK[n].tolist()
        p = [math.exp(told[n, v]) for v in chosen]
        q = [math.exp(said[n, v]) for v in chosen]
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert kept_divergence(said, kept).item() == pytest.approx(total, rel=1e-4)
    assert kept_divergence(told, kept).item() == pytest.approx(0.0, abs=1e-5)


def test_a_teacher_that_is_certain_leaves_nothing_over():
    told = torch.tensor([[60.0, 0.0, 0.0]]).log_softmax(-1)
    loss = kept_divergence(torch.zeros(1, 3, requires_grad=True), Kept(*reversed(told.topk(2))))
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)


# -- hidden states ------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_hidden_states_against_a_sum_by_hand(distance):
    student, teacher = far_apart(6)
    bridge = Bridge(student.shape, teacher.shape, ((0, 0), (1, 2)), distance, seed=1)
    batch = causal_batch(PIECES)
    total, tokens = hidden_loss(student, teacher, batch, bridge)
    wanted = 0.0
    for (m, n), matrix in zip(bridge.pairs, bridge.across, strict=True):
        with watched(student, [m]) as mine, watched(teacher, [n]) as theirs:
            student.encode(batch.ids, lengths=batch.lengths)
            teacher.encode(batch.ids, lengths=batch.lengths)
        for x, t in zip(mine[0][0] @ matrix.weight.T, theirs[0][0], strict=True):
            if distance == "mse":
                wanted += ((x - t) ** 2).mean().item() / 2
            else:
                wanted += (1 - (x @ t / x.norm() / t.norm()).item()) / 2
    assert tokens == sum(batch.lengths)
    assert total.item() == pytest.approx(wanted, rel=1e-4)
    total.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in bridge.parameters())
    assert student.blocks[0].mlp.up.weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert not student.blocks[0]._forward_hooks


def test_what_is_watched_are_the_layers_themselves():
    model, batch = decoder(3), causal_batch(PIECES)
    with watched(model, [1]) as states:
        final = model.encode(batch.ids, lengths=batch.lengths)
    assert torch.equal(model.final_norm(states[0]), final)


def test_layers_are_paired_by_their_share_of_the_depth():
    assert layer_pairs(4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert layer_pairs(3, 3) == ((0, 0), (1, 1), (2, 2))
    assert layer_pairs(4, 2) == ((0, 0), (1, 0), (2, 1), (3, 1))
