"""The one transformer: a stack of blocks that reads its differences from `Shape`.

Letters: B batch, T positions, S positions looked at, D width, H heads, G key/value heads, K head
width, V vocabulary. Weights are kept in float32; with `compute="bf16"` every linear layer casts
its weight and input to bfloat16 on the way (fp32 masters, as nanochat does), while norms, softmax
and losses stay in float32.

Documents never see each other: a batch is a list of documents laid end to end, and attention runs
over each of them alone (`lengths`), which is exact by construction and on a CPU three times
faster than a mask (docs/log.md, "attention").
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.shape import Shape


class Linear(nn.Linear):
    """fp32 weights, computed in the dtype of the stream."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class Norm(nn.Module):
    """RMS (Zhang & Sennrich 2019) or layer norm, computed in float32."""

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if shape.norm == "layer" else None
        self.epsilon = shape.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        width = (x.shape[-1],)
        if self.bias is not None:
            return F.layer_norm(x.float(), width, self.weight, self.bias, self.epsilon).type_as(x)
        return F.rms_norm(x.float(), width, self.weight, self.epsilon).type_as(x)


def rotary_tables(positions_T: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin, T × K, in the half-split layout of LLaMA checkpoints (Su et al. 2021)."""
    half = torch.arange(0, shape.head_width, 2, device=positions_T.device).float()
    angle_TK = positions_T[:, None].float() * shape.rotary_base ** -(half / shape.head_width)
    angle_TK = torch.cat((angle_TK, angle_TK), -1)
    return angle_TK.cos(), angle_TK.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, -1)
    turned = x_BHTK.float() * cos_TK + torch.cat((-b, a), -1).float() * sin_TK
    return turned.type_as(x_BHTK)


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        D, H, G, K = shape.width, shape.heads, shape.kv_heads, shape.head_width
        self.q = Linear(D, H * K, bias=shape.bias)
        self.k = Linear(D, G * K, bias=shape.bias)
        self.v = Linear(D, G * K, bias=shape.bias)
        self.o = Linear(H * K, D, bias=shape.bias)
        self.q_norm = Norm(shape, K) if shape.qk_norm else None
        self.k_norm = Norm(shape, K) if shape.qk_norm else None

    def forward(self, x_BTD: Tensor, rotary, lengths: list[int] | None, cache) -> Tensor:
        s = self.shape
        q = self.q(x_BTD).unflatten(-1, (s.heads, s.head_width))
        k = self.k(x_BTD).unflatten(-1, (s.kv_heads, s.head_width))
        v = self.v(x_BTD).unflatten(-1, (s.kv_heads, s.head_width)).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = (k, v)
        # One query sees everything before it; more than one starts from an empty cache.
        causal = s.causal and q.size(2) > 1
        gqa = s.kv_heads != s.heads
        if lengths is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
        else:
            parts = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
            y = torch.cat(
                [
                    F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=gqa)
                    for part in parts
                ],
                dim=2,
            )
        return self.o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.activation = F.silu if shape.activation == "silu" else F.gelu
        self.gate = Linear(shape.width, shape.hidden, bias=shape.bias) if shape.gated else None
        self.up = Linear(shape.width, shape.hidden, bias=shape.bias)
        self.down = Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.post = shape.wiring == "post"
        self.attention, self.attention_norm = Attention(shape), Norm(shape, shape.width)
        self.mlp, self.mlp_norm = MLP(shape), Norm(shape, shape.width)

    def forward(self, x: Tensor, rotary, lengths, cache) -> Tensor:
        if self.post:
            x = self.attention_norm(x + self.attention(x, rotary, lengths, cache))
            return self.mlp_norm(x + self.mlp(x))
        x = x + self.attention(self.attention_norm(x), rotary, lengths, cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """Embedding, blocks, final norm, vocabulary head. GPT, LLaMA and Qwen when causal; BERT when
    not. `compute` is "fp32" or "bf16"."""

    def __init__(self, shape: Shape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
        D = shape.width
        self.embedding = nn.Embedding(shape.vocabulary, D)
        learned = shape.positions == "learned"
        self.position = nn.Embedding(shape.context, D) if learned else None
        self.segment = nn.Embedding(shape.segments, D) if shape.segments else None
        self.embedding_norm = Norm(shape, D) if shape.embedding_norm else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.final_norm = Norm(shape, D) if shape.wiring == "pre" else None
        self.transform = Linear(D, D) if shape.head_transform else None
        self.transform_norm = Norm(shape, D) if shape.head_transform else None
        self.head = Linear(D, shape.vocabulary, bias=shape.head_transform)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def initialise(self, seed: int) -> "Transformer":
        """Normal(0, 0.02) matrices; outputs of each branch scaled by 1/√(2·depth) (GPT-2)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            branch_end = name.endswith(("attention.o.weight", "mlp.down.weight"))
            std = 0.02 / (2 * self.shape.depth) ** 0.5 if branch_end else 0.02
            parameter.data.normal_(0.0, std, generator=generator)
        return self

    def new_cache(self) -> list[list[Tensor]]:
        """One growing (key, value) pair a layer, filled by `encode`."""
        return [[] for _ in self.blocks]

    def encode(
        self,
        ids_BT: Tensor,
        segments_BT: Tensor | None = None,
        lengths: list[int] | None = None,
        cache: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Hidden states B T D. `lengths` cuts T into documents that do not see each other, each
        with positions from 0; `cache` continues from the positions already in it."""
        past = cache[0][0].size(2) if cache and cache[0] else 0
        if lengths is None:
            positions_T = torch.arange(past, past + ids_BT.size(1), device=ids_BT.device)
        else:
            positions_T = torch.cat([torch.arange(n, device=ids_BT.device) for n in lengths])
        x = self.embedding(ids_BT)
        if self.position is not None:
            x = x + self.position(positions_T)
        if self.segment is not None:
            x = x + self.segment(torch.zeros_like(ids_BT) if segments_BT is None else segments_BT)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = x.to(self.dtype)
        rotary = rotary_tables(positions_T, self.shape) if self.position is None else None
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, lengths, None if cache is None else cache[i])
        return x if self.final_norm is None else self.final_norm(x)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Vocabulary scores in float32 for hidden states of any leading shape."""
        if self.transform is not None and self.transform_norm is not None:
            x_ND = self.transform_norm(F.gelu(self.transform(x_ND)))
        return self.head(x_ND).float()

    def forward(self, ids_BT: Tensor, **kwargs) -> Tensor:
        return self.logits(self.encode(ids_BT, **kwargs))
