"""More rows for words a model did not know: special tokens of ours, segments it never had.

A new row starts as the mean of the old ones, in the embedding as in the head, so that a new word is
at first as likely as an average one and the model's other answers barely move (Hewitt 2021,
"Initializing new word embeddings for pretrained language models").
"""

from dataclasses import replace

import torch
from torch import Tensor

from onsil.models.transformer import Transformer

TABLES = ("embedding.weight", "head.weight", "head.bias", "logit_bias")


def widened(model: Transformer, vocabulary: int, segments: int = 0) -> Transformer:
    """The model with at least so many words and segments; itself when it has them already. What it
    was on disk stays with it, with the new sizes."""
    shape = model.shape
    vocabulary, segments = max(vocabulary, shape.vocabulary), max(segments, shape.segments)
    if (vocabulary, segments) == (shape.vocabulary, shape.segments):
        return model
    state = dict(model.state_dict())
    for name in TABLES:
        if name in state:
            state[name] = with_rows(state[name], vocabulary)
    if segments:
        have = state.get("segment.weight", torch.zeros(1, shape.width))
        state["segment.weight"] = with_rows(have, segments)
    wider = Transformer(replace(shape, vocabulary=vocabulary, segments=segments))
    wider.dtype = model.dtype
    wider.load_state_dict(state, assign=True)
    wider.tie()
    wider.requires_grad_(True)
    if model.origin is not None:
        sizes = {"vocab_size": vocabulary} | ({"type_vocab_size": segments} if segments else {})
        wider.origin = replace(model.origin, config=model.origin.config | sizes)
    return wider


def with_rows(table: Tensor, rows: int) -> Tensor:
    """The table continued to `rows` with its mean row."""
    new = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, new.expand(rows - len(table), *new.shape[1:])])
