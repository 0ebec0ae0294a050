"""What tells two transformers apart, as one frozen record.

A decoder is a causal stack, an encoder one that is not, and an encoder-decoder two stacks, the
second of which also looks at the first (`cross`). Where norms stand, how positions are told, what
is gated or shared or capped are values of a word here, never another class. `families/` knows what
each published checkpoint calls them.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from onsil.errors import OnsilError

LEAST = ("must be at least 1", "1 이상이어야 합니다")


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021) and the ways of stretching them over longer texts."""

    base: float = 10_000.0
    width: int = 0  # channels of a head that turn; 0: all
    interleaved: bool = False  # neighbours turn together (GPT-J), not the two halves (LLaMA)
    scaling: Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"] = "none"
    factor: float = 1.0
    original: int = 0  # context before stretching
    slow: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    fast: float = 1.0  # llama3: high_freq_factor; yarn: beta_fast
    truncate: bool = True  # yarn: whole channels as borders
    amplitude: float = 1.0  # cos and sin are multiplied by it (yarn, longrope)
    short: tuple[float, ...] = ()  # longrope: a divisor a channel, texts up to `original`
    long: tuple[float, ...] = ()  # … and longer ones


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
    reads: Literal["tokens", "vectors"] = "tokens"  # vectors: of a front end (speech, images)
    writes: Literal["tokens", "vectors"] = "tokens"  # vectors: hidden states, no vocabulary head
    causal: bool = True
    cross: bool = False  # looks at the states of an encoder between attention and MLP
    # A letter a layer, repeated to the depth: G sees all, L the last `window`, N all without
    # rotary, S all by their sums (linear attention), C the last `taps` (LFM2's short convolution,
    # which looks back whether the stack is causal or not)
    pattern: str = "G"
    window: int = 0
    taps: int = 3
    # pre x+f(n(x)) · post n(x+f(x)) · output x+n(f(x)) · sandwich x+n'(f(n(x)))
    # · parallel x+attention(n(x))+mlp(n'(x)) · shared: parallel with n' = n
    wiring: Literal["pre", "post", "output", "sandwich", "parallel", "shared"] = "pre"
    # rms+1: multiplies by 1 + weight · plain: rms without a weight
    norm: Literal["rms", "rms+1", "plain", "layer"] = "rms"
    norm_epsilon: float = 1e-6
    # norm of queries and keys: of each head, of each head with own weights, of all heads at once
    qk_norm: Literal["none", "head", "heads", "all"] = "head"
    qk_norm_bias: bool = False
    positions: Literal["rotary", "learned", "sinusoidal", "relative", "alibi", "none"] = "rotary"
    rotary: Rotary = Rotary()
    local_rotary: Rotary | None = None  # of the L layers; None: as the others
    position_offset: int = 0  # rows of the position table before position 0 (OPT, RoBERTa)
    buckets: int = 32  # relative: distances told apart (T5)
    reach: int = 128  # relative: from here on all distances are one
    relative_layers: bool = False  # relative: a table a layer (umT5), not one for all
    gated: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    bias: str = ""  # which carry one: q k v o, u(p and gate), d(own), h(ead)
    # To each key a share of the key before it, learnt for every channel: Primer's convolution, two
    # wide (So et al. 2021). One layer can then look for what followed the same token before.
    key_shift: bool = False
    # In every second layer, the last among them, an embedding of tokens of its own, added to the
    # values through a gate a head (nanochat; after Zhou et al. 2024, ResFormer)
    value_tables: bool = False
    embedding_skips: bool = False  # each layer gets a learnt share of the embedding again
    # Rows of a hashed table; a token and the one before it have two, added to the embedding:
    # weights that cost no products (Huang et al. 2025, "Over-Tokenized Transformer"). 0: none
    pairs: int = 0
    experts: int = 0  # 0: one MLP for all tokens
    experts_used: int = 2
    experts_renormalised: bool = True  # the weights of the used ones sum to one
    score_scale: float = 0.0  # 0: 1/√head_width
    score_cap: float = 0.0  # 0: none; else cap · tanh(score / cap)
    logit_cap: float = 0.0
    logit_scale: float = 1.0
    logit_bias: bool = False  # a fixed vector added to the logits (Marian)
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    embedding_width: int = 0  # 0: width; else projected in and out (OPT-350m)
    embedding_norm: bool = False
    segments: int = 0  # rows of BERT's token-type embedding
    head_transform: bool = False  # BERT's dense → activation → norm before the vocabulary
    tied: bool = True

    def __post_init__(self):
        gated_hidden = -(-8 * self.width // 3 // 32) * 32
        for name in ("width", "depth", "heads", "context"):
            if getattr(self, name) < 1:
                raise _impossible(f"{name}={getattr(self, name)}", *LEAST)
        if self.vocabulary < 1 and "tokens" in (self.reads, self.writes):
            raise _impossible(f"vocabulary={self.vocabulary}", *LEAST)
        if not self.head_width and self.width < self.heads:
            raise _impossible(
                f"width={self.width}, heads={self.heads}",
                "every head needs a channel",
                "헤드마다 채널이 하나는 있어야 합니다",
            )
        defaults = {
            "kv_heads": self.heads,
            "head_width": self.width // self.heads,
            "hidden": gated_hidden if self.gated else 4 * self.width,
            "embedding_width": self.width,
            "score_scale": (self.head_width or self.width // self.heads) ** -0.5,
        }
        for name in ("kv_heads", "head_width", "hidden", "embedding_width"):
            if getattr(self, name) < 0:
                raise _impossible(f"{name}={getattr(self, name)}", *LEAST)
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.heads % self.kv_heads:
            raise _impossible(
                f"heads={self.heads}, kv_heads={self.kv_heads}",
                "heads must be a multiple of kv_heads",
                "heads는 kv_heads의 배수여야 합니다",
            )
        if not self.pattern or ("L" in self.pattern and not 0 < self.window <= 2**31):
            raise _impossible(
                f"window={self.window!r}, pattern={self.pattern!r}",
                "a window is at least 1",
                "창은 1 이상이어야 합니다",
            )
        if self.experts and not 0 < self.experts_used <= self.experts:
            raise _impossible(
                f"experts={self.experts}, experts_used={self.experts_used}",
                "from 1 to all of them can be used",
                "1개부터 전부까지 쓸 수 있습니다",
            )
        if self.position_offset < 0:
            raise _impossible(
                f"position_offset={self.position_offset}",
                "must be at least 0",
                "0 이상이어야 합니다",
            )
        turned = self.rotary.width or self.head_width
        if self.positions == "rotary" and (turned % 2 or turned > self.head_width):
            raise _impossible(
                f"head_width={self.head_width}, turned={turned}",
                "channels turn in pairs",
                "채널은 둘씩 짝지어 회전합니다",
            )
        if self.pairs < 0:
            raise _impossible(f"pairs={self.pairs}", "must be at least 0", "0 이상이어야 합니다")
        tables = self.pairs or self.value_tables
        if (self.key_shift or tables) and not (self.causal and self.reads == "tokens"):
            raise _impossible(
                f"key_shift={self.key_shift}, pairs={self.pairs}, "
                f"value_tables={self.value_tables}, causal={self.causal}",
                "these are for stacks that read tokens in their order",
                "토큰을 차례대로 읽는 모델에만 둘 수 있습니다",
            )
        if set(self.pattern) - set("GLNSC"):
            raise _impossible(
                f"pattern={self.pattern!r}",
                "a layer is G, L, N, S or C",
                "층은 G, L, N, S, C 중 하나입니다",
            )
        if "C" in self.pattern and not 1 <= self.taps <= 2**10:
            raise _impossible(
                f"pattern={self.pattern!r}, taps={self.taps}",
                "a convolution has 1 to 1024 taps",
                "합성곱 층은 탭이 1개에서 1024개까지입니다",
            )
        if "S" in self.pattern and (self.positions in ("relative", "alibi") or self.score_cap):
            raise _impossible(
                f"pattern={self.pattern!r}, positions={self.positions}, score_cap={self.score_cap}",
                "a layer of sums makes no scores that a distance or a cap could change",
                "합으로 보는 층에는 거리나 상한으로 고칠 점수가 없습니다",
            )
        if (self.qk_norm, self.norm == "layer") in (("all", True), ("heads", False)):
            raise _impossible(
                f"qk_norm={self.qk_norm}, norm={self.norm}",
                "no checkpoint is known to have both",
                "둘을 함께 쓰는 체크포인트는 알려져 있지 않습니다",
            )

    def kind(self, layer: int) -> str:
        """G, L, N, S or C: what layer number `layer` sees."""
        return self.pattern[layer % len(self.pattern)]

    def tables_in(self, layer: int) -> bool:
        """Whether this layer has a table of values."""
        wanted = self.value_tables and layer % 2 == (self.depth - 1) % 2
        return wanted and self.kind(layer) != "C"

    def rotary_of(self, kind: str) -> Rotary | None:
        """The rotary positions of a layer of this kind; None when it has none."""
        if self.positions != "rotary" or kind in "NC":
            return None
        return self.local_rotary if kind == "L" and self.local_rotary else self.rotary

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _impossible(values: str, rule: str, rule_ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"No transformer has {values}: {rule}.",
            "The model cannot be built.",
            "Change the plan, or check the config.json it was read from.",
        ),
        ko=(
            f"{values}인 트랜스포머는 만들 수 없습니다. {rule_ko}.",
            "모델을 세울 수 없습니다.",
            "계획의 값을 고치거나, 읽어 온 config.json을 확인해 주세요.",
        ),
    )


def decoder_shape(vocabulary: int, width: int, depth: int, context: int = 1024) -> Shape:
    """Qwen3's wiring at any size: RMSNorm, rotary positions, QK-norm, grouped queries, SwiGLU."""
    heads = max(2, width // 64)
    return Shape(
        vocabulary, width, depth, heads, kv_heads=_divisor(heads, heads // 2), context=context
    )


def _divisor(of: int, most: int) -> int:
    """The largest divisor that is no larger than `most`."""
    return next(n for n in range(most, 0, -1) if of % n == 0)


def hybrid_shape(vocabulary: int, width: int, depth: int, context: int = 1024) -> Shape:
    """LFM2's wiring at any size: `decoder_shape` in which, counted from the end, every fourth layer
    attends and the rest, the first among them, are short convolutions. Learns more than attention
    alone from the same text in less time (docs/training.md), and whatever opens LFM2 opens it."""
    attends = [i > 0 and (depth - 1 - i) % 4 == 0 for i in range(depth)]
    pattern = "".join("G" if here else "C" for here in attends)
    return replace(decoder_shape(vocabulary, width, depth, context), pattern=pattern)


def race_shape(vocabulary: int, width: int, depth: int, context: int = 1024) -> Shape:
    """What learns most in a core-second of those measured (docs/log.md, "Training against
    nanochat"), at the price that no other tool reads it: `decoder_shape` is for use. Queries and
    keys of length one get nanochat's sharper scores, 1.2² times the usual."""
    heads = max(2, width // 64)
    return Shape(
        vocabulary,
        width,
        depth,
        heads,
        context=context,
        score_scale=1.44 * (width // heads) ** -0.5,
        norm="plain",
        gated=False,
        activation="relu2",
        embedding_norm=True,
        key_shift=True,
        value_tables=True,
        embedding_skips=True,
        pairs=11 * vocabulary // 2,
        tied=False,
    )


def encoder_shape(vocabulary: int, width: int, depth: int, context: int = 512) -> Shape:
    """BERT's wiring at any size, with three segments: question, passage, and the passage's words
    that the question also has."""
    return Shape(
        vocabulary,
        width,
        depth,
        _divisor(width, max(2, width // 64)),
        context=context,
        causal=False,
        wiring="post",
        norm="layer",
        norm_epsilon=1e-12,
        qk_norm="none",
        positions="learned",
        gated=False,
        activation="gelu",
        bias="qkvoudh",
        segments=3,
        embedding_norm=True,
        head_transform=True,
    )
