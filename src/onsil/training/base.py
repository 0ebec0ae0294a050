"""Starting from a base: a tokenizer and weights that somebody grew before, instead of from nothing.

A base is a folder with tokenizer.json and `encoder/`, `decoder/` or both, each a checkpoint that
`models.checkpoint` loads; a folder that is itself one published checkpoint with its tokenizer.json
is taken as the part it is. A tokenizer that does not know onsil's special tokens gets them as its
last words, and the model a row for each, because the renderers write them. Adopting hashes every
file into the lineage; safetensors only, never pickle.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.shape import Shape
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import SPECIALS

PARTS = ("encoder", "decoder")
CONFIG = "config.json"


def shipped() -> Path:
    """The base that comes with onsil (base/README.md): what a grow starts from unless told."""
    return Path(str(files("onsil"))) / "start"


def adopt(ws: Workspace, folder: Path) -> Artifact:
    """The base of a folder as an artefact. Raises OnsilError when it is not one."""
    there = [name for name in ("tokenizer.json",) if (folder / name).is_file()]
    parts = [part for part in ("", *PARTS) if (folder / part / CONFIG).is_file()]
    for part in parts:
        weights = sorted((folder / part).glob("*.safetensors*"))
        there += [f"{part}/{file.name}".lstrip("/") for file in (folder / part / CONFIG, *weights)]
    if len(there) < 3 or there[0] != "tokenizer.json":
        raise no_base(folder, "tokenizer.json, config.json and model.safetensors are not all here")
    files = [FileRef(name, file_digest(folder / name)) for name in there]
    return adopt_base(ws, files=files, run={"source": folder})


@stage(version=2)
def adopt_base(*, files: list[FileRef], out: Path, run: Run) -> dict:
    """tokenizer.json and `encoder/`, `decoder/` of a base, each loaded once to see that it is, and
    widened by the words and segments that our renderers need."""
    from onsil.models.checkpoint import load, save
    from onsil.models.vocabulary import widened

    for file in files:
        at = out / file.path
        at.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.source / file.path, at)
    if (out / CONFIG).exists():
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        part = out / ("decoder" if reads_in_order(config, run.source) else "encoder")
        part.mkdir()
        for file in [out / CONFIG, *out.glob("*.safetensors*")]:
            file.rename(part / file.name)
    known = know_specials(out / "tokenizer.json")
    words = load_tokenizer(out)
    notes: dict = {"vocabulary": words.get_vocab_size()}
    for part in PARTS:
        if not (out / part).is_dir():
            continue
        model, extra = load(out / part)
        shape = model.shape
        if known and shape.vocabulary != notes["vocabulary"]:
            raise no_base(run.source, f"{part} and tokenizer differ in vocabulary")
        if shape.vocabulary < notes["vocabulary"] - len(SPECIALS):
            raise no_base(run.source, f"the tokenizer has words that the {part} has no row for")
        if shape.writes != "tokens":
            raise no_base(run.source, f"the {part} has no head for words, so it cannot read on")
        wider = widened(model, max(words.get_vocab().values()) + 1, 0 if shape.causal else 3)
        if wider is not model:
            for file in (out / part).glob("*.safetensors*"):
                file.unlink()
            save(wider, out / part, run.ancestry, extra)
        notes[part] = wider.shape.as_dict()
    return notes


def reads_in_order(config: dict, folder: Path) -> bool:
    """Whether a published checkpoint is a decoder; an encoder is none, and other kinds no base."""
    from onsil.models.families import shape_of

    shape = shape_of(config)
    if not isinstance(shape, Shape) or shape.reads != "tokens":
        raise no_base(folder, f"{config.get('model_type')} is neither a decoder nor an encoder")
    return shape.causal


def know_specials(file: Path) -> bool:
    """Make the special tokens known to a tokenizer; False when it had to be told. A tokenizer that
    came from elsewhere also stops adding tokens of its own around a text and cutting it."""
    from tokenizers import Tokenizer

    told = json.loads(file.read_text(encoding="utf-8"))
    told |= {"post_processor": None, "truncation": None, "padding": None}
    words = Tokenizer.from_str(json.dumps(told, ensure_ascii=False))
    if all(words.token_to_id(token) is not None for token in SPECIALS):
        return True
    words.add_special_tokens([token for token in SPECIALS if words.token_to_id(token) is None])
    words.save(str(file))
    return False


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


def no_base(folder: Path, why: str) -> OnsilError:
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
