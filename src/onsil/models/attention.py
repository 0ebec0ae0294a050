"""Attention, and what one call of a stack may see.

Letters as in transformer.py. Masks, distance biases and rotary tables depend on positions alone:
a `View` makes each once a call and every layer shares it. Where nothing but the causal order has
to be said no mask is made at all, so that the fused kernel can be used.
"""

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.linear_attention import linear_attention
from onsil.models.positions import alibi, bucket, rotary_tables, rotate
from onsil.models.shape import Rotary, Shape

UNSEEN = torch.finfo(torch.float32).min
# Up to so many keys, bfloat16 scores written out beat the fused kernel on a CPU, way back included:
# 9 against 21 ms for eight documents of 256, 8.2 against 9.3 at 512, slower at 1,024 (docs/log.md).
SHORT = 512
STRETCH = 128  # queries; halves of 256 take 12.4 ms a layer, all at once 17 (docs/log.md)


class Linear(nn.Linear):
    """fp32 weights, computed in the dtype of the stream."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Norm(nn.Module):
    """RMS (Zhang & Sennrich 2019) or layer norm over the last of `size`, computed in float32."""

    def __init__(self, shape: Shape, *size: int, bias: bool = True):
        super().__init__()
        self.offset = 1.0 if shape.norm == "rms+1" else 0.0
        self.layer, self.epsilon = shape.norm == "layer", shape.norm_epsilon
        plain = shape.norm == "plain"
        self.weight = None if plain else nn.Parameter(torch.full(size, 1.0 - self.offset))
        self.bias = nn.Parameter(torch.zeros(size)) if self.layer and bias else None

    def forward(self, x: Tensor) -> Tensor:
        compiling = torch.compiler.is_compiling()  # passes are joined there; formulas are enough
        if self.weight is None:
            if compiling:
                return F.rms_norm(x.float(), x.shape[-1:], eps=self.epsilon).type_as(x)
            return _PlainNorm.apply(x, self.epsilon)
        width, wide = x.shape[-1:], x.float()
        weight = self.weight.float() + self.offset if self.offset else self.weight.float()
        if not self.layer:
            if wide is x or compiling:  # nothing to save; autograd's order of adding up is kept
                return F.rms_norm(wide, width, weight, self.epsilon).type_as(x)
            return _RMSNorm.apply(x, weight, self.epsilon)
        bias = None if self.bias is None else self.bias.float()
        if weight.dim() > 1:  # a row of weights for every head
            y = F.layer_norm(wide, width, eps=self.epsilon) * weight
            return (y if bias is None else y + bias).type_as(x)
        return F.layer_norm(wide, width, weight, bias, self.epsilon).type_as(x)


class _RMSNorm(torch.autograd.Function):
    """RMS norm of narrow numbers, computed in float32 and rounded once, with a way back of its own:
    half the time of autograd's, and x kept once instead of three times (docs/log.md)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.size(-1)).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return wide.mul_(scale).mul_(weight).type_as(x)

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        x, weight, scale = ctx.saved_tensors
        unit, g = x.float().mul_(scale), upstream[0].float()
        each = g * unit
        along = (each @ weight)[..., None].div_(-x.size(-1))
        of_weight = each.sum_to_size(weight.shape) if ctx.needs_input_grad[1] else None
        g.mul_(weight).addcmul_(unit, along).mul_(scale)
        return g.type_as(x), of_weight, None


class _PlainNorm(torch.autograd.Function):
    """x / √(mean x² + ε) in the dtype of `x`, the mean in float32; a way back in four passes, where
    autograd's own takes a dozen, each of them over float32."""

    @staticmethod
    def forward(ctx, x: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = length.square_().div_(x.size(-1)).add_(epsilon).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        y, scale = ctx.saved_tensors
        along = (upstream[0] * y).sum(-1, keepdim=True, dtype=torch.float32).div_(-y.size(-1))
        return torch.addcmul(upstream[0], y, along.to(y.dtype)).mul_(scale), None


def before(x_BTX: Tensor, at_BT: Tensor, last_B1X: Tensor | None = None) -> Tensor:
    """What stood one place earlier: B T X. `at`: positions, so that the first of each document has
    zeros before it; `last`: what came before the first row here."""
    first = torch.zeros_like(x_BTX[:, :1]) if last_B1X is None else last_B1X
    moved = torch.cat((first, x_BTX[:, :-1]), 1)
    return moved.masked_fill((at_BT == 0).unflatten(-1, (-1, *[1] * (x_BTX.dim() - 2))), 0)


class View:
    """Which keys each query of one document (or one padded batch) sees, and from how far."""

    def __init__(
        self,
        shape: Shape,
        q_BT: Tensor,
        k_BS: Tensor,
        keep_BS: Tensor | None = None,
        prefix: int = 0,
    ):
        self.shape, self.q_BT, self.k_BS, self.keep_BS = shape, q_BT, k_BS, keep_BS
        self.prefix = prefix  # so many first positions are seen by all, whatever the order
        self.made: dict[tuple, Tensor] = {}
        self.tables: dict[tuple[Rotary, torch.dtype], tuple[Tensor, Tensor]] = {}

    def rotary(self, rotary: Rotary, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for the new positions, B 1 T K each."""
        if (rotary, dtype) not in self.tables:
            cos, sin = rotary_tables(rotary, self.shape, self.q_BT)
            self.tables[rotary, dtype] = cos.to(dtype), sin.to(dtype)
        return self.tables[rotary, dtype]

    @cached_property
    def ahead_BTS(self) -> Tensor:
        """Key position − query position."""
        return self.k_BS[:, None, :] - self.q_BT[:, :, None]

    def near(self, kind: str) -> bool:
        """Whether each query sees nothing but the window before it, and the text is longer than
        two of them: then no T × S scores are needed (`local`)."""
        T, S, shape = self.q_BT.size(1), self.k_BS.size(1), self.shape
        plain = self.keep_BS is None and self.prefix < 2 and T == S
        told = shape.causal and shape.positions in ("rotary", "learned", "none", "sinusoidal")
        return kind == "L" and plain and told and 2 * shape.window < T

    def free(self, kind: str) -> bool:
        """Whether the causal order (or "all") says everything: no mask needed."""
        T, S = self.q_BT.size(1), self.k_BS.size(1)
        windowed = kind == "L" and self.shape.window < S
        unseen = self.shape.causal and 1 < T != S
        return self.keep_BS is None and self.prefix < 2 and not windowed and not unseen

    def mask(self, kind: str) -> Tensor:
        """0 where a key is seen and the least number where not, B 1 T S."""
        if ("mask", kind) not in self.made:
            seen = torch.ones_like(self.ahead_BTS, dtype=torch.bool)
            if self.shape.causal:
                seen = (self.ahead_BTS <= 0) | (self.k_BS[:, None, :] < self.prefix)
            if kind == "L":
                seen = seen & (self.ahead_BTS.abs() < self.shape.window)
            if self.keep_BS is not None:
                seen = seen & self.keep_BS[:, None, :]
            empty = torch.zeros(seen.shape, device=seen.device)
            self.made["mask", kind] = empty.masked_fill(~seen, UNSEEN)[:, None]
        return self.made["mask", kind]

    def bias(self, kind: str, table: nn.Embedding | None) -> Tensor | None:
        """What is added to the scores, B H T S (H may be 1); None when nothing has to be."""
        if self.shape.positions == "alibi":
            if ("alibi", kind) not in self.made:
                self.made["alibi", kind] = alibi(self.shape, self.ahead_BTS) + self.mask(kind)
            return self.made["alibi", kind]
        if table is None:
            return None if self.free(kind) else self.mask(kind)
        if (table, kind) not in self.made:
            distance = table(bucket(self.shape, self.ahead_BTS)).permute(0, 3, 1, 2)
            self.made[table, kind] = distance.float() + self.mask(kind)
        return self.made[table, kind]


class Views:
    """The views of one call: one, or one for each of the documents laid end to end."""

    def __init__(self, parts: list[View]):
        self.parts = parts
        self.lengths = [part.q_BT.size(1) for part in parts]
        self.q_BT = torch.cat([part.q_BT for part in parts], 1)
        self.ids_BT: Tensor | None = None  # the tokens, where layers have tables of their own
        self.tables: dict[tuple[Rotary, torch.dtype], tuple[Tensor, Tensor]] = {}

    def rotary(self, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for the new positions, B 1 T K each."""
        rotary = self.parts[0].shape.rotary_of(kind)
        assert rotary is not None
        if len(self.parts) == 1:
            return self.parts[0].rotary(rotary, dtype)
        if (rotary, dtype) not in self.tables:
            each = [part.rotary(rotary, dtype) for part in self.parts]
            cos, sin = (torch.cat([tables[i] for tables in each], 2) for i in (0, 1))
            self.tables[rotary, dtype] = cos, sin
        return self.tables[rotary, dtype]


class Cache:
    """Keys and values so far, a pair a layer and one for the encoder's, with where they stand."""

    def __init__(self, depth: int):
        self.layers: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in range(depth)]
        self.past = 0
        self.keep_BS: Tensor | None = None
        self.last_B1: Tensor | None = None  # the last token, where pairs are looked up

    def grow(self, keep_BT: Tensor | None, new_BT: Tensor) -> Tensor | None:
        """Count new positions in; the padding of old and new ones together."""
        if keep_BT is not None or self.keep_BS is not None:
            rows = new_BT.size(0)
            ones = torch.ones(rows, self.past, dtype=torch.bool, device=new_BT.device)
            before = ones if self.keep_BS is None else self.keep_BS
            now = torch.ones_like(new_BT, dtype=torch.bool) if keep_BT is None else keep_BT.bool()
            self.keep_BS = torch.cat([before, now], 1)
        self.past += new_BT.size(1)
        return self.keep_BS


def written_out(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, bias, scale: float) -> Tensor:
    """softmax(scale · q kᵀ + bias) v in plain products; the heads that share keys are laid end to
    end, so that keys are not copied. `bias`: B H T S, B or H may be 1, or None."""
    T, heads = q_BHTK.size(2), (k_BGSK.size(1), -1)
    q_BGXK = (q_BHTK * scale).unflatten(1, heads).flatten(2, 3)
    scores_BHTS = (q_BGXK @ k_BGSK.mT).unflatten(2, (-1, T)).flatten(1, 2)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias.to(scores_BHTS.dtype)
    seen_BGXS = scores_BHTS.softmax(-1).unflatten(1, heads).flatten(2, 3)
    return (seen_BGXS @ v_BGSK).unflatten(2, (-1, T)).flatten(1, 2)


class _Causal(torch.autograd.Function):
    """softmax(scale · q kᵀ) v where a query sees the keys up to its own place, in plain products of
    STRETCH queries at a time, so that most of what nobody sees is not computed. Queries are
    N R T K, R heads to each of the N heads of keys, which are N T K; `ahead` T T is −∞ above the
    diagonal, in their type."""

    @staticmethod
    def forward(ctx, q_NRTK: Tensor, k_NTK: Tensor, v_NTK: Tensor, ahead_TT: Tensor, scale: float):
        R, T = q_NRTK.shape[1:3]
        y_NRTK, none = torch.empty_like(q_NRTK), q_NRTK.new_empty(1, 1, 1)
        ctx.scale, kept = scale, []
        for a in range(0, T, STRETCH):
            b = min(T, a + STRETCH)
            q_NXK = q_NRTK[:, :, a:b].flatten(1, 2)
            seen_NXS = torch.baddbmm(none, q_NXK, k_NTK[:, :b].mT, beta=0, alpha=scale)
            seen_NXS.unflatten(1, (R, -1))[..., a:] += ahead_TT[a:b, a:b]
            torch.softmax(seen_NXS, -1, out=seen_NXS)
            y_NRTK[:, :, a:b] = (seen_NXS @ v_NTK[:, :b]).unflatten(1, (R, -1))
            kept.append(seen_NXS)
        ctx.save_for_backward(q_NRTK, k_NTK, v_NTK, *kept)
        return y_NRTK

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        q_NRTK, k_NTK, v_NTK, *kept = ctx.saved_tensors
        R, T = q_NRTK.shape[1:3]
        of_q, none = torch.empty_like(q_NRTK), q_NRTK.new_empty(1, 1, 1)
        of_k = of_v = none
        for a, seen_NXS in reversed([*zip(range(0, T, STRETCH), kept, strict=True)]):
            b = min(T, a + STRETCH)
            q_NXK, g_NXK = (t[:, :, a:b].flatten(1, 2) for t in (q_NRTK, upstream[0]))
            of_seen = g_NXK @ v_NTK[:, :b].mT
            back = torch.ops.aten._softmax_backward_data(of_seen, seen_NXS, -1, seen_NXS.dtype)
            scaled = torch.baddbmm(none, back, k_NTK[:, :b], beta=0, alpha=ctx.scale)
            of_q[:, :, a:b] = scaled.unflatten(1, (R, -1))
            more_k = torch.baddbmm(none, back.mT, q_NXK, beta=0, alpha=ctx.scale)
            more_v = seen_NXS.mT @ g_NXK
            if b == T:  # the last stretch comes first and sees every key
                of_k, of_v = more_k, more_v
            else:
                of_k[:, :b] += more_k
                of_v[:, :b] += more_v
        return of_q, of_k, of_v, None, None


def causal(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, ahead_TT: Tensor, scale: float):
    """`written_out` for queries that see the keys up to their own place."""
    B, H, T, _ = q_BHTK.shape
    k_NTK, v_NTK = k_BGTK.flatten(0, 1), v_BGTK.flatten(0, 1)
    q_NRTK = q_BHTK.reshape(len(k_NTK), -1, *q_BHTK.shape[2:])
    return _Causal.apply(q_NRTK, k_NTK, v_NTK, ahead_TT, scale).view(B, H, T, -1)


def local(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, scale: float) -> Tensor:
    """Causal attention to the last `window` keys in memory linear in T: blocks of `window` queries,
    each beside its own and the previous block of keys (Beltagy et al. 2020, §3.1)."""
    B, _, T, _ = q_BHTK.shape
    many, empty = -(-T // window), -T % window

    def blocks(x_BHTK: Tensor, before: int) -> Tensor:
        """(B·blocks) H W·(1 + before) K."""
        wide = F.pad(x_BHTK, (0, 0, before * window, empty))
        cut = wide.unfold(2, window * (1 + before), window)  # B H blocks K W
        return cut.permute(0, 2, 1, 4, 3).flatten(0, 1)

    at_W, of_S = torch.arange(window)[:, None], torch.arange(2 * window)[None] - window
    seen_WS = (of_S <= at_W) & (of_S > at_W - window)
    seen_NWS = seen_WS.repeat(many, 1, 1)
    seen_NWS[0] &= of_S >= 0
    y = F.scaled_dot_product_attention(
        blocks(q_BHTK, 0),
        blocks(k_BGTK, 1),
        blocks(v_BGTK, 1),
        attn_mask=seen_NWS.repeat(B, 1, 1)[:, None].to(q_BHTK.device),
        scale=scale,
        enable_gqa=q_BHTK.size(1) != k_BGTK.size(1),
    )
    return y.unflatten(0, (B, many)).transpose(1, 2).flatten(2, 3)[:, :, :T]


class Attention(nn.Module):
    def __init__(self, shape: Shape, kind: str = "G", cross: bool = False, tables: bool = False):
        super().__init__()
        self.shape, self.kind, self.cross = shape, kind, cross
        D, H, G, K = shape.width, shape.heads, shape.kv_heads, shape.head_width
        self.q = Linear(D, H * K, bias="q" in shape.bias)
        self.k = Linear(D, G * K, bias="k" in shape.bias)
        self.v = Linear(D, G * K, bias="v" in shape.bias)
        self.o = Linear(H * K, D, bias="o" in shape.bias)
        self.shift = nn.Parameter(torch.zeros(G * K)) if shape.key_shift and not cross else None
        self.value = nn.Embedding(shape.vocabulary, G * K) if tables else None
        self.value_gate = Linear(D, G, bias=False) if tables else None
        sizes = {"head": ((K,), (K,)), "heads": ((H, K), (G, K)), "all": ((H * K,), (G * K,))}
        own = shape.qk_norm != "none" and not cross
        of_q, of_k = sizes.get(shape.qk_norm, ((), ()))
        self.q_norm = Norm(shape, *of_q, bias=shape.qk_norm_bias) if own else None
        self.k_norm = Norm(shape, *of_k, bias=shape.qk_norm_bias) if own else None

    def heads_of(self, x_BTX: Tensor, heads: int, norm: Norm | None) -> Tensor:
        """B T (H·K) → B H T K, normed before or after the split."""
        if norm is not None and self.shape.qk_norm == "all":
            return norm(x_BTX).unflatten(-1, (heads, -1)).transpose(1, 2)
        x_BTHK = x_BTX.unflatten(-1, (heads, -1))
        return (x_BTHK if norm is None else norm(x_BTHK)).transpose(1, 2)

    def forward(self, x_BTD: Tensor, source_BSD: Tensor, views: Views, table, cache) -> Tensor:
        """`source` is `x` itself, or the encoder's states when this is cross-attention."""
        if self.cross and cache:  # the keys of the source never change
            q, (k, v), last_B1X = self.heads_of(self.q(x_BTD), self.shape.heads, None), cache, None
        else:
            last = cache[2] if cache and self.shift is not None else None
            told = self.told_by(views, x_BTD.dtype)
            q, k, v, last_B1X = self.project(x_BTD, source_BSD, views.q_BT, *told, last)
        return self.o(self.mix(q, k, v, views, table, cache, last_B1X).transpose(1, 2).flatten(2))

    def told_by(self, views: Views, dtype: torch.dtype) -> tuple[Any, Tensor | None]:
        """What `project` takes from the positions and tokens: cos and sin, and rows of the table of
        values, or None."""
        rotary = None if self.cross or self.kind == "S" else self.shape.rotary_of(self.kind)
        tables = None if rotary is None else views.rotary(self.kind, dtype)
        return tables, None if self.value is None else self.value(views.ids_BT).to(dtype)

    def project(
        self, x_BTD: Tensor, source_BSD: Tensor, at_BT: Tensor, tables: Any, told_BSX: Any,
        last_B1X: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Queries B H T K, keys and values B G S K, turned, and the last row of keys before they
        were mixed with the one earlier, where they are. `last`: that row of the text so far."""
        s = self.shape
        q = self.heads_of(self.q(x_BTD), s.heads, self.q_norm)
        k_BSX, ends_B1X = self.k(source_BSD), None
        if self.shift is not None:
            earlier, ends_B1X = before(k_BSX, at_BT, last_B1X), k_BSX[:, -1:]
            k_BSX = torch.addcmul(k_BSX, earlier, self.shift.to(k_BSX.dtype))
        k = self.heads_of(k_BSX, s.kv_heads, self.k_norm)
        v = self.heads_of(self.v(source_BSD), s.kv_heads, None)
        if self.value_gate is not None:
            gate_BGS1 = 3 * torch.sigmoid(self.value_gate(x_BTD)).mT[..., None]
            v = v + gate_BGS1 * self.heads_of(told_BSX, s.kv_heads, None)
        if tables is not None:
            rotary = s.rotary_of(self.kind)
            assert rotary is not None
            q, k = (rotate(t, tables, rotary.interleaved) for t in (q, k))
        return q, k, v, ends_B1X

    def mix(self, q, k, v, views: Views, table, cache=None, last_B1X=None) -> Tensor:
        """B H T K: what every query takes from the values it sees."""
        if cache is not None and self.kind != "S":
            if cache and not self.cross:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = (k, v) if last_B1X is None else (k, v, last_B1X)
        if cache is not None and self.kind == "S":
            y, *sums = self.summed(q, k, v, views.parts[0], cache[:2])
            cache[:] = sums if last_B1X is None else (*sums, last_B1X)
            return y
        if len(views.parts) == 1:
            return self.attend(q, k, v, views.parts[0], table)
        cut = [t.split(views.lengths, dim=2) for t in (q, k, v)]
        parts = zip(*cut, views.parts, strict=True)
        return torch.cat([self.attend(a, b, c, view, table) for a, b, c, view in parts], dim=2)

    def summed(self, q, k, v, view: View, sums: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """B H T K, and the sums after the last token; `sums`: those before the first."""
        rotary, turn = self.shape.rotary_of(self.kind), None
        if rotary is not None:
            tables, interleaved = view.rotary(rotary, torch.float32), rotary.interleaved
            turn = partial(rotate, tables=tables, interleaved=interleaved)
        keep_BT = None if view.keep_BS is None else view.keep_BS[:, -q.size(2) :]
        causal, prefix = self.shape.causal, view.prefix
        return linear_attention(q, k, v, causal, turn, keep_BT, prefix, sums or None)

    def attend(self, q_BHTK: Tensor, k: Tensor, v: Tensor, view: View, table) -> Tensor:
        """B H T K; keys and values are B G S K, each shared by H/G heads."""
        s = self.shape
        if self.kind == "S":
            return self.summed(q_BHTK, k, v, view)[0]
        if not s.score_cap and view.near(self.kind):
            return local(q_BHTK, k, v, s.window, s.score_scale)
        if not s.score_cap:
            bias = view.bias(self.kind, table)
            if (
                q_BHTK.dtype == torch.bfloat16
                and q_BHTK.device.type == "cpu"
                and k.size(2) <= SHORT
            ):
                if bias is None and view.shape.causal and q_BHTK.size(2) > 1:
                    ahead = view.mask(self.kind)[0, 0].to(q_BHTK.dtype)
                    return causal(q_BHTK, k, v, ahead, s.score_scale)
                return written_out(q_BHTK, k, v, bias, s.score_scale)
            return F.scaled_dot_product_attention(
                q_BHTK,
                k,
                v,
                attn_mask=None if bias is None else bias.to(q_BHTK.dtype),
                is_causal=view.shape.causal and bias is None and q_BHTK.size(2) > 1,
                scale=s.score_scale,
                enable_gqa=s.kv_heads != s.heads,
            )
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
        scores = (q_BHTK @ k.mT).float() * s.score_scale
        scores = s.score_cap * torch.tanh(scores / s.score_cap) + view.mask(self.kind)
        return scores.softmax(-1).type_as(v) @ v
