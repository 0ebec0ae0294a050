"""What one worker runs in the tests of parallel training. Not a test itself.

    torchrun --nproc-per-node 2 distributed_child.py FOLDER ddp|fsdp|most|rest [--die STEP]

`ddp` and `fsdp` train a small decoder on planted documents, leave curve.json and the weights in
FOLDER, and go on from a checkpoint when there is one. `--die` kills the last worker after that
step, once, as `kill -9` does. `most` is what one launch can show in seconds: both modes, a run
that began alone, one that stops half-way, one that must stop. `rest` is an encoder, Muon, and the
planted faults that the comparison of curves has to notice.
"""

import argparse
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from planted import PLANTED
from safetensors.torch import save_file

from onsil.corpus import curate
from onsil.documents import read
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.models.shape import decoder_shape, encoder_shape
from onsil.models.transformer import Transformer
from onsil.tokenizer import train_tokenizer
from onsil.training import parallel
from onsil.training.base import adopt
from onsil.training.loop import Step
from onsil.training.objectives import Batch, causal_batch, masked_batch, pieces_of, schedule
from onsil.training.optim import Recipe
from onsil.training.parallel import Worker, leave, part_loss, train_parallel, worker
from onsil.training.plan import adopt_plan
from onsil.training.pretraining import pretrain
from onsil.training.sharded import shard, whole

VOCABULARY, SEED, CHECKPOINTS = 97, 0, 5
HALF, FEW = 11, 7  # steps of the runs that are not seen to the end
MUON = Recipe(optimizer="muon")
PLAN = {
    "width": 64,
    "depth": 2,
    "context": 64,
    "batch_tokens": 512,
    "learning_rate": 0.002,
    "decoder_epochs": 4,
    "encoder_epochs": 1,
    "reader_epochs": 1,
    "reader_lessons": 1,
    "generator_lessons": 1,
    "compute": "fp32",
    "threads": 1,
    "compiled": False,
    "seed": 0,
    "minutes": 0.1,
    "tokens_per_second": 1000,
    "predicted_seconds": 1,
}
FAULTS = ("mean of means", "same part twice", "clipped alone")


def documents() -> list[list[int]]:
    """Planted: each document is a progression, so that there is something to learn."""
    draw = torch.Generator().manual_seed(3)
    starts = torch.randint(5, 90, (60,), generator=draw).tolist()
    sizes = torch.randint(1, 70, (60,), generator=draw).tolist()
    return [
        [5 + (a * 7 + 3 * i * a) % 90 for i in range(n)] for a, n in zip(starts, sizes, strict=True)
    ]


PIECES = pieces_of(documents(), 32)
# The second step has one document: one of two workers has nothing to do.
STEPS = schedule([len(p) for p in PIECES], 256, 2, SEED)
STEPS.insert(1, [0])


def batch_of(step: int, kind: str = "decoder") -> Batch:
    chosen = [PIECES[i] for i in STEPS[step]]
    if kind == "decoder":
        return causal_batch(chosen)
    return masked_batch(chosen, VOCABULARY, f"{SEED}-{step}")


def new_model(kind: str = "decoder") -> Transformer:
    make = decoder_shape if kind == "decoder" else encoder_shape
    return Transformer(make(VOCABULARY, 64, 2, 64)).initialise(SEED)


def steps_of(
    folder: Path, mode: str, at: Worker, model: Transformer, recipe: Recipe = Recipe()
) -> Iterator[Step]:
    """The run under test, in whatever process group there is."""
    if mode == "fsdp":
        shard(model, at.device)
    kind = "decoder" if model.shape.causal else "encoder"
    folder.mkdir(parents=True, exist_ok=True)
    return train_parallel(
        dict(model.named_parameters()),
        lambda k: part_loss(model, batch_of(k, kind), at),
        len(STEPS),
        2e-3,
        folder,
        CHECKPOINTS,
        recipe,
        **PLANTED,
    )


def run(
    folder: Path,
    mode: str,
    at: Worker,
    stop: int = len(STEPS),
    die: int = 0,
    kind: str = "decoder",
    recipe: Recipe = Recipe(),
) -> None:
    """Train up to step `stop`; every loss is kept in curve.json, and the weights at the end."""
    model, log = new_model(kind), folder / "curve.json"
    for step in steps_of(folder, mode, at, model, recipe):
        if at.rank == 0:
            curve = json.loads(log.read_text()) if log.exists() else {}
            curve.setdefault(str(step.number), []).append(step.loss)
            log.write_text(json.dumps(curve))
        if step.number == die and at.rank == at.world - 1 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step.number == stop:
            break
    weights = whole(model)
    if at.rank == 0:
        kept = {name: tensor for name, tensor in weights.items() if name not in model.shared()}
        save_file(kept, folder / "weights.safetensors")


def run_with(fault: str, folder: Path, at: Worker) -> None:
    """A few steps with one mistake in the code under test."""
    honest = {name: getattr(parallel, name) for name in ("_summed", "cut", "_clipped")}
    if fault == "mean of means":
        parallel._summed = lambda total, count: (float(total.detach()), max(1, count) * at.world)
    elif fault == "same part twice":
        parallel.cut = lambda batch, rank, world: honest["cut"](batch, 0, world)
    else:
        parallel._clipped = clipped_alone
    run(folder, "fsdp", at, stop=FEW)
    for name, function in honest.items():
        setattr(parallel, name, function)


def clipped_alone(weights: list[torch.Tensor], most: float) -> float:
    """The norm of what this worker holds, as if it were all."""
    own = [p.grad.to_local() for p in weights]
    norm = torch.stack([g.norm() for g in own]).norm()
    for g in own:
        g.mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def must_stop(folder: Path, at: Worker) -> None:
    """One worker's loss is not a number: all have to stop, at the same step."""
    model = new_model()

    def loss_of(k: int):
        total, count = part_loss(model, batch_of(k), at)
        return (total * float("nan") if k == 3 and at.rank else total), count

    folder.mkdir(exist_ok=True)
    try:
        weights = dict(model.named_parameters())
        for _ in train_parallel(weights, loss_of, 9, 1e-3, folder, **PLANTED):
            pass
    except OnsilError as error:
        (folder / f"stopped{at.rank}").write_text(error.en[0])


def most(folder: Path, at: Worker) -> None:
    run(folder / "ddp", "ddp", at)
    run(folder / "fsdp", "fsdp", at)
    run(folder / "began alone", "fsdp", at)
    run(folder / "half", "fsdp", at, stop=HALF)
    must_stop(folder / "stopped", at)
    heard = at.tell("첫 작업자의 말" if at.rank == 0 else "")
    (folder / f"heard{at.rank}").write_text(heard)


def rest(folder: Path, at: Worker) -> None:
    run(folder / "encoder", "fsdp", at, stop=FEW, kind="encoder")
    run(folder / "muon", "fsdp", at, stop=FEW, recipe=MUON)
    for fault in FAULTS:
        run_with(fault, folder / fault, at)


def workspace_with_a_decoder(home: Path, told: dict = PLAN, start: Path | None = None) -> Workspace:
    """A workspace where `desk` is a decoder that one process pretrained on a few documents, as a
    plan has told; from a base, if there is a folder to `start` from. `reader` is an encoder that
    began as it."""
    ws = Workspace(home)
    folder = home.parent / "documents"
    folder.mkdir()
    for n in range(8):
        text = "\n\n".join(f"제{n}조 {i}항. 출장비는 {n * 7 + i}만 원으로 한다." for i in range(12))
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")
    corpus = curate(ws, documents=read(ws, folder))
    base = adopt(ws, start) if start else None
    tokenizer = base or train_tokenizer(ws, corpus=corpus)
    parts = {"corpus": corpus, "tokenizer": tokenizer, "base": base}
    parts |= {"plan": adopt_plan(ws, text=json.dumps(told))}
    made = pretrain(ws, **parts, kind="decoder")
    ws.register("desk", made)
    ws.register("reader", pretrain(ws, **parts, kind="encoder", decoder=made))
    return ws


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("mode", choices=("ddp", "fsdp", "most", "rest"))
    parser.add_argument("--die", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with worker() as at:
        if asked.mode in ("most", "rest"):
            {"most": most, "rest": rest}[asked.mode](asked.folder, at)
        else:
            run(asked.folder, asked.mode, at, die=asked.die)
    assert not dist.is_initialized()


if __name__ == "__main__":
    main()
    leave(0)
