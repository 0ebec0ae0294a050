"""Tiny checkpoints of every family, with every switch that changes the maths on in some case.

A case is a transformers config class, its arguments and the model class. Weights are perturbed with
N(0, 0.05) everywhere, norms and biases too, because stock initialisation hides mistakes; where
scores are capped, queries and keys are five times larger so that the cap acts.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

SMALL = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 24}
GPT = {"vocab_size": 97, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64}


class Case(NamedTuple):
    config: str
    arguments: dict[str, Any]
    model: str
    sharpened: bool = False  # q and k × 5


def causal(config: str, arguments: dict[str, Any], sharpened: bool = False) -> Case:
    return Case(f"{config}Config", arguments, f"{config}ForCausalLM", sharpened)


def roped(base: dict[str, Any], kind: str, **parameters: Any) -> dict[str, Any]:
    return base | {"rope_parameters": {"rope_type": kind, "rope_theta": 5_000.0} | parameters}


# Over 16 tokens both borders of YaRN's ramp lie at the first channels; over 4,096 inside a head.
RAMP = {
    "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 2.0,
}  # fmt: skip
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
HALVES = [0.5 + 0.25 * i for i in range(8)]
DECODERS: dict[str, Case] = {
    "llama": causal("Llama", WIDE | {"attention_bias": True, "mlp_bias": True}),
    "llama tied": causal("Llama", GROUPED | {"tie_word_embeddings": True}),
    "llama linear": causal("Llama", roped(GROUPED, "linear", factor=4.0)),
    "llama dynamic": causal(
        "Llama", roped(GROUPED | {"max_position_embeddings": 16}, "dynamic", factor=3.0)
    ),
    "llama llama3": causal(
        "Llama",
        roped(
            GROUPED,
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    "llama yarn": causal(
        "Llama",
        roped(GROUPED, "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0),
    ),
    "llama yarn mscale": causal(
        "Llama",
        roped(
            GROUPED,
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            mscale=0.7,
            mscale_all_dim=1.3,
            truncate=False,
        ),
    ),
    "llama yarn ramp": causal("Llama", roped(GROUPED, "yarn", **RAMP)),
    "llama yarn ramp not whole": causal("Llama", roped(GROUPED, "yarn", **RAMP, truncate=False)),
    "mistral": causal("Mistral", WIDE | {"sliding_window": 8}),
    "mistral full": causal("Mistral", GROUPED | {"sliding_window": None}),
    "mixtral": causal("Mixtral", GROUPED | {"num_local_experts": 4, "sliding_window": 8}),
    "qwen2": causal(
        "Qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": causal("Qwen3", WIDE | {"attention_bias": True}),
    "qwen3_moe": causal(
        "Qwen3Moe",
        WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "qwen3_moe renormalised": causal(
        "Qwen3Moe",
        WIDE
        | {
            "num_experts": 4,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    "phi": causal("Phi", roped(GROUPED, "default", partial_rotary_factor=0.5)),
    "phi qk norm": causal(
        "Phi", roped(GROUPED | {"qk_layernorm": True}, "default", partial_rotary_factor=0.25)
    ),
    "phi3": causal("Phi3", GROUPED | {"sliding_window": 8}),
    "phi3 longrope long": causal(
        "Phi3",
        roped(
            GROUPED | {"original_max_position_embeddings": 16},
            "longrope",
            short_factor=HALVES,
            long_factor=[2 * f for f in HALVES],
        ),
    ),
    "phi3 longrope short": causal(
        "Phi3",
        roped(
            GROUPED | {"original_max_position_embeddings": 48},
            "longrope",
            short_factor=HALVES,
            long_factor=[2 * f for f in HALVES],
        ),
    ),
    "lfm2": causal(
        "Lfm2",
        GROUPED
        | {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "conv_L_cache": 4,
            "block_ffn_dim_multiplier": 1.2,  # 88, which is rounded up to 96
            "block_multiple_of": 32,
            "tie_word_embeddings": False,
        },
    ),
    "lfm2 old": causal(
        "Lfm2",
        GROUPED | {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False, "norm_eps": 1e-3},
    ),
    "gemma": causal("Gemma", SMALL | {"num_key_value_heads": 1, "head_dim": 32}),
    "gemma2": causal(
        "Gemma2", WIDE | {"query_pre_attn_scalar": 20, "sliding_window": 8}, sharpened=True
    ),
    "gemma3_text": causal(
        "Gemma3Text",
        WIDE
        | {
            "query_pre_attn_scalar": 20,
            "sliding_window": 8,
            "layer_types": MIXED,
            "final_logit_softcapping": 3.0,
        },
    )._replace(model="Gemma3ForCausalLM"),
    "stablelm": causal("StableLm", GROUPED | {"use_qkv_bias": True}),
    "stablelm parallel": causal(
        "StableLm", GROUPED | {"use_parallel_residual": True, "qk_layernorm": True}
    ),
    "exaone4": causal("Exaone4", WIDE | {"sliding_window": 8, "sliding_window_pattern": 3}),
    "exaone4 full": causal(
        "Exaone4", GROUPED | {"sliding_window": None, "layer_types": ["full_attention"] * 4}
    ),
    "hyperclovax": causal(
        "HyperCLOVAX",
        GROUPED
        | {
            "use_post_norm": True,
            "embedding_multiplier": 2.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "hyperclovax pre": causal("HyperCLOVAX", GROUPED | {"use_post_norm": False}),
    "olmo2": causal("Olmo2", GROUPED),
    "smollm3": causal("SmolLM3", GROUPED),
    "gpt2": Case("GPT2Config", GPT | {"n_inner": 112}, "GPT2LMHeadModel"),
    "gpt2 unscaled": Case("GPT2Config", GPT | {"scale_attn_weights": False}, "GPT2LMHeadModel"),
    "openai-gpt": Case("OpenAIGPTConfig", GPT, "OpenAIGPTLMHeadModel"),
    "gpt_neo": causal(
        "GPTNeo",
        {
            "vocab_size": 97,
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "intermediate_size": 112,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    "gpt_neox": causal("GPTNeoX", SMALL),
    "gpt_neox sequential": causal(
        "GPTNeoX",
        roped(
            SMALL | {"use_parallel_residual": False, "attention_bias": False},
            "default",
            partial_rotary_factor=0.5,
        ),
    ),
    "gptj": causal("GPTJ", GPT | {"rotary_dim": 8}),
    "opt": causal(
        "OPT",
        {
            "vocab_size": 97,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "ffn_dim": 112,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
        },
    ),
    "opt 350m": causal(
        "OPT",
        {
            "vocab_size": 97,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "ffn_dim": 112,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
    ),
    "bloom": causal(
        "Bloom", {"vocab_size": 97, "hidden_size": 64, "n_layer": 4, "n_head": 6}
    )._replace(arguments={"vocab_size": 97, "hidden_size": 48, "n_layer": 4, "n_head": 6}),
}
ENCODERS: dict[str, Case] = {
    "bert": Case("BertConfig", SMALL, "BertForPreTraining"),
    "bert untied": Case("BertConfig", SMALL | {"tie_word_embeddings": False}, "BertForMaskedLM"),
    "roberta": Case(
        "RobertaConfig",
        SMALL | {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 66},
        "RobertaForMaskedLM",
    ),
    # Decoders that look both ways: `is_causal`, said in the config.
    "llama both ways": causal("Llama", WIDE | {"is_causal": False}),
    "qwen3 both ways": causal("Qwen3", WIDE | {"is_causal": False}),
    "lfm2 both ways": causal(
        "Lfm2",
        GROUPED | {"full_attn_idxs": [1, 3], "conv_L_cache": 4, "is_causal": False},
    ),
    "gpt2 both ways": Case("GPT2Config", GPT | {"is_causal": False}, "GPT2LMHeadModel"),
    "gemma2 both ways": causal(
        "Gemma2",
        WIDE | {"query_pre_attn_scalar": 20, "sliding_window": 8, "is_causal": False},
        sharpened=True,
    ),
    "gptj both ways": causal("GPTJ", GPT | {"rotary_dim": 8, "is_causal": False}),
    "gpt_neox both ways": causal("GPTNeoX", SMALL | {"is_causal": False}),
    "opt both ways": causal("OPT", SMALL | {"ffn_dim": 112, "is_causal": False}),
    "bloom both ways": causal(
        "Bloom",
        {"vocab_size": 97, "hidden_size": 64, "n_layer": 3, "n_head": 4, "is_causal": False},
    ),
    "phi3 both ways": causal("Phi3", GROUPED | {"sliding_window": 8, "is_causal": False}),
}

T5 = {
    "vocab_size": 97, "d_model": 64, "d_kv": 24, "d_ff": 112, "num_layers": 3, "num_heads": 4,
    "num_decoder_layers": 2, "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 20,
}  # fmt: skip
BART = {
    "vocab_size": 97, "d_model": 64, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 8, "encoder_ffn_dim": 112,
    "decoder_ffn_dim": 80, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
GATED = T5 | {"feed_forward_proj": "gated-gelu"}
PAIRS: dict[str, Case] = {
    "t5": Case("T5Config", T5, "T5ForConditionalGeneration"),
    "t5 v1.1": Case(
        "T5Config", GATED | {"tie_word_embeddings": False}, "T5ForConditionalGeneration"
    ),
    "mt5": Case("MT5Config", GATED | {"tie_word_embeddings": False}, "MT5ForConditionalGeneration"),
    "umt5": Case("UMT5Config", GATED, "UMT5ForConditionalGeneration"),
    "marian": Case(
        "MarianConfig",
        BART
        | {
            "max_position_embeddings": 64,
            "scale_embedding": True,
            "activation_function": "swish",
        },
        "MarianMTModel",
    ),
    "marian apart": Case(
        "MarianConfig",
        BART
        | {
            "max_position_embeddings": 64,
            "decoder_vocab_size": 89,
            "share_encoder_decoder_embeddings": False,
            "tie_word_embeddings": False,
        },
        "MarianMTModel",
    ),
    "whisper": Case(
        "WhisperConfig",
        BART
        | {
            "max_source_positions": 30,
            "max_target_positions": 48,
            "num_mel_bins": 20,
            "scale_embedding": True,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        "WhisperForConditionalGeneration",
    ),
}

WAVES = {
    "vocab_size": 41, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 112, "conv_dim": [24, 24, 32, 32, 32, 32, 40],
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
STABLE = WAVES | {
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "num_conv_pos_embeddings": 9,
    "hidden_act": "gelu_new",
    "feat_extract_activation": "relu",
    "layer_norm_eps": 1e-3,
}
TOWER = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": 30, "patch_size": 8, "num_channels": 2, "layer_norm_eps": 1e-4,
}  # fmt: skip
TEXT_TOWER = SMALL | {"max_position_embeddings": 12, "hidden_size": 48, "projection_size": 64}
HEADLESS = {"model_type": "siglip_vision_model"} | TOWER | {"vision_use_head": False}
SEEING = {
    "vision_config": {"model_type": "siglip_vision_model"} | TOWER,
    "text_config": {"model_type": "llama", "attention_bias": True} | WIDE,
    "image_token_index": 5,
    "vision_feature_select_strategy": "full",
}
CODEC = {
    "sampling_rate": 400, "upsampling_ratios": [4, 3, 2], "num_filters": 4, "hidden_size": 12,
    "codebook_size": 16, "target_bandwidths": [0.05, 0.16, 0.26], "num_residual_layers": 2,
    "dilation_growth_rate": 3,
}  # fmt: skip
STEREO = CODEC | {
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 0.24,
    "overlap": 0.25,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
}
SENSES: dict[str, Case] = {
    "wav2vec2 base": Case("Wav2Vec2Config", WAVES, "Wav2Vec2ForCTC"),
    "wav2vec2 base layer": Case(
        "Wav2Vec2Config", WAVES | {"feat_extract_norm": "layer"}, "Wav2Vec2ForCTC"
    ),
    "wav2vec2 stable": Case("Wav2Vec2Config", STABLE, "Wav2Vec2ForCTC"),
    "wav2vec2 bare": Case("Wav2Vec2Config", STABLE, "Wav2Vec2Model"),
    "wav2vec2 pretraining": Case("Wav2Vec2Config", WAVES, "Wav2Vec2ForPreTraining"),
    "siglip_vision_model": Case("SiglipVisionConfig", TOWER, "SiglipVisionModel"),
    "siglip_vision_model headless": Case(
        "SiglipVisionConfig",
        TOWER | {"vision_use_head": False, "image_size": 32, "hidden_act": "gelu"},
        "SiglipVisionModel",
    ),
    "siglip": Case(
        "SiglipConfig", {"vision_config": TOWER, "text_config": TEXT_TOWER}, "SiglipModel"
    ),
    "llava llama": Case("LlavaConfig", SEEING, "LlavaForConditionalGeneration"),
    "llava qwen2": Case(
        "LlavaConfig",
        SEEING
        | {
            "vision_config": HEADLESS,
            "text_config": {"model_type": "qwen2", "tie_word_embeddings": True} | GROUPED,
            "vision_feature_layer": -1,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "relu",
        },
        "LlavaForConditionalGeneration",
    ),
    "llava layers": Case(
        "LlavaConfig", SEEING | {"vision_feature_layer": [-2, 1]}, "LlavaForConditionalGeneration"
    ),
    "encodec mono": Case("EncodecConfig", CODEC, "EncodecModel"),
    "encodec stereo": Case("EncodecConfig", STEREO, "EncodecModel"),
    "encodec other": Case(
        "EncodecConfig",
        CODEC
        | {
            "pad_mode": "constant",
            "trim_right_ratio": 0.4,
            "use_conv_shortcut": False,
            "kernel_size": 5,
            "last_kernel_size": 3,
            "residual_kernel_size": 5,
            "compress": 1,
            "num_lstm_layers": 1,
        },
        "EncodecModel",
    ),
    "encodec ahead": Case("EncodecConfig", CODEC | {"use_causal_conv": False}, "EncodecModel"),
}


def make(case: Case, seed: int = 0) -> Any:
    """The published model with perturbed weights, in evaluation, eager attention."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, case.config)(**case.arguments)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if case.config == "MarianConfig" and "embed_positions" in name:
                continue  # sinusoids, not weights: nothing of them is on disk
            parameter.add_(torch.randn_like(parameter) * 0.05)
            if case.sharpened and name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(5)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias" or "codebook" in name:
                buffer.copy_(torch.randn_like(buffer))
    model.tie_weights()
    return model


def saved_once(cases: dict[str, Case], tmp_path_factory) -> Callable[[str], tuple[Any, Path]]:
    """A case's name → its published model and the folder it was saved to, made when first asked."""

    @cache
    def of(name: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
        model = make(cases[name])
        model.save_pretrained(folder)
        return model, folder

    return of
