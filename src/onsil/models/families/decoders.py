"""The decoder families: for each a function config → Shape, and a table of names.

Most are LLaMA with a word changed, so most are a line in `LLAMA_LIKE`; docs/families.md shows how
to add another. A family's facts are those of its config and model file in transformers 5.23.
"""

from collections.abc import Callable
from typing import Any

from onsil.models.config import Config, rope, sizes, windows
from onsil.models.families.encoders import stack_sizes
from onsil.models.families.names import (
    QKV,
    Rule,
    beside,
    head_by_head,
    pairs_in,
    plain,
    qkv_rows,
    stacked,
    turned,
)
from onsil.models.shape import Rotary, Shape

# ── LLaMA and those that say they are ───────────────────────────────────────────────────────────

BLOCK = pairs_in(
    "attention_norm=input_layernorm attention.q=self_attn.q_proj attention.k=self_attn.k_proj "
    "attention.v=self_attn.v_proj attention.o=self_attn.o_proj attention.q_norm=self_attn.q_norm "
    "attention.k_norm=self_attn.k_norm mlp_norm=post_attention_layernorm mlp.gate=mlp.gate_proj "
    "mlp.up=mlp.up_proj mlp.down=mlp.down_proj"
)
TOP = pairs_in("embedding=model.embed_tokens final_norm=model.norm head=lm_head")
OUTPUT_NORMS = pairs_in(
    "attention_norm=post_attention_layernorm mlp_norm=post_feedforward_layernorm"
)
SANDWICH = pairs_in(
    "attention_norm_out=post_attention_layernorm mlp_norm=pre_feedforward_layernorm "
    "mlp_norm_out=post_feedforward_layernorm"
)


def llama_names(shape: Shape, **changed: str | None) -> list[Rule]:
    """LLaMA's table; `changed` gives other names, or None for what is packed elsewhere."""
    block = {k: v for k, v in (BLOCK | changed).items() if v is not None}
    return plain(TOP) + plain(block, "blocks.#.", "model.layers.#.")


def llama_shape(c: Config, **changed: Any) -> Shape:
    gated = {
        "norm_epsilon": c.real("rms_norm_eps", "layer_norm_eps", default=1e-6),
        "activation": c.activation(),
        "tied": bool(c.get("tie_word_embeddings", default=False)),
        "rotary": rope(c),
        "bias": ("qkvo" if c.get("attention_bias") else "") + ("ud" if c.get("mlp_bias") else ""),
    }
    return Shape(**(stack_sizes(c) | gated | changed))


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
        "tied": bool(c.get("tie_word_embeddings", default=True)),
        "embedding_scale": c.number("hidden_size") ** 0.5,
        "score_scale": scalar**-0.5,
        "score_cap": c.real("attn_logit_softcapping", default=0.0),
        "logit_cap": c.real("final_logit_softcapping", default=0.0),
    }


def gemma3(c: Config) -> dict[str, Any]:
    c.raw.setdefault("sliding_window", 4096)
    return gemma(c) | {
        "wiring": "sandwich",
        "qk_norm": "head",
        "rotary": rope(c, "full_attention", base=1_000_000.0),
        "local_rotary": rope(c, "sliding_attention"),
        **windows(
            c, every(c, c.get("sliding_window_pattern", "_sliding_window_pattern", default=6))
        ),
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
    tied = bool(c.get("tie_word_embeddings", default=True))
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
        "qk_norm_bias": bool(c.get("qk_layernorm")),
        "rotary": rope(c, share=0.5),
        "bias": "qkvoudh",
    }


def qwen3_moe(c: Config) -> dict[str, Any]:
    renormalised = {"experts_renormalised": bool(c.get("norm_topk_prob", default=False))}
    hidden = {"hidden": c.number("moe_intermediate_size")}
    return {"qk_norm": "head", **mixture(c), **window_where_used(c)} | renormalised | hidden


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
    "exaone4": exaone4,
    "hyperclovax": hyperclovax,
    "olmo2": lambda c: {"wiring": "output", "qk_norm": "all"},
    "smollm3": smollm3,
}


def llama_like(c: Config) -> Shape:
    return llama_shape(c, **LLAMA_LIKE[c.family](c))


def llama_like_names(family: str, shape: Shape) -> list[Rule]:
    """The table of a family in `LLAMA_LIKE`."""
    layer, block = "model.layers.#.", "blocks.#."
    match family:
        case "mixtral" | "qwen3_moe":
            home, leaves = {
                "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
                "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
            }[family]
            rules = llama_names(shape, **dict.fromkeys(("mlp.gate", "mlp.up", "mlp.down")))
            rules += plain({"mlp.router": f"{home}.gate"}, block, layer)
            for ours, leaf in zip(("gate", "up", "down"), leaves, strict=True):
                each = [f"{layer}{home}.experts.{e}.{leaf}" for e in range(shape.experts)]
                rules.append(stacked(f"{block}mlp.{ours}", each))
            return rules
        case "phi3":
            packed = dict.fromkeys(
                ("attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up")
            )
            halves = (f"{block}mlp.gate", f"{block}mlp.up")
            return [
                *llama_names(shape, **packed),
                beside(QKV, f"{layer}self_attn.qkv_proj", qkv_rows(shape)),
                beside(halves, f"{layer}mlp.gate_up_proj", [shape.hidden] * 2),
            ]
        case "phi":
            names = (
                "attention.o=self_attn.dense attention.q_norm=self_attn.q_layernorm "
                "attention.k_norm=self_attn.k_layernorm mlp.up=mlp.fc1 mlp.down=mlp.fc2"
            )
            rules = llama_names(shape, **pairs_in(names))
            return [*rules, Rule(("final_norm",), ("model.final_layernorm",))]
        case "gemma2" | "gemma3_text":
            return llama_names(shape, **SANDWICH)
        case "hyperclovax":
            norms = {"attention_norm_out": "post_norm1", "mlp_norm_out": "post_norm2"}
            return llama_names(shape, **norms)
        case "exaone4" | "olmo2":
            return llama_names(shape, **OUTPUT_NORMS)
        case "stablelm":
            rules = llama_names(shape, **dict.fromkeys(("attention.q_norm", "attention.k_norm")))
            for x, heads in (("q", shape.heads), ("k", shape.kv_heads)):
                each = [f"{layer}self_attn.{x}_layernorm.norms.{i}" for i in range(heads)]
                rules.append(stacked(f"{block}attention.{x}_norm", each))
            return rules
    return llama_names(shape)


# ── GPT and its cousins ─────────────────────────────────────────────────────────────────────────


def gpt_like(c: Config) -> Shape:
    """Layer norm, a plain MLP, biases everywhere, tied: and what each says differently."""
    common = {
        "norm": "layer",
        "norm_epsilon": c.real("layer_norm_epsilon", "layer_norm_eps", default=1e-5),
        "gated": False,
        "positions": "learned",
        "bias": "qkvoud",
        "tied": bool(c.get("tie_word_embeddings", default=True)),
    }
    told = GPT_LIKE[c.family](c)
    return Shape(
        **(stack_sizes(c) | common | {"activation": c.activation(default="gelu_new")} | told)
    )


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
    tied = bool(c.get("tie_word_embeddings", default=False))
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
        "tied": bool(c.get("tie_word_embeddings", default=False)),
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
# Family → where its layers are, what stands outside them, what stands in each.
GPT_NAMES: dict[str, tuple[str, str, str]] = {
    "gpt2": (
        "transformer.h.#.",
        "embedding=transformer.wte position=transformer.wpe final_norm=transformer.ln_f "
        "head=lm_head",
        "attention_norm=ln_1 mlp_norm=ln_2",
    ),
    "openai-gpt": (
        "transformer.h.#.",
        "embedding=transformer.tokens_embed position=transformer.positions_embed head=lm_head",
        "attention_norm=ln_1 mlp_norm=ln_2",
    ),
    "gpt_neo": (
        "transformer.h.#.",
        "embedding=transformer.wte position=transformer.wpe final_norm=transformer.ln_f "
        "head=lm_head",
        "attention_norm=ln_1 attention.q=attn.attention.q_proj attention.k=attn.attention.k_proj "
        "attention.v=attn.attention.v_proj attention.o=attn.attention.out_proj "
        "mlp_norm=ln_2 mlp.up=mlp.c_fc mlp.down=mlp.c_proj",
    ),
    "gptj": (
        "transformer.h.#.",
        "embedding=transformer.wte final_norm=transformer.ln_f head=lm_head",
        "attention_norm=ln_1 attention.q=attn.q_proj attention.k=attn.k_proj "
        "attention.v=attn.v_proj attention.o=attn.out_proj mlp.up=mlp.fc_in mlp.down=mlp.fc_out",
    ),
    "gpt_neox": (
        "gpt_neox.layers.#.",
        "embedding=gpt_neox.embed_in final_norm=gpt_neox.final_layer_norm head=embed_out",
        "attention_norm=input_layernorm attention.o=attention.dense "
        "mlp_norm=post_attention_layernorm mlp.up=mlp.dense_h_to_4h mlp.down=mlp.dense_4h_to_h",
    ),
    "bloom": (
        "transformer.h.#.",
        "embedding=transformer.word_embeddings final_norm=transformer.ln_f head=lm_head "
        "embedding_norm=transformer.word_embeddings_layernorm",
        "attention_norm=input_layernorm attention.o=self_attention.dense "
        "mlp_norm=post_attention_layernorm mlp.up=mlp.dense_h_to_4h mlp.down=mlp.dense_4h_to_h",
    ),
    "opt": (
        "model.decoder.layers.#.",
        "embedding=model.decoder.embed_tokens position=model.decoder.embed_positions head=lm_head "
        "project_in=model.decoder.project_in project_out=model.decoder.project_out "
        "final_norm=model.decoder.final_layer_norm",
        "attention_norm=self_attn_layer_norm attention.q=self_attn.q_proj "
        "attention.k=self_attn.k_proj attention.v=self_attn.v_proj attention.o=self_attn.out_proj "
        "mlp_norm=final_layer_norm mlp.up=fc1 mlp.down=fc2",
    ),
}


def gpt_like_names(family: str, shape: Shape) -> list[Rule]:
    """The table of a family in `GPT_LIKE`, with the packings of its layers."""
    layer, top, block = GPT_NAMES[family]
    ours = "blocks.#."
    rules = plain(pairs_in(top)) + plain(pairs_in(block), ours, layer)
    match family:
        case "gpt2" | "openai-gpt":
            rules += [
                beside(QKV, f"{layer}attn.c_attn", qkv_rows(shape), flip=True),
                turned(f"{ours}attention.o", f"{layer}attn.c_proj"),
                turned(f"{ours}mlp.up", f"{layer}mlp.c_fc"),
                turned(f"{ours}mlp.down", f"{layer}mlp.c_proj"),
            ]
        case "gpt_neox":
            rules.append(head_by_head(QKV, f"{layer}attention.query_key_value", shape.heads))
        case "bloom":
            rules.append(head_by_head(QKV, f"{layer}self_attention.query_key_value", shape.heads))
    return rules
