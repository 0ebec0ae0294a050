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
    turn = _Turn.apply if torch.is_grad_enabled() else _turned
    turned = turn(x, *tables, interleaved)
    return turned if whole else torch.cat((turned, x_BHTK[..., width:]), -1)


class _Turn(torch.autograd.Function):
    """Pairs of channels turned in float32. The way back is to turn by as much the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        cos, sin = ctx.saved_tensors
        return _turned(upstream[0], cos, -sin, ctx.interleaved), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    def pair(t: Tensor) -> tuple[Tensor, ...]:
        return (t[..., 0::2], t[..., 1::2]) if interleaved else t.chunk(2, -1)

    wide = x.float()
    turned = wide * cos
    (a, b), (sin_a, sin_b), (to_a, to_b) = pair(wide), pair(sin), pair(turned)
    to_a.sub_(b * sin_a)
    to_b.add_(a * sin_b)
    return turned.type_as(x)


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
