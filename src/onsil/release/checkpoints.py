"""A published checkpoint becomes an artefact: its files as they are, hashed, proved to load.

What a folder says (config, headers, tokenizer, licence) is looked at before a byte is copied, so
that most refusals cost nothing. The copy is a copy: a hard link would share the file with whoever
edits the original, and an artefact never changes. Weights only as safetensors, tokenizers only as
tokenizer.json; a SentencePiece model alone is refused, because reading it nearly right would give
other ids than the model was trained on.
"""

import hashlib
import re
import unicodedata
from pathlib import Path

from onsil.documents.types import FileRef
from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.lineage.spelling import file_digest
from onsil.models.headers import INDEX, damaged, shards, within
from onsil.release.inspection import inspect_folder

# What belongs to a checkpoint beside its weights; the rest of a folder stays where it is.
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.spm", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "README.md", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
CHUNK = 1 << 24
NOTED = ("family", "kind", "parameters", "licence")


def load_checkpoint(ws: Workspace, folder: Path) -> Artifact:
    """The checkpoint of a folder as an artefact; `adopt_checkpoint` says what its notes hold.

    Raises OnsilError when the folder is none, is damaged, or asks for what is not built here.
    """
    files = check_checkpoint(folder)
    sizes = [(folder / name).stat().st_size for name in files]
    if ws.say:
        ws.say(f"{len(files)} files · {sum(sizes) / 1e6:,.1f} MB")
    refs = [FileRef(name, file_digest(folder / name)) for name in files]
    return adopt_checkpoint(ws, files=refs, run={"source": folder})


def check_checkpoint(folder: Path) -> list[str]:
    """Names of its files, from what a folder says of itself. Raises OnsilError where it is none."""
    if not folder.is_dir():
        raise _no_folder(folder)
    inspect_folder(folder)
    check_tokenizer(folder)
    return files_of(folder)


@stage(version=1)
def adopt_checkpoint(*, files: list[FileRef], out: Path, run: Run) -> dict:
    """The files of a checkpoint; notes: family, kind, parameters, shape, licence, tokenizer."""
    from onsil.models.checkpoint import load

    total = sum((run.source / file.path).stat().st_size for file in files)
    done = 0
    for file in files:
        copy_whole(run.source / file.path, out / file.path, file.sha256)
        done += (out / file.path).stat().st_size
        run.say(f"{100 * done // total:3d} % · {file.path}")
    load(out, dtype=None)
    found = inspect_folder(out)
    shape = {"shape": found["stacks"], "tokenizer": found["tokenizer"]}
    return {key: found[key] for key in NOTED} | shape


def copy_whole(source: Path, target: Path, sha256: str) -> None:
    """A copy of exactly the bytes that were hashed. Raises OnsilError when they changed since."""
    seen = hashlib.sha256()
    with source.open("rb") as here, target.open("wb") as there:
        while chunk := here.read(CHUNK):
            seen.update(chunk)
            there.write(chunk)
    if seen.hexdigest() != sha256:
        raise damaged(source, "it changed while it was copied", "복사하는 동안 바뀌었습니다")


def files_of(folder: Path) -> list[str]:
    """Names of a checkpoint's files, sorted: weights as they lie, and what belongs to them."""
    found = {file.name for file in shards(folder)}
    if not (folder / "model.safetensors").is_file():
        found.add(INDEX)
    for pattern in COMPANIONS:
        found |= {file.name for file in folder.glob(pattern) if file.is_file()}
    return [within(folder, name).name for name in sorted(found)]


def name_of(folder: Path) -> str:
    """A name for a checkpoint from its folder: of a Hugging Face cache the repository's, else the
    folder's own, with what a name cannot hold left out."""
    home = folder.resolve()
    cached = home.parent.name == "snapshots"
    called = home.parents[1].name.rpartition("--")[2] if cached else home.name
    safe = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", called)).strip("-.")
    return safe[:64] or "checkpoint"


def check_tokenizer(folder: Path) -> None:
    """tokenizer.json opens, or there is no sign of a tokenizer that we could not read."""
    file = folder / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(within(folder, file.name)))
        except Exception as error:  # the library raises nothing narrower
            raise damaged(
                file, f"it is no tokenizer ({error})", f"열 수 없습니다({error})"
            ) from None
        return
    pieces = sorted(file.name for end in ("*.model", "*.spm") for file in folder.glob(end))
    if pieces:
        raise _only_sentencepiece(folder, pieces[0])


def _no_folder(folder: Path) -> OnsilError:
    return OnsilError(
        en=(
            f"{folder} is not a folder.",
            "A checkpoint is a folder with config.json and model.safetensors.",
            "Give the folder, not a file in it; nothing is downloaded here.",
        ),
        ko=(
            f"{folder}는 폴더가 아닙니다.",
            "체크포인트는 config.json과 model.safetensors가 있는 폴더입니다.",
            "안의 파일이 아니라 폴더를 주세요. 여기서 내려받지는 않습니다.",
        ),
    )


def _only_sentencepiece(folder: Path, file: str) -> OnsilError:
    way = (
        'python -c "from transformers import AutoTokenizer as A; '
        "A.from_pretrained('FOLDER').save_pretrained('FOLDER')\""
    )
    return OnsilError(
        en=(
            f"{folder.name} has its tokenizer only as SentencePiece ({file}), without "
            "tokenizer.json.",
            "Its normalisation and special ids are not all in that file, and guessing them would "
            "feed the model other words than it learned.",
            f"Where transformers and sentencepiece are installed: {way}",
        ),
        ko=(
            f"{folder.name}의 토크나이저가 SentencePiece({file})뿐이고 tokenizer.json이 없습니다.",
            "정규화와 특수 토큰이 그 파일에 다 들어 있지 않아서, 짐작하면 모델이 배운 것과 다른 "
            "낱말을 넣게 됩니다.",
            f"transformers와 sentencepiece가 설치된 곳에서 만들어 주세요: {way}",
        ),
    )
