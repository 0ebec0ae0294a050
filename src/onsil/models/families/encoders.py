"""The encoder families, BERT and RoBERTa, with their masked-word head."""

from typing import Any

from onsil.models.config import Config, sizes, stack_sizes
from onsil.models.shape import Shape


def layer_normed(c: Config, **told: Any) -> Shape:
    """Layer norms, a plain MLP, biases everywhere, nothing hidden from any position; and what each
    says differently."""
    common = {
        "causal": False,
        "writes": "vectors",
        "norm": "layer",
        "norm_epsilon": c.real("layer_norm_eps", default=1e-5),
        "gated": False,
        "activation": c.activation(default="gelu"),
        "bias": "qkvoud",
        "tied": False,
    }
    return Shape(**(sizes(c) | common | told))


def bert(c: Config, **told: Any) -> Shape:
    c.only("position_embedding_type", "absolute")
    c.only("is_decoder", False)
    writes = stack_sizes(c)["writes"]
    return layer_normed(
        c,
        **told,
        writes=writes,
        wiring="post",
        norm_epsilon=c.real("layer_norm_eps", default=1e-12),
        positions="learned",
        bias="qkvoudh" if writes == "tokens" else "qkvoud",
        segments=c.number("type_vocab_size", default=2),
        embedding_norm=True,
        head_transform=writes == "tokens",
        tied=c.switch("tie_word_embeddings", default=True),
    )


def roberta(c: Config) -> Shape:
    """Its table starts after the padding's row: position 0 is row pad + 1."""
    offset = int(c.get("pad_token_id", default=1)) + 1
    return bert(c, position_offset=offset, context=sizes(c)["context"] - offset)
