"""The families: for each `model_type` a function config.json → shape, and a table of names.

Nothing here reads a weight; checkpoint.py does, by these tables.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from onsil.errors import OnsilError
from onsil.models.autoencoder import AudioCodec
from onsil.models.config import Config
from onsil.models.encoder_decoder import EncoderDecoder
from onsil.models.families import decoders, encoders, pairs, senses
from onsil.models.families.names import TABLES, Rule, rules_of
from onsil.models.speech_encoder import SpeechEncoder
from onsil.models.transformer import Transformer
from onsil.models.vision import ImageText, SeeingDecoder, VisionTower

__all__ = ["FAMILIES", "Family", "family_of", "shape_of"]


@dataclass(frozen=True)
class Family:
    """How one `model_type` reads: config → shape, and its table in names.txt; `prefix` is what some
    checkpoints leave off their names, `dialects` are patterns of names that were written otherwise.
    """

    shape: Callable[[Config], Any]
    table: str
    prefix: str = ""
    build: Callable[..., nn.Module] = Transformer
    dialects: tuple[tuple[str, str], ...] = ()

    def names(self, shape: Any) -> list[Rule]:
        """What the tensors of a shape are called on disk."""
        return rules_of(self.table, shape)


def llama_like(name: str) -> Family:
    prefix = "transformer." if name == "exaone" else "model."
    return Family(decoders.llama_like, name if name in TABLES else "llama", prefix)


GPT_PREFIX = {"gpt_neox": "gpt_neox.", "opt": "model."}
# Older checkpoints have «vision_model.» within the tower, some also «model.» in front of all.
LLAVA_DIALECTS = (
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "vision_tower."),
    (r"^(?:model\.)?multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.language_model\.(?:model\.)?", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
FAMILIES: dict[str, Family] = {
    **{name: llama_like(name) for name in decoders.LLAMA_LIKE},
    **{
        name: Family(decoders.gpt_like, name, GPT_PREFIX.get(name, "transformer."))
        for name in decoders.GPT_LIKE
    },
    "bert": Family(encoders.bert, "bert", "bert."),
    "roberta": Family(encoders.roberta, "roberta", "roberta."),
    **dict.fromkeys(("t5", "mt5", "umt5"), Family(pairs.t5, "t5", build=EncoderDecoder)),
    "marian": Family(pairs.marian, "marian", "model.", EncoderDecoder),
    "whisper": Family(pairs.whisper, "whisper", "model.", EncoderDecoder),
    "wav2vec2": Family(senses.wav2vec2, "wav2vec2", "wav2vec2.", SpeechEncoder),
    "siglip_vision_model": Family(
        senses.siglip_vision, "siglip_vision_model", "vision_model.", VisionTower
    ),
    "siglip": Family(senses.siglip, "siglip", build=ImageText),
    "llava": Family(senses.llava, "llava", build=SeeingDecoder, dialects=LLAVA_DIALECTS),
    "encodec": Family(senses.encodec, "encodec", build=AudioCodec),
}


def family_of(config: dict[str, Any]) -> Family:
    """The family a config.json names. Raises OnsilError when it is not built here, or when the
    checkpoint brings code of its own."""
    name = str(config.get("model_type", ""))
    if "auto_map" in config:
        raise OnsilError(
            en=(
                "This checkpoint asks for code of its own (auto_map in config.json).",
                "onsil never runs code that comes with weights: it could do anything here.",
                f"If it is an ordinary {name or 'model'}, remove auto_map from config.json.",
            ),
            ko=(
                "이 체크포인트는 자체 코드 실행을 요구합니다(config.json의 auto_map).",
                "가중치에 딸려 온 코드는 무엇이든 할 수 있으므로 실행하지 않습니다.",
                f"일반적인 {name or '모델'}이면 config.json에서 auto_map을 지우고 불러 주세요.",
            ),
        )
    if name not in FAMILIES:
        near = (get_close_matches(name, FAMILIES, 1, 0.0) or ["llama"])[0]
        known = ", ".join(FAMILIES)
        raise OnsilError(
            en=(
                f"Checkpoints of type {name!r} cannot be loaded; the nearest known is {near}.",
                "Guessing a wiring would give wrong answers without a warning.",
                f"Families known here: {known}.",
            ),
            ko=(
                f"{name!r} 계열의 체크포인트는 불러올 수 없습니다. 가장 가까운 것은 {near}입니다.",
                "구조를 짐작해서 읽으면 틀린 답을 경고 없이 내게 됩니다.",
                f"읽을 수 있는 계열: {known}.",
            ),
        )
    return FAMILIES[name]


def shape_of(config: dict[str, Any]) -> Any:
    """The shape of a config.json (two of them for an encoder-decoder). Raises OnsilError."""
    return family_of(config).shape(Config(copy.deepcopy(config)))
