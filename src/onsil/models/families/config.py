"""config.json in its two dialects, read with named defaults and refused where it asks for more.

transformers 5 writes `rope_parameters`, `layer_types` and `dtype`; older checkpoints say the same
with `rope_theta`, `rope_scaling`, `rotary_pct`, `sliding_window_pattern` and `torch_dtype`. Where a
switch has a value that changes the maths and is not built here, the checkpoint is refused rather
than read nearly right.
"""

import math
from typing import Any

from onsil.errors import OnsilError
from onsil.models.shape import Rotary

ACTIVATION = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip
LARGEST = 2**31
MISSING: Any = object()


class Config:
    """A config.json; `number` and `get` take several keys, the first that is there counts."""

    def __init__(self, raw: dict[str, Any]):
        self.raw = raw
        self.family: str = raw.get("model_type", "")

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value under the first key that is there and not null."""
        return next((self.raw[k] for k in keys if self.raw.get(k) is not None), default)

    def number(self, *keys: str, default: Any = MISSING) -> int:
        """A size: a whole number from 1 to 2³¹."""
        value = self.get(*keys, default=default)
        if value is MISSING:
            raise self.wrong(keys[0], "missing", "없습니다")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST:
            raise self.wrong(
                keys[0], f"{value!r}, which is no size", f"{value!r}이어서 크기가 아닙니다"
            )
        return value

    def real(self, *keys: str, default: float) -> float:
        """A finite number."""
        value = self.get(*keys, default=default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.wrong(
                keys[0], f"{value!r}, which is no number", f"{value!r}이어서 수가 아닙니다"
            )
        return float(value)

    def activation(self, *keys: str, default: str = "silu") -> Any:
        """silu, gelu, gelu_tanh or relu."""
        name = self.get(*(keys or ("hidden_act", "hidden_activation", "activation_function")))
        if (name or default) not in ACTIVATION:
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


def rope(c: Config, kind: str = "", base: float = 10_000.0, share: float = 1.0) -> Rotary:
    """The rotary positions of a config, `kind` being a layer type where each has its own."""
    told: dict[str, Any] = dict(c.get("rope_parameters", default={}))
    old: dict[str, Any] = dict(c.get("rope_scaling", default={}))
    if kind in told or old.get(kind):
        told = dict(told.get(kind) or old[kind])
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
    theta = r.get("rope_theta") or c.get("rope_theta", "rotary_emb_base", default=base)
    scaling = str(r.get("rope_type", "type", default="default"))
    common: dict[str, Any] = {"base": float(theta), "width": turned if turned < head else 0}
    if scaling == "default":
        return Rotary(**common)
    return Rotary(**common, **scaled(c, r, {"su": "longrope"}.get(scaling, scaling)))


def scaled(c: Config, r: Config, scaling: str) -> dict[str, Any]:
    """How the positions are stretched, from the rope part `r` of a config."""
    context = sizes(c)["context"]
    original = int(
        r.get("original_max_position_embeddings")
        or c.get("original_max_position_embeddings", default=context)
    )
    factor = r.real("factor", default=context / original)
    same = {"scaling": scaling, "factor": factor, "original": original}
    match scaling:
        case "linear":
            return {"scaling": scaling, "factor": factor}
        case "dynamic":
            return same | {"original": context}
        case "llama3":
            slow, fast = r.real("low_freq_factor", default=1), r.real("high_freq_factor", default=4)
            return same | {"slow": slow, "fast": fast}
        case "yarn":
            return same | {
                "slow": r.real("beta_slow", default=1),
                "fast": r.real("beta_fast", default=32),
                "truncate": bool(r.get("truncate", default=True)),
                "amplitude": r.real("attention_factor", default=0.0) or yarn_amplitude(r, factor),
            }
        case "longrope":
            grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
            return {
                "scaling": scaling,
                "original": original,
                "amplitude": r.real("attention_factor", default=0.0) or grown,
                "short": tuple(map(float, r.get("short_factor", default=()))),
                "long": tuple(map(float, r.get("long_factor", default=()))),
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
        known = ("sliding_attention", "full_attention")
        if len(types) != len(local) or any(kind not in known for kind in types):
            raise c.wrong("layer_types", f"{types!r}", f"{types!r}입니다")
        local = [kind == "sliding_attention" for kind in types]
    pattern = "".join("L" if here and window else full for here in local)
    return {"pattern": pattern, "window": int(window) if "L" in pattern else 0}
