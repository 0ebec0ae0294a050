"""An objective is a sampler from token documents to (inputs, targets); batches never drop text.

A batch is a run of documents laid end to end with their lengths; the model keeps them apart. The
whole schedule is a pure function of (documents, seed): step k is the same batch in every run, which
is what makes a resumed run equal to one that was never killed.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET, Rendered, Turn
from onsil.tokenizer.train import END, MASK, PAD, SPECIALS, specials_of
from onsil.training.samplers import Pair, masked_words

LEAST = torch.finfo(torch.float32).tiny  # a target less likely than this counts as likely as it
HIDDEN = 0.15  # share of the tokens that is to be guessed
WHITE = " \t\n\r▁ĠĊĉč"  # white space, and how vocabularies spell it
LOSS_CHUNK = 256  # rows; a chunk of 4,096 logits in float32 stays in a CPU's cache (docs/log.md)
KEPT_SCORES = 1 << 23  # numbers: gradients of so many scores wait for one product with the head's
ADDED = 2_048  # rows of a gradient: added so many at a time, what is cast for it stays there too


@dataclass(frozen=True)
class Batch:
    """`ids` and `targets` 1×T, `lengths` of the documents in it; `spans` n×2 for reading tasks."""

    ids: Tensor
    lengths: list[int]
    targets: Tensor | None = None
    segments: Tensor | None = None
    spans: Tensor | None = None
    prefixes: list[int] | None = None  # so many first tokens of each document see each other


def pieces_of(documents: list[list[int]], context: int, end: int = END) -> list[list[int]]:
    """Each document closed by <|end|> and cut into pieces of at most `context` tokens.

    Neighbouring pieces share one token, so that every token after the first is a target once.
    """
    pieces = []
    for ids in documents:
        ids = [*ids, end]
        for start in range(0, max(1, len(ids) - 1), context - 1):
            pieces.append(ids[start : start + context])
    return pieces


def schedule(sizes: list[int], batch_tokens: int, epochs: int, seed: int) -> list[list[int]]:
    """Which pieces make up which step: every epoch a new order, packed to about `batch_tokens`."""
    steps: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(len(sizes)))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        step: list[int] = []
        for i in order:
            if step and sum(sizes[j] for j in step) + sizes[i] > batch_tokens:
                steps.append(step)
                step = []
            step.append(i)
        steps.append(step)
    return steps


def steps_by_length(
    sizes: Sequence[int], batch_tokens: int, epochs: int, seed: int
) -> list[list[int]]:
    """Which rows make up which step: every epoch all of them, once, in a new order. Steps hold at
    most `batch_tokens` (a longer row stands alone) and rows of one length, or of neighbouring
    lengths at the border."""
    steps: list[list[int]] = []
    for epoch in range(epochs):
        draw, epoch_steps, size = random.Random(f"{seed}-{epoch}"), [], math.inf
        for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], draw.random())):
            if size + sizes[i] > batch_tokens:
                epoch_steps.append([])
                size = 0
            epoch_steps[-1].append(i)
            size += sizes[i]
        draw.shuffle(epoch_steps)
        steps += epoch_steps
    return steps


def causal_batch(pieces: list[list[int]]) -> Batch:
    """Predict each next token (Radford et al. 2018)."""
    inputs = [piece[:-1] or piece for piece in pieces]
    targets = [piece[1:] or [NO_TARGET] for piece in pieces]
    return Batch(_row(inputs), [len(p) for p in inputs], targets=_row(targets))


def prefix_batch(pairs: list[Pair]) -> Batch:
    """Read the source in both directions, write the target (prefix LM, Raffel et al. 2020). Nothing
    of the source is a target. Raises ValueError when there is nothing to read or to write."""
    _check_pairs(pairs)
    inputs = [[*source, *target[:-1]] for source, target in pairs]
    targets = [[NO_TARGET] * (len(source) - 1) + target for source, target in pairs]
    lengths = [len(ids) for ids in inputs]
    prefixes = [len(source) for source, _ in pairs]
    return Batch(_row(inputs), lengths, targets=_row(targets), prefixes=prefixes)


def _check_pairs(pairs: list[Pair]) -> None:
    for number, (source, target) in enumerate(pairs):
        if not source or not target:
            raise ValueError(f"pair {number}: {len(source)} tokens to read, {len(target)} to write")


@dataclass(frozen=True)
class Written:
    """Sources and targets of an encoder-decoder, padded: B×S, B×T; padding is not kept."""

    sources: Tensor
    keep_sources: Tensor
    inputs: Tensor
    targets: Tensor


def written_batch(pairs: list[Pair], start: int, pad: int = PAD) -> Written:
    """Teacher forcing: the decoder reads `start` and the target without its last token. Raises
    ValueError when there is nothing to read or to write."""
    _check_pairs(pairs)

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])

    sources = [pair.source for pair in pairs]
    keep = padded([[1] * len(source) for source in sources], 0).bool()
    inputs = padded([[start, *pair.target[:-1]] for pair in pairs], pad)
    targets = padded([pair.target for pair in pairs], NO_TARGET)
    return Written(padded(sources, pad), keep, inputs, targets)


def written_loss(model: EncoderDecoder, batch: Written) -> tuple[Tensor, int]:
    """(Σ cross-entropy, number of targets) of an encoder-decoder."""
    states_BSD = model.read(batch.sources, batch.keep_sources)
    hidden_BTD = model.decoder.encode(
        batch.inputs, source_BSD=states_BSD, source_keep_BS=batch.keep_sources
    )
    told = batch.targets != NO_TARGET
    return _chunked(model.decoder, hidden_BTD[told], batch.targets[told])


def masked_batch(
    pieces: list[list[int]],
    vocabulary: int,
    seed: str,
    mask: int = MASK,
    words: Callable[[list[int]], Sequence[int | None]] | None = None,
) -> Batch:
    """Guess 15 % of the tokens: 80 % hidden, 10 % replaced, 10 % left (Devlin et al. 2019). With
    `words` (`words_in` of a tokenizer) whole words at a time, and never a special token."""
    draw = random.Random(seed)
    inputs, targets = [], []
    for piece in pieces:
        if words is None:
            places = draw.sample(range(len(piece)), max(1, round(HIDDEN * len(piece))))
        else:
            places = masked_words(words(piece), draw, HIDDEN)
        hidden, wanted = hide(piece, places, vocabulary, mask, draw)
        inputs.append(hidden)
        targets.append(wanted)
    return Batch(_row(inputs), [len(p) for p in inputs], targets=_row(targets))


def hide(
    ids: Sequence[int], places: Sequence[int], vocabulary: int, mask: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """What is read and what is to be guessed at these places: of them 80 % are hidden, 10 %
    replaced, 10 % left."""
    read, wanted = list(ids), [NO_TARGET] * len(ids)
    for i in places:
        wanted[i], dice = ids[i], draw.random()
        if dice < 0.8:
            read[i] = mask
        elif dice < 0.9:
            read[i] = draw.randrange(len(SPECIALS), vocabulary)
    return read, wanted


def words_in(tokenizer) -> Callable[[list[int]], list[int | None]]:
    """Numbers the words of a piece: for each token the one it is of, None for a special token. A
    word begins with white space, after it, or after a special token; in WordPiece at what does not
    go on."""
    marks = set(specials_of(tokenizer))
    rows = max(tokenizer.get_vocab().values()) + 1
    spelled = [tokenizer.id_to_token(i) or "" for i in range(rows)]
    going_on = getattr(tokenizer.model, "continuing_subword_prefix", None)
    if going_on:
        begins = [not token.startswith(going_on) for token in spelled]
    else:
        begins = [token[:1] in WHITE for token in spelled]
    ends = [token[-1:] in WHITE for token in spelled]

    def numbered(ids: list[int]) -> list[int | None]:
        found: list[int | None] = []
        word, apart = -1, True
        for token in ids:
            word += token not in marks and (apart or begins[token])
            found.append(None if token in marks else word)
            apart = token in marks or ends[token]
        return found

    return numbered


def span_batch(tasks: list[Rendered]) -> Batch:
    """Point at the answer's first and last token, or at <|cls|> when there is none."""
    return Batch(
        _row([t.ids for t in tasks]),
        [len(t.ids) for t in tasks],
        segments=_row([t.segments for t in tasks]),
        spans=torch.tensor([t.target for t in tasks]),
    )


def turn_batch(turns: list[Turn]) -> Batch:
    """Answer, or stop at once; nothing of the prompt is a target."""
    return Batch(
        _row([t.ids for t in turns]),
        [len(t.ids) for t in turns],
        targets=_row([t.targets for t in turns]),
    )


def _row(parts) -> Tensor:
    return torch.tensor([[x for part in parts for x in part]])


def token_loss(model: Transformer, batch: Batch, z_loss: float = 0.0) -> tuple[Tensor, int]:
    """(Σ cross-entropy, number of targets). Only rows with a target meet the vocabulary. `z_loss`
    times log² Z is added for each, Z what the softmax divides by (Chowdhery et al. 2022, §5)."""
    assert batch.targets is not None
    hidden_TD = model.encode(batch.ids, batch.segments, batch.lengths, batch.prefixes)[0]
    rows = (batch.targets[0] != NO_TARGET).nonzero()[:, 0]
    return _chunked(model, hidden_TD[rows], batch.targets[0][rows], z_loss)


class _HeadLoss(torch.autograd.Function):
    """Σ cross-entropy + z · log² Z whose gradients are made on the way forward, chunk by chunk: few
    logits live at a time, none of them is computed twice, and the head's matrix is cast once.
    Scores that are bfloat16 stay so: the products of the way back would round their gradient
    anyway, and a probability of a target that is off by 2⁻⁹ moves its loss by 0.002. With a z they
    do not: it moves a probability by less than bfloat16 can tell."""

    @staticmethod
    def forward(
        ctx, model: Transformer, z: float, wanted_N: Tensor, hidden_ND: Tensor, *weights: Tensor
    ):
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        matrix, head = model.narrow_head()
        of_hidden, of_weights = [], [torch.zeros_like(w) for w in weights]
        if head is not None and not z and len(weights) == 1 and model.only_head():
            rows = max(LOSS_CHUNK, KEPT_SCORES // len(head))
            for x_ND, y_N in zip(hidden_ND.split(rows), wanted_N.split(rows), strict=True):
                back_NV = x_ND.new_empty(len(x_ND), len(head))
                parts = (t.split(LOSS_CHUNK) for t in (x_ND, y_N, back_NV))
                for x, y, back in zip(*parts, strict=True):
                    torch.mm(x, head.T, out=back)
                    total -= _against(back, y, 0.0)
                    of_hidden.append(back @ head)
                _add(of_weights[0], back_NV.T @ x_ND)
            ctx.save_for_backward(torch.cat(of_hidden), *of_weights)
            return total
        learnt = [w if head is None or w is not matrix else head for w in weights]
        for x, y in zip(hidden_ND.split(LOSS_CHUNK), wanted_N.split(LOSS_CHUNK), strict=True):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                logits_NV = model.logits(x, not z, head)
            back_NV = logits_NV.detach()
            total -= _against(back_NV, y, z)
            back = torch.autograd.grad(logits_NV, (x, *learnt), back_NV)
            of_hidden.append(back[0])
            for kept, new in zip(of_weights, back[1:], strict=True):
                _add(kept, new)
        ctx.save_for_backward(torch.cat(of_hidden) if of_hidden else hidden_ND, *of_weights)
        return total

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        kept, scale = ctx.saved_tensors, upstream[0]
        return None, None, None, *(kept if scale == 1.0 else (k * scale for k in kept))


def _against(scores_NV: Tensor, wanted_N: Tensor, z: float) -> Tensor:
    """Σ log-likelihood − z · log² Z; the scores become their gradient of the loss in place."""
    log_z_N = scores_NV.logsumexp(-1) if z else None
    torch.softmax(scores_NV, -1, out=scores_NV)
    total = scores_NV.gather(1, wanted_N[:, None]).float().clamp(min=LEAST).log().sum()
    if log_z_N is not None:
        total -= z * log_z_N.square().sum()
        scores_NV *= (1 + 2 * z * log_z_N)[:, None]
    # scatter_add_ would copy all of it first
    places = torch.arange(len(wanted_N), device=wanted_N.device) * scores_NV.size(1) + wanted_N
    scores_NV.view(-1).index_add_(0, places, scores_NV.new_full((len(wanted_N),), -1.0))
    return total


def _add(kept: Tensor, new: Tensor) -> None:
    for some, more in zip(kept.split(ADDED), new.split(ADDED), strict=True):
        some += more


def _chunked(
    model: Transformer, hidden_ND: Tensor, wanted_N: Tensor, z: float = 0.0
) -> tuple[Tensor, int]:
    """(Σ cross-entropy + z · log² Z, number of targets) of rows of hidden states; the logits in
    chunks."""
    if not len(wanted_N):
        return hidden_ND.sum() * 0.0, 0
    if torch.is_grad_enabled() and hidden_ND.requires_grad:
        weights = [w for w in model.head_parameters() if w.requires_grad]
        return _HeadLoss.apply(model, z, wanted_N, hidden_ND, *weights), len(wanted_N)
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for x, y in zip(hidden_ND.split(LOSS_CHUNK), wanted_N.split(LOSS_CHUNK), strict=True):
        scores_NV = model.logits(x)
        total = total + F.cross_entropy(scores_NV, y, reduction="sum")
        total = total + z * scores_NV.logsumexp(-1).square().sum() if z else total
    return total, len(wanted_N)


def span_scores(model: Transformer, head: torch.nn.Linear, batch: Batch) -> list[Tensor]:
    """Per document T×2: how well each token starts and ends the answer, in float32."""
    hidden_TD = model.encode(batch.ids, batch.segments, batch.lengths)[0]
    return list(head(hidden_TD.float()).split(batch.lengths))


def span_loss(model: Transformer, head: torch.nn.Linear, batch: Batch) -> tuple[Tensor, int]:
    """(Σ start and end cross-entropy ÷ 2, number of documents)."""
    assert batch.spans is not None
    total = torch.zeros(())
    for scores_T2, span in zip(span_scores(model, head, batch), batch.spans, strict=True):
        total = total + F.cross_entropy(scores_T2.T, span, reduction="sum") / 2
    return total, len(batch.lengths)
