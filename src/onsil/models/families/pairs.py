"""The encoder-decoder families: T5 and its kin, MarianMT (the 2017 Transformer), Whisper."""

from dataclasses import replace
from typing import Any

from onsil.models.config import Config
from onsil.models.encoder_decoder import PairShape
from onsil.models.families.names import Rule, plain
from onsil.models.shape import Shape

# ── T5: distances in buckets, no scale on the scores, no biases ─────────────────────────────────


def t5(c: Config) -> PairShape:
    """T5, v1.1, Flan and ByT5; mT5 and umT5 with what they change."""
    kind, _, activation = str(c.get("feed_forward_proj", default="relu")).rpartition("-")
    tied = bool(c.get("tie_word_embeddings", default=c.family == "t5"))
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
        activation=gate_activation(c, kind, activation),
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


def gate_activation(c: Config, kind: str, activation: str) -> Any:
    """«gated-gelu» has always meant the tanh form."""
    if kind == "gated" and activation == "gelu":
        return "gelu_tanh"
    return Config(c.raw | {"hidden_act": activation}).activation("hidden_act")


def t5_names(shape: PairShape) -> list[Rule]:
    rules = plain(
        {
            "decoder.embedding": "shared",
            "encoder.embedding": "encoder.embed_tokens",
            "encoder.final_norm": "encoder.final_layer_norm",
            "decoder.final_norm": "decoder.final_layer_norm",
            "decoder.head": "lm_head",
        }
    )
    for side, stack, mlp in (("encoder", shape.encoder, 1), ("decoder", shape.decoder, 2)):
        bias = "layer.0.SelfAttention.relative_attention_bias"
        gated = {"mlp.gate": "wi_0", "mlp.up": "wi_1", "mlp.down": "wo"}
        names = gated if stack.gated else {"mlp.up": "wi", "mlp.down": "wo"}
        block = {
            "relative": bias,
            "attention_norm": "layer.0.layer_norm",
            "mlp_norm": f"layer.{mlp}.layer_norm",
            **{f"attention.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
            **{ours: f"layer.{mlp}.DenseReluDense.{theirs}" for ours, theirs in names.items()},
        }
        if stack.cross:
            block |= {f"cross.{x}": f"layer.1.EncDecAttention.{x}" for x in "qkvo"}
            block["cross_norm"] = "layer.1.layer_norm"
        rules += plain(block, f"{side}.blocks.#.", f"{side}.block.#.")
        rules += plain({f"{side}.relative": f"{side}.block.0.{bias}"})
    return rules


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
        "tied": bool(c.get("tie_word_embeddings", default=True)),
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
    return PairShape(
        encoder, decoder, bool(c.get("share_encoder_decoder_embeddings", default=True))
    )


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


def bart_names(shape: PairShape) -> list[Rule]:
    whisper = bool(shape.mel_bands)
    one = shape.one_embedding and not whisper
    rules = plain(
        {
            "decoder.embedding": "model.shared" if one else "model.decoder.embed_tokens",
            "decoder.head": "proj_out" if whisper else "lm_head",
            "stem.conv1": "model.encoder.conv1",
            "stem.conv2": "model.encoder.conv2",
        }
    )
    if shape.decoder.logit_bias:
        first = lambda ts: [ts[0][0].contiguous()]  # noqa: E731
        row = lambda ts: [ts[0][None].contiguous()]  # noqa: E731
        rules.append(Rule(("decoder.logit_bias",), ("final_logits_bias",), first, row, bare=True))
    for side in ("encoder", "decoder"):
        block = {f"attention.{x}": f"self_attn.{x}_proj" for x in "qkv"}
        block |= {f"cross.{x}": f"encoder_attn.{x}_proj" for x in "qkv"}
        block |= {
            "attention.o": "self_attn.out_proj",
            "attention_norm": "self_attn_layer_norm",
            "cross.o": "encoder_attn.out_proj",
            "cross_norm": "encoder_attn_layer_norm",
            "mlp.up": "fc1",
            "mlp.down": "fc2",
            "mlp_norm": "final_layer_norm",
        }
        rules += plain(block, f"{side}.blocks.#.", f"model.{side}.layers.#.")
        top = {"position": "embed_positions", "final_norm": "layer_norm"}
        rules += plain(top, f"{side}.", f"model.{side}.")
    rules += plain({"encoder.embedding": "model.encoder.embed_tokens"})
    return rules
