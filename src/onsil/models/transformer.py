"""The one transformer: a stack of blocks that reads its differences from `Shape`.

Letters: B batch, T positions, S positions looked at, D width, H heads, G key/value heads, K head
width, E experts, N tokens of any leading shape, V vocabulary. Weights are kept as they were loaded
(float32 when grown here); with `compute="bf16"` every linear layer casts its weight and input to
bfloat16 on the way (fp32 masters, as nanochat does), while norms, softmax and losses stay in
float32.

Documents never see each other: a batch is a list of documents laid end to end, and attention runs
over each of them alone (`lengths`), which is exact by construction and on a CPU three times
faster than a mask (docs/log.md, "attention"). Padded rows (`keep`) are for serving, where rows
grow together; every row counts its positions from its own first token.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.attention import Attention, Cache, Linear, Norm, View, Views, before
from onsil.models.convolution import ShortConvolution
from onsil.models.positions import sinusoids
from onsil.models.shape import Shape

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}
# Odd multipliers that spread pairs of tokens over the table: a pair is the sum of two of its rows,
# and few pairs share both.
PAIRS = ((36_313, 27_191), (40_503, 30_011))
IN_CACHE = 1 << 17  # numbers: five times as many of bfloat16 stay in a core's second cache
START_SHIFT = 3.0  # keys that begin as mostly the token before: copying is learnt 50 steps sooner


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        up = "u" in shape.bias
        self.gate = Linear(shape.width, shape.hidden, bias=up) if shape.gated else None
        self.up = Linear(shape.width, shape.hidden, bias=up)
        self.down = Linear(shape.hidden, shape.width, bias="d" in shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        gate, up = self.gate(x), self.up(x)
        fused = self.activation is F.silu and gate.dtype == torch.bfloat16
        if fused and not torch.compiler.is_compiling():
            return self.down(gated(gate, up))
        return self.down(self.activation(gate) * up)


class _Gated(torch.autograd.Function):
    """silu(gate) · up, a few rows at a time both ways, so that what is between stays in the cache;
    only gate and up are kept."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        for g, u, out in zip(*(_few(t) for t in (gate, up, y)), strict=True):
            torch.mul(F.silu(g), u, out=out)
        return y

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        for g, u, told, out_g, out_u in zip(
            *(_few(t) for t in (gate, up, upstream[0], of_gate, of_up)), strict=True
        ):
            torch.mul(F.silu(g), told, out=out_u)
            torch.ops.aten.silu_backward.grad_input(u * told, g, grad_input=out_g)
        return of_gate, of_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up of narrow numbers, both … X."""
    return _Gated.apply(gate, up)  # pyright: ignore[reportReturnType]


def _few(x: Tensor) -> tuple[Tensor, ...]:
    rows = x.flatten(0, -2)
    return rows.split(max(1, IN_CACHE // rows.size(-1)))


class Experts(nn.Module):
    """A mixture (Jiang et al. 2024): each token goes through its `experts_used` best-scoring gated
    MLPs, weighted by the router's softmax over all of them."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.activation = shape, ACTIVATIONS[shape.activation]
        E, D, hidden = shape.experts, shape.width, shape.hidden
        self.router = Linear(D, E, bias=False)
        self.gate = nn.Parameter(torch.empty(E, hidden, D))
        self.up = nn.Parameter(torch.empty(E, hidden, D))
        self.down = nn.Parameter(torch.empty(E, D, hidden))

    def forward(self, x_BTD: Tensor) -> Tensor:
        s, x_ND = self.shape, x_BTD.flatten(0, -2)
        weight, chosen = self.router(x_ND).float().softmax(-1).topk(s.experts_used, -1)
        if s.experts_renormalised:
            weight = weight / weight.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        rows = order // s.experts_used
        counts = torch.bincount(chosen.flatten(), minlength=s.experts).tolist()
        parts = []
        # Taken apart once: indexing gives each expert a gradient as large as all of them.
        each = zip(*(w.unbind(0) for w in (self.gate, self.up, self.down)), strict=True)
        for part, weights in zip(x_ND[rows].split(counts), each, strict=True):
            if len(part):
                gate, up, down = (w.to(part.dtype) for w in weights)
                parts.append(F.linear(self.activation(part @ gate.T) * (part @ up.T), down))
        told = torch.cat(parts) * weight.flatten()[order, None].type_as(x_ND)
        return torch.zeros_like(x_ND).index_add(0, rows, told).view_as(x_BTD)


class Block(nn.Module):
    stretches: Any = None  # `forward` in compiled stretches, where `compiling` put it

    def __init__(self, shape: Shape, layer: int):
        super().__init__()
        self.shape, wiring = shape, shape.wiring
        kind = shape.kind(layer)
        attends = kind != "C"
        self.attention = Attention(shape, kind, tables=shape.tables_in(layer)) if attends else None
        self.convolution = None if attends else ShortConvolution(shape)
        self.attention_norm = Norm(shape, shape.width)
        self.cross = Attention(shape, cross=True) if shape.cross else None
        self.cross_norm = Norm(shape, shape.width) if shape.cross else None
        self.mlp = Experts(shape) if shape.experts else MLP(shape)
        self.mlp_norm = Norm(shape, shape.width) if wiring != "shared" else None
        sandwich = wiring == "sandwich"
        self.attention_norm_out = Norm(shape, shape.width) if sandwich else None
        self.mlp_norm_out = Norm(shape, shape.width) if sandwich else None
        own = shape.relative_layers
        self.relative = nn.Embedding(shape.buckets, shape.heads) if own else None

    def forward(self, x, views: Views, table, source, source_views, cache) -> Tensor:
        table = table if self.relative is None else self.relative
        if self.stretches is not None and cache is None:
            return self.stretches(self, x, views, table)
        own, other = (None, None) if cache is None else cache
        mix: Any = self.convolution if self.attention is None else self.attention
        attend = lambda h: mix(h, h, views, table, own)  # noqa: E731
        if self.shape.wiring in ("parallel", "shared"):
            h = self.attention_norm(x)
            return x + attend(h) + self.mlp(h if self.mlp_norm is None else self.mlp_norm(x))
        x = self.branch(x, attend, self.attention_norm, self.attention_norm_out)
        if (cross := self.cross) is not None:
            look = lambda h: cross(h, source, source_views, None, other)  # noqa: E731
            x = self.branch(x, look, self.cross_norm, None)
        return self.branch(x, self.mlp, self.mlp_norm, self.mlp_norm_out)

    def branch(self, x: Tensor, f, norm, norm_out) -> Tensor:
        """The four sequential wirings of norm, branch and residual."""
        return self.joined(x, f(self.entering(x, norm)), norm, norm_out)

    def entering(self, x: Tensor, norm) -> Tensor:
        """What a branch reads of the stream."""
        return x if self.shape.wiring in ("post", "output") else norm(x)

    def joined(self, x: Tensor, y: Tensor, norm, norm_out) -> Tensor:
        """The stream after a branch said `y`."""
        scale = self.shape.residual_scale
        match self.shape.wiring:
            case "post":
                return norm(x + y)
            case "output":
                return x + norm(y)
            case "sandwich":
                y = norm_out(y)
        return x + y if scale == 1.0 else x + y * scale


class Transformer(nn.Module):
    """Embedding, blocks, final norm, vocabulary head. GPT, LLaMA and Qwen when causal; BERT when
    not. `compute` is "fp32" or "bf16"."""

    def __init__(self, shape: Shape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded (families.Origin)
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
        D, wide, tokens = shape.width, shape.embedding_width, shape.reads == "tokens"
        self.embedding = nn.Embedding(shape.vocabulary, wide) if tokens else None
        projected = wide != D
        self.pair = nn.Embedding(shape.pairs, wide) if shape.pairs else None
        self.project_in = Linear(wide, D, bias=False) if projected else None
        rows = shape.context + shape.position_offset
        self.position = nn.Embedding(rows, D) if shape.positions == "learned" else None
        self.segment = nn.Embedding(shape.segments, D) if shape.segments else None
        self.embedding_norm = Norm(shape, D) if shape.embedding_norm else None
        shared = shape.positions == "relative" and not shape.relative_layers
        self.relative = nn.Embedding(shape.buckets, shape.heads) if shared else None
        self.blocks = nn.ModuleList(Block(shape, i) for i in range(shape.depth))
        skips = shape.embedding_skips
        self.skips = nn.Parameter(torch.zeros(shape.depth)) if skips else None
        self.final_norm = Norm(shape, D) if shape.wiring != "post" else None
        self.project_out = Linear(D, wide, bias=False) if projected else None
        self.transform = Linear(D, D) if shape.head_transform else None
        self.transform_norm = Norm(shape, D) if shape.head_transform else None
        writes = shape.writes == "tokens"
        self.head = Linear(wide, shape.vocabulary, bias="h" in shape.bias) if writes else None
        self.logit_bias = nn.Parameter(torch.zeros(shape.vocabulary)) if shape.logit_bias else None
        self.tie()

    def shared(self) -> dict[str, str]:
        """Parameters that are another one: the head of a tied model is its embedding."""
        tied = self.shape.tied and self.head is not None and self.embedding is not None
        return {"head.weight": "embedding.weight"} if tied else {}

    def tie(self) -> None:
        """Make the shared parameters one tensor (again)."""
        if self.shared() and self.head is not None and self.embedding is not None:
            self.head.weight = self.embedding.weight

    def initialise(self, seed: int, wide: bool = False) -> "Transformer":
        """Normal(0, 0.02) matrices; outputs of each branch scaled by 1/√(2·depth) (GPT-2). With
        `wide`, as nanochat starts: what reads is uniform at ±√(3/width), MLPs at 0.4 of it, what
        writes into the stream is zero, and the embedding is so large (0.8) and the head so small
        (0.001) that the embedding learns at rates far above the rest (`race_shape`)."""
        generator = torch.Generator().manual_seed(seed)
        norms = {id(p) for m in self.modules() if isinstance(m, Norm) for p in m.parameters()}
        for name, parameter in self.named_parameters():
            if id(parameter) in norms and name.endswith("weight"):
                parameter.data.fill_(0.0 if self.shape.norm == "rms+1" else 1.0)
            elif parameter.dim() < 2 or id(parameter) in norms:
                parameter.data.fill_(START_SHIFT if wide and name.endswith(".shift") else 0.0)
            elif name.endswith(".taps"):
                reach = self.shape.taps**-0.5
                parameter.data.uniform_(-reach, reach, generator=generator)
            elif wide:
                self._start_wide(name, parameter.data, generator)
            else:
                ends = ("attention.o.weight", "cross.o.weight", "mlp.down.weight", "mlp.down")
                ends += ("convolution.o.weight",)
                std = 0.02 / (2 * self.shape.depth) ** 0.5 if name.endswith(ends) else 0.02
                parameter.data.normal_(0.0, std, generator=generator)
        if wide and self.skips is not None:
            self.skips.data.copy_(torch.linspace(0.2, 0.05, self.shape.depth))
        return self

    def _start_wide(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        reach = (3 / self.shape.width) ** 0.5
        match name.split(".")[-2]:
            case "embedding":
                weight.normal_(0.0, 0.8, generator=generator)
            case "head":
                weight.normal_(0.0, 0.001, generator=generator)
            case "o" | "down" | "pair" | "value_gate":
                weight.zero_()
            case "up" | "gate":
                weight.uniform_(-0.4 * reach, 0.4 * reach, generator=generator)
            case _:
                weight.uniform_(-reach, reach, generator=generator)

    def new_cache(self) -> Cache:
        """Nothing seen yet; filled by `encode`."""
        return Cache(self.shape.depth)

    def views(self, ids_BT: Tensor, lengths, prefixes, keep_BT, cache: Cache | None) -> Views:
        """One view for the batch, or one for each of the documents in its row."""
        if lengths is not None:
            kinds = list(zip(lengths, prefixes or [0] * len(lengths), strict=True))
            at = {n: torch.arange(n, device=ids_BT.device)[None] for n in set(lengths)}
            of = {(n, p): View(self.shape, at[n], at[n], prefix=p) for n, p in set(kinds)}
            return Views([of[kind] for kind in kinds])
        past = 0 if cache is None else cache.past
        keep_BS = keep_BT if cache is None else cache.grow(keep_BT, ids_BT)
        if keep_BS is None:
            at_BS = torch.arange(past + ids_BT.size(1), device=ids_BT.device)[None]
        else:
            at_BS = (keep_BS.long().cumsum(1) - 1).clamp(min=0)
        return Views([View(self.shape, at_BS[:, past:], at_BS, keep_BS)])

    def encode(
        self,
        ids_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        lengths: list[int] | None = None,
        prefixes: list[int] | None = None,
        cache: Cache | None = None,
        keep_BT: Tensor | None = None,
        vectors_BTD: Tensor | None = None,
        source_BSD: Tensor | None = None,
        source_keep_BS: Tensor | None = None,
        views: Any = None,
    ) -> Tensor:
        """Hidden states B T D.

        `lengths` cuts T into documents that do not see each other, each with positions from 0; the
        first `prefixes[i]` tokens of document i see each other, whatever the order;
        `cache` continues from the positions already in it; `keep` is false on padding, left or
        right, but only left where a cache goes on from the last token itself (short convolutions,
        keys that look back: ValueError); `vectors` stand in for the embedding of ids; `source` are
        an encoder's states; `views` say what each position sees, for who keeps the cache otherwise
        (`inference.slots`).
        """
        more = (cache, keep_BT, vectors_BTD, source_BSD, source_keep_BS, views)
        if lengths is not None and len(lengths) > 1 and source_BSD is None:
            seen = set(zip(lengths, prefixes or lengths, strict=True))
            if len(seen) == 1:  # documents of one length and view are the rows of one batch
                return self._rows(lengths, prefixes, ids_BT, segments_BT, vectors_BTD)
        return self._encode(ids_BT, segments_BT, lengths, prefixes, *more)

    def _rows(self, lengths: list[int], prefixes: list[int] | None, ids, segments, vectors):
        """`encode` for documents of one length and view, laid end to end: 1 T D."""
        parts = (ids, segments, vectors)
        ids, segments, vectors = (
            None if part is None else part[0].unflatten(0, (len(lengths), -1)) for part in parts
        )
        prefix = None if prefixes is None else prefixes[:1]
        x_BTD = self._encode(ids, segments, lengths[:1], prefix, vectors_BTD=vectors)
        return x_BTD.flatten(0, 1)[None].clone()  # FSDP2 watches what is returned, and no view

    def _encode(
        self,
        ids_BT: Tensor | None,
        segments_BT: Tensor | None,
        lengths: list[int] | None,
        prefixes: list[int] | None,
        cache: Cache | None = None,
        keep_BT: Tensor | None = None,
        vectors_BTD: Tensor | None = None,
        source_BSD: Tensor | None = None,
        source_keep_BS: Tensor | None = None,
        views: Any = None,
    ) -> Tensor:
        s = self.shape
        looks_back = "C" in s.pattern or s.key_shift or s.pairs
        if cache is not None and keep_BT is not None and looks_back and not keep_BT[:, -1].all():
            raise ValueError("The cache would go on from padding: pad on the left.")
        if vectors_BTD is not None:
            x, ids_BT = vectors_BTD, vectors_BTD[..., 0].long()
        else:
            assert self.embedding is not None and ids_BT is not None, "this stack reads vectors"
            x = self.embedding(ids_BT)
        if views is None:
            views = self.views(ids_BT, lengths, prefixes, keep_BT, cache)
        x = x if s.embedding_scale == 1.0 else x * s.embedding_scale
        x = x if self.project_in is None else self.project_in(x)
        if self.position is not None:
            x = x + self.position(views.q_BT + s.position_offset)
        elif s.positions == "sinusoidal":
            x = x + sinusoids(s.width, views.q_BT)
        if self.segment is not None:
            x = x + self.segment(torch.zeros_like(ids_BT) if segments_BT is None else segments_BT)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        if self.pair is not None:
            assert vectors_BTD is None, "pairs are looked up by token"
            earlier = before(ids_BT, views.q_BT, None if cache is None else cache.last_B1)
            for a, b in PAIRS:
                x = x + self.pair((ids_BT * a ^ earlier * b) % s.pairs)
            if cache is not None:
                cache.last_B1 = ids_BT[:, -1:]
        x = x.to(self.dtype)
        if s.value_tables:
            assert vectors_BTD is None, "values are looked up by token"
            views.ids_BT = ids_BT
        source_views, begun = None, x
        if source_BSD is not None:
            at_BS = torch.arange(source_BSD.size(1), device=x.device)[None]
            unordered = replace(s, causal=False, positions="none")
            source_views = Views([View(unordered, views.q_BT, at_BS, source_keep_BS)])
        for i, block in enumerate(self.blocks):
            kept = None if cache is None else cache.layers[i]
            if self.skips is not None:
                x = x + self.skips[i].to(x.dtype) * begun
            x = block(x, views, self.relative, source_BSD, source_views, kept)
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, x_ND: Tensor, narrow: bool = False, head: Tensor | None = None) -> Tensor:
        """Vocabulary scores in float32 for hidden states of any leading shape; `narrow`: in the
        stream's own type, when nothing is added to them or capped; `head`: its matrix in the
        stream's type, from who calls many times (`narrow_head`)."""
        s = self.shape
        assert self.head is not None, "this stack writes vectors"
        if self.transform is not None and self.transform_norm is not None:
            x_ND = self.transform_norm(ACTIVATIONS[s.activation](self.transform(x_ND)))
        x_ND = x_ND if self.project_out is None else self.project_out(x_ND)
        x_ND = x_ND if s.logit_scale == 1.0 else x_ND * s.logit_scale
        scores = self.head(x_ND) if head is None else F.linear(x_ND, head)
        if narrow and self.logit_bias is None and not s.logit_cap:
            return scores
        scores = scores.float()
        if self.logit_bias is not None:
            scores = scores + self.logit_bias
        return s.logit_cap * torch.tanh(scores / s.logit_cap) if s.logit_cap else scores

    def narrow_head(self) -> tuple[Tensor | None, Tensor | None]:
        """The head's matrix, and it again in the stream's type, a leaf of its own; nothing where
        nothing is gained: it has that type already, carries a bias, or is no plain matrix."""
        head = self.head
        if type(head) is not Linear or head.bias is not None or head.weight.dtype == self.dtype:
            return None, None
        weight = head.weight
        return weight, weight.detach().to(self.dtype).requires_grad_(weight.requires_grad)

    def only_head(self) -> bool:
        """Whether `logits` is nothing but a product with the head's matrix."""
        s = self.shape
        parts = (self.transform, self.project_out, self.logit_bias)
        return s.logit_scale == 1.0 and not s.logit_cap and not any(p is not None for p in parts)

    def head_parameters(self) -> list[Tensor]:
        """Everything `logits` uses: what learns from the last hidden states alone."""
        parts = (self.transform, self.transform_norm, self.project_out, self.head)
        found: list[Tensor] = [p for part in parts if part is not None for p in part.parameters()]
        return found if self.logit_bias is None else [*found, self.logit_bias]

    def forward(self, ids_BT: Tensor | None = None, **kwargs) -> Tensor:
        return self.logits(self.encode(ids_BT, **kwargs))
