"""config.json in its two dialects, read with named defaults and refused where it asks for more.

transformers 5 writes `rope_parameters`, `layer_types` and `dtype`; older checkpoints say the same
with `rope_theta`, `rope_scaling`, `rotary_pct`, `sliding_window_pattern` and `torch_dtype`. Where a
switch has a value that changes the maths and is not built here, the checkpoint is refused rather
than read nearly right.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from onsil.errors import OnsilError
from onsil.models.shape import Rotary

ACTIVATION = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
MISSING: Any = object()
OWN_INT8 = "onsil_int8_rows"

# Far above anything published, and far below what no file could hold: a size beyond them is a slip
# or an attack, and is refused before a list as long as it is made.
LARGEST = 2**28
LIMITS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 2**20),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "moe_intermediate_size",
         "encoder_ffn_dim", "decoder_ffn_dim", "block_ff_dim"), 2**24,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "num_heads", "num_key_value_heads", "head_dim", "d_kv",
         "encoder_attention_heads", "decoder_attention_heads"), 2**16,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers",
         "decoder_layers", "num_experts", "num_local_experts", "num_experts_per_tok"), 2**12,
    ),
}  # fmt: skip
# What the other values may be, wherever they stand; null is "not said".
SWITCHES = frozenset((
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "qk_layernorm",
    "use_parallel_residual", "use_qkv_bias", "norm_topk_prob", "use_post_norm", "truncate",
    "scale_attn_weights", "scale_embedding", "do_layer_norm_before", "enable_bias",
    "share_encoder_decoder_embeddings", "block_auto_adjust_ff_dim", "tie_embedding",
))  # fmt: skip
LEAST = {  # whole numbers that may be smaller than a size
    "sliding_window": 0, "window_size": 0, "max_window_layers": 0, "rotary_dim": 0,
    "pad_token_id": -1, "no_rope_layer_interval": 1,
}  # fmt: skip
POSITIVE = frozenset((
    "rope_theta", "rope_local_base_freq", "rotary_emb_base", "factor", "low_freq_factor",
    "high_freq_factor", "beta_fast", "beta_slow", "query_pre_attn_scalar", "rms_norm_eps",
    "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "block_ffn_dim_multiplier",
))  # fmt: skip
SHARES = frozenset(("partial_rotary_factor", "rotary_pct", "rope_pct"))
KINDS = ("sliding_attention", "full_attention")  # of layers
EACH_LAYER = ("layer_types", "no_rope_layers", "attention_layers")
# Classes named for the stack alone or for a task of another head.
WITHOUT_WORDS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|NextSentencePrediction)$"
    r"|^(?!.*(LMHead|DoubleHeads)Model$).*Model$"
)


def is_whole(value: Any, least: int, most: int = LARGEST) -> bool:
    return type(value) is int and least <= value <= most


def is_positive(value: Any, most: float = 1e30) -> bool:
    return type(value) in (int, float) and 0 < value <= most  # false for NaN


def is_list(value: Any, sound: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) <= LIMITS["head_dim"] and all(map(sound, value))


def is_sound(family: str, key: str, value: Any) -> bool:
    """Whether a value that is no size can stand under its key."""
    if key in SWITCHES:
        return value in (True, False) and isinstance(value, int)
    if key in LEAST:
        return is_whole(value, LEAST[key])
    if key in POSITIVE:
        return is_positive(value)
    if key in SHARES:
        return is_positive(value, 1.0)
    match key:
        case "sliding_window_pattern" | "_sliding_window_pattern":
            letters = isinstance(value, str) and set(value) in ({"L"}, {"G"}, {"L", "G"})
            return letters or is_whole(value, 0 if family == "exaone4" else 1, 2**12)
        case "layer_types" | "attention_layers":
            return is_list(value, lambda kind: isinstance(kind, str))
        case "full_attn_idxs":
            return is_list(value, lambda layer: is_whole(layer, 0, 2**12))
        case "no_rope_layers":
            return is_list(value, lambda rotary: rotary in (0, 1))
        case "attention_types":
            return is_list(
                value,
                lambda part: (
                    isinstance(part, list)
                    and len(part) == 2
                    and is_list(part[0], lambda kind: isinstance(kind, str))
                    and is_whole(part[1], 1, 2**12)
                ),
            )
        case "short_factor" | "long_factor":
            return is_list(value, is_positive)
        case "rope_parameters" | "rope_scaling":
            return isinstance(value, dict) and all(
                isinstance(value.get(kind) or {}, dict) for kind in KINDS
            )
    return True


def quantised(config: dict[str, Any]) -> bool:
    """Whether the weights are onsil's int8; any other quantisation is refused."""
    part = config.get("quantization_config") or None
    told = part.get("quant_method", "no name for it") if isinstance(part, dict) else part
    if told not in (None, OWN_INT8):
        raise OnsilError(
            en=(
                f"The weights are quantised with {told!r}, which is not read here.",
                "Read as they stand they would be meaningless numbers.",
                "Get the checkpoint in bf16, fp16 or fp32.",
            ),
            ko=(
                f"가중치가 {told!r} 방식으로 양자화되어 있어 읽을 수 없습니다.",
                "그대로 읽으면 뜻이 없는 수가 됩니다.",
                "bf16, fp16, fp32로 된 체크포인트를 받아 주세요.",
            ),
        )
    return told == OWN_INT8


class Config:
    """A config.json; `number` and `get` take several keys, the first that is there counts."""

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw
        self.family: str = raw.get("model_type", "")
        depth = self.get("num_hidden_layers", "n_layer", "num_layers")
        for key, value in raw.items():
            if value is None:
                continue
            if not is_sound(self.family, key, value):
                shown = repr(value)[:200]
                raise self.wrong(
                    key, f"{shown}, which it cannot be", f"{shown}이어서 쓸 수 없습니다"
                )
            if key in EACH_LAYER and depth not in (None, len(value)):
                raise self.wrong(
                    key,
                    f"a list of {len(value)} for {depth} layers",
                    f"{len(value)}개인데 층은 {depth}개입니다",
                )

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value under the first key that is there and not null."""
        return next((self.raw[k] for k in keys if self.raw.get(k) is not None), default)

    def number(self, *keys: str, default: Any = MISSING) -> int:
        """A size: a whole number from 1 to its limit."""
        value = self.get(*keys, default=default)
        if value is MISSING:
            raise self.wrong(keys[0], "missing", "없습니다")
        key = next((k for k in keys if self.raw.get(k) is not None), keys[0])
        if not is_whole(value, 1, LIMITS.get(key, LARGEST)):
            shown = repr(value)[:200]
            raise self.wrong(key, f"{shown}, which is no size", f"{shown}이어서 크기가 아닙니다")
        return value

    def numbers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of sizes, each a whole number from 1."""
        value = self.get(key, default=default)
        good = isinstance(value, list | tuple) and all(is_whole(n, 1, 2**20) for n in value)
        if not good or not 0 < len(value) <= 64:
            shown = repr(value)[:200]
            raise self.wrong(
                key, f"{shown}, which is no list of sizes", f"{shown}이어서 쓸 수 없습니다"
            )
        return tuple(value)

    def real(self, *keys: str, default: float) -> float:
        """A finite number."""
        value = self.get(*keys, default=default)
        if type(value) not in (int, float) or not -1e30 <= value <= 1e30:
            shown = repr(value)[:200]
            raise self.wrong(
                keys[0], f"{shown}, which is no number", f"{shown}이어서 수가 아닙니다"
            )
        return float(value)

    def activation(self, *keys: str, default: str = "silu") -> Any:
        """silu, gelu, gelu_tanh or relu."""
        name = self.get(*(keys or ("hidden_act", "hidden_activation", "activation_function")))
        if not isinstance(name or default, str) or (name or default) not in ACTIVATION:
            raise self.wrong(
                "activation",
                f"{name!r}, which is not built here",
                f"{name!r}이어서 지원하지 않습니다",
            )
        return ACTIVATION[name or default]

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a switch whose value would need maths that is not here."""
        if (value := self.raw.get(key)) not in (None, *allowed):
            raise self.wrong(
                key, f"{value!r}, which is not built here", f"{value!r}이어서 지원하지 않습니다"
            )

    def switch(self, key: str, default: bool = False) -> bool:
        """True or false, and nothing else."""
        self.only(key, True, False)
        return bool(self.get(key, default=default))

    def part(self, key: str) -> "Config":
        """A config within the config."""
        if not isinstance(found := self.get(key, default={}), dict):
            raise self.wrong(
                key, f"{found!r}, which is no config", f"{found!r}이어서 설정이 아닙니다"
            )
        return Config(found)

    def completed(self, defaults: dict[str, Any]) -> "Config":
        """With what it leaves out."""
        told = {key: value for key, value in self.raw.items() if value is not None}
        return Config(defaults | told)

    @property
    def published_class(self) -> str:
        """The class the checkpoint was saved from; nothing where it is not said."""
        told = self.get("architectures")
        return str(told[0]) if isinstance(told, list) and told else ""

    def wrong(self, key: str, en: str, ko: str) -> OnsilError:
        return OnsilError(
            en=(
                f"config.json ({self.family}): {key} is {en}.",
                "Reading on would build another model than the weights were trained for.",
                "Compare config.json with the one its authors published.",
            ),
            ko=(
                f"config.json({self.family}): {key} 값이 {ko}.",
                "그대로 읽으면 가중치가 학습된 모델과 다른 모델이 됩니다.",
                "config.json을 공개된 원본과 비교해 주세요.",
            ),
        )


def sizes(c: Config) -> dict[str, Any]:
    """What every family has, under any of its names."""
    width = c.number("hidden_size", "n_embd", "d_model")
    heads = c.number("num_attention_heads", "n_head", "num_heads")
    if width % heads and c.get("head_dim") is None:
        raise c.wrong(
            "hidden_size",
            f"{width}, which {heads} heads do not divide",
            f"{width}이어서 헤드 {heads}개로 나누어지지 않습니다",
        )
    return {
        "vocabulary": c.number("vocab_size"),
        "width": width,
        "depth": c.number("num_hidden_layers", "n_layer", "num_layers"),
        "heads": heads,
        "kv_heads": c.number("num_key_value_heads", default=heads),
        "head_width": c.number("head_dim", default=width // heads or 1),
        "hidden": c.number("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * width),
        "context": c.number(
            "max_position_embeddings", "n_positions", "n_ctx", "seq_length", default=2048
        ),
        "qk_norm": "none",
    }


def stack_sizes(c: Config) -> dict[str, Any]:
    """The sizes, and what the stack writes: the published class tells whether there is a
    vocabulary head. A decoder family's `is_causal: false` is how transformers (5.23,
    masking_utils.py) says that it looks both ways; segments are ours then."""
    bare = WITHOUT_WORDS.search(c.published_class)
    told: dict[str, Any] = {"writes": "vectors" if bare else "tokens"}
    if not c.switch("is_causal", default=True):
        told |= {"causal": False}
        if c.get("type_vocab_size"):
            told |= {"segments": c.number("type_vocab_size")}
    return sizes(c) | told


def rope(c: Config, kind: str = "", base: float = 10_000.0, share: float = 1.0) -> Rotary:
    """The rotary positions of a config, `kind` being a layer type where each has its own."""
    told: dict[str, Any] = dict(c.get("rope_parameters", default={}))
    old: dict[str, Any] = dict(c.get("rope_scaling", default={}))
    if kind in told or old.get(kind):
        told = dict(told.get(kind) or old.get(kind) or {})
    elif any(isinstance(value, dict) for value in told.values()):
        told = {}
    elif not told:
        told = {name: value for name, value in old.items() if not isinstance(value, dict)}
    if kind == "sliding_attention" and not told.get("rope_theta"):
        told = {"rope_theta": c.get("rope_local_base_freq", default=10_000.0)}
    r = Config({"model_type": c.family, **told})
    share = r.real("partial_rotary_factor", default=0.0) or c.real(
        "partial_rotary_factor", "rotary_pct", "rope_pct", default=share
    )
    head = sizes(c)["head_width"]
    turned = int(head * share)
    if turned < 2 or turned % 2:
        raise c.wrong(
            "partial_rotary_factor",
            f"{share}, which turns {turned} of {head} channels",
            f"{share}이어서 {head}개 채널 가운데 {turned}개가 회전합니다",
        )
    theta = r.get("rope_theta") or c.get("rope_theta", "rotary_emb_base", default=base)
    scaling = str(r.get("rope_type", "type", default="default"))
    common: dict[str, Any] = {"base": float(theta), "width": turned if turned < head else 0}
    if scaling == "default":
        return Rotary(**common)
    return Rotary(**common, **scaled(c, r, {"su": "longrope"}.get(scaling, scaling), turned))


def scaled(c: Config, r: Config, scaling: str, turned: int) -> dict[str, Any]:
    """How the positions are stretched, from the rope part `r` of a config; `turned` channels."""
    context = sizes(c)["context"]
    key = "original_max_position_embeddings"
    original = r.number(key, default=c.number(key, default=context))
    if original < 2:
        raise c.wrong(key, f"{original}, too short", f"{original}이어서 지나치게 짧습니다")
    factor = r.real("factor", default=context / original)
    same = {"scaling": scaling, "factor": factor, "original": original}
    match scaling:
        case "linear":
            return {"scaling": scaling, "factor": factor}
        case "dynamic":
            return same | {"original": context}
        case "llama3":
            slow, fast = r.real("low_freq_factor", default=1), r.real("high_freq_factor", default=4)
            if slow >= fast:
                raise c.wrong(
                    "low_freq_factor",
                    f"{slow}, not below high_freq_factor {fast}",
                    f"{slow}이어서 high_freq_factor {fast}보다 작지 않습니다",
                )
            return same | {"slow": slow, "fast": fast}
        case "yarn":
            return same | {
                "slow": r.real("beta_slow", default=1),
                "fast": r.real("beta_fast", default=32),
                "truncate": bool(r.get("truncate", default=True)),
                "amplitude": r.real("attention_factor", default=0.0) or yarn_amplitude(r, factor),
            }
        case "longrope":
            for name in ("short_factor", "long_factor"):
                if len(found := r.get(name, default=())) != turned // 2:
                    raise c.wrong(
                        name,
                        f"a list of {len(found)} for {turned // 2} frequencies",
                        f"{len(found)}개인데 주파수는 {turned // 2}개입니다",
                    )
            grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
            return {
                "scaling": scaling,
                "original": original,
                "amplitude": r.real("attention_factor", default=0.0) or grown,
                "short": tuple(map(float, r.get("short_factor"))),
                "long": tuple(map(float, r.get("long_factor"))),
            }
    raise c.wrong(
        "rope_type", f"{scaling!r}, which is not built here", f"{scaling!r}이어서 지원하지 않습니다"
    )


def yarn_amplitude(r: Config, factor: float) -> float:
    """0.1·m·ln(factor) + 1 (YaRN eq. 22), or the ratio of two such (DeepSeek's mscale)."""

    def of(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    m, all_channels = r.real("mscale", default=0.0), r.real("mscale_all_dim", default=0.0)
    return of(m) / of(all_channels) if m and all_channels else of(1.0)


def windows(c: Config, local: list[bool], full: str = "G") -> dict[str, Any]:
    """Pattern and window from a guess per layer, or from `layer_types` where it is written."""
    window = c.get("sliding_window", "window_size", default=0)
    if types := c.get("layer_types"):
        if len(types) != len(local) or any(kind not in KINDS for kind in types):
            raise c.wrong("layer_types", f"{types!r}", f"{types!r}입니다")
        local = [kind == "sliding_attention" for kind in types]
    pattern = "".join("L" if here and window else full for here in local)
    return {"pattern": pattern, "window": int(window) if "L" in pattern else 0}
