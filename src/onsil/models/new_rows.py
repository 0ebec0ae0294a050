"""Rows for tokens that a tokenizer has learnt later: each begins as the mean of what spelled it.

«법률» used to be six bytes, each with a row; its new row is their mean, in the embedding as in the
head and in the head's bias. So a new word starts among its parts instead of in the middle of
everything, which is what a plain mean or a random draw give it (recipes/vocabulary_expansion.py
measures the four). The subword mean is the one that continued Korean models agree on (EEVE, Kim et
al. 2024; RedWhale, 2024).

Every old row keeps its bits; what the model says about old tokens changes by nothing but the
softmax, which now has more to share among.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from onsil.models.transformer import Transformer
from onsil.models.vocabulary import TABLES, widened


def with_new_rows(model: Transformer, spelled: Mapping[int, Sequence[int]]) -> Transformer:
    """A model with a row for each id of `spelled`, the mean of the rows of the old ids given for
    it; the model itself is left as it was. Ids may be rows that a padded vocabulary has already."""
    rows = max(spelled, default=-1) + 1
    wider = copy.deepcopy(widened(model, rows))  # which shares what it does not widen
    with torch.no_grad():
        for table in tables_of(wider).values():
            for number, ids in spelled.items():
                table[number] = table[list(ids)].float().mean(0).to(table.dtype)
    return wider


def tables_of(model: Transformer) -> dict[str, Tensor]:
    """What has a row for each token, by name; a head that is the embedding is not named again."""
    return {name: p for name, p in model.named_parameters() if name in TABLES}
