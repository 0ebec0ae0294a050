"""SigLIP and LLaVA: images as the transformer reads them, beside texts and within them.

An image is cut into square patches, each becomes a vector by one matrix, a table says where each
stands, and the rest is the one transformer, all seeing all. A learned query (the probe) sums the
patches up by attention. Beside a tower for texts that makes the pair whose product says how well
image and text go together, trained with a sigmoid for every pair rather than a softmax over all.
LLaVA puts the states of the tower, through two matrices, where a text says "here is an image".

Letters as in transformer.py; R, W rows and columns of pixels, T patches. Source: Zhai et al. 2023
(arXiv:2303.15343), Dosovitskiy et al. 2020 (arXiv:2010.11929), Liu et al. 2023 (arXiv:2310.03744).
Left out: images of another size than the checkpoint was trained with, CLIP towers.
"""

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.errors import OnsilError
from onsil.models.attention import Cache, Linear, Norm, View, Views
from onsil.models.shape import Shape
from onsil.models.transformer import ACTIVATIONS, MLP, Transformer


@dataclass(frozen=True)
class VisionShape:
    """A stack of patches; its `context` is how many there are."""

    stack: Shape
    image: int  # pixels a side
    patch: int
    channels: int = 3
    pooled: bool = True

    @property
    def stacks(self) -> tuple[Shape, ...]:
        return (self.stack,)


@dataclass(frozen=True)
class ImageTextShape:
    """Two towers that meet in vectors of one width."""

    vision: VisionShape
    text: Shape

    @property
    def stacks(self) -> tuple[Shape, ...]:
        return self.vision.stack, self.text


@dataclass(frozen=True)
class SeeingShape:
    """A tower of images, and a decoder of texts in which they stand."""

    vision: VisionShape
    decoder: Shape
    image_token: int  # the id whose embedding an image's patches replace, one for one
    layers: tuple[int, ...] = (-2,)  # of the tower: 0 before the first block, −1 after the last
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "gelu"
    projector_bias: bool = True

    @property
    def stacks(self) -> tuple[Shape, ...]:
        return self.vision.stack, self.decoder

    @property
    def segments(self) -> int:
        """The decoder's, whose tensors are named by a table that asks (names.txt)."""
        return self.decoder.segments


def initialise_front(front: nn.Module, seed: int) -> None:
    """What stands beside a stack, as `Transformer.initialise` does: matrices normal(0, 0.02), norms
    one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in front.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.02, generator=generator)
        else:
            nn.init.zeros_(parameter)
    for module in front.modules():
        if isinstance(module, Norm) and module.weight is not None:
            nn.init.ones_(module.weight)


class AttentionPool(nn.Module):
    """One learned query over all patches, then an MLP of its own: B T D in, B D out, in float32."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.attention = nn.MultiheadAttention(shape.width, shape.heads, batch_first=True)
        self.norm, self.mlp = Norm(shape, shape.width), MLP(shape)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD.float()
        query = self.probe.expand(x_BTD.size(0), -1, -1)
        x = self.attention(query, x_BTD, x_BTD, need_weights=False)[0]
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionTower(nn.Module):
    """`compute` is "fp32" or "bf16", of the stack."""

    def __init__(self, shape: VisionShape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.patches = nn.Conv2d(shape.channels, shape.stack.width, shape.patch, shape.patch)
        self.stack = Transformer(shape.stack, compute)
        self.pool = AttentionPool(shape.stack) if shape.pooled else None

    def shared(self) -> dict[str, str]:
        """No parameter is another one."""
        return {}

    def tie(self) -> None:
        """Nothing to tie."""

    def initialise(self, seed: int) -> "VisionTower":
        """All of it as `Transformer.initialise`."""
        self.stack.initialise(seed)
        for i, front in enumerate((self.patches, self.pool), 1):
            if front is not None:
                initialise_front(front, seed + i)
        return self

    def states(self, pixels_BCRW: Tensor) -> list[Tensor]:
        """B T D before the first block and after each, the final norm not yet taken."""
        side = self.shape.image
        if pixels_BCRW.shape[-3:] != (self.shape.channels, side, side):
            raise _other_size(tuple(pixels_BCRW.shape[-3:]), (self.shape.channels, side, side))
        x_BTD = self.patches(pixels_BCRW).flatten(2).mT
        at_BT = torch.arange(x_BTD.size(1), device=x_BTD.device)[None]
        views = Views([View(self.shape.stack, at_BT, at_BT)])
        assert self.stack.position is not None
        states = [(x_BTD + self.stack.position(at_BT)).to(self.stack.dtype)]
        for block in self.stack.blocks:
            states.append(block(states[-1], views, None, None, None, None))
        return states

    def read(self, pixels_BCRW: Tensor) -> Tensor:
        """States B T D of images B × channels × rows × columns."""
        assert self.stack.final_norm is not None
        return self.stack.final_norm(self.states(pixels_BCRW)[-1])

    def forward(self, pixels_BCRW: Tensor) -> Tensor:
        """One vector an image, B D."""
        assert self.pool is not None, "this tower has no pooling head"
        return self.pool(self.read(pixels_BCRW))


class ImageText(nn.Module):
    """`compute` is "fp32" or "bf16", of both stacks."""

    def __init__(self, shape: ImageTextShape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.vision = VisionTower(shape.vision, compute)
        self.text = Transformer(shape.text, compute)
        self.text_head = nn.Linear(shape.text.width, shape.vision.stack.width)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def shared(self) -> dict[str, str]:
        """No parameter is another one."""
        return {}

    def tie(self) -> None:
        """Nothing to tie."""

    def initialise(self, seed: int) -> "ImageText":
        """Both towers, and the scale and bias of the paper: log 10 and −10."""
        self.vision.initialise(seed)
        self.text.initialise(seed + 10)
        initialise_front(self.text_head, seed + 20)
        self.log_scale.data.fill_(log(10.0))
        self.bias.data.fill_(-10.0)
        return self

    def images(self, pixels_BCRW: Tensor) -> Tensor:
        """Unit vectors B D."""
        return F.normalize(self.vision(pixels_BCRW), dim=-1)

    def texts(self, ids_BT: Tensor) -> Tensor:
        """Unit vectors B D: the state of the last position, which is padding where a text is
        shorter, as it was when such models were trained."""
        return F.normalize(self.text_head(self.text.encode(ids_BT)[:, -1].float()), dim=-1)

    def forward(self, pixels: Tensor, ids_BT: Tensor) -> Tensor:
        """Log-odds, images × texts, that they belong together."""
        product = self.images(pixels) @ self.texts(ids_BT).T
        return product * self.log_scale.exp() + self.bias


class SeeingDecoder(nn.Module):
    """`compute` is "fp32" or "bf16", of both stacks."""

    def __init__(self, shape: SeeingShape, compute: str = "fp32"):
        super().__init__()
        self.shape, self.activation = shape, ACTIVATIONS[shape.activation]
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.vision = VisionTower(shape.vision, compute)
        self.decoder = Transformer(shape.decoder, compute)
        wide, D = len(shape.layers) * shape.vision.stack.width, shape.decoder.width
        self.project_in = Linear(wide, D, bias=shape.projector_bias)
        self.project_out = Linear(D, D, bias=shape.projector_bias)

    def shared(self) -> dict[str, str]:
        """The decoder's head, where it is tied."""
        return {f"decoder.{a}": f"decoder.{b}" for a, b in self.decoder.shared().items()}

    def tie(self) -> None:
        """Make the shared parameters one tensor (again)."""
        self.decoder.tie()

    def initialise(self, seed: int) -> "SeeingDecoder":
        """All of it as `Transformer.initialise`."""
        self.vision.initialise(seed)
        self.decoder.initialise(seed + 10)
        initialise_front(self.project_in, seed + 20)
        initialise_front(self.project_out, seed + 21)
        return self

    def new_cache(self) -> Cache:
        """The decoder's: images are seen once, as positions of it."""
        return self.decoder.new_cache()

    def see(self, pixels_NCRW: Tensor) -> Tensor:
        """Vectors N T D of images as the decoder reads them."""
        states = self.vision.states(pixels_NCRW)
        x_NTD = torch.cat([states[layer] for layer in self.shape.layers], -1)
        return self.project_out(self.activation(self.project_in(x_NTD)))

    def forward(
        self,
        ids_BT: Tensor,
        pixels_NCRW: Tensor | None = None,
        cache: Cache | None = None,
        keep_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits B T V. Images come in the order in which the rows of ids speak of them, each with
        as many image tokens as patches; with a cache, once, with the ids that speak of them."""
        assert self.decoder.embedding is not None
        x_BTD, here_BT = self.decoder.embedding(ids_BT), ids_BT == self.shape.image_token
        images = 0 if pixels_NCRW is None else pixels_NCRW.size(0)
        patches = self.shape.vision.stack.context
        if int(here_BT.sum()) != images * patches:
            raise _other_count(int(here_BT.sum()), images, patches)
        if pixels_NCRW is not None:
            seen = self.see(pixels_NCRW).to(x_BTD.dtype)
            x_BTD = x_BTD.masked_scatter(here_BT[..., None], seen)
        return self.decoder(vectors_BTD=x_BTD, cache=cache, keep_BT=keep_BT)


def _other_count(tokens: int, images: int, patches: int) -> OnsilError:
    return OnsilError(
        en=(
            f"The text has {tokens} image tokens; {images} images need {images * patches}.",
            "Every patch of an image takes the place of one token.",
            f"Write {patches} image tokens where each image stands.",
        ),
        ko=(
            f"글에 이미지 토큰이 {tokens}개 있는데 이미지 {images}장에는 {images * patches}개가 "
            "필요합니다.",
            "이미지의 조각 하나가 토큰 하나의 자리에 들어갑니다.",
            f"이미지가 놓일 자리마다 이미지 토큰을 {patches}개씩 넣어 주세요.",
        ),
    )


def _other_size(found: tuple, wanted: tuple) -> OnsilError:
    return OnsilError(
        en=(
            f"An image is {found} (channels, rows, columns); this model reads {wanted}.",
            "Its table of positions has a row for every patch of an image of that size.",
            "Scale the image to that size first.",
        ),
        ko=(
            f"이미지가 {found}(채널, 세로, 가로)인데 이 모델은 {wanted}를 읽습니다.",
            "위치 표가 그 크기의 조각 수에 맞추어져 있습니다.",
            "이미지를 그 크기로 맞춘 뒤 다시 넣어 주세요.",
        ),
    )
