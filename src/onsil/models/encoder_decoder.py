"""Two stacks joined: one reads the source, the other writes while looking at it.

The 2017 Transformer, T5 and Whisper differ in their shapes and in what the encoder reads: tokens,
or the frames of a log-mel spectrogram brought in by two convolutions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onsil.models.attention import Cache
from onsil.models.shape import Shape
from onsil.models.transformer import Transformer


@dataclass(frozen=True)
class PairShape:
    """An encoder and a decoder that looks at it."""

    encoder: Shape
    decoder: Shape
    one_embedding: bool = True  # both read with the same table
    mel_bands: int = 0  # Whisper: the source is frames with so many bands, not tokens

    @property
    def stacks(self) -> tuple[Shape, Shape]:
        return self.encoder, self.decoder


class MelStem(nn.Module):
    """Whisper's two convolutions: B × bands × frames in, B × frames/2 × D out."""

    def __init__(self, bands: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def forward(self, mel_BCF: Tensor) -> Tensor:
        return F.gelu(self.conv2(F.gelu(self.conv1(mel_BCF)))).transpose(1, 2)


class EncoderDecoder(nn.Module):
    """`compute` is "fp32" or "bf16"."""

    def __init__(self, shape: PairShape, compute: str = "fp32"):
        super().__init__()
        self.shape = shape
        self.origin: Any = None  # what it was on disk, when it was loaded
        self.stem = MelStem(shape.mel_bands, shape.encoder.width) if shape.mel_bands else None
        self.encoder = Transformer(shape.encoder, compute)
        self.decoder = Transformer(shape.decoder, compute)
        self.tie()

    def shared(self) -> dict[str, str]:
        """Parameters that are another one: the decoder's head, the encoder's embedding."""
        one = {"encoder.embedding.weight": "decoder.embedding.weight"}
        own = {f"decoder.{a}": f"decoder.{b}" for a, b in self.decoder.shared().items()}
        return own | (one if self.shape.one_embedding and self.stem is None else {})

    def tie(self) -> None:
        """Make the shared parameters one tensor (again)."""
        self.decoder.tie()
        if "encoder.embedding.weight" in self.shared():
            assert self.encoder.embedding is not None and self.decoder.embedding is not None
            self.encoder.embedding.weight = self.decoder.embedding.weight

    def initialise(self, seed: int) -> "EncoderDecoder":
        """Each stack as `Transformer.initialise` does; convolutions normal(0, 0.02)."""
        self.encoder.initialise(seed)
        self.decoder.initialise(seed + 1)
        if self.stem is not None:
            generator = torch.Generator().manual_seed(seed + 2)
            for parameter in self.stem.parameters():
                parameter.data.normal_(0.0, 0.02, generator=generator)
        self.tie()
        return self

    def read(self, source: Tensor, keep_BS: Tensor | None = None) -> Tensor:
        """The encoder's states B S D of ids B S, or of a spectrogram B × bands × frames."""
        if self.stem is None:
            return self.encoder.encode(source, keep_BT=keep_BS)
        return self.encoder.encode(vectors_BTD=self.stem(source))

    def new_cache(self) -> Cache:
        """For the decoder: its own keys and, once, the encoder's."""
        return self.decoder.new_cache()

    def forward(
        self,
        source: Tensor,
        ids_BT: Tensor,
        keep_BS: Tensor | None = None,
        keep_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits B T V of target ids, teacher-forced."""
        states = self.read(source, keep_BS)
        return self.decoder(ids_BT, keep_BT=keep_BT, source_BSD=states, source_keep_BS=keep_BS)
