"""Four bits a weight: what a frozen base is kept in while an adapter learns beside it (QLoRA).

A matrix is cut into blocks of 64 weights; a block keeps its largest magnitude and, for each weight,
the nearest of 16 levels of it, two weights a byte (Dettmers et al. 2023, "QLoRA"):

    w  ≈  absmax of its block × level[code]

    nf4    levels that hold equally many weights each when weights are normal, and 0 exactly
    int4   the whole numbers −7 … 7 over 7

Double quantisation (§3 there) keeps the magnitudes in one byte too, 256 blocks a group. A weight is
off by at most half the largest gap between levels, times its block's magnitude.

The packed weight is a tensor in the place of the weight, so that layers and adapters.py need not
know: in a product it is unpacked to the type of the stream, on the way forward and again on the way
back (only the packed bytes are kept in between), and no gradient reaches it. An adapter learnt so
knows the rounded base. To ship it, `restore` puts the base as it was under the adapter, and `merge`
adds them there; that is another model than was tuned, and both have to be scored.

Left out: files of packed weights, embeddings and heads, experts, paged optimisers, kernels that
multiply without unpacking. Magnitudes are rounded to whole steps, where the paper has 8-bit floats.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models.adapters import LoRALinear, Stack, sites
from onsil.models.attention import Linear

Levels = Literal["nf4", "int4"]
BLOCK, GROUP = 64, 256  # weights a magnitude; magnitudes a step, when they are packed too
# Quantiles of the normal distribution as published (Dettmers et al. 2023, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
LEVELS: dict[str, tuple[float, ...]] = {"nf4": NF4, "int4": tuple(k / 7 for k in range(-7, 8))}


def largest_error(levels: Levels) -> float:
    """What a weight may be off by, as a share of its block's magnitude: half the largest gap."""
    table = LEVELS[levels]
    return max(b - a for a, b in pairwise(table)) / 2


class _Magnitudes:
    """One positive number a block, float32; or a byte each, with a mean and one step a group."""

    def __init__(self, values_N: Tensor, double: bool):
        self.count, self.mean = len(values_N), values_N.new_zeros(())
        self.steps_G: Tensor | None = None
        self.kept = values_N
        if double:
            self.mean = values_N.mean()
            rest_GX = _rows(values_N - self.mean, GROUP)
            self.steps_G = rest_GX.abs().amax(1).clamp(min=1e-12) / 127
            self.kept = (rest_GX / self.steps_G[:, None]).round().to(torch.int8)

    def values(self) -> Tensor:
        """N, float32."""
        if self.steps_G is None:
            return self.kept
        return (self.kept * self.steps_G[:, None]).flatten()[: self.count] + self.mean

    @property
    def nbytes(self) -> int:
        if self.steps_G is None:
            return self.kept.nbytes
        return self.count + self.steps_G.nbytes + self.mean.nbytes


def _rows(flat_N: Tensor, width: int) -> Tensor:
    """In rows of `width`, the last filled up with zeros."""
    return F.pad(flat_N, (0, -len(flat_N) % width)).view(-1, width)


class Packed(Tensor):
    """A weight in four bits. It has the shape and type of the weight it stands for; any sum or
    product unpacks it, and `to` only says what type it is unpacked to."""

    codes: Tensor  # uint8, two weights each
    magnitudes: _Magnitudes
    levels: Levels
    block: int

    @staticmethod
    def __new__(cls, codes, magnitudes, levels, block, shape, dtype):
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, shape, dtype=dtype, device=codes.device, requires_grad=False
        )

    def __init__(self, codes, magnitudes, levels, block, shape, dtype):
        self.codes, self.magnitudes, self.levels, self.block = codes, magnitudes, levels, block

    def typed(self, dtype: torch.dtype) -> "Packed":
        """The same bytes, to be unpacked to another type."""
        return Packed(self.codes, self.magnitudes, self.levels, self.block, self.shape, dtype)

    def unpacked(self) -> Tensor:
        """An ordinary tensor of this type; computed in float32 and rounded once."""
        table = torch.tensor(LEVELS[self.levels], device=self.codes.device)
        table = F.pad(table, (0, 16 - len(table)))
        pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], 1)  # byte → two levels
        blocks_NX = pairs[self.codes.int()].view(-1, self.block)
        weights = (blocks_NX * self.magnitudes.values()[:, None]).flatten()
        return weights[: self.numel()].view(self.shape).to(self.dtype)

    def __deepcopy__(self, memo: dict) -> Tensor:
        """The bytes are never changed, so a copy shares them."""
        copy = self.typed(self.dtype)
        return nn.Parameter(copy, requires_grad=False) if isinstance(self, nn.Parameter) else copy

    @property
    def packed_bytes(self) -> int:
        """What is kept of the weight, its padding left out."""
        return (self.numel() + 1) // 2 + self.magnitudes.nbytes

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return _product(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # what comes of it is no longer packed
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        told, kwargs = args[0], kwargs or {}
        if func is torch.ops.aten.detach.default:
            return told.typed(told.dtype)
        kept = {"device", "layout", "memory_format", "non_blocking", "pin_memory"}
        here = kwargs.get("device") in (None, told.device)
        if func is torch.ops.aten._to_copy.default and here and not set(kwargs) - kept - {"dtype"}:
            return told.typed(kwargs.get("dtype") or told.dtype)
        if func._schema.is_mutable and isinstance(told, Packed):
            raise RuntimeError(f"{func}: a weight in four bits is not changed in place.")
        return func(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Packed):
        return value.unpacked()
    return [_plain(v) for v in value] if isinstance(value, list) else value


class _Product(torch.autograd.Function):
    """x Wᵀ, where W is unpacked for the product and again for its way back."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Packed) -> Tensor:
        ctx.weight = weight
        return x @ weight.unpacked().T

    @staticmethod
    def backward(ctx, *upstream: Tensor):
        return upstream[0] @ ctx.weight.unpacked(), None


def _product(input: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
    y = _Product.apply(input, weight)
    return y if bias is None else y + bias


def pack(
    weight: Tensor, levels: Levels = "nf4", double: bool = False, block: int = BLOCK
) -> Packed:
    """The weight in four bits a number. `block` must be even."""
    blocks_NX = _rows(weight.detach().flatten().float(), block)
    magnitudes = _Magnitudes(blocks_NX.abs().amax(1), double)
    table = torch.tensor(LEVELS[levels], device=weight.device)
    # Nearest by what will be multiplied: magnitudes that were rounded choose other levels.
    share_NX = blocks_NX / magnitudes.values().clamp(min=1e-12)[:, None]
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(share_NX, middles).to(torch.uint8).view(-1, 2)
    return Packed(
        codes[:, 0] * 16 + codes[:, 1], magnitudes, levels, block, weight.shape, weight.dtype
    )


# ── models ──────────────────────────────────────────────────────────────────────────────────────


def _places(model: Stack) -> dict[str, Linear]:
    """The layers that adapters can lie over, by name: those are packed."""
    found = {name: model.get_submodule(name) for site in sites(model) for name in site.ours}
    return {name: layer for name, layer in found.items() if isinstance(layer, Linear)}


def quantize(model: Stack, levels: Levels = "nf4", double: bool = False) -> None:
    """Pack the matrices of every block, in place, and freeze the model; before or after
    `add_lora`, whose parameters go on learning. Raises OnsilError when they are packed already."""
    layers = _places(model)
    if any(isinstance(layer.weight, Packed) for layer in layers.values()):
        raise OnsilError(
            en=(
                "The model's matrices are in four bits already.",
                "Rounding what is rounded would lose more and save nothing.",
                "Load the base again and quantize it once.",
            ),
            ko=(
                "모델의 행렬이 이미 4비트입니다.",
                "반올림한 값을 다시 반올림하면 더 잃기만 하고 줄어들지 않습니다.",
                "기반 모델을 다시 불러와 한 번만 양자화해 주세요.",
            ),
        )
    own = {id(p) for name, p in model.named_parameters() if ".lora_" in name}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)
    for layer in layers.values():
        layer.weight = nn.Parameter(pack(layer.weight, levels, double), requires_grad=False)


def restore(model: Stack, base: Stack) -> None:
    """Put the matrices of `base`, the model before `quantize`, back under the adapter: what
    `merge` should add to; what was merged before is forgotten. Raises OnsilError when its layers
    are others."""
    there = _places(base)
    for name, layer in _places(model).items():
        if name not in there or there[name].weight.shape != layer.weight.shape:
            raise OnsilError(
                en=(
                    f"The base has no layer {name} of shape {tuple(layer.weight.shape)}.",
                    "The adapter would be added to another model than it was learnt on.",
                    "Load the folder that was loaded before quantize.",
                ),
                ko=(
                    f"기반 모델에 {tuple(layer.weight.shape)} 크기의 {name} 층이 없습니다.",
                    "어댑터를 학습한 모델이 아닌 다른 모델에 더하게 됩니다.",
                    "양자화하기 전에 불러왔던 폴더를 불러와 주세요.",
                ),
            )
        layer.weight = nn.Parameter(there[name].weight.detach().clone(), requires_grad=False)
        if isinstance(layer, LoRALinear):
            layer.unmerged = None


def bytes_per_weight(weights: Sequence[Tensor]) -> float:
    """What the matrices of a model take, on average: 4.0 in float32."""
    sizes = [w.packed_bytes if isinstance(w, Packed) else w.nbytes for w in weights]
    return sum(sizes) / sum(w.numel() for w in weights)


def matrices(model: Stack) -> list[Tensor]:
    """The weights that `quantize` packs."""
    return [layer.weight for layer in _places(model).values()]
