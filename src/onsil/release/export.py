"""Out again, in the layout that other tools open: the same bytes for what was loaded, a folder for
each part of what grew here.

Written into a draft beside the target and renamed, so that a target is whole or not there.
"""

import json
import os
import shutil
from pathlib import Path

from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.lineage.spelling import sync, sync_folder
from onsil.models.headers import read_json
from onsil.release.inspection import PARTS
from onsil.tokenizer.train import CLS, END, MASK, PAD, SEP, SPECIALS

WEIGHTS = ("config.json", "model.safetensors")
ROLES = {"pad": PAD, "eos": END, "cls": CLS, "sep": SEP, "mask": MASK}


def export_model(ws: Workspace, name: str, target: Path) -> list[str]:
    """The files of a model under `target`, whose names are returned.

    Raises OnsilError when the target has something in it or the model is no longer whole.
    """
    called, version, made = ws.resolve(name)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise _not_empty(target)
    folder = ws.whole(made)
    draft = target.parent / f".{target.name}.{os.getpid()}"
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        if (folder / "config.json").is_file():
            shutil.copytree(folder, draft)
        elif (folder / "model.json").is_file():
            export_grown(folder, draft)
        else:
            raise _no_model(f"{called}@{version}")
        sync_folder(draft)
        os.rename(draft, target)
        sync(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())


def export_grown(folder: Path, draft: Path) -> None:
    """The parts of a grown model, each with its tokenizer, and the tokenizer alone."""
    shutil.copytree(folder / "tokenizer", draft / "tokenizer")
    for part in (part for part in PARTS if (folder / part).is_dir()):
        (draft / part).mkdir()
        for file in WEIGHTS:
            shutil.copyfile(folder / part / file, draft / part / file)
        shutil.copyfile(folder / "tokenizer" / "tokenizer.json", draft / part / "tokenizer.json")
        context = read_json(folder / part / "config.json")["max_position_embeddings"]
        write_settings(draft / part, context)
    write_settings(draft / "tokenizer")


def write_settings(folder: Path, context: int | None = None) -> None:
    """tokenizer_config.json: which special token plays which role."""
    roles = {f"{role}_token": SPECIALS[at] for role, at in ROLES.items()}
    settings: dict[str, str | int] = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    if context is not None:
        settings["model_max_length"] = context
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _not_empty(target: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{target} is not empty.",
            "Files of two models in one folder would be taken for one.",
            "Give a folder that does not exist yet.",
        ),
        ko=(
            f"{target}가 비어 있지 않습니다.",
            "두 모델의 파일이 한 폴더에 섞이면 한 모델로 읽힙니다.",
            "아직 없는 폴더 이름을 주세요.",
        ),
    )


def _no_model(name: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{name} holds no model to write.",
            "Only loaded checkpoints and grown models have a layout that other tools open.",
            "See what it is with: onsil lineage NAME",
        ),
        ko=(
            f"{name}에는 내보낼 모델이 없습니다.",
            "불러온 체크포인트와 기른 모델만 다른 도구가 여는 형식으로 쓸 수 있습니다.",
            "무엇인지 확인하려면: onsil lineage 이름",
        ),
    )
