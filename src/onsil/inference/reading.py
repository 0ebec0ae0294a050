"""Vectors of texts: the mean of a model's last hidden states, of length one.

An encoder reads each text by itself, so a vector does not depend on what else is asked. `Reader`
also stands in for an engine where there is nothing that writes.
"""

import threading
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from onsil.inference.ending import computing
from onsil.inference.refusals import TooLong, only_reads
from onsil.models.transformer import Transformer


def unit(vector_D: Tensor) -> Tensor:
    """Of length one; zeros stay."""
    return (vector_D / vector_D.norm().clamp(min=1e-12)).float()


class Reader:
    """An encoder. `context`: the most tokens of a text."""

    slots = waiting = running = queue = 0

    def __init__(self, model: Transformer):
        self.model = model.eval()
        self.context, self.vocabulary = model.shape.context, model.shape.vocabulary
        self.lock = threading.Lock()

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, D) float32, each row of length one. Raises TooLong."""
        for ids in texts:
            if not 0 < len(ids) <= self.context:
                raise TooLong(len(ids), self.context)
        with self.lock:
            return np.stack([self._vector(ids) for ids in texts])

    @computing()
    @torch.inference_mode()
    def _vector(self, ids: Sequence[int]) -> np.ndarray:
        states_TD = self.model.encode(torch.tensor([list(ids)]))[0]
        return unit(states_TD.double().mean(0)).numpy().copy()

    def submit(self, request: object) -> NoReturn:
        """Raises OnsilError: nothing here writes."""
        raise only_reads()

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Nothing is going on between calls."""
