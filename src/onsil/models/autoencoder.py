"""EnCodec: sound to codes and back, a few thousand bits a second.

Strided convolutions shorten the wave 320-fold, an LSTM looks back over what they made, a residual
quantiser names each of the 75 vectors a second by some codes, and the mirror image of the first
half turns them into a wave again. With the 24 kHz model nothing looks ahead; the 48 kHz one norms
over time instead, in chunks of a second that are laid over one another, each first brought to one
loudness.

Letters: B batch, C channels, N samples, T codes in time, Q levels. Source: Défossez et al. 2022
(arXiv:2210.13438). Left out: the discriminators and losses, and the entropy coder over the codes.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from onsil.errors import OnsilError
from onsil.models.codebook import ResidualQuantiser
from onsil.models.shape import Shape

Frames = list[tuple[Tensor, Tensor | None]]  # codes B Q T of a chunk, and its loudness B 1


@dataclass(frozen=True)
class CodecShape:
    """Sizes and wiring of a codec; lengths in samples unless they say otherwise."""

    rate: int  # samples a second
    channels: int
    width: int  # of the vectors that are quantised
    filters: int  # channels after the first convolution; every ratio doubles them
    ratios: tuple[int, ...]  # by which the decoder lengthens; the encoder goes the other way
    codes: int  # rows of a codebook
    bandwidths: tuple[float, ...]  # kilobits a second, the last one taking all levels
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    residual_layers: int = 1
    residual_squeeze: int = 2  # channels within a residual block are so many times fewer
    dilation_growth: int = 2
    shortcut: bool = True  # a convolution on the way around a residual block
    lstm_layers: int = 2
    causal: bool = True
    padding: Literal["reflect", "constant"] = "reflect"
    trim_right: float = 1.0  # share of a lengthened wave's surplus that is cut at the end
    norm: Literal["weight_norm", "time_group_norm"] = "weight_norm"
    loudness: bool = False  # each chunk is divided by its root mean square
    chunk: int = 0  # 0: the whole wave at once
    chunk_step: int = 0

    @property
    def stacks(self) -> tuple[Shape, ...]:
        """None: there is no transformer in it."""
        return ()

    @property
    def depth(self) -> int:
        """The longest row of equal parts; each has tensors of its own."""
        blocks = len(self.ratios) * self.residual_layers
        return max(self.levels, blocks, self.lstm_layers)

    @property
    def frame_rate(self) -> int:
        """Codes a second and level."""
        return math.ceil(self.rate / math.prod(self.ratios))

    @property
    def levels(self) -> int:
        bits = math.ceil(math.log2(self.codes))
        return int(1000 * self.bandwidths[-1] // (self.frame_rate * bits))

    def levels_at(self, bandwidth: float) -> int:
        """Levels that fit in so many kilobits a second, at least one."""
        return max(1, math.floor(bandwidth * 1000 / (math.log2(self.codes) * self.frame_rate)))


def padded(x_BCN: Tensor, left: int, right: int, mode: str) -> Tensor:
    """What lies beyond the ends: nothing, or the wave mirrored; one too short to be mirrored is
    first lengthened with silence, which is then cut off again."""
    short = max(left, right) - x_BCN.size(-1) + 1 if mode == "reflect" else 0
    if short <= 0:
        return F.pad(x_BCN, (left, right), mode)
    y_BCN = F.pad(F.pad(x_BCN, (0, short)), (left, right), mode)
    return y_BCN[..., : y_BCN.size(-1) - short]


class Convolution(nn.Module):
    """A convolution whose output is as long as its input over the stride, rounded up."""

    def __init__(
        self,
        shape: CodecShape,
        before: int,
        after: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ):
        super().__init__()
        self.shape, self.stride = shape, stride
        self.surplus = (kernel - 1) * dilation + 1 - stride
        conv = nn.Conv1d(before, after, kernel, stride, dilation=dilation)
        weighted = shape.norm == "weight_norm"
        self.conv = weight_norm(conv) if weighted else conv
        self.norm = nn.Identity() if weighted else nn.GroupNorm(1, after)

    def forward(self, x_BCN: Tensor) -> Tensor:
        right = 0 if self.shape.causal else self.surplus // 2
        missing = -x_BCN.size(-1) % self.stride
        left = self.surplus - right
        return self.norm(self.conv(padded(x_BCN, left, right + missing, self.shape.padding)))


class Lengthening(nn.Module):
    """A transposed convolution whose output is `stride` times as long as its input."""

    def __init__(self, shape: CodecShape, before: int, after: int, stride: int):
        super().__init__()
        conv = nn.ConvTranspose1d(before, after, 2 * stride, stride)
        weighted = shape.norm == "weight_norm"
        self.conv = weight_norm(conv) if weighted else conv
        self.norm = nn.Identity() if weighted else nn.GroupNorm(1, after)
        self.right = math.ceil(stride * shape.trim_right) if shape.causal else stride // 2
        self.left = stride - self.right

    def forward(self, x_BCN: Tensor) -> Tensor:
        y_BCN = self.norm(self.conv(x_BCN))
        return y_BCN[..., self.left : y_BCN.size(-1) - self.right]


class Residual(nn.Module):
    def __init__(self, shape: CodecShape, width: int, dilation: int):
        super().__init__()
        inner = width // shape.residual_squeeze
        first = Convolution(shape, width, inner, shape.residual_kernel, dilation=dilation)
        last = Convolution(shape, inner, width, 1)
        self.block = nn.Sequential(nn.ELU(), first, nn.ELU(), last)
        around = Convolution(shape, width, width, 1) if shape.shortcut else nn.Identity()
        self.shortcut = around

    def forward(self, x_BCN: Tensor) -> Tensor:
        return self.shortcut(x_BCN) + self.block(x_BCN)


class Memory(nn.Module):
    """An LSTM over time, added to what it read."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x_BCN: Tensor) -> Tensor:
        x_NBC = x_BCN.permute(2, 0, 1)
        return (self.lstm(x_NBC)[0] + x_NBC).permute(1, 2, 0)


class Half(nn.Module):
    """The encoder or the decoder: layers in a row, counted as the published ones are."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCN: Tensor) -> Tensor:
        return self.layers(x_BCN)


def residuals(shape: CodecShape, width: int) -> list[nn.Module]:
    growth = shape.dilation_growth
    return [Residual(shape, width, growth**i) for i in range(shape.residual_layers)]


def encoder(shape: CodecShape) -> Half:
    width = shape.filters
    layers: list[nn.Module] = [Convolution(shape, shape.channels, width, shape.kernel)]
    for ratio in reversed(shape.ratios):
        shorter = Convolution(shape, width, 2 * width, 2 * ratio, ratio)
        layers += [*residuals(shape, width), nn.ELU(), shorter]
        width *= 2
    last = Convolution(shape, width, shape.width, shape.last_kernel)
    return Half([*layers, Memory(width, shape.lstm_layers), nn.ELU(), last])


def decoder(shape: CodecShape) -> Half:
    width = shape.filters * 2 ** len(shape.ratios)
    first = Convolution(shape, shape.width, width, shape.kernel)
    layers: list[nn.Module] = [first, Memory(width, shape.lstm_layers)]
    for ratio in shape.ratios:
        layers += [nn.ELU(), Lengthening(shape, width, width // 2, ratio)]
        width //= 2
        layers += residuals(shape, width)
    return Half([*layers, nn.ELU(), Convolution(shape, width, shape.channels, shape.last_kernel)])


class AudioCodec(nn.Module):
    """`compute` is "fp32": a rounded vector would get another code."""

    def __init__(self, shape: CodecShape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.encoder, self.decoder = encoder(shape), decoder(shape)
        self.quantiser = ResidualQuantiser(shape.levels, shape.codes, shape.width)

    def shared(self) -> dict[str, str]:
        """No parameter is another one."""
        return {}

    def tie(self) -> None:
        """Nothing to tie."""

    def initialise(self, seed: int) -> "AudioCodec":
        """Convolutions He-normal (He et al. 2015), the LSTM uniform within 1/√width, norms one,
        biases zero, codebooks normal(0, 1)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "lstm" in name:
                bound = (parameter.size(0) // 4) ** -0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            elif name.endswith("original0"):
                continue
            elif parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter, generator=generator)
            else:
                nn.init.constant_(parameter, float(name.endswith("weight")))
        found = dict(self.named_parameters())
        for name, length in found.items():
            if name.endswith("original0"):
                direction = found[name.removesuffix("0") + "1"]
                length.data = direction.detach().flatten(1).norm(dim=1).view_as(length)
        for book in self.quantiser.books:
            book.initialise(generator)
        return self

    def encode(self, wave_BCN: Tensor, bandwidth: float | None = None) -> Frames:
        """Codes of every chunk, at one of the bandwidths the model has (the first unless told).
        Raises OnsilError for another."""
        s = self.shape
        bandwidth = s.bandwidths[0] if bandwidth is None else bandwidth
        if bandwidth not in s.bandwidths:
            raise _other_bandwidth(bandwidth, s.bandwidths)
        frames, samples = [], wave_BCN.size(-1)
        for start in range(0, samples, s.chunk_step or samples):
            part_BCN, loudness_B1 = wave_BCN[..., start : start + (s.chunk or samples)], None
            if s.loudness:
                mono_B1N = part_BCN.sum(1, keepdim=True) / part_BCN.size(1)
                loudness = mono_B1N.pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
                part_BCN, loudness_B1 = part_BCN / loudness, loudness.view(-1, 1)
            x_BTD = self.encoder(part_BCN).mT
            frames.append((self.quantiser.encode(x_BTD, s.levels_at(bandwidth)), loudness_B1))
        return frames

    def decode(self, frames: Frames) -> Tensor:
        """The wave B C N; up to a hop longer than what was encoded."""
        parts = []
        for codes_BQT, loudness_B1 in frames:
            part_BCN = self.decoder(self.quantiser.decode(codes_BQT).mT)
            parts.append(part_BCN if loudness_B1 is None else part_BCN * loudness_B1[..., None])
        return overlaid(parts, self.shape.chunk_step) if self.shape.chunk else parts[0]

    def forward(self, wave_BCN: Tensor, bandwidth: float | None = None) -> Tensor:
        """The wave as it comes back."""
        return self.decode(self.encode(wave_BCN, bandwidth))[..., : wave_BCN.size(-1)]


def overlaid(parts: list[Tensor], step: int) -> Tensor:
    """Chunks every `step` samples as one wave: where they overlap, each counts as much as it is
    far from its own ends."""
    length = parts[0].size(-1)
    at_N = torch.linspace(0, 1, length + 2, device=parts[0].device, dtype=parts[0].dtype)[1:-1]
    weight_N = 0.5 - (at_N - 0.5).abs()
    whole = step * (len(parts) - 1) + parts[-1].size(-1)
    sum_BCN = parts[0].new_zeros(*parts[0].shape[:-1], whole)
    weights_N = parts[0].new_zeros(whole)
    for i, part in enumerate(parts):
        place = slice(i * step, i * step + part.size(-1))
        sum_BCN[..., place] += weight_N[: part.size(-1)] * part
        weights_N[place] += weight_N[: part.size(-1)]
    return sum_BCN / weights_N


def _other_bandwidth(asked: float, known: tuple[float, ...]) -> OnsilError:
    listed = ", ".join(f"{each:g}" for each in known)
    return OnsilError(
        en=(
            f"This codec has no bandwidth of {asked:g} kbps; it has {listed}.",
            "A level in between was never trained.",
            "Take one of these.",
        ),
        ko=(
            f"이 코덱에는 {asked:g}kbps가 없습니다. 쓸 수 있는 값: {listed}.",
            "그 사이의 값으로는 학습되지 않았습니다.",
            "이 가운데 하나를 골라 주세요.",
        ),
    )
