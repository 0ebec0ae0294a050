"""The families that hear and see: wav2vec 2.0, SigLIP, LLaVA, EnCodec.

Facts are those of the config and model files in transformers 5.23, whose defaults stand in for
what a config.json leaves out.
"""

import math
from typing import Any

from onsil.models.autoencoder import CodecShape
from onsil.models.config import Config, is_list, is_positive, is_whole
from onsil.models.families import decoders
from onsil.models.families.encoders import layer_normed
from onsil.models.shape import Shape
from onsil.models.speech_encoder import SpeechShape
from onsil.models.vision import ImageTextShape, SeeingShape, VisionShape

# ── wav2vec 2.0 ─────────────────────────────────────────────────────────────────────────────────

WAV2VEC2 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 32,
}  # fmt: skip


def wav2vec2(c: Config) -> SpeechShape:
    """Base (norm after the branch, group norm in front) and large ("stable": norm before it)."""
    c = c.completed(WAV2VEC2)
    c.only("feat_extract_norm", "group", "layer")
    c.only("add_adapter", False)
    c.only("adapter_attn_dim")
    channels = c.numbers("conv_dim", (512,) * 7)
    kernels = c.numbers("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = c.numbers("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    if not len(channels) == len(kernels) == len(strides):
        raise c.wrong(
            "conv_dim",
            f"for {len(channels)} layers, conv_kernel for {len(kernels)}, "
            f"conv_stride for {len(strides)}",
            f"{len(channels)}층, conv_kernel은 {len(kernels)}층, "
            f"conv_stride는 {len(strides)}층으로 서로 다릅니다",
        )
    stable = c.switch("do_stable_layer_norm")
    words = c.published_class in ("", "Wav2Vec2ForCTC")
    stack = layer_normed(
        c,
        bias="qkvoudh" if words else "qkvoud",
        reads="vectors",
        writes="tokens" if words else "vectors",
        wiring="pre" if stable else "post",
        embedding_norm=not stable,
        positions="none",
    )
    groups = c.number("num_conv_pos_embedding_groups", default=16)
    if stack.width % groups:
        raise c.wrong(
            "num_conv_pos_embedding_groups",
            f"{groups}, which does not divide hidden_size {stack.width}",
            f"{groups}이어서 hidden_size {stack.width}의 약수가 아닙니다",
        )
    return SpeechShape(
        stack,
        channels,
        kernels,
        strides,
        conv_bias=c.switch("conv_bias"),
        conv_norm=c.get("feat_extract_norm", default="group"),
        conv_activation=c.activation("feat_extract_activation", default="gelu"),
        position_kernel=c.number("num_conv_pos_embeddings", default=128),
        position_groups=groups,
    )


# ── SigLIP ──────────────────────────────────────────────────────────────────────────────────────

SIGLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 64, "vocab_size": 32000,
    "num_channels": 3, "image_size": 224, "patch_size": 16,
}  # fmt: skip


def siglip_stack(c: Config, **more: Any) -> Shape:
    return layer_normed(
        c,
        **more,
        positions="learned",
        norm_epsilon=c.real("layer_norm_eps", default=1e-6),
        activation=c.activation("hidden_act", default="gelu_pytorch_tanh"),
    )


def siglip_vision(c: Config) -> VisionShape:
    """The tower of images, by itself or within another config."""
    c = c.completed(SIGLIP)
    image, patch = c.number("image_size"), c.number("patch_size")
    if not patch <= image <= 2**14:
        raise c.wrong(
            "patch_size",
            f"{patch} for images of {image}",
            f"{patch}인데 이미지는 {image}입니다",
        )
    stack = siglip_stack(c, vocabulary=0, reads="vectors", context=(image // patch) ** 2)
    pooled = c.switch("vision_use_head", default=True)
    return VisionShape(stack, image, patch, c.number("num_channels"), pooled)


def siglip(c: Config) -> ImageTextShape:
    """Both towers."""
    vision = siglip_vision(c.part("vision_config"))
    text = c.part("text_config").completed(SIGLIP)
    stack = siglip_stack(text)
    met = text.number("projection_size", default=stack.width)
    if met != vision.stack.width or not vision.pooled:
        raise c.wrong(
            "projection_size",
            f"{met} beside images of {vision.stack.width if vision.pooled else 'no one vector'}",
            f"{met}인데 이미지 쪽은 {vision.stack.width if vision.pooled else '한 벡터가 아님'}"
            "이어서 맞지 않습니다",
        )
    return ImageTextShape(vision, stack)


# ── LLaVA ───────────────────────────────────────────────────────────────────────────────────────

TEXTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "qwen2": {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
    },
}  # fmt: skip


def llava(c: Config) -> SeeingShape:
    """A SigLIP tower, all its patches, within LLaMA or Qwen2."""
    vision, text = c.part("vision_config"), c.part("text_config")
    for inner, key, known, usual in (
        (vision, "vision_config", ("siglip_vision_model",), "clip_vision_model"),
        (text, "text_config", tuple(TEXTS), None),
    ):
        if (told := inner.raw.get("model_type", usual)) not in known:
            raise c.wrong(
                f"{key}.model_type",
                f"{told!r}, which is not built here ({', '.join(known)})",
                f"{told!r}이어서 지원하지 않습니다({', '.join(known)}만 됩니다)",
            )
    if (kept := c.get("vision_feature_select_strategy", default="default")) != "full":
        raise c.wrong(
            "vision_feature_select_strategy",
            f"{kept!r}: only a CLIP tower has a first state to leave out",
            f"{kept!r}입니다. 첫 상태를 빼는 것은 CLIP 이미지 탑에만 맞습니다",
        )
    tower = siglip_vision(vision)
    told, depth = c.get("vision_feature_layer", default=-2), tower.stack.depth
    layers = told if isinstance(told, list) else [told]
    if not 0 < len(layers) <= depth + 1 or not all(is_whole(n, -depth - 1, depth) for n in layers):
        shown = repr(told)[:200]
        raise c.wrong(
            "vision_feature_layer",
            f"{shown} of a tower of {depth} layers",
            f"{shown}인데 이미지 탑은 {depth}층입니다",
        )
    tied = c.switch("tie_word_embeddings") or text.switch("tie_word_embeddings")
    given = text.completed(TEXTS[text.family]).raw
    whole = Config(given | {"tie_word_embeddings": tied, "architectures": None})
    return SeeingShape(
        tower,
        decoders.llama_like(whole),
        c.number("image_token_index", "image_token_id", default=32_000),
        tuple(layers),
        c.activation("projector_hidden_act", default="gelu"),
        c.switch("multimodal_projector_bias", default=True),
    )


# ── EnCodec ─────────────────────────────────────────────────────────────────────────────────────


def encodec(c: Config) -> CodecShape:
    """24 kHz mono (causal, weight norm) and 48 kHz stereo (norm over time, chunks)."""
    c.only("norm_type", "weight_norm", "time_group_norm")
    c.only("pad_mode", "reflect", "constant")
    width, rate = c.number("hidden_size", default=128), c.number("sampling_rate", default=24_000)
    ratios, bands = c.numbers("upsampling_ratios", (8, 5, 4, 2)), bandwidths(c)
    codes, filters = c.number("codebook_size", default=1024), c.number("num_filters", default=32)
    squeeze, growth = c.number("compress", default=2), c.number("dilation_growth_rate", default=2)
    layers = c.number("num_residual_layers", default=1)
    causal = c.switch("use_causal_conv", default=True)
    trim = c.real("trim_right_ratio", default=1.0)
    for key, value, sound in (
        ("codebook_dim", c.get("codebook_dim", default=width), lambda v: v == width),
        ("codebook_size", codes, lambda v: v > 1 and v & (v - 1) == 0),
        ("upsampling_ratios", ratios, lambda v: len(v) <= 12 and math.prod(v) <= rate),
        ("compress", squeeze, lambda v: v <= filters),
        ("dilation_growth_rate", growth, lambda v: (layers - 1) * math.log2(v) <= 16),
        ("trim_right_ratio", trim, lambda v: v == 1.0 or (causal and 0 <= v < 1)),
        ("audio_channels", c.number("audio_channels", default=1), lambda v: v <= 2),
    ):
        if not sound(value):
            raise c.wrong(
                key,
                f"{value!r}, which does not go with the rest",
                f"{value!r}이어서 다른 값들과 맞지 않습니다",
            )
    chunk, step = chunks(c, rate)
    shape = CodecShape(
        rate,
        c.number("audio_channels", default=1),
        width,
        filters,
        ratios,
        codes,
        bands,
        kernel=c.number("kernel_size", default=7),
        last_kernel=c.number("last_kernel_size", default=7),
        residual_kernel=c.number("residual_kernel_size", default=3),
        residual_layers=layers,
        residual_squeeze=squeeze,
        dilation_growth=growth,
        shortcut=c.switch("use_conv_shortcut", default=True),
        lstm_layers=c.number("num_lstm_layers", default=2),
        causal=causal,
        padding=c.get("pad_mode", default="reflect"),
        trim_right=trim,
        norm=c.get("norm_type", default="weight_norm"),
        loudness=c.switch("normalize"),
        chunk=chunk,
        chunk_step=step,
    )
    if shape.levels < 1:
        raise c.wrong(
            "target_bandwidths",
            f"{bands}, too little for one level of codes",
            f"{bands}이어서 코드 한 단계에도 모자랍니다",
        )
    return shape


def bandwidths(c: Config) -> tuple[float, ...]:
    """Kilobits a second."""
    told = c.get("target_bandwidths", default=[1.5, 3.0, 6.0, 12.0, 24.0])
    told = list(told) if isinstance(told, tuple) else told
    if not told or not is_list(told, lambda one: is_positive(one, 1e6)):
        shown = repr(told)[:200]
        raise c.wrong("target_bandwidths", f"{shown}", f"{shown}이어서 쓸 수 없습니다")
    return tuple(map(float, told))


def chunks(c: Config, rate: int) -> tuple[int, int]:
    """Samples of a chunk and from one chunk to the next; zeros where the wave is not cut."""
    if c.get("chunk_length_s") is None:
        return 0, 0
    length, overlap = c.real("chunk_length_s", default=1.0), c.real("overlap", default=-1.0)
    if not 0 <= overlap < 1 or not 1 <= length * rate <= 2**28:
        raise c.wrong(
            "chunk_length_s",
            f"{length} with overlap {c.get('overlap')!r}",
            f"{length}이고 overlap은 {c.get('overlap')!r}이어서 자를 수 없습니다",
        )
    chunk = int(length * rate)
    return chunk, max(1, int((1.0 - overlap) * chunk))
