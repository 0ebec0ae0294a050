"""wav2vec 2.0: speech as the transformer reads it, from the wave itself.

A tower of strided convolutions turns 16 kHz samples into a vector every 20 ms; a wide grouped
convolution over those vectors tells where each stands, in place of a table of positions; the rest
is the one transformer, with a CTC head of characters where the checkpoint has one. Large models
normalise every convolution and stand their norms before the branches (`conv_norm="layer"`, wiring
"pre"), base ones only the first convolution, over time (`"group"`, wiring "post").

Source: Baevski et al. 2020 (arXiv:2006.11477). Left out here: the quantiser and the contrastive
loss of pre-training, whose tensors `load` hands back beside the model.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from onsil.models.shape import Shape
from onsil.models.transformer import ACTIVATIONS, Transformer


@dataclass(frozen=True)
class SpeechShape:
    """The convolutions in front, and the stack that reads what comes out of them."""

    stack: Shape
    channels: tuple[int, ...]  # one entry a convolution, as in the two below
    kernels: tuple[int, ...]  # samples, then vectors, that each looks at
    strides: tuple[int, ...]
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    conv_activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "gelu"
    position_kernel: int = 128  # vectors the convolution of positions looks at
    position_groups: int = 16

    @property
    def stacks(self) -> tuple[Shape, ...]:
        return (self.stack,)


class WaveTower(nn.Module):
    """Strided convolutions: samples B N in, vectors B T C out."""

    def __init__(self, shape: SpeechShape):
        super().__init__()
        self.shape, self.activation = shape, ACTIVATIONS[shape.conv_activation]
        before, after = (1, *shape.channels[:-1]), shape.channels
        sizes = zip(before, after, shape.kernels, shape.strides, strict=True)
        self.convs = nn.ModuleList(nn.Conv1d(*size, bias=shape.conv_bias) for size in sizes)
        grouped = shape.conv_norm == "group"
        first = [nn.GroupNorm(after[0], after[0])]
        self.norms = nn.ModuleList(first if grouped else [nn.LayerNorm(c) for c in after])

    def forward(self, wave_BN: Tensor) -> Tensor:
        x_BCT = wave_BN[:, None]
        for i, conv in enumerate(self.convs):
            x_BCT = conv(x_BCT)
            if self.shape.conv_norm == "layer":
                x_BCT = self.norms[i](x_BCT.mT).mT
            elif i == 0:
                x_BCT = self.norms[0](x_BCT)
            x_BCT = self.activation(x_BCT)
        return x_BCT.mT


class ConvolutionalPositions(nn.Module):
    """What a vector's neighbours say about where it stands, B T D. The kernel is kept as direction
    and length (Salimans & Kingma 2016), one length for each of its places."""

    def __init__(self, shape: SpeechShape):
        super().__init__()
        D, K, groups = shape.stack.width, shape.position_kernel, shape.position_groups
        self.shape, self.size = shape, (D, D // groups, K)
        self.activation = ACTIVATIONS[shape.conv_activation]
        self.conv = weight_norm(nn.Conv1d(D, D, K, padding=K // 2, groups=groups), dim=2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BDT = self.conv(x_BTD.mT)[..., : x_BTD.size(1)]  # an even kernel gives one too many
        return self.activation(y_BDT).mT

    def initialise(self, generator: torch.Generator) -> None:
        """Normal with variance 4 / (kernel · D), as the paper's authors do."""
        std = (4 / (self.shape.position_kernel * self.shape.stack.width)) ** 0.5
        self.conv.weight = nn.init.normal_(torch.empty(self.size), 0.0, std, generator=generator)


class SpeechEncoder(nn.Module):
    """`compute` is "fp32" or "bf16", of the stack; the convolutions stay in float32."""

    def __init__(self, shape: SpeechShape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.tower = WaveTower(shape)
        self.project_norm = nn.LayerNorm(shape.channels[-1], eps=shape.stack.norm_epsilon)
        self.project = nn.Linear(shape.channels[-1], shape.stack.width)
        self.positions = ConvolutionalPositions(shape)
        self.stack = Transformer(shape.stack, compute)

    def shared(self) -> dict[str, str]:
        """No parameter is another one."""
        return {}

    def tie(self) -> None:
        """Nothing to tie."""

    def initialise(self, seed: int) -> "SpeechEncoder":
        """The stack as `Transformer.initialise`; convolutions He-normal (He et al. 2015)."""
        self.stack.initialise(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for front in (self.tower, self.project_norm, self.project, self.positions):
            for parameter in front.parameters():
                if parameter.dim() == 3:
                    nn.init.kaiming_normal_(parameter, generator=generator)
                elif parameter.dim() == 2:
                    nn.init.normal_(parameter, 0.0, 0.02, generator=generator)
                else:
                    nn.init.zeros_(parameter)
        for norm in (*self.tower.norms, self.project_norm):
            norm.get_parameter("weight").data.fill_(1.0)
        self.positions.initialise(generator)
        return self

    def frames(self, samples: Tensor) -> Tensor:
        """Vectors that come out of so many samples: ⌊(n − kernel) / stride⌋ + 1 a convolution."""
        for kernel, stride in zip(self.shape.kernels, self.shape.strides, strict=True):
            samples = (samples - kernel).div(stride, rounding_mode="floor") + 1
        return samples

    def read(self, wave_BN: Tensor, keep_BN: Tensor | None = None) -> Tensor:
        """States B T D of 16 kHz waves.

        `keep` is false on the padding at the end of a row. Vectors of padding are silenced and
        unseen; with `conv_norm="group"` the first norm still averages over them, as it did when
        such checkpoints were trained.
        """
        x_BTD = self.project(self.project_norm(self.tower(wave_BN)))
        keep_BT = None
        if keep_BN is not None:
            at_T = torch.arange(x_BTD.size(1), device=x_BTD.device)
            keep_BT = at_T < self.frames(keep_BN.sum(1))[:, None]
            x_BTD = x_BTD.masked_fill(~keep_BT[..., None], 0.0)
        return self.stack.encode(vectors_BTD=x_BTD + self.positions(x_BTD), keep_BT=keep_BT)

    def forward(self, wave_BN: Tensor, keep_BN: Tensor | None = None) -> Tensor:
        """CTC scores B T V."""
        return self.stack.logits(self.read(wave_BN, keep_BN))
