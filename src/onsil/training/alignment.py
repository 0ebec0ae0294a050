"""Two tokenizations of one text, side by side; and learning across them.

A teacher with another tokenizer has other words at other places, so its scores cannot be compared
word by word. The text is the same, though: wherever a token of both ends at the same byte, both
have read the same, and what lies between two such places is a span that each says in its own
tokens. These are the finest spans both can speak of; nothing is lost and nothing guessed. (Fu et
al. 2023 align by dynamic programming, because their two tokenizers change the text; here both
rows of offsets point into the text itself, so meeting at common ends is exact.)

A byte-level tokenizer may end a token inside a Hangul syllable. Its tokens spell their bytes, so
ends are counted in bytes; other tokenizers tell characters, and tokens that share one end with it.

A span is likely to the teacher with probability P and to the student with Q, the product of what
its tokens get. Each span is a coin that shows this span or any other, and the loss is what the
coins differ by, flattened by a temperature (approximate likelihood matching, Minixhofer, Ponti &
Vulić 2025):

    τ · [ p·log(p/q) + (1−p)·log((1−p)/(1−q)) ],    p = P^(1/τ), q = Q^(1/τ)

times τ, so that it has a limit: a·log(a/b) + b − a of the surprisals a = −log P and b = −log Q.
Approximate, because what a model expects after a token says also that the token ended there.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from onsil.models.transformer import Transformer
from onsil.training.objectives import Batch, causal_batch
from onsil.training.soft_targets import LOSS_CHUNK, encoded, target_rows

# The letters that stand for bytes in a byte-level vocabulary (GPT-2): printable ones themselves.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(OTHERS)}
CERTAIN = -1e-6  # a log-probability nearer to zero counts as this one


def token_ends(tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids of a text without marks around it, and the byte of its UTF-8 at which each ends: exact
    where tokens spell bytes, else the end of the character that a token has part of. Never falls;
    the last is the length of the text."""
    read, size = tokenizer.encode(text, add_special_tokens=False), len(text.encode())
    spelled = [BYTE_OF.get(letter) for token in read.tokens for letter in token]
    if None not in spelled and bytes(b for b in spelled if b is not None) == text.encode():
        return read.ids, list(accumulate(map(len, read.tokens)))
    bytes_before = [0, *accumulate(len(letter.encode()) for letter in text)]
    ends = list(accumulate((bytes_before[end] for _, end in read.offsets), max))
    return read.ids, [*ends[:-1], size] if ends else []


def common_ends(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """How many tokens of each have been read at every byte where both end: (i, j), rising; the
    tokens between two neighbours say the same bytes."""
    shared = sorted(set(first) & set(second) - {0})
    return [(bisect_right(first, at), bisect_right(second, at)) for at in shared]


@dataclass(frozen=True)
class Spans:
    """A piece of a text in both tokenizations; span n ends before token `ends[n]` of each."""

    student: list[int]
    teacher: list[int]
    ends: list[tuple[int, int]]


def span_pieces(text: str, student_words, teacher_words, contexts: tuple[int, int]) -> list[Spans]:
    """A text cut where both tokenizations end a span, so that neither side of a piece is longer
    than its context. Neighbours share one span, so that every span after the first is judged once;
    one that does not fit together with the span before it is left out."""
    ids_s, ends_s = token_ends(student_words, text)
    ids_t, ends_t = token_ends(teacher_words, text)
    at = [(0, 0), *common_ends(ends_s, ends_t)]

    def fits(first: int, last: int) -> bool:
        sizes = (end - start for end, start in zip(at[last], at[first], strict=True))
        return all(size <= most for size, most in zip(sizes, contexts, strict=True))

    pieces: list[Spans] = []
    first = last = 0
    while last < len(at) - 1:
        last = first + 1
        while last + 1 < len(at) and fits(first, last + 1):
            last += 1
        if last > first + 1:
            (i, j), (m, n) = at[first], at[last]
            ends = [(a - i, b - j) for a, b in at[first + 1 : last + 1]]
            pieces.append(Spans(ids_s[i:m], ids_t[j:n], ends))
        first = max(first + 1, last - 1)
    return pieces


def log_likelihoods(model: Transformer, batch: Batch) -> Tensor:
    """log P of every target, N, nats; one chunk's scores live at a time."""
    from torch.utils.checkpoint import checkpoint

    def chunk(x_ND: Tensor, y_N: Tensor) -> Tensor:
        return -F.cross_entropy(model.logits(x_ND), y_N, reduction="none")

    rows_N, wanted_N = target_rows(batch)
    hidden_ND = encoded(model, batch)[rows_N]
    parts = zip(hidden_ND.split(LOSS_CHUNK), wanted_N.split(LOSS_CHUNK), strict=True)
    return torch.cat([checkpoint(chunk, x, y, use_reentrant=False) for x, y in parts])


def span_likelihoods(log_N: Tensor, ends: Sequence[Sequence[int]]) -> Tensor:
    """log P of every span after the first of each piece, in order, from those of the tokens after
    the first of each piece."""
    where: list[int] = []
    spans = 0
    for piece in ends:
        for n, (start, end) in enumerate(zip([1, *piece], piece, strict=False)):
            where += [spans + n - 1 if n else -1] * (end - start)
        spans += len(piece) - 1
    at_N = torch.tensor(where)
    return log_N.new_zeros(spans).index_add(0, at_N[at_N >= 0], log_N[at_N >= 0])


def coins(student_N: Tensor, teacher_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Σ of the loss above from log-probabilities of spans; zero where they are equal."""
    x, y = ((log / temperature).clamp(max=CERTAIN) for log in (student_N, teacher_N))
    not_x, not_y = ((-log.expm1()).log() for log in (x, y))
    return temperature * (y.exp() * (y - x) - y.expm1() * (not_y - not_x)).sum()


def span_loss(
    student: Transformer,
    teacher: Transformer,
    pieces: Sequence[Spans],
    temperature: float = 1.0,
    hard: float = 0.0,
) -> tuple[Tensor, int]:
    """(Σ (1 − hard) · coins + hard · cross-entropy, number of the student's targets), nats."""
    own_N = log_likelihoods(student, causal_batch([piece.student for piece in pieces]))
    with torch.no_grad():
        other_N = log_likelihoods(teacher, causal_batch([piece.teacher for piece in pieces]))
    said = span_likelihoods(own_N, [[i for i, _ in piece.ends] for piece in pieces])
    told = span_likelihoods(other_N, [[j for _, j in piece.ends] for piece in pieces])
    return (1 - hard) * coins(said, told, temperature) - hard * own_N.sum(), len(own_N)
