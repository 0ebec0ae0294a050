"""What a checkpoint is, from its config and headers alone: no weight is read.

Sizes, memory and abilities follow from the shape; the licence from the folder. Numbers are those of
the file: a head that is stored beside the embedding it is tied to counts, scales of int8 do not.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onsil.errors import say
from onsil.lineage import Workspace
from onsil.models.headers import SCALE, Entry, entries, read_json
from onsil.models.licence import licence_of, told
from onsil.models.shape import Shape

PARTS = ("decoder", "generator", "reader")  # of a grown model; each is a checkpoint
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}
NO_WEIGHT = re.compile(r"\.(?:inv_freq|masked_bias|position_ids)$|" + re.escape(SCALE) + "$")
LIMITLESS = ("relative", "alibi", "none")
# What a model can do → the keys that only configs of such models have.
SENSES = {
    "hear": {"num_mel_bins", "conv_stride", "audio_channels"},
    "see": {"patch_size", "vision_config"},
}


def inspect_model(target: str, find: Callable[[], Workspace]) -> dict[str, dict[str, Any]]:
    """`{title: what it is}` of a folder or a name; a grown model has a title for each part.

    A workspace is only looked for (`find`) when there is no such folder.
    """
    folder, title, grown = Path(target), target, False
    if not folder.is_dir():
        name, version, made = find().resolve(target)
        folder, title = made.path, f"{name}@{version}"
        grown = (folder / "model.json").is_file()
    if grown:
        parts = [part for part in PARTS if (folder / part).is_dir()]
        return {f"{title}/{part}": inspect_part(folder, part) for part in parts}
    return {title: inspect_folder(folder)}


def inspect_part(folder: Path, part: str) -> dict[str, Any]:
    """A part of a grown model: its tokenizer lies beside it, its licence is its owner's."""
    found = inspect_folder(folder / part)
    own = {"name": say("your own", "직접 기른 모델"), "source": "onsil grow", "forbids": []}
    can = found["can"] | {"documents": True}
    return found | {"licence": own, "tokenizer": "tokenizer.json", "can": can, "told": []}


def inspect_folder(folder: Path) -> dict[str, Any]:
    """What a checkpoint folder is. Raises OnsilError where `onsil load` would refuse its files."""
    from onsil.models.config import quantised
    from onsil.models.families import shape_of

    config = read_json(folder / "config.json")
    quantised(config)
    shape: Any = shape_of(config)
    stacks: list[Shape] = [shape] if isinstance(shape, Shape) else list(shape.stacks)
    found = {name: e for name, e in entries(folder).items() if not NO_WEIGHT.search(name)}
    last = stacks[-1] if stacks else None
    limit = last.context if last and last.positions not in LIMITLESS else None
    licence = licence_of(folder, config)
    tokenizer = folder / "tokenizer.json"
    total = sum(entry.size for entry in found.values())
    return {
        "family": config["model_type"],
        "kind": kind(stacks),
        "stacks": [stack.as_dict() for stack in stacks],
        "types": sorted({entry.dtype for entry in found.values()}),
        "parameters": total,
        "active_parameters": active(found, last) if last else total,
        "memory": {name: round(total * size) for name, size in BYTES.items()},
        "cache_per_1000_tokens": cache(last) if last and last.causal else None,
        "context": limit,
        "vocabulary": last.vocabulary if last else 0,
        "licence": {
            "name": licence.name,
            "source": licence.source,
            "forbids": list(licence.forbids),
        },
        "told": told(licence),
        "tokenizer": tokenizer.name if tokenizer.is_file() else None,
        "chat_template": has_chat_template(folder),
        "can": abilities(stacks, config, tokenizer.is_file()),
    }


def kind(stacks: list[Shape]) -> str:
    """decoder, encoder, encoder-decoder, or a codec, which has no stack."""
    if not stacks:
        return "codec"
    last = stacks[-1]
    return "encoder-decoder" if last.cross else "decoder" if last.causal else "encoder"


def active(found: dict[str, Entry], shape: Shape) -> int:
    """Weights that one token passes: all of them but the experts it is not sent to."""
    experts = sum(e.size for name, e in found.items() if ".experts." in name)
    idle = 1 - shape.experts_used / shape.experts if shape.experts else 0.0
    return sum(e.size for e in found.values()) - round(experts * idle)


def cache(shape: Shape) -> dict[str, int]:
    """Bytes of keys and values for 1,000 tokens, when every layer keeps them all."""
    numbers = 2 * shape.depth * shape.kv_heads * shape.head_width * 1000
    return {"fp32": 4 * numbers, "bf16": 2 * numbers}


def abilities(stacks: list[Shape], config: dict[str, Any], tokenizer: bool) -> dict[str, bool]:
    """What onsil can do with such stacks; `documents`: whether `onsil grow --base` can go on from
    it, for which the words and their ids must be known."""
    senses = {what: not keys.isdisjoint(config) for what, keys in SENSES.items()}
    words = [stack for stack in stacks if stack.reads == "tokens" and not stack.cross]
    speaks = [stack for stack in words if stack.writes == "tokens"]
    return {
        "write": any(stack.causal for stack in speaks),
        "read": bool(words),
        "fill": any(not stack.causal for stack in speaks),
        "translate": bool(words) and stacks[-1].cross,
        **senses,
        "train": True,
        "documents": tokenizer and len(stacks) == 1 and bool(speaks),
    }


def has_chat_template(folder: Path) -> bool:
    if any((folder / f"chat_template.{end}").is_file() for end in ("jinja", "json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


# ── in words ────────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "decoder": ("decoder", "디코더"),
    "encoder": ("encoder", "인코더"),
    "encoder-decoder": ("encoder and decoder", "인코더와 디코더"),
    "codec": ("codec of sound", "소리 코덱"),
}
CAN = {
    "write": ("write on", "글 이어 쓰기"),
    "read": ("turn words into vectors, classify", "낱말을 벡터로 읽고 분류하기"),
    "fill": ("fill in masked words", "가린 낱말 채우기"),
    "translate": ("translate or summarise", "번역, 요약하기"),
    "hear": ("hear", "듣기"),
    "see": ("see", "보기"),
    "train": ("be trained further", "이어서 학습하기"),
    "documents": (
        "be asked from documents (onsil grow --base)",
        "문서에서 답하기(onsil grow --base)",
    ),
}
POSITIONS = {
    "rotary": ("rotary positions", "회전 위치(RoPE)"),
    "learned": ("learned positions", "학습한 위치"),
    "sinusoidal": ("sinusoidal positions", "사인파 위치"),
    "relative": ("relative positions", "상대 위치"),
    "alibi": ("ALiBi positions", "ALiBi 위치"),
    "none": ("no positions", "위치 없음"),
}


def described(title: str, found: dict[str, Any]) -> str:
    """An inspection as lines for a reader, in his language."""
    memory = " · ".join(f"{name} {size_of(n)}" for name, n in found["memory"].items())
    rows = [
        f"{title}: {found['family']}, {say(*KINDS[found['kind']])}, {', '.join(found['types'])}",
        *(f"  {stack_in_words(stack)}" for stack in found["stacks"]),
        say("parameters: ", "매개변수: ") + parameters_in_words(found),
        say("weights in memory: ", "메모리(가중치만): ") + memory,
    ]
    if kept := found["cache_per_1000_tokens"]:
        told = " · ".join(f"{name} {size_of(n)}" for name, n in kept.items())
        rows.append(say("cache per 1,000 tokens: ", "토큰 1,000개당 캐시: ") + told)
    context = f"{found['context']:,}" if found["context"] else say("no fixed limit", "한계 없음")
    rows += [
        say("context: ", "문맥: ") + context,
        *([say("vocabulary: ", "어휘: ") + f"{words:,}"] if (words := found["vocabulary"]) else []),
        say("licence: ", "라이선스: ") + licence_in_words(found["licence"]),
        *(f"  {sentence}" for sentence in found["told"]),
        say("tokenizer: ", "토크나이저: ") + tokenizer_in_words(found),
        say("can: ", "할 수 있는 일: ")
        + "; ".join(say(*words) for what, words in CAN.items() if found["can"][what]),
    ]
    speaks = found["can"]["write"] or found["can"]["fill"]
    if speaks and len(found["stacks"]) == 1 and not found["can"]["documents"]:
        rows.append(
            say(
                "cannot be asked from documents: that needs a tokenizer.json",
                "문서에서 답하려면 tokenizer.json이 필요합니다",
            )
        )
    return "\n".join(rows)


def stack_in_words(stack: dict[str, Any]) -> str:
    heads, kept = stack["heads"], stack["kv_heads"]
    told = [
        say(f"{stack['depth']} layers", f"{stack['depth']}층"),
        say(f"{stack['width']:,} wide", f"너비 {stack['width']:,}"),
        say(f"{heads} heads of {stack['head_width']}", f"너비 {stack['head_width']} 헤드 {heads}개")
        + (say(f" ({kept} for keys)", f"(키는 {kept}개)") if kept != heads else ""),
        say(f"MLP of {stack['hidden']:,}", f"MLP {stack['hidden']:,}"),
    ]
    if stack["experts"]:
        used, all_ = stack["experts_used"], stack["experts"]
        told.append(
            say(f"{used} of {all_} experts a token", f"전문가 {all_}개 중 토큰마다 {used}개")
        )
    told.append(say(*POSITIONS[stack["positions"]]))
    if "L" in stack["pattern"]:
        told.append(say(f"window of {stack['window']:,}", f"창 {stack['window']:,}"))
    return ", ".join(told)


def parameters_in_words(found: dict[str, Any]) -> str:
    total, active = found["parameters"], found["active_parameters"]
    if active == total:
        return f"{total:,}"
    return f"{total:,}" + say(f", {active:,} for a token", f", 토큰마다 {active:,}개 사용")


def licence_in_words(licence: dict[str, Any]) -> str:
    if not licence["source"]:
        return say("unknown", "알 수 없음")
    return f"{licence['name']} ({licence['source']})"


def tokenizer_in_words(found: dict[str, Any]) -> str:
    there = found["tokenizer"] or say("none", "없음")
    return there + (say(", chat template", ", 대화 틀 있음") if found["chat_template"] else "")


def size_of(count: int) -> str:
    """Bytes as a reader says them: 1.1 GB is 1,100,000,000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"
