"""Soft targets: learning what a teacher thinks of every word, not only which word came.

A text says one next word; a teacher says how likely each was, so one position teaches about the
whole vocabulary (Hinton et al. 2015). At a temperature T both are flattened,

    T² · Σ_v p(v) · (log p(v) − log q(v)),    p = softmax(teacher/T), q = softmax(student/T)

and T² keeps the gradient the size it has at T = 1. The mixture with the text itself is
(1 − hard) · that + hard · cross-entropy. Where the teacher is too large to stand beside the
student, its k likeliest words are written down once and everything else counts as one more word:
that is the divergence of a coarser alphabet, so never more than the full one and equal to it when
k is the vocabulary. Layers can be compared too, through a learnt projection: squared distance
(Romero et al. 2015, Jiao et al. 2020) or 1 − cosine (Sanh et al. 2019).

Letters: N rows with a target, V vocabulary, K kept words, T tokens, D width. Only target rows meet
the vocabulary, in chunks whose gradients are made at once, so that one chunk's scores of both
models live at a time. Left out: the divergence the other way round (Gu et al. 2024) and learning
from the student's own texts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.shape import Shape
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.training.objectives import LOSS_CHUNK, Batch

Distance = Literal["mse", "cosine"]


def divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ over rows of T² · KL(teacher ‖ student) in nats. Of vocabularies or of classes; the rest
    of the longer row (a table padded to a round number) is left out."""
    both = min(student_NV.size(-1), teacher_NV.size(-1))
    said_NV = (student_NV[..., :both] / temperature).log_softmax(-1)
    told_NV = (teacher_NV[..., :both] / temperature).log_softmax(-1)
    return temperature**2 * (told_NV.exp() * (told_NV - said_NV)).sum()


def soft_loss(
    student: Transformer,
    teacher: Transformer,
    batch: Batch,
    temperature: float = 1.0,
    hard: float = 0.0,
) -> tuple[Tensor, int]:
    """(Σ (1 − hard) · T² · KL + hard · cross-entropy, number of targets), nats."""
    x_TD = encoded(student, batch)
    with torch.no_grad():
        t_TD = encoded(teacher, batch)
    rows_N, wanted_N = target_rows(batch)

    def loss_of(x_ND: Tensor, t_ND: Tensor, y_N: Tensor) -> Tensor:
        said_NV = student.logits(x_ND)
        with torch.no_grad():
            told_NV = teacher.logits(t_ND)
        return mixed(divergence(said_NV, told_NV, temperature), said_NV, y_N, hard)

    return in_chunks(student, loss_of, x_TD[rows_N], t_TD[rows_N], wanted_N), len(wanted_N)


def mixed(soft: Tensor, said_NV: Tensor, wanted_N: Tensor, hard: float) -> Tensor:
    """(1 − hard) · soft + hard · Σ cross-entropy."""
    if not hard:
        return soft
    return (1 - hard) * soft + hard * F.cross_entropy(said_NV, wanted_N, reduction="sum")


def encoded(model: Transformer, batch: Batch) -> Tensor:
    """Hidden states T D of a batch."""
    return model.encode(batch.ids, batch.segments, batch.lengths, batch.prefixes)[0]


def target_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which rows have a target, and the targets: N, N."""
    assert batch.targets is not None
    rows_N = (batch.targets[0] != NO_TARGET).nonzero()[:, 0]
    return rows_N, batch.targets[0][rows_N]


class _Ahead(torch.autograd.Function):
    """Σ of a loss over chunks of rows, whose gradients are made on the way forward: one chunk's
    scores live at a time, and none is computed twice."""

    @staticmethod
    def forward(ctx, loss_of, others: Sequence[Tensor], hidden_ND: Tensor, *weights: Tensor):
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        of_hidden, of_weights = [], [torch.zeros_like(w) for w in weights]
        parts = zip(*(rows.split(LOSS_CHUNK) for rows in (hidden_ND, *others)), strict=True)
        for x_ND, *rest in parts:
            with torch.enable_grad():
                x_ND = x_ND.detach().requires_grad_()
                loss = loss_of(x_ND, *rest)
            back = torch.autograd.grad(loss, (x_ND, *weights))
            of_hidden.append(back[0])
            for kept, new in zip(of_weights, back[1:], strict=True):
                kept += new
            total += loss.detach()
        ctx.save_for_backward(torch.cat(of_hidden), *of_weights)
        return total

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        return None, None, *(kept * upstream[0] for kept in ctx.saved_tensors)


def in_chunks(
    student: Transformer, loss_of: Callable[..., Tensor], hidden_ND: Tensor, *others: Tensor
) -> Tensor:
    """Σ of `loss_of(hidden states, …)` over chunks of rows."""
    if not len(hidden_ND):
        return hidden_ND.sum() * 0.0
    if torch.is_grad_enabled() and hidden_ND.requires_grad:
        weights = [w for w in student.head_parameters() if w.requires_grad]
        return _Ahead.apply(loss_of, others, hidden_ND, *weights)
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for part in zip(*(rows.split(LOSS_CHUNK) for rows in (hidden_ND, *others)), strict=True):
        total = total + loss_of(*part)
    return total


# ── a teacher's likeliest words, written down ───────────────────────────────────────────────────


class Kept(NamedTuple):
    """The teacher's K likeliest words of N rows and their log-probabilities (nats)."""

    ids_NK: Tensor
    logs_NK: Tensor


@torch.no_grad()
def kept_of(
    teacher: Transformer,
    batch: Batch,
    top: int,
    temperature: float = 1.0,
    words: int | None = None,
) -> Kept:
    """What a teacher says to the targets of a batch, in their order, at a temperature; of the first
    `words` rows of its table, where it was padded to a round number."""
    rows_N, _ = target_rows(batch)
    ids, logs = [], []
    for x_ND in encoded(teacher, batch)[rows_N].split(LOSS_CHUNK):
        log_NV = (teacher.logits(x_ND)[:, :words] / temperature).log_softmax(-1)
        best = log_NV.topk(min(top, log_NV.size(-1)), -1)
        ids.append(best.indices)
        logs.append(best.values)
    return Kept(torch.cat(ids), torch.cat(logs))


def kept_divergence(student_NV: Tensor, kept: Kept, temperature: float = 1.0) -> Tensor:
    """Σ over rows of T² · KL over the kept words and all others as one more; `temperature` is the
    one they were kept at."""
    said_NV = (student_NV / temperature).log_softmax(-1)
    ids_NK, told_NK = kept.ids_NK.long(), kept.logs_NK
    total = (told_NK.exp() * (told_NK - said_NV.gather(-1, ids_NK))).sum()
    if ids_NK.size(-1) < student_NV.size(-1):
        rest_N = said_NV.scatter(-1, ids_NK, -torch.inf).logsumexp(-1)
        left_N = (1 - told_NK.exp().sum(-1)).clamp(min=0.0)
        total = total + (torch.xlogy(left_N, left_N) - left_N * rest_N).sum()
    return temperature**2 * total


def kept_loss(
    student: Transformer, batch: Batch, kept: Kept, temperature: float = 1.0, hard: float = 0.0
) -> tuple[Tensor, int]:
    """`soft_loss` from what the teacher wrote down: its memory is not needed."""
    rows_N, wanted_N = target_rows(batch)

    def loss_of(x_ND: Tensor, ids_NK: Tensor, logs_NK: Tensor, y_N: Tensor) -> Tensor:
        said_NV = student.logits(x_ND)
        return mixed(
            kept_divergence(said_NV, Kept(ids_NK, logs_NK), temperature), said_NV, y_N, hard
        )

    return in_chunks(student, loss_of, encoded(student, batch)[rows_N], *kept, wanted_N), len(
        wanted_N
    )


# ── hidden states ───────────────────────────────────────────────────────────────────────────────


def layer_pairs(student_depth: int, teacher_depth: int) -> tuple[tuple[int, int], ...]:
    """Each layer of the student beside the teacher's at the same share of its depth, from 0; the
    last beside the last (TinyBERT's uniform map, Jiao et al. 2020)."""
    return tuple(
        (m, -(-(m + 1) * teacher_depth // student_depth) - 1) for m in range(student_depth)
    )


class Bridge(nn.Module):
    """From layers of a student to layers of a teacher: a learnt matrix a pair, without a bias,
    which begins as N(0, 1/√student width)."""

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        pairs: Sequence[tuple[int, int]] | None = None,
        distance: Distance = "mse",
        seed: int = 0,
    ):
        super().__init__()
        self.pairs = tuple(pairs or layer_pairs(student.depth, teacher.depth))
        self.distance: Distance = distance
        self.across = nn.ModuleList(
            nn.Linear(student.width, teacher.width, bias=False) for _ in self.pairs
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for matrix in self.across.parameters():
                matrix.normal_(0.0, student.width**-0.5, generator=generator)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean over the pairs of Σ over tokens of the distance between their states … D: mean
        square over the width, or 1 − cosine."""
        total = torch.zeros(())
        for matrix, mine, theirs in zip(self.across, student, teacher, strict=True):
            x, t = matrix(mine.float()), theirs.detach().float()
            if self.distance == "mse":
                total = total + (x - t).square().mean(-1).sum()
            else:
                total = total + (1 - F.cosine_similarity(x, t, dim=-1)).sum()
        return total / len(self.pairs)


@contextmanager
def watched(model: Transformer, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """What these layers give, in order, while the model encodes once: a loss of the outputs and one
    of the layers can share a pass."""
    found: list[Tensor] = []

    def note(block: nn.Module, inputs: tuple, output: Tensor) -> None:
        found.append(output)

    hooks = [model.blocks[i].register_forward_hook(note) for i in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def hidden_loss(
    student: Transformer, teacher: Transformer, batch: Batch, bridge: Bridge
) -> tuple[Tensor, int]:
    """(Σ distance over all tokens, their number): the mean over the bridge's pairs of layers."""
    with watched(student, [m for m, _ in bridge.pairs]) as mine:
        encoded(student, batch)
    with watched(teacher, [n for _, n in bridge.pairs]) as theirs, torch.no_grad():
        encoded(teacher, batch)
    return bridge(mine, theirs), sum(batch.lengths)
