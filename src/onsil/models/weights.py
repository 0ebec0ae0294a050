"""Safetensors on disk, read with distrust and written the same way every time.

The header is parsed here before the library sees the file: names, types and extents are known
without reading a weight, and a truncated, doubled or overlapping table is refused by name. Weights
that could run code (pickle) are never opened. Sharded checkpoints name their shards in an index;
a shard outside the folder is refused.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialise

from onsil.errors import OnsilError
from onsil.lineage.spelling import canonical

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LONGEST_HEADER = 100_000_000
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
        return torch.Size(self.shape).numel()


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
    return found


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the one, or those its index names."""
    if (folder / ONE).is_file():
        return [folder / ONE]
    index = folder / INDEX
    if not index.is_file():
        raise no_weights(folder)
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise damaged(index, "it has no weight_map", "weight_map이 없습니다")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise damaged(
                index, f"it points outside its folder ({name})", f"폴더 밖을 가리킵니다({name})"
            )
        if not (folder / name).is_file():
            raise damaged(index, f"its shard {name} is missing", f"조각 {name}이 없습니다")
    return [folder / name for name in names]


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
    return parsed(file, file.read_bytes())


def parsed(file: Path, text: bytes) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        name, times = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
        if times > 1:
            raise damaged(file, f"{name!r} stands in it twice", f"{name!r}이 두 번 있습니다")
        return dict(pairs)

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
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
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise damaged(
                file,
                f"its header would be {length:,} bytes long in a file of {size:,}",
                f"머리말 길이가 {length:,}바이트로 적혀 있는데 파일은 {size:,}바이트입니다",
            )
        text = f.read(length)
    pairs = parsed(file, text)
    pairs.pop("__metadata__", None)
    found, extents = {}, []
    for name, told in pairs.items():
        try:
            dtype, shape = told["dtype"], tuple(int(n) for n in told["shape"])
            begin, end = told["data_offsets"]
            sound = 0 <= begin <= end and min(shape, default=0) >= 0
            wanted = BYTES[dtype] * torch.Size(shape).numel()
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
            raise damaged(
                file, f"tensor {name} is described wrongly", f"텐서 {name}의 설명이 틀렸습니다"
            ) from None
        if not sound or end - begin != wanted:
            raise damaged(
                file,
                f"tensor {name} has {end - begin} bytes; its shape {shape} asks for {wanted}",
                f"텐서 {name}은 {end - begin}바이트인데 모양 {shape}은 {wanted}바이트를 요구합니다",
            )
        extents.append((begin, end))
        found[name] = Entry(file, dtype, shape)
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


def tensors(found: dict[str, Entry]) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights themselves, one at a time; a number that is none is refused."""
    by_file: dict[Path, list[str]] = {}
    for name, entry in found.items():
        by_file.setdefault(entry.file, []).append(name)
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as f:
            for name in names:
                tensor = f.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise damaged(
                        file,
                        f"tensor {name} holds {bad} values that are not numbers (NaN or infinite)",
                        f"텐서 {name}에 숫자가 아닌 값(NaN, 무한대)이 {bad}개 있습니다",
                    )
                yield name, tensor


def stable_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend on its contents alone.

    The library writes its metadata in the order of a hash table that is seeded anew in every
    process; the header is written again here with sorted keys, padded to 8 bytes as it was.
    """
    data = serialise(tensors, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = canonical(json.loads(data[8 : 8 + length])).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


SCALE = ".int8_scale"


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices as int8 with `NAME.int8_scale` beside them: round(w / s), s = max|row| / 127. The
    error of a weight is at most s / 2."""
    done = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            done[name] = tensor
            continue
        scale = tensor.abs().amax(1).clamp(min=1e-12) / 127
        done[name] = (tensor / scale[:, None]).round().to(torch.int8)
        done[name + SCALE] = scale
    return done


def unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`packed` undone: int8 rows times their scale; everything else as it is."""
    return {
        name: tensor.float() * tensors[name + SCALE][:, None] if name + SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }
