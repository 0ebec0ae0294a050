"""Sequence to sequence: read one text into states, write another, looking back while writing.

Letters: B batch or beam, S positions of the source, T of the target, D width, C = 2·D, G gates ·
width, V targets and the end.

The encoder reads the source in both directions; the decoder writes one token at a time (Sutskever
et al. 2014). With `attention` it looks at every position of the source before each token, with
weights softmax(vᵀ tanh(W s + U h)) (Bahdanau, Cho & Bengio 2015); without, it gets the encoder's
two last states at every step, as in Cho et al. (2014), and the whole source must fit in them.
Training is teacher-forced: the token before is the right one, not the model's own.

One id beyond the targets is both the end of an output and what stands before its first token; a
source is closed by one of its own, so that even an empty one is something to read. Padding is
masked: a batch of different lengths gives what its rows give alone. Left out: depth, dropout,
coverage, and sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.recurrent import (
    IGNORED,
    Cell,
    State,
    initialise_recurrent,
    padded,
    read_shape,
    read_weights,
    write_model,
)


@dataclass(frozen=True)
class Seq2SeqShape:
    """`sources` and `targets` are the sizes of the two vocabularies."""

    sources: int
    targets: int
    width: int
    cell: str
    attention: bool


@dataclass(frozen=True)
class Memory:
    """What the encoder leaves: `values` B S C, `keys` B S D (U·h, with attention), `alive` B S,
    `summary` B C."""

    values: Tensor
    keys: Tensor | None
    alive: Tensor
    summary: Tensor

    def rows(self, count: int) -> "Memory":
        """The one source of this memory, for `count` outputs at once."""
        keys = None if self.keys is None else self.keys.expand(count, -1, -1)
        values, alive = self.values.expand(count, -1, -1), self.alive.expand(count, -1)
        return Memory(values, keys, alive, self.summary.expand(count, -1))


@dataclass(frozen=True)
class Decoded:
    """An output without its end, and ln P(output and end | source). `cut`: the end did not come
    within the limit and was set there, its cost included."""

    ids: list[int]
    log_probability: float
    cut: bool

    def score(self, alpha: float) -> float:
        """ln P ÷ ((5 + n) / 6)^alpha, n tokens with the end (Wu et al. 2016)."""
        return self.log_probability / ((6 + len(self.ids)) / 6) ** alpha


def reversed_within(x_BTI: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row backwards, its padding left where it is."""
    t_T = torch.arange(x_BTI.size(1))
    back_BT = lengths_B[:, None] - 1 - t_T
    index_BT = torch.where(back_BT < 0, t_T, back_BT)
    return x_BTI.gather(1, index_BT[:, :, None].expand_as(x_BTI))


class AdditiveAttention(nn.Module):
    """Where to look: softmax over s of vᵀ tanh(W·state + U·value_s)."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(2 * width, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(self, state_BD: Tensor, memory: Memory) -> Tensor:
        """The mean of the values under those weights, B × C."""
        assert memory.keys is not None
        energy_BS1 = self.energy((self.query(state_BD)[:, None] + memory.keys).tanh())
        weight_BS = energy_BS1[:, :, 0].masked_fill(~memory.alive, -torch.inf).softmax(1)
        return (weight_BS[:, None] @ memory.values)[:, 0]


class Seq2Seq(nn.Module):
    """Encoder in both directions, additive attention or none, decoder."""

    def __init__(self, shape: Seq2SeqShape):
        super().__init__()
        self.shape, self.end = shape, shape.targets
        D, kind = shape.width, shape.cell
        self.source_embedding = nn.Embedding(shape.sources + 1, D)
        self.onwards, self.backwards = Cell(kind, D, D), Cell(kind, D, D)
        self.bridge = nn.Linear(2 * D, D)
        self.target_embedding = nn.Embedding(shape.targets + 1, D)
        self.cell = Cell(kind, D, D)
        self.context = nn.Linear(2 * D, self.cell.input.out_features, bias=False)
        self.attention = AdditiveAttention(D) if shape.attention else None
        self.readout = nn.Linear(4 * D, D)
        self.head = nn.Linear(D, shape.targets + 1)

    def initialise(self, seed: int) -> "Seq2Seq":
        initialise_recurrent(self, seed)
        return self

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[Memory, State]:
        """(memory, first state of the decoder)."""
        closed = [[*ids, self.shape.sources] for ids in sources]
        lengths_B = torch.tensor([len(ids) for ids in closed])
        x_BSD = self.source_embedding(padded(closed, 0))
        onwards_BSD, last = self.onwards(x_BSD, None, lengths_B)
        turned_BSD, first = self.backwards(reversed_within(x_BSD, lengths_B), None, lengths_B)
        values_BSC = torch.cat((onwards_BSD, reversed_within(turned_BSD, lengths_B)), 2)
        summary_BC = torch.cat((last[0], first[0]), 1)
        keys = None if self.attention is None else self.attention.key(values_BSC)
        alive_BS = torch.arange(x_BSD.size(1)) < lengths_B[:, None]
        h_BD = self.bridge(summary_BC).tanh()
        state = (h_BD, *self.cell.zero_state(len(closed))[1:])
        return Memory(values_BSC, keys, alive_BS, summary_BC), state

    def _step(self, x_BG: Tensor, state: State, memory: Memory) -> tuple[State, Tensor]:
        """(next state, context B C) from the projected token before."""
        context_BC = memory.summary
        if self.attention is not None:
            context_BC = self.attention(state[0], memory)
        return self.cell.step(x_BG + self.context(context_BC), state), context_BC

    def _scores(self, h: Tensor, context: Tensor, y: Tensor) -> Tensor:
        """… V scores from state, context and the embedding of the token before."""
        return self.head(self.readout(torch.cat((h, context, y), -1)).tanh())

    def logits(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Tensor:
        """B × T+1 × V: row t scores token t of the target (its end, last), given the t before."""
        memory, state = self.encode(sources)
        y_BTD = self.target_embedding(padded([[self.end, *ids] for ids in targets], self.end))
        hidden, contexts = [], []
        for x_BG in self.cell.input(y_BTD).unbind(1):
            state, context_BC = self._step(x_BG, state, memory)
            hidden.append(state[0])
            contexts.append(context_BC)
        return self._scores(torch.stack(hidden, 1), torch.stack(contexts, 1), y_BTD)

    def loss(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, int]:
        """(Σ −ln P of every target token and end, their number), teacher-forced."""
        logits_BTV = self.logits(sources, targets)
        wanted_BT = padded([[*ids, self.end] for ids in targets], IGNORED)
        total = F.cross_entropy(
            logits_BTV.flatten(0, 1), wanted_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return total, sum(len(ids) + 1 for ids in targets)

    def _next(self, ids_B: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """(ln P of the next token B V, state after reading `ids_B`)."""
        y_BD = self.target_embedding(ids_B)
        state, context_BC = self._step(self.cell.input(y_BD), state, memory)
        return self._scores(state[0], context_BC, y_BD).log_softmax(1), state

    @torch.no_grad()
    def greedy(self, sources: Sequence[Sequence[int]], limit: int) -> list[Decoded]:
        """The likeliest token each time, at most `limit` of them and the end, for many sources at
        once."""
        memory, state = self.encode(sources)
        last_B = torch.full((len(sources),), self.end)
        done = [Decoded([], 0.0, False) for _ in sources]
        open_rows = set(range(len(sources)))
        for n in range(limit + 1):
            logp_BV, state = self._next(last_B, state, memory)
            last_B = logp_BV.argmax(1)
            best, ends = logp_BV.amax(1).tolist(), logp_BV[:, self.end].tolist()
            for row in sorted(open_rows):
                token, so_far = int(last_B[row]), done[row]
                if token == self.end or n == limit:
                    total = so_far.log_probability + ends[row]
                    done[row] = Decoded(so_far.ids, total, token != self.end)
                    open_rows.discard(row)
                else:
                    total = so_far.log_probability + best[row]
                    done[row] = Decoded([*so_far.ids, token], total, False)
            if not open_rows:
                break
        return done

    @torch.no_grad()
    def beam(self, source: Sequence[int], beam: int, limit: int, alpha: float) -> Decoded:
        """The best-scoring of `beam` outputs grown side by side, and of the greedy one.

        An output that ends leaves its place empty, so a beam of 1 is greedy. A wider beam may
        still lose the greedy output on the way; as that one is asked too, no beam scores below it.
        """
        finished = self.greedy([source], limit)
        first, state = self.encode([source])
        live, places = [Decoded([], 0.0, False)], beam
        for n in range(limit + 1):
            last_B = torch.tensor([so_far.ids[-1] if so_far.ids else self.end for so_far in live])
            logp_BV, state = self._next(last_B, state, first.rows(len(live)))
            sums_B1 = torch.tensor([[so_far.log_probability] for so_far in live])
            total_BV = sums_B1 + logp_BV
            if n == limit:
                cut = (logp_BV.argmax(1) != self.end).tolist()
                ends = zip(live, total_BV[:, self.end].tolist(), cut, strict=True)
                finished += [Decoded(so_far.ids, total, was_cut) for so_far, total, was_cut in ends]
                break
            best = total_BV.flatten().topk(min(places, total_BV.numel()))
            grown, parents = [], []
            for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                parent, token = divmod(index, total_BV.size(1))
                if token == self.end:
                    finished.append(Decoded(live[parent].ids, total, False))
                    places -= 1
                else:
                    grown.append(Decoded([*live[parent].ids, token], total, False))
                    parents.append(parent)
            if not grown:
                break
            live, state = grown, tuple(part[parents] for part in state)
        return max(finished, key=lambda output: output.score(alpha))

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        write_model(folder, "onsil_seq2seq", self.shape, self, ancestry)

    @classmethod
    def load(cls, folder: Path) -> "Seq2Seq":
        """The model of a folder, to the same bits. Raises OnsilError as `read_shape` and
        `read_weights` do."""
        model = cls(read_shape(folder, "onsil_seq2seq", Seq2SeqShape))
        read_weights(folder, model)
        return model
