"""One model over several workers' memory, and checkpoints that any number of workers can read.

`shard` lays each block's weights, gradients and moments over the workers by rows and brings a block
together only while it computes (Rajbhandari et al. 2020, ZeRO stage 3; torch's FSDP2,
`fully_shard`). A checkpoint is one folder a step: every worker writes what it holds, and a pointer
says which files are whole, as loop.py's does.

torch.distributed.checkpoint (DCP) does the re-sharding: who reads may be more or fewer, sharded or
not. Its own file format keeps `.metadata` with pickle, which runs code when it is read; so the
files are its safetensors (`HuggingFaceStorageWriter`), where each tensor's place in the whole lies
in the header. A missing file would look like a smaller model there: the pointer names every file.

Left out: tensor and pipeline parallelism, gathering in bf16, encoder-decoders, writing while the
next step runs.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from onsil.errors import OnsilError
from onsil.lineage.spelling import sync_folder, write_atomically
from onsil.models.transformer import Transformer
from onsil.training.loop import _other_data
from onsil.training.optim import Optimizer

POINTER = "latest.json"


def shard(model: Transformer, device: torch.device) -> Transformer:
    """Lay a model's parameters over all workers, in place; take `named_parameters` after this.

    Every worker must have built the same weights before.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The head is used after `encode`; the root stays together from there to the end of backward.
    register_fsdp_forward_method(model, "encode")
    return model


def whole(model: Transformer) -> dict[str, Tensor]:
    """Every weight of a sharded or plain model, brought together; all workers call it at once."""
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value.detach().clone()
        for name, value in model.state_dict().items()
    }


def save_shards(
    parameters: Mapping[str, Tensor], optimizer: Optimizer, scratch: Path, step: int, data: str
) -> None:
    """Every worker's part of step `step`, then the pointer; only then the one before goes.

    `scratch` is one folder that all workers see. All of them call this at once.
    """
    folder, first = scratch / f"step{step}", dist.get_rank() == 0
    if first:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that died while it wrote this step
        folder.mkdir()
    dist.barrier()
    state = {f"weight/{name}": p.detach() for name, p in parameters.items()} | optimizer.state()
    save(state, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    dist.barrier()
    if first:
        sync_folder(folder)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        pointer = {"step": step, "folder": folder.name, "files": files, "data": data}
        write_atomically(scratch / POINTER, json.dumps(pointer))
        for old in scratch.glob("step*"):
            if old != folder:
                shutil.rmtree(old)
    dist.barrier()


def load_shards(
    parameters: Mapping[str, Tensor], optimizer: Optimizer, scratch: Path, data: str
) -> int:
    """Read the last whole checkpoint into weights and optimiser; its step, 0 without one.

    Raises OnsilError when a file the pointer names is missing or has another size, and when the
    run was on other data.
    """
    pointer = scratch / POINTER
    if not pointer.exists():
        return 0
    latest = json.loads(pointer.read_text())
    if latest["data"] != data:
        raise _other_data(scratch, latest["data"], data)
    folder = scratch / latest["folder"]
    for name, size in latest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise _torn(file, size)
    reader = HuggingFaceStorageReader(str(folder))
    state = {f"weight/{name}": p.detach() for name, p in parameters.items()}
    for key in reader.read_metadata().state_dict_metadata:
        kind, name = key.split("/", 1)
        if kind != "weight":
            like = parameters[name].detach()
            state[key] = torch.zeros((), device=like.device) if kind == "step" else like * 0.0
    # Filled in place: each worker reads the rows it holds, from whichever files have them.
    load(state, storage_reader=reader)
    optimizer.restore(state)
    return latest["step"]


def _torn(file: Path, size: int) -> OnsilError:
    there = f"{file.stat().st_size:,}" if file.is_file() else "no"
    return OnsilError(
        en=(
            f"{file} should have {size:,} bytes and has {there}.",
            "A checkpoint with a part missing would continue another model than the one trained.",
            "Give every worker the same folder; or delete it and start again from step 1.",
        ),
        ko=(
            f"{file}의 크기는 {size:,}바이트여야 하는데 {there}바이트입니다.",
            "일부가 없는 체크포인트에서 이어 가면 학습하던 모델과 다른 모델이 됩니다.",
            "모든 작업자가 같은 폴더를 보게 하거나, 폴더를 지우고 처음부터 다시 시작해 주세요.",
        ),
    )
