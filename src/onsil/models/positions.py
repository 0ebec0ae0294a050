"""Where a token stands, told in four ways: rotation, distance bias, distance buckets, sinusoids.

Pure functions of positions; learned tables are parameters and live in the transformer. Positions
are B T (B may be 1 and is broadcast), so that padded rows can each count from their own first
token.

Sources: rotary, Su et al. 2021; linear scaling, Chen et al. 2023; dynamic, bloc97's and emozilla's
NTK-aware scaling; YaRN, Peng et al. 2023; LongRoPE, Ding et al. 2024; llama3, Meta's
`apply_scaling`; ALiBi, Press et al. 2022; buckets, Raffel et al. 2020; sinusoids, Vaswani et al.
2017.
"""

import math
from functools import cache

import torch
from torch import Tensor

from onsil.models.shape import Rotary, Shape

# Frequencies depend on how long the text is.
GROWING = ("dynamic", "longrope")


def frequencies(rotary: Rotary, width: int, length_B: Tensor) -> Tensor:
    """Radians a position, B × width/2 (B is 1 unless the text's length matters)."""
    share = torch.arange(0, width, 2, device=length_B.device).float() / width
    plain = rotary.base ** -share[None]
    match rotary.scaling:
        case "linear":
            return plain / rotary.factor
        case "dynamic":
            length = length_B.float().clamp(min=rotary.original)
            stretch = rotary.factor * length / rotary.original - (rotary.factor - 1)
            base_B = rotary.base * stretch ** (width / (width - 2))
            return base_B[:, None] ** -share[None]
        case "longrope":
            divisors = torch.tensor([rotary.short, rotary.long], device=length_B.device)
            return plain / divisors[(length_B > rotary.original).long()]
        case "llama3":
            turns = rotary.original * plain / (2 * math.pi)
            kept = ((turns - rotary.slow) / (rotary.fast - rotary.slow)).clamp(0, 1)
        case "yarn":
            low, high = (_channel(rotary, width, turns) for turns in (rotary.fast, rotary.slow))
            if rotary.truncate:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, width - 1)
            ramp = (torch.arange(width // 2) - low) / (high - low if high != low else 0.001)
            kept = 1 - ramp.clamp(0, 1)[None].to(length_B.device)
        case _:
            return plain
    return kept * plain + (1 - kept) * plain / rotary.factor


def _channel(rotary: Rotary, width: int, turns: float) -> float:
    """The channel that turns so often over the original context."""
    return width * math.log(rotary.original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))


def rotary_tables(rotary: Rotary, shape: Shape, at_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, B 1 T K, laid out as `rotate` wants them."""
    width = rotary.width or shape.head_width
    length_B = at_BT.amax(1) + 1 if rotary.scaling in GROWING else at_BT.new_ones(1)
    angle = at_BT[..., None].float() * frequencies(rotary, width, length_B)[:, None]
    wide = angle.repeat_interleave(2, -1) if rotary.interleaved else torch.cat((angle, angle), -1)
    return wide.cos()[:, None] * rotary.amplitude, wide.sin()[:, None] * rotary.amplitude


def rotate(x_BHTK: Tensor, tables: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
    """Turn the first channels of every head by the angles of `tables`; the rest stays."""
    width = tables[0].shape[-1]
    whole = width == x_BHTK.shape[-1]
    x = x_BHTK if whole else x_BHTK[..., :width]
    cos, sin = (table.to(x.dtype) for table in tables)
    if (
        torch.compiler.is_compiling()
    ):  # without products, so that it is one pass with what is around
        turned = x * cos + _paired(x, interleaved) * sin
        return turned if whole else torch.cat((turned, x_BHTK[..., width:]), -1)
    partners = _partners(width, interleaved, x.dtype, x.device)
    turned = _Turn.apply(x, cos, sin, partners, x.is_contiguous())
    return turned if whole else torch.cat((turned, x_BHTK[..., width:]), -1)


@cache
def _partners(width: int, interleaved: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """K K: a product with it puts −b where a stands and a where b stands, for every pair (a, b) of
    channels, without rounding."""
    first = torch.arange(0, width, 2) if interleaved else torch.arange(width // 2)
    second = first + (1 if interleaved else width // 2)
    with torch.inference_mode(False):  # it is kept, and training must be able to use it
        partners = torch.zeros(width, width)
        partners[second, first], partners[first, second] = -1.0, 1.0
        return partners.to(device, dtype)


class _Turn(torch.autograd.Function):
    """Pairs of channels turned, in the type of `x`: x cos + (x partners) sin. The way back is to
    turn by as much the other way. What comes split into heads goes on laid out by heads, and comes
    back as it was, so that neither products over heads nor over channels copy it (`heads`: it is
    laid out so already)."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, partners: Tensor, heads: bool) -> Tensor:
        ctx.save_for_backward(cos, sin, partners)
        ctx.heads = heads
        y = torch.mul(x, cos, out=x.new_empty(x.shape))
        return y.addcmul_(_across(x, partners), sin)

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        (cos, sin, partners), g = ctx.saved_tensors, upstream[0]
        B, H, T, K = g.shape
        y = g.new_empty(B, H, T, K) if ctx.heads else g.new_empty(B, T, H, K).transpose(1, 2)
        torch.mul(g, cos, out=y)
        return y.addcmul_(_across(g, partners), sin, value=-1), None, None, None, None


def _paired(x: Tensor, interleaved: bool) -> Tensor:
    """Every channel's partner, negated where it is the second of its pair."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _across(x_BHTK: Tensor, partners_KK: Tensor) -> Tensor:
    """Every channel's partner, by a product that does not copy `x` first."""
    if x_BHTK.is_contiguous():
        return x_BHTK @ partners_KK
    return (x_BHTK.transpose(1, 2) @ partners_KK).transpose(1, 2)


def alibi(shape: Shape, ahead_BTS: Tensor) -> Tensor:
    """−slope · distance, B H T S. Slopes are a geometric row; head counts that are no power of two
    take every other slope of the next row for the rest."""
    near = 2 ** math.floor(math.log2(shape.heads))
    slopes = [2 ** (-8 * (i + 1) / near) for i in range(near)]
    rest = shape.heads - near
    slopes += [2 ** (-4 * (2 * i + 1) / near) for i in range(rest)]
    slopes_H = torch.tensor(slopes, device=ahead_BTS.device)
    return slopes_H[:, None, None] * ahead_BTS[:, None].float()


def bucket(shape: Shape, ahead: Tensor) -> Tensor:
    """T5's bucket of a signed distance key − query: exact up to half of the buckets, then
    logarithmic up to `reach`; a stack that is not causal spends half of them on keys ahead."""
    buckets, first = shape.buckets, torch.zeros_like(ahead)
    if shape.causal:
        distance = -ahead.clamp(max=0)
    else:
        buckets //= 2
        first, distance = (ahead > 0) * buckets, ahead.abs()
    near = buckets // 2
    ratio = (distance.clamp(min=1).float() / near).log() / math.log(shape.reach / near)
    far = (near + (ratio * (buckets - near)).long()).clamp(max=buckets - 1)
    return first + torch.where(distance < near, distance, far)


def sinusoids(width: int, at: Tensor) -> Tensor:
    """Sines of all frequencies, then cosines: … × width."""
    half = torch.arange((width + 1) // 2, device=at.device).double()
    angle = at[..., None].double() * 10_000.0 ** (-2 * half / width)
    return torch.cat((angle.sin(), angle.cos()), -1)[..., :width].float()
