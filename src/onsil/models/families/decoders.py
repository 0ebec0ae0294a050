"""The decoder families: for each what its config says otherwise than LLaMA's or GPT-2's.

Most are LLaMA with a word changed, so most are a line in `LLAMA_LIKE`; docs/families.md shows how
to add another. A family's facts are those of its config and model file in transformers 5.23.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onsil.models.config import LIMITS, Config, is_whole, rope, sizes, stack_sizes, windows
from onsil.models.shape import Rotary, Shape

# ── LLaMA and those that say they are ───────────────────────────────────────────────────────────


def llama_like(c: Config) -> Shape:
    """RMS norms, a gated MLP, rotary positions: and what each says differently."""
    common = {
        "norm_epsilon": c.real("rms_norm_eps", "layer_norm_eps", default=1e-6),
        "activation": c.activation(),
        "tied": c.switch("tie_word_embeddings", default=False),
        "rotary": rope(c),
        "bias": ("qkvo" if c.get("attention_bias") else "") + ("ud" if c.get("mlp_bias") else ""),
    }
    return one_way_or_both(Shape(**(stack_sizes(c) | common | LLAMA_LIKE[c.family](c))))


def one_way_or_both(shape: Shape) -> Shape:
    """A config's window counts the token itself in a causal stack, and not in one that looks both
    ways (transformers 5.23, `sliding_window_bidirectional_overlay`); ours always does."""
    if shape.causal or not shape.window:
        return shape
    return replace(shape, window=shape.window + 1)


def window_everywhere(c: Config, default: int | None = None) -> dict[str, Any]:
    window = c.raw.get("sliding_window", default)
    return {"pattern": "L", "window": window} if window else {}


def window_where_used(c: Config) -> dict[str, Any]:
    """Qwen: off unless asked for, then from `max_window_layers` up."""
    if not c.get("use_sliding_window"):
        return {}
    first = c.get("max_window_layers", default=28)
    return windows(c, [i >= first for i in range(c.number("num_hidden_layers"))])


def every(c: Config, period: int) -> list[bool]:
    """Local layers, each `period`-th being global."""
    return [bool((i + 1) % period) for i in range(c.number("num_hidden_layers"))]


def mixture(c: Config) -> dict[str, Any]:
    c.only("shared_expert_intermediate_size", 0)
    c.only("mlp_only_layers", [])
    c.only("decoder_sparse_step", 1)
    return {
        "experts": c.number("num_experts", "num_local_experts"),
        "experts_used": c.number("num_experts_per_tok"),
    }


def gemma(c: Config) -> dict[str, Any]:
    c.only("use_bidirectional_attention", False)
    scalar = c.real("query_pre_attn_scalar", default=sizes(c)["head_width"])
    return {
        "norm": "rms+1",
        "activation": c.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        "tied": c.switch("tie_word_embeddings", default=True),
        "embedding_scale": c.number("hidden_size") ** 0.5,
        "score_scale": scalar**-0.5,
        "score_cap": c.real("attn_logit_softcapping", default=0.0),
        "logit_cap": c.real("final_logit_softcapping", default=0.0),
    }


def gemma3(c: Config) -> dict[str, Any]:
    c.raw.setdefault("sliding_window", 4096)
    period = c.get("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return gemma(c) | {
        "wiring": "sandwich",
        "qk_norm": "head",
        "rotary": rope(c, "full_attention", base=1_000_000.0),
        "local_rotary": rope(c, "sliding_attention"),
        **windows(c, every(c, period)),
    }


def exaone4(c: Config) -> dict[str, Any]:
    rule = c.get("sliding_window_pattern", default=4)
    if isinstance(rule, str):
        local = [rule[i % len(rule)] == "L" for i in range(c.number("num_hidden_layers"))]
        local[-1] = False
    else:
        local = every(c, rule or 1)
    full = "N" if c.get("sliding_window") else "G"
    return {"wiring": "output", "qk_norm": "head", **windows(c, local, full)}


def smollm3(c: Config) -> dict[str, Any]:
    c.only("use_sliding_window", False)
    rotary = c.get("no_rope_layers", default=every(c, c.get("no_rope_layer_interval", default=4)))
    tied = c.switch("tie_word_embeddings", default=True)
    return {"pattern": "".join("G" if r else "N" for r in rotary), "tied": tied}


def hyperclovax(c: Config) -> dict[str, Any]:
    return {
        "wiring": "sandwich" if c.get("use_post_norm") else "pre",
        "embedding_scale": c.real("embedding_multiplier", default=1.0),
        "logit_scale": c.real("logits_scaling", default=1.0),
        "residual_scale": c.real("residual_multiplier", default=1.0),
        "score_scale": c.real("attention_multiplier", default=sizes(c)["head_width"] ** -0.5),
    }


def stablelm(c: Config) -> dict[str, Any]:
    return {
        "norm": "layer",
        "norm_epsilon": c.real("layer_norm_eps", default=1e-5),
        "wiring": "shared" if c.get("use_parallel_residual") else "pre",
        "qk_norm": "heads" if c.get("qk_layernorm") else "none",
        "rotary": rope(c, share=0.25),
        "bias": "qkv" if c.get("use_qkv_bias") else "",
    }


def phi(c: Config) -> dict[str, Any]:
    return {
        "norm": "layer",
        "norm_epsilon": c.real("layer_norm_eps", default=1e-5),
        "wiring": "shared",
        "gated": False,
        "activation": c.activation(default="gelu_new"),
        "qk_norm": "head" if c.get("qk_layernorm") else "none",
        "qk_norm_bias": c.switch("qk_layernorm"),
        "rotary": rope(c, share=0.5),
        "bias": "qkvoudh",
    }


def qwen3_moe(c: Config) -> dict[str, Any]:
    renormalised = {"experts_renormalised": c.switch("norm_topk_prob", default=False)}
    hidden = {"hidden": c.number("moe_intermediate_size")}
    return {"qk_norm": "head", **mixture(c), **window_where_used(c)} | renormalised | hidden


def lfm2(c: Config) -> dict[str, Any]:
    """Most layers are short convolutions; the width of its MLP is said before it is adjusted."""
    c.only("conv_bias", False)
    every_layer = range(c.number("num_hidden_layers"))
    full = c.get("full_attn_idxs", default=every_layer)
    usual = ["full_attention" if i in full else "conv" for i in every_layer]
    types = c.get("layer_types", default=usual)
    if any(kind not in ("full_attention", "conv") for kind in types):
        raise c.wrong("layer_types", f"{types!r}", f"{types!r}입니다")
    hidden = c.number("block_ff_dim", "intermediate_size")
    if c.get("block_auto_adjust_ff_dim", default=True):
        hidden, share = 2 * hidden // 3, c.raw.get("block_ffn_dim_multiplier", 1.0)
        if share is not None:
            step = c.number("block_multiple_of", default=256)
            hidden = -(-int(share * hidden) // step) * step
    if not is_whole(hidden, 1, LIMITS["intermediate_size"]):
        raise c.wrong("block_ff_dim", f"{hidden} when adjusted", f"조정하면 {hidden}입니다")
    return {
        "norm_epsilon": c.real("norm_eps", default=1e-5),
        "qk_norm": "head",
        "hidden": hidden,
        "activation": "silu",
        "bias": "",
        "pattern": "".join("C" if kind == "conv" else "G" for kind in types),
        "taps": c.number("conv_L_cache", default=3),
        "rotary": rope(c, base=1_000_000.0),
        "context": c.number("max_position_embeddings", default=128_000),
        "tied": c.switch("tie_embedding", default=c.switch("tie_word_embeddings", default=True)),
    }


# What each says differently from LLaMA.
LLAMA_LIKE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "llama": lambda c: {},
    "mistral": lambda c: window_everywhere(c, 4096),
    "mixtral": lambda c: (
        {"norm_epsilon": c.real("rms_norm_eps", default=1e-5), "rotary": rope(c, base=1e6)}
        | mixture(c)
        | window_everywhere(c)
    ),
    "qwen2": lambda c: {"bias": "qkv", **window_where_used(c)},
    "qwen3": lambda c: {"qk_norm": "head", **window_where_used(c)},
    "qwen3_moe": qwen3_moe,
    "phi": phi,
    "phi3": window_everywhere,
    "gemma": gemma,
    "gemma2": lambda c: gemma(c) | {"wiring": "sandwich", **windows(c, every(c, 2))},
    "gemma3_text": gemma3,
    "stablelm": stablelm,
    "exaone": lambda c: {"norm_epsilon": c.real("layer_norm_epsilon", default=1e-5)},
    "exaone4": exaone4,
    "hyperclovax": hyperclovax,
    "olmo2": lambda c: {"wiring": "output", "qk_norm": "all"},
    "smollm3": smollm3,
    "lfm2": lfm2,
}


# ── GPT and its cousins ─────────────────────────────────────────────────────────────────────────


def gpt_like(c: Config) -> Shape:
    """Layer norm, a plain MLP, biases everywhere, tied: and what each says differently."""
    common = {
        "norm": "layer",
        "norm_epsilon": c.real("layer_norm_epsilon", "layer_norm_eps", default=1e-5),
        "gated": False,
        "activation": c.activation(default="gelu_new"),
        "positions": "learned",
        "bias": "qkvoud",
        "tied": c.switch("tie_word_embeddings", default=True),
    }
    return one_way_or_both(Shape(**(stack_sizes(c) | common | GPT_LIKE[c.family](c))))


def gpt2(c: Config) -> dict[str, Any]:
    c.only("scale_attn_by_inverse_layer_idx", False)
    c.only("add_cross_attention", False)
    return {} if c.get("scale_attn_weights", default=True) else {"score_scale": 1.0}


def openai_gpt(c: Config) -> dict[str, Any]:
    """GPT-1: norms after the residual, no final one, and «gelu» is the tanh form."""
    activation = c.activation("afn", default="gelu")
    return {"wiring": "post", "activation": "gelu_tanh" if activation == "gelu" else activation}


def gpt_neo(c: Config) -> dict[str, Any]:
    """No 1/√d in its scores; layers alternate between all and a window."""
    types = c.get("attention_layers") or [
        kind for kinds, times in c.get("attention_types", default=[]) for kind in kinds * times
    ]
    return {"score_scale": 1.0, "bias": "oud", **windows(c, [kind == "local" for kind in types])}


def gptj(c: Config) -> dict[str, Any]:
    """KoGPT: one norm for both branches, neighbouring channels turn together."""
    head = sizes(c)["head_width"]
    turned = c.get("rotary_dim") or head
    rotary = Rotary(rope(c).base, turned if turned < head else 0, interleaved=True)
    tied = c.switch("tie_word_embeddings", default=False)
    words = {"positions": "rotary", "rotary": rotary, "bias": "udh", "tied": tied}
    return words | {"wiring": "shared"}


def gpt_neox(c: Config) -> dict[str, Any]:
    """Polyglot-Ko, Pythia: attention and MLP side by side, each with its norm."""
    return {
        "wiring": "parallel" if c.get("use_parallel_residual", default=True) else "pre",
        "positions": "rotary",
        "rotary": rope(c, share=0.25),
        "activation": c.activation(default="gelu"),
        "bias": "qkvoud" if c.get("attention_bias", default=True) else "ud",
        "tied": c.switch("tie_word_embeddings", default=False),
    }


def bloom(c: Config) -> dict[str, Any]:
    c.only("apply_residual_connection_post_layernorm", False)
    return {"positions": "alibi", "activation": "gelu_tanh", "embedding_norm": True}


def opt(c: Config) -> dict[str, Any]:
    """Positions start at row 2; the 350m model has its norms after and narrower embeddings."""
    c.only("_remove_final_layer_norm", False)
    c.only("layer_norm_elementwise_affine", True)
    return {
        "position_offset": 2,
        "wiring": "pre" if c.get("do_layer_norm_before", default=True) else "post",
        "activation": c.activation(default="relu"),
        "bias": "qkvoud" if c.get("enable_bias", default=True) else "",
        "embedding_width": c.number("word_embed_proj_dim", default=sizes(c)["width"]),
    }


# What each says differently from GPT-2.
GPT_LIKE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "gpt2": gpt2,
    "openai-gpt": openai_gpt,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "bloom": bloom,
    "opt": opt,
}
