"""The config.json of what grew here: qwen3, or lfm2 where there are convolutions, of decoders and
of encoders that began as one (`both_ways`); bert of the other encoders."""

from typing import Any

from onsil.models.shape import Shape


def config_of(shape: Shape) -> dict[str, Any]:
    """The family's own config.json for a grown shape."""
    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
    }
    rotary = {"rope_type": "default", "rope_theta": shape.rotary.base}
    if not shape.causal and shape.positions == "rotary":
        common |= {"is_causal": False}
        common |= {"type_vocab_size": shape.segments} if shape.segments else {}
    if "C" in shape.pattern:
        kinds = [shape.kind(layer) for layer in range(shape.depth)]
        return common | {
            "model_type": "lfm2",
            "architectures": ["Lfm2ForCausalLM"],
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_width,
            "norm_eps": shape.norm_epsilon,
            "layer_types": ["conv" if kind == "C" else "full_attention" for kind in kinds],
            "conv_L_cache": shape.taps,
            "block_auto_adjust_ff_dim": False,
            "rope_parameters": rotary,
        }
    if shape.positions == "rotary":
        return common | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_width,
            "hidden_act": shape.activation,
            "rms_norm_eps": shape.norm_epsilon,
            "attention_bias": bool(shape.bias),
            "rope_parameters": rotary,
        }
    return common | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.norm_epsilon,
        "type_vocab_size": shape.segments,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
