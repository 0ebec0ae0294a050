"""One step on many processors: the batch of loop.py cut among workers, the same curve.

A step's batch is a function of (seed, step); each worker takes some of its documents, and together
they have all of them, each once. The loss is Σ loss ÷ the targets of *all* workers. torch averages
gradients over workers, so what comes out of it is divided by (targets of all ÷ workers): that is
the gradient of one process on the whole batch, and not the mean of means that it would be if each
divided by its own targets. Only the order of the sums differs, so curves differ by rounding.

Weights are either repeated on every worker (DDP, Li et al. 2020) or laid over them (sharded.py).
The transport is gloo between processors and NCCL between GPUs, whichever is there.

Left out: batches taken in parts, random numbers inside a loss, span tasks, encoder-decoders.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (
    HashStore,  # pyright: ignore[reportPrivateImportUsage]
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from onsil.models.transformer import Transformer
from onsil.tokenizer.template import NO_TARGET
from onsil.training.loop import Step, cannot_step, finite, spoilt_by
from onsil.training.objectives import Batch, token_loss
from onsil.training.optim import Optimizer, Recipe
from onsil.training.sharded import load_shards, save_shards

PATIENCE = timedelta(hours=2)  # while the first worker reads or scores, the others wait


@dataclass(frozen=True)
class Worker:
    """This process among all: its number from 0, how many there are, and where it computes."""

    rank: int
    world: int
    device: torch.device

    def tell(self, text: str) -> str:
        """What the first worker says, heard by all, itself included."""
        said = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor(len(said), device=self.device)
        dist.broadcast(length, 0)
        heard = said if self.rank == 0 else said.new_empty(int(length))
        dist.broadcast(heard, 0)
        return bytes(heard.tolist()).decode()


def present() -> Worker:
    """This process's place in the process group there is."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    return Worker(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def worker() -> Iterator[Worker]:
    """This process's place among those that torchrun or Ray started; alone when none did."""
    if dist.is_initialized():  # Ray has, and has chosen the GPU
        yield present()
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    store, rank, world = HashStore(), 0, 1
    if "RANK" in os.environ:
        kept, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps one store: without a prefix a restarted worker may call on the dead one.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), kept)
    dist.init_process_group(backend, None, PATIENCE, world, rank, store)
    try:
        yield present()
        dist.barrier()  # nobody leaves while another still talks to it
    finally:
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End a worker's process here, with what it has printed.

    torch's own caches keep a mesh, and with it the group's threads, after the group is destroyed.
    One that lets go of its last tensor while the interpreter is taken down aborts the process, and
    torchrun takes a finished run for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ── the batch, cut ──────────────────────────────────────────────────────────────────────────────


def cut(batch: Batch, rank: int, world: int) -> Batch:
    """The documents of a batch that fall to one worker: the longest first, each to whoever has the
    fewest tokens so far. May have no document."""
    assert batch.spans is None, "span tasks are not cut"
    loads, mine = [0] * world, []
    for i in sorted(range(len(batch.lengths)), key=lambda i: (-batch.lengths[i], i)):
        lightest = loads.index(min(loads))
        loads[lightest] += batch.lengths[i]
        if lightest == rank:
            mine.append(i)
    return only(batch, sorted(mine))


def only(batch: Batch, documents: Sequence[int]) -> Batch:
    """Some documents of a batch, in the order given."""

    def taken(row_1T: Tensor | None) -> Tensor | None:
        if row_1T is None:
            return None
        parts = row_1T.split(batch.lengths, dim=1)
        return torch.cat([row_1T[:, :0], *(parts[i] for i in documents)], 1)

    ids = taken(batch.ids)
    assert ids is not None
    return Batch(
        ids,
        [batch.lengths[i] for i in documents],
        targets=taken(batch.targets),
        segments=taken(batch.segments),
        prefixes=None if batch.prefixes is None else [batch.prefixes[i] for i in documents],
    )


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    there = {
        name: row.to(device)
        for name in ("ids", "targets", "segments")
        if (row := getattr(batch, name)) is not None
    }
    return replace(batch, **there)


def part_loss(model: Transformer, batch: Batch, at: Worker) -> tuple[Tensor, int]:
    """(Σ cross-entropy, targets) of the part of a batch that falls to this worker.

    A worker whose part has no target computes a document of another's and counts it as nothing: all
    must come to the same exchanges of gradients.
    """
    part = cut(batch, at.rank, at.world)
    assert batch.targets is not None and part.targets is not None
    if idle := bool((part.targets == NO_TARGET).all()):
        rows = batch.targets.split(batch.lengths, dim=1)
        told = (i for i, row in enumerate(rows) if (row != NO_TARGET).any())
        part = only(batch, [next(told, 0)])
    total, targets = token_loss(model, placed(part, at.device))
    return (total * 0.0, 0) if idle else (total, targets)


# ── the loop ────────────────────────────────────────────────────────────────────────────────────


class _Called(nn.Module):
    """The loss as a module, because DDP exchanges the gradients of a module's parameters."""

    def __init__(self, parameters: Mapping[str, Tensor], loss_of: Callable):
        super().__init__()
        self.own, self.loss_of = nn.ParameterList(parameters.values()), loss_of

    def forward(self, step: int) -> tuple[Tensor, int]:
        return self.loss_of(step)


def train_parallel(
    parameters: Mapping[str, Tensor],
    loss_of: Callable[[int], tuple[Tensor, int]],
    steps: int,
    peak: float,
    scratch: Path,
    checkpoints: int = 20,
    recipe: Recipe = Recipe(),
    *,
    names_of: Callable[[int], list[str]],
    data: str,
) -> Iterator[Step]:
    """`loop.train` by all workers of the process group: each runs it, and yields the same Steps.

    `loss_of(k)` computes (Σ loss, targets) of this worker's part of step k (`part_loss`).
    `parameters` are plain (then DDP) or were laid over the workers by `shard`. `scratch` is one
    folder that all see. Raises OnsilError, on every worker at once, at the first step whose loss or
    gradient is not finite or that has no target.
    """
    world = dist.get_world_size()
    called: nn.Module = _Called(parameters, loss_of)
    if world > 1 and not any(isinstance(p, DTensor) for p in parameters.values()):
        called = DistributedDataParallel(called)
    optimizer = Optimizer(parameters, peak, steps, recipe)
    every = max(1, steps // checkpoints)
    for step in range(load_shards(parameters, optimizer, scratch, data), steps):
        total, count = called(step)
        total.backward()
        whole, targets = _summed(total, count)
        weights = [p for p in parameters.values() if p.grad is not None]
        for weight in weights:
            weight.grad /= max(1, targets) / world  # type: ignore[operator]
        loss, norm = whole / max(1, targets), float("nan")
        if targets and math.isfinite(loss):
            norm = _clipped(weights, recipe.clip)
        if not math.isfinite(norm):
            raise cannot_step(step, loss, norm, targets, names_of(step))
        optimizer.step(step)
        saves = (step + 1) % every == 0 and step + 1 < steps
        if (saves or step + 1 == steps) and not _finite(parameters, total):
            raise spoilt_by(step, names_of(step))
        yield Step(step + 1, loss, targets, norm)
        if saves:
            save_shards(parameters, optimizer, scratch, step + 1, data)


def _summed(total: Tensor, count: int) -> tuple[float, int]:
    """(Σ loss, targets) over all workers."""
    both = torch.stack([total.detach().double(), total.new_tensor(count, dtype=torch.float64)])
    dist.all_reduce(both)
    return float(both[0]), int(both[1])


def _finite(parameters: Mapping[str, Tensor], like: Tensor) -> bool:
    """Whether every weight is a number on all workers; `like` is a tensor where they are."""
    here = {n: p.to_local() if isinstance(p, DTensor) else p for n, p in parameters.items()}
    every = like.new_tensor(float(finite(here)))
    dist.all_reduce(every, dist.ReduceOp.MIN)
    return bool(every)


def _clipped(weights: Sequence[Tensor], most: float) -> float:
    """Scale the gradients to a norm of at most `most` over all of them; the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(weights, most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
