"""The encoder-decoder families: T5 and its kin, MarianMT (the 2017 Transformer), Whisper."""

from dataclasses import replace
from typing import Any

from onsil.models.config import Config
from onsil.models.encoder_decoder import PairShape
from onsil.models.shape import Shape

# ── T5: distances in buckets, no scale on the scores, no biases ─────────────────────────────────


def t5(c: Config) -> PairShape:
    """T5, v1.1, Flan and ByT5; mT5 and umT5 with what they change."""
    kind, _, activation = str(c.get("feed_forward_proj", default="relu")).rpartition("-")
    if (kind, activation) == ("gated", "gelu"):
        activation = "gelu_new"  # the tanh form is what it has always meant
    tied = c.switch("tie_word_embeddings", default=c.family == "t5")
    width = c.number("d_model")
    encoder = Shape(
        vocabulary=c.number("vocab_size"),
        width=width,
        depth=c.number("num_layers"),
        heads=c.number("num_heads"),
        head_width=c.number("d_kv"),
        hidden=c.number("d_ff"),
        writes="vectors",
        causal=False,
        norm_epsilon=c.real("layer_norm_epsilon", default=1e-6),
        qk_norm="none",
        positions="relative",
        buckets=c.number("relative_attention_num_buckets", default=32),
        reach=c.number("relative_attention_max_distance", default=128),
        relative_layers=c.family == "umt5",
        gated=kind == "gated",
        activation=Config(c.raw | {"hidden_act": activation}).activation("hidden_act"),
        score_scale=1.0,
    )
    scaled = c.get("scale_decoder_outputs", default=tied) and c.family != "mt5"
    decoder = replace(
        encoder,
        depth=c.number("num_decoder_layers", "num_layers"),
        writes="tokens",
        causal=True,
        cross=True,
        tied=tied,
        logit_scale=width**-0.5 if scaled else 1.0,
    )
    return PairShape(encoder, decoder)


# ── BART's layout: MarianMT and Whisper ─────────────────────────────────────────────────────────


def bart_stack(c: Config, side: str, **more: Any) -> Shape:
    given: dict[str, Any] = {
        "vocabulary": c.number("vocab_size"),
        "width": c.number("d_model"),
        "depth": c.number(f"{side}_layers"),
        "heads": c.number(f"{side}_attention_heads"),
        "hidden": c.number(f"{side}_ffn_dim"),
        "causal": side == "decoder",
        "cross": side == "decoder",
        "writes": "tokens" if side == "decoder" else "vectors",
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "qk_norm": "none",
        "gated": False,
        "activation": c.activation(default="gelu"),
        "bias": "qkvoud",
        "embedding_scale": c.number("d_model") ** 0.5 if c.get("scale_embedding") else 1.0,
        "tied": c.switch("tie_word_embeddings", default=True),
    }
    return Shape(**(given | more))


def marian(c: Config) -> PairShape:
    common = {
        "wiring": "post",
        "positions": "sinusoidal",
        "context": c.number("max_position_embeddings", default=512),
    }
    encoder = bart_stack(c, "encoder", **common)
    words = c.number("decoder_vocab_size", "vocab_size")
    decoder = bart_stack(c, "decoder", **common, vocabulary=words, logit_bias=True)
    return PairShape(encoder, decoder, c.switch("share_encoder_decoder_embeddings", default=True))


def whisper(c: Config) -> PairShape:
    """Learned positions on both sides, no bias on keys."""
    common = {"positions": "learned", "bias": "qvoud", "embedding_scale": 1.0}
    frames = c.number("max_source_positions", default=1500)
    encoder = bart_stack(c, "encoder", **common, context=frames, reads="vectors")
    words = c.number("max_target_positions", default=448)
    return PairShape(
        encoder,
        bart_stack(c, "decoder", **common, context=words),
        mel_bands=c.number("num_mel_bins", default=80),
    )
