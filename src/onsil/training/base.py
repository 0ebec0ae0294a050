"""Starting from a base: a tokenizer and weights that somebody grew before, instead of from nothing.

A base is a folder with tokenizer.json and `encoder/`, `decoder/` or both, each a checkpoint that
`models.families` loads; a folder that is itself one checkpoint with its tokenizer.json is taken as
the part it is. The tokenizer must keep onsil's special tokens on their ids, because the renderers
write them. Adopting hashes every file into the lineage; safetensors only, never pickle.
"""

import json
import shutil
from pathlib import Path

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.shape import Shape
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import SPECIALS

PARTS = ("encoder", "decoder")
WEIGHTS = ("config.json", "model.safetensors")


def adopt(ws: Workspace, folder: Path) -> Artifact:
    """The base of a folder as an artefact. Raises OnsilError when it is not one."""
    wanted = ["tokenizer.json", *WEIGHTS, *(f"{part}/{name}" for part in PARTS for name in WEIGHTS)]
    there = [name for name in wanted if (folder / name).is_file()]
    if len(there) < 3 or there[0] != "tokenizer.json":
        raise _no_base(folder, "tokenizer.json, config.json and model.safetensors are not all here")
    files = [FileRef(name, file_digest(folder / name)) for name in there]
    return adopt_base(ws, files=files, run={"source": folder})


@stage(version=1)
def adopt_base(*, files: list[FileRef], out: Path, run: Run) -> dict:
    """tokenizer.json and `encoder/`, `decoder/` of a base, each loaded once to see that it is."""
    from onsil.models.checkpoint import load

    for file in files:
        at = out / file.path
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.source / file.path, at)
    vocabulary = load_tokenizer(out)
    wrong = [s for i, s in enumerate(SPECIALS) if vocabulary.token_to_id(s) != i]
    if wrong:
        raise _no_base(run.source, f"its tokenizer does not have {', '.join(wrong)} on their ids")
    if (out / "config.json").exists():
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        part = "encoder" if config.get("model_type") == "bert" else "decoder"
        (out / part).mkdir()
        for name in WEIGHTS:
            (out / name).rename(out / part / name)
    notes: dict = {"vocabulary": vocabulary.get_vocab_size()}
    for part in PARTS:
        if (out / part).is_dir():
            shape = load(out / part)[0].shape
            if shape.vocabulary != notes["vocabulary"]:
                raise _no_base(run.source, f"{part} and tokenizer differ in vocabulary")
            notes[part] = shape.as_dict()
    return notes


@stage(version=1)
def adopt_tokenizer(*, base: Artifact, out: Path, run: Run) -> dict:
    """tokenizer.json of a base, alone."""
    shutil.copyfile(base / "tokenizer.json", out / "tokenizer.json")
    return {}


@stage(version=1)
def shrink(*, model: Artifact, out: Path, run: Run) -> dict:
    """A grown model with its matrices in int8, small enough to ship."""
    from onsil.models.checkpoint import load, save

    grown, extra = load(model.path)
    save(grown, out, run.ancestry, extra, int8=True)
    return {"bytes": (out / "model.safetensors").stat().st_size}


def shape_in(base: Artifact | None, part: str) -> Shape | None:
    """The shape of a base's part; None when there is no base or it lacks the part."""
    if base is None or not (base / part).is_dir():
        return None
    from onsil.models.families import shape_of

    return shape_of(json.loads((base / part / "config.json").read_text(encoding="utf-8")))


def _no_base(folder: Path, why: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder} is not a base to start from: {why}.",
            "Weights and tokenizer must belong together, or training starts from noise.",
            "Give a folder with tokenizer.json and encoder/ or decoder/, or leave --base out.",
        ),
        ko=(
            f"{folder}는 출발점으로 쓸 수 없습니다: {why}.",
            "가중치와 토크나이저가 맞지 않으면 잡음에서 시작하게 됩니다.",
            "tokenizer.json과 encoder/ 또는 decoder/가 있는 폴더를 주거나 --base를 빼 주세요.",
        ),
    )
