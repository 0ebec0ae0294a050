"""Under which licence a checkpoint came, as far as its folder says.

Asked in this order: the front matter of README.md (the model card's `license`, or `license_name`
where that is "other"), the first lines of a LICENSE file, config.json. Nothing is forbidden here:
what a licence is known to rule out is told in a sentence, and the reader decides. It is no legal
advice, and a licence that nobody listed below is named and left to its text. Source: the model card
specification (huggingface/hub-docs, modelcard.md) and the licences themselves.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onsil.errors import say

UNKNOWN = "unknown"
FRONT, FIRST_LINES = 64_000, 2_000  # bytes read of a README.md, of a LICENSE

# How the texts begin; the first that fits counts.
TEXTS = (
    (r"EXAONE AI Model License", "exaone"),
    (r"HyperCLOVA X SEED Model License", "hyperclovax-seed"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA (3\.\d|4) COMMUNITY LICENSE", "llama3.1"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Attribution-NonCommercial-NoDerivatives", "cc-by-nc-nd-4.0"),
    (r"Attribution-NonCommercial-ShareAlike", "cc-by-nc-sa-4.0"),
    (r"Attribution-NonCommercial", "cc-by-nc-4.0"),
    (r"Attribution-ShareAlike", "cc-by-sa-4.0"),
    (r"Attribution 4\.0 International", "cc-by-4.0"),
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"MIT License|Permission is hereby granted, free of charge", "mit"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE", "agpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE", "gpl-3.0"),
    (r"Redistribution and use in source and binary forms", "bsd"),
)
# What names are known to rule out.
RULES = (
    ("selling", r"(^|-)nc(-|$)|non-?commercial|^exaone"),
    ("sharing changes", r"(^|-)nd(-|$)"),
    ("teaching", r"^exaone|^llama-?[23]$"),
    ("free teaching", r"^gemma|^hyperclovax"),
)


@dataclass(frozen=True)
class Licence:
    """`name` in lower case or "unknown", the file that says so, and what it rules out."""

    name: str
    source: str = ""

    @property
    def forbids(self) -> tuple[str, ...]:
        return tuple(what for what, names in RULES if re.search(names, self.name))


def licence_of(folder: Path, config: dict[str, Any]) -> Licence:
    """The licence of a checkpoint folder."""
    card = folder / "README.md"
    if card.is_file() and (name := named_in_card(beginning(card, FRONT))):
        return Licence(name, card.name)
    for file in sorted(folder.glob("LICEN[SC]E*")):
        text = beginning(file, FIRST_LINES)
        for pattern, name in TEXTS:
            if re.search(pattern, text, re.IGNORECASE):
                return Licence(name, file.name)
    told = config.get("license")
    if isinstance(told, str) and told.strip():
        return Licence(told.strip().lower(), "config.json")
    return Licence(UNKNOWN)


def beginning(file: Path, size: int) -> str:
    with file.open("rb") as f:
        return f.read(size).decode("utf-8", "replace")


def named_in_card(text: str) -> str:
    """`license` of a front matter; `license_name` where the licence is none of the known ones.

    Only these two lines are read, as a name or as a list whose first item counts.
    """
    front = re.match(r"﻿?---\s*\n(.*?)\n---", text + "\n---", re.DOTALL)
    if front is None:
        return ""
    found = {}
    for key in ("license", "license_name"):
        value = re.search(rf"^{key}:[ \t]*(?:\n[ \t]*-[ \t]*)?([^\s#]+)", front[1], re.MULTILINE)
        found[key] = value[1].strip("\"'[],").lower() if value else ""
    if found["license"] in ("", "other") and found["license_name"]:
        return found["license_name"]
    return found["license"] if not found["license"].endswith(":") else ""


def told(licence: Licence) -> list[str]:
    """What a reader should know before using it, a sentence each; empty when nothing is."""
    name = licence.name
    if name == UNKNOWN:
        return [
            say(
                "Nothing in the folder says under which licence it came: ask its authors before "
                "you pass it on.",
                "라이선스가 적혀 있지 않습니다. 남에게 주기 전에 만든 곳에 확인해 주세요.",
            )
        ]
    sentences = {
        "selling": say(
            f"{name} does not allow commercial use.",
            f"{name} 라이선스는 상업적 이용을 허락하지 않습니다.",
        ),
        "sharing changes": say(
            f"{name} does not allow changed copies to be passed on, further training included.",
            f"{name} 라이선스는 고친 것(추가 학습한 것 포함)의 배포를 허락하지 않습니다.",
        ),
        "teaching": say(
            f"{name} restricts teaching other models with its output: read its text first.",
            f"{name} 라이선스는 출력으로 다른 모델을 가르치는 것을 제한합니다. "
            "원문을 먼저 읽어 주세요.",
        ),
        "free teaching": say(
            f"What is taught with its output falls under {name} too.",
            f"출력으로 가르친 모델도 {name} 라이선스를 따릅니다.",
        ),
    }
    return [sentences[what] for what in licence.forbids]
