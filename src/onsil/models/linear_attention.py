"""Attention as a running sum: time and memory grow with the text, and a cache does not grow at all.

With φ(q)·φ(k) in the place of exp(q·k) the sums over keys do not depend on the query
(Katharopoulos et al. 2020, "Transformers are RNNs"; φ = elu + 1):

    y_t = φ(q_t)ᵀ S_t / φ(q_t)ᵀ z_t,  S_t = Σ φ(k_s) v_sᵀ,  z_t = Σ φ(k_s)  over all s that t sees

S and z are all that a later token needs of the earlier ones. S is made for each chunk of tokens by
one product and summed over chunks; within its own chunk a query meets its keys directly, under the
causal mask. That is T·(CHUNK + K) numbers a head, in products large enough to be fast (the
chunkwise form: Hua et al. 2022, "Transformer Quality in Linear Time", §3.2).

Rotary positions turn φ(q) and φ(k) above the line only (Su et al. 2021, RoFormer, §3.3): a turned
φ is no longer positive, and the sum below must be. Keys that are near then count more from the
start. Without positions, or turned before φ, a model of such layers learns far less
(docs/training.md).

What it costs: K channels cannot tell more than about K keys apart, so that what a long text said
once is found again less well than by softmax. Left out: gates and decays (RetNet, Mamba).

Letters as in transformer.py; C tokens of a chunk, N chunks, R heads that share keys.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64
LEAST = 1e-6  # below the line: padding in front sees nothing


def features(x: Tensor) -> Tensor:
    """elu(x) + 1, without the digits that adding 1 to nearly −1 would lose."""
    return F.relu(x) + x.clamp(max=0).exp()


def linear_attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    causal: bool,
    turn: Callable[[Tensor], Tensor] | None = None,
    keep_BT: Tensor | None = None,
    prefix: int = 0,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """B H T K in the type of `q`, and S, B G K K, and z, B G 1 K, after the last token, float32
    (float64 for float64).

    Each key is shared by H/G heads. `turn`: rotary positions. `keep`: false on padding. `prefix`:
    so many first tokens see each other whatever the order. `sums`: S and z of the tokens before.
    """
    T, G = k_BGTK.size(2), k_BGTK.size(1)
    wide = torch.promote_types(q_BHTK.dtype, torch.float32)
    q, k, v = features(q_BHTK.to(wide)), features(k_BGTK.to(wide)), v_BGTK.to(wide)
    if keep_BT is not None:
        k = k * keep_BT[:, None, :, None]
    if sums is None:
        sums = k.new_zeros(*k.shape[:2], k.size(-1), v.size(-1)), torch.zeros_like(k[:, :, :1])
    S_BGKK, z_BGTK = sums[0], sums[1] + k.cumsum(2)
    z_BG1K, whole = z_BGTK[:, :, -1:], (prefix if prefix > 1 else 0) if causal else T
    if whole:  # the first ones see as far as the last of them
        z_BGTK = z_BGTK[:, :, torch.arange(T, device=k.device).clamp(min=whole - 1)]
    below_BHT1 = (q.unflatten(1, (G, -1)) * z_BGTK[:, :, None]).sum(-1, keepdim=True).flatten(1, 2)
    q, k, parts = q if turn is None else turn(q), k if turn is None else turn(k), []
    if whole:
        S_BGKK = S_BGKK + k[:, :, :whole].mT @ v[:, :, :whole]
        parts.append(_looked_up(q[:, :, :whole], S_BGKK))
    if whole < T:
        q, k, v = (t[:, :, whole:] for t in (q, k, v))
        y_BHTK, S_BGKK = _in_order(q, k, v, S_BGKK)
        parts.append(y_BHTK)
    above_BHTK = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
    return (above_BHTK / below_BHT1.clamp(min=LEAST)).type_as(q_BHTK), S_BGKK, z_BG1K


def _looked_up(q_BHTK: Tensor, S_BGKK: Tensor) -> Tensor:
    """B H T K: every query in the sums of its heads' keys."""
    q_BGRTK = q_BHTK.unflatten(1, (S_BGKK.size(1), -1))
    return (q_BGRTK.flatten(2, 3) @ S_BGKK).unflatten(2, q_BGRTK.shape[2:4]).flatten(1, 2)


def _in_order(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, S_BGKK: Tensor
) -> tuple[Tensor, Tensor]:
    """B H T K, each query with the keys up to its own, and the sums after the last."""
    G, T = k_BGTK.shape[1:3]
    C = min(CHUNK, T)
    q, k, v = (F.pad(t, (0, 0, 0, -T % C)).unflatten(2, (-1, C)) for t in (q_BHTK, k_BGTK, v_BGTK))
    q_BGNRCK = q.unflatten(1, (G, -1)).transpose(2, 3)
    heads = q_BGNRCK.shape[3:5]
    q_BGNXK = q_BGNRCK.flatten(3, 4)  # the heads that share keys, end to end
    seen_XC = torch.ones(C, C, dtype=torch.bool, device=q.device).tril().repeat(heads[0], 1)
    near_BGNXC = (q_BGNXK @ k.mT).masked_fill(~seen_XC, 0.0)
    each_BGNKK = torch.cat((S_BGKK[:, :, None], k.mT @ v), 2).cumsum(2)
    y_BGNXK = near_BGNXC @ v + q_BGNXK @ each_BGNKK[:, :, :-1]
    y_BHNCK = y_BGNXK.unflatten(3, heads).transpose(2, 3).flatten(1, 2)
    return y_BHNCK.flatten(2, 3)[:, :, :T], each_BGNKK[:, :, -1]
