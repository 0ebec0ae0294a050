"""What tells two transformers apart, as one frozen record.

A decoder is a causal stack, an encoder one that is not; pre- and post-norm, RMS and layer norm,
rotary and learned positions, gated and plain MLPs are values of a word here, never another class.
`QWEN3` and `BERT` are the two shapes grown today; `families.py` names them on disk.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from onsil.errors import OnsilError


@dataclass(frozen=True)
class Shape:
    """Sizes and wiring of one transformer stack; `0` in a size means the derived default."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int = 0  # 0: one per query head
    head_width: int = 0  # 0: width / heads
    hidden: int = 0  # 0: 4 × width, or 8/3 × width rounded up to 32 when gated
    context: int = 1024
    causal: bool = True
    wiring: Literal["pre", "post"] = "pre"  # x + f(norm(x)), or norm(x + f(x))
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-6
    qk_norm: bool = True
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_base: float = 10_000.0
    gated: bool = True
    activation: Literal["silu", "gelu"] = "silu"
    bias: bool = False
    segments: int = 0  # rows of BERT's token-type embedding
    embedding_norm: bool = False
    head_transform: bool = False  # BERT's dense → activation → norm before the vocabulary
    tied: bool = True

    def __post_init__(self):
        gated_hidden = -(-8 * self.width // 3 // 32) * 32
        defaults = {
            "kv_heads": self.heads,
            "head_width": self.width // self.heads,
            "hidden": gated_hidden if self.gated else 4 * self.width,
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        for name in ("vocabulary", "width", "depth", "heads", "context"):
            if getattr(self, name) < 1:
                raise _impossible(f"{name}={getattr(self, name)}", "must be at least 1")
        if self.heads % self.kv_heads:
            raise _impossible(
                f"heads={self.heads}, kv_heads={self.kv_heads}", "heads must be a multiple"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _impossible(values: str, rule: str) -> OnsilError:
    return OnsilError(
        en=(
            f"No transformer has {values}: {rule}.",
            "The model cannot be built.",
            "Change the plan.",
        ),
        ko=(
            f"{values}인 트랜스포머는 만들 수 없습니다({rule}).",
            "모델을 세울 수 없습니다.",
            "계획의 값을 고쳐 주세요.",
        ),
    )


def decoder_shape(vocabulary: int, width: int, depth: int, context: int = 1024) -> Shape:
    """Qwen3's wiring at any size: RMSNorm, rotary positions, QK-norm, grouped queries, SwiGLU."""
    heads = max(2, width // 64)
    return Shape(vocabulary, width, depth, heads, kv_heads=heads // 2, context=context)


def encoder_shape(vocabulary: int, width: int, depth: int, context: int = 512) -> Shape:
    """BERT's wiring at any size, with three segments: question, passage, and the passage's words
    that the question also has."""
    return Shape(
        vocabulary,
        width,
        depth,
        max(2, width // 64),
        context=context,
        causal=False,
        wiring="post",
        norm="layer",
        norm_epsilon=1e-12,
        qk_norm=False,
        positions="learned",
        gated=False,
        activation="gelu",
        bias=True,
        segments=3,
        embedding_norm=True,
        head_transform=True,
    )
