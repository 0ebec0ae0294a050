"""A prompt of learnt rows before a frozen decoder (Lester et al. 2021), both read as one model."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from onsil.models.adapters import SoftPrompt
from onsil.models.attention import Cache
from onsil.models.transformer import Transformer

PROMPT = "prompt"  # the folder of the rows, beside the decoder's weights


class Prompted(nn.Module):
    """A frozen decoder that reads a learnt prompt before every document, and else is used as the
    decoder is: hidden states of the tokens alone, cached or laid end to end."""

    def __init__(self, model: Transformer, prompt: SoftPrompt):
        super().__init__()
        self.model, self.prompt = model, prompt
        self.shape = replace(model.shape, context=model.shape.context - len(prompt.rows_PD))

    def new_cache(self) -> Cache:
        return self.model.new_cache()

    def logits(self, x_ND: Tensor, narrow: bool = False, head: Tensor | None = None) -> Tensor:
        return self.model.logits(x_ND, narrow, head)

    def narrow_head(self) -> tuple[Tensor | None, Tensor | None]:
        return self.model.narrow_head()

    def only_head(self) -> bool:
        return self.model.only_head()

    def head_parameters(self) -> list[Tensor]:
        return self.model.head_parameters()

    def encode(
        self,
        ids_BT: Tensor,
        segments_BT: Tensor | None = None,
        lengths: list[int] | None = None,
        prefixes: list[int] | None = None,
        cache: Cache | None = None,
        **rest: Any,
    ) -> Tensor:
        """B T D. With `lengths` the rows stand before each of the documents."""
        if cache is not None and cache.past:
            return self.model.encode(ids_BT, cache=cache, **rest)
        assert self.model.embedding is not None
        lengths = lengths or [ids_BT.size(1)]
        documents = self.model.embedding(ids_BT).split(lengths, 1)
        rows_BPD = self.prompt.rows_PD.to(documents[0].dtype).expand(len(ids_BT), -1, -1)
        P = rows_BPD.size(1)
        x_BTD = torch.cat([part for x in documents for part in (rows_BPD, x)], 1)
        longer = None if cache is not None else [P + n for n in lengths]
        hidden = self.model.encode(vectors_BTD=x_BTD, lengths=longer, cache=cache, **rest)
        parts = hidden.split([n for length in lengths for n in (P, length)], 1)
        return torch.cat(parts[1::2], 1)
