"""What a checkpoint folder says of itself, read with distrust and without waking torch.

The header of a safetensors file is parsed here before the library sees the file: names, types and
extents are known without reading a weight, and a truncated, doubled or overlapping table is refused
by name. Weights that could run code (pickle) are never opened. Sharded checkpoints name their
shards in an index; a shard outside the folder is refused. Source: the format's description in the
README of huggingface/safetensors.
"""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
LONGEST = 25_000_000  # bytes of JSON: a hundred thousand tensors
SCALE = ".int8_scale"  # ends the name of what stands beside a matrix in onsil's int8
MOST_AXES, LARGEST_AXIS = 8, 2**40
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor as the header tells it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def damaged(file: Path, en: str, ko: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{file.name}: {en}.",
            "The weights are damaged or were changed, and would give wrong answers.",
            "Copy or download the checkpoint again and compare its checksum.",
        ),
        ko=(
            f"{file.name}: {ko}.",
            "가중치가 손상되었거나 바뀌어서 틀린 답을 내게 됩니다.",
            "체크포인트를 다시 받아 체크섬을 비교해 주세요.",
        ),
    )


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint folder, from its headers alone. Raises OnsilError."""
    files = shards(folder)
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in header(file).items():
            if name in found:
                raise damaged(
                    file, f"tensor {name} is in two files", f"텐서 {name}이 두 파일에 있습니다"
                )
            found[name] = entry
    if files[0].name != ONE:
        for name, shard in weight_map(folder).items():
            if name not in found or found[name].file.name != shard:
                raise damaged(
                    folder / INDEX,
                    f"tensor {name} is not in {shard}",
                    f"텐서 {name}이 {shard}에 없습니다",
                )
    return found


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the one, or those its index names."""
    if (folder / ONE).is_file():
        return [within(folder, ONE)]
    return sorted({within(folder, name) for name in weight_map(folder).values()})


def weight_map(folder: Path) -> dict[str, str]:
    """`{tensor: shard}` of an index; every shard is a plain name and there."""
    index = folder / INDEX
    if not index.is_file():
        raise no_weights(folder)
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise damaged(index, "it has no weight_map", "weight_map이 없습니다")
    for name in {str(name) for name in table.values()}:
        if Path(name).name != name or not name.endswith(".safetensors") or len(name) > 200:
            shown = name[:200]
            raise damaged(
                index, f"it points outside its folder ({shown})", f"폴더 밖을 가리킵니다({shown})"
            )
        if not (folder / name).is_file():
            raise damaged(index, f"its shard {name} is missing", f"조각 {name}이 없습니다")
    return table


def within(folder: Path, name: str) -> Path:
    """A file of a checkpoint folder. A link that leaves the folder is refused, except into the
    `blobs` of the Hugging Face cache the folder lies in (`models--…/snapshots/REVISION`)."""
    file, home = folder / name, folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    target = file.resolve()
    if not target.is_relative_to(home) and not target.is_relative_to(blobs):
        raise damaged(file, "it is a link out of its folder", "폴더 밖을 가리키는 링크입니다")
    return file


def no_weights(folder: Path) -> OnsilError:
    pickles = sorted(
        file.name for file in folder.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        return OnsilError(
            en=(
                f"{folder.name} has its weights only as pickle ({pickles[0]}).",
                "Opening a pickle can run any code that its author put into it.",
                "Get the checkpoint as safetensors, or convert it on a machine you can lose: "
                "safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT).",
            ),
            ko=(
                f"{folder.name}의 가중치가 피클({pickles[0]})뿐입니다.",
                "피클은 여는 것만으로 그 안에 든 코드가 실행될 수 있습니다.",
                "safetensors 형식으로 받거나, 격리된 컴퓨터에서 바꿔 주세요: "
                "safetensors.torch.save_file(torch.load(파일, weights_only=True), 결과).",
            ),
        )
    return OnsilError(
        en=(
            f"{folder} has no model.safetensors.",
            "There are no weights to load.",
            "Give the folder that holds config.json and model.safetensors (or its index).",
        ),
        ko=(
            f"{folder}에 model.safetensors가 없습니다.",
            "불러올 가중치가 없습니다.",
            "config.json과 model.safetensors(또는 그 색인)가 있는 폴더를 주세요.",
        ),
    )


def read_json(file: Path) -> dict[str, Any]:
    """An object of a JSON file; a name that stands in it twice is refused."""
    if not file.is_file():
        raise OnsilError(
            en=(
                f"{file.parent.name} has no {file.name}.",
                "Without it nobody can say how the weights belong together.",
                "Give the folder that holds config.json and model.safetensors (or its index).",
            ),
            ko=(
                f"{file.parent.name}에 {file.name}이 없습니다.",
                "이 파일이 없으면 가중치를 어떻게 읽을지 알 수 없습니다.",
                "config.json과 model.safetensors(또는 그 색인)가 있는 폴더를 주세요.",
            ),
        )
    if (size := within(file.parent, file.name).stat().st_size) > LONGEST:
        raise damaged(
            file, f"{size:,} bytes are too long for it", f"{size:,}바이트로 지나치게 깁니다"
        )
    return parsed(file, file.read_bytes())


def parsed(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise damaged(file, f"{name!r} stands in it twice", f"{name!r}이 두 번 있습니다")
        return found

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, endless numbers
        raise damaged(file, f"it is not JSON ({error})", f"JSON이 아닙니다({error})") from None
    if not isinstance(found, dict):
        raise damaged(file, "it is not a JSON object", "JSON 객체가 아닙니다")
    return found


def header(file: Path) -> dict[str, Entry]:
    """The table of one safetensors file: checked against the file's length and itself."""
    size = file.stat().st_size
    with file.open("rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LONGEST):
            raise damaged(
                file,
                f"its header would be {length:,} bytes long in a file of {size:,}",
                f"머리말 길이가 {length:,}바이트로 적혀 있는데 파일은 {size:,}바이트입니다",
            )
        text = f.read(length)
    found, extents = {}, []
    for name, told in parsed(file, text).items():
        if name == "__metadata__":
            check_metadata(file, told)
            continue
        found[name], extent = entry_of(file, name, told)
        extents.append(extent)
    last = 0
    for begin, end in sorted(extents):
        if begin != last:
            raise damaged(
                file, "its tensors overlap or leave gaps", "텐서가 겹치거나 틈이 있습니다"
            )
        last = end
    if 8 + length + last != size:
        raise damaged(
            file,
            f"it is {size:,} bytes long and should be {8 + length + last:,}",
            f"길이가 {size:,}바이트인데 {8 + length + last:,}바이트여야 합니다",
        )
    return found


def check_metadata(file: Path, told: Any) -> None:
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise damaged(file, "its metadata is not text", "메타데이터가 글이 아닙니다")


def whole(values: Any, most: int) -> tuple[int, ...]:
    """A short list of whole numbers from 0 to `most`. Raises ValueError."""
    if not isinstance(values, list) or len(values) > MOST_AXES:
        raise ValueError
    if not all(type(n) is int and 0 <= n <= most for n in values):
        raise ValueError
    return tuple(values)


def entry_of(file: Path, name: str, told: Any) -> tuple[Entry, tuple[int, int]]:
    """A tensor of the table, and where its bytes begin and end. Raises OnsilError."""
    try:
        dtype, shape = str(told["dtype"]), whole(told["shape"], LARGEST_AXIS)
        begin, end = whole(told["data_offsets"], 2**63)
    except (KeyError, TypeError, ValueError):
        raise damaged(
            file, f"tensor {name} is described wrongly", f"텐서 {name}의 설명이 틀렸습니다"
        ) from None
    if dtype not in BYTES:
        raise damaged(
            file,
            f"tensor {name} has type {dtype}, which is not read here",
            f"텐서 {name}의 자료형 {dtype}은 읽을 수 없습니다",
        )
    wanted = BYTES[dtype] * math.prod(shape)
    if end - begin != wanted:
        raise damaged(
            file,
            f"tensor {name} has {end - begin} bytes; its shape {shape} asks for {wanted}",
            f"텐서 {name}은 {end - begin}바이트인데 모양 {shape}은 {wanted}바이트를 요구합니다",
        )
    return Entry(file, dtype, shape), (begin, end)
