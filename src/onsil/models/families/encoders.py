"""The encoder families, BERT and RoBERTa, with their masked-word head."""

import re
from typing import Any

from onsil.models.config import Config, sizes
from onsil.models.shape import Shape

# Classes named for the stack alone or for a task of another head.
WITHOUT_WORDS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|NextSentencePrediction)$"
    r"|^(?!.*(LMHead|DoubleHeads)Model$).*Model$"
)


def stack_sizes(c: Config) -> dict[str, Any]:
    """The sizes, and what the stack writes: the published class tells whether there is a
    vocabulary head."""
    told = c.get("architectures")
    name = str(told[0]) if isinstance(told, list) and told else ""
    return sizes(c) | {"writes": "vectors" if WITHOUT_WORDS.search(name) else "tokens"}


def shape_of(c: Config, **more: Any) -> Shape:
    common = stack_sizes(c) | more
    words = common["writes"] == "tokens"
    c.only("position_embedding_type", "absolute")
    c.only("is_decoder", False)
    return Shape(
        **common,
        causal=False,
        wiring="post",
        norm="layer",
        norm_epsilon=c.real("layer_norm_eps", default=1e-12),
        positions="learned",
        gated=False,
        activation=c.activation(default="gelu"),
        bias="qkvoudh" if words else "qkvoud",
        segments=c.number("type_vocab_size", default=2),
        embedding_norm=True,
        head_transform=words,
        tied=bool(c.get("tie_word_embeddings", default=True)),
    )


def bert(c: Config) -> Shape:
    return shape_of(c)


def roberta(c: Config) -> Shape:
    """Its table starts after the padding's row: position 0 is row pad + 1."""
    offset = int(c.get("pad_token_id", default=1)) + 1
    return shape_of(c, position_offset=offset, context=sizes(c)["context"] - offset)
