"""A model pretrained by many workers at once: what `pretrain` makes, from what it was made from.

    torchrun --nproc-per-node 2 -m onsil.training.distributed NAME [--plan plan.json] [--sharded]

NAME is a grown model. Its corpus, tokenizer and base are used again, under its own plan or a longer
one, by every process that torchrun starts, on one machine or several that see one folder; or by
Ray's workers (Moritz et al. 2018) with `--ray N`. The first worker keeps the records and the
curve; the others compute. A killed run goes on from its last checkpoint, with as many workers as
there are then.

On GPUs the products are computed in bf16 where the hardware has it and MLPs are compiled; on
processors the plan decides.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onsil.corpus import document_text, load_corpus
from onsil.errors import OnsilError, say
from onsil.lineage import Artifact, Run, Workspace, history, stage
from onsil.lineage.spelling import write_atomically
from onsil.models.attention import Norm
from onsil.models.checkpoint import save
from onsil.models.families import shape_of
from onsil.models.transformer import MLP, Transformer
from onsil.models.weights import read_json
from onsil.tokenizer import load_tokenizer
from onsil.tokenizer.train import specials_of
from onsil.training.loop import Step, digest_of, pretraining, report_progress
from onsil.training.objectives import Batch, causal_batch, masked_batch, pieces_of, schedule
from onsil.training.parallel import (
    Worker,
    leave,
    part_loss,
    present,
    train_parallel,
    worker,
)
from onsil.training.plan import adopt_plan, load_plan, parse_plan, spelling_of
from onsil.training.pretraining import (
    CURVE_POINTS,
    beginning,
    bits_per_byte,
    kept_curve,
    ngram_bits,
    owners_of,
    recipe_of,
    sample_of,
    start_of,
)
from onsil.training.request import read_plan
from onsil.training.sharded import shard, whole


@dataclass(frozen=True)
class Job:
    """What a worker has to know to do its part, as folders that all of them see; `start` has the
    weights to go on from ("": noise), `data` is the digest of what they hold."""

    corpus: str
    tokenizer: str
    plan: str
    start: str
    kind: str
    sharded: bool
    scratch: str
    data: str


class Study:
    """What `pretrain` reads before its first step: pieces, schedule, held-out text, settings."""

    def __init__(self, job: Job):
        self.job, self.settings = job, load_plan(Path(job.plan))
        words, held = load_tokenizer(Path(job.tokenizer)), load_corpus(Path(job.corpus))
        texts = {"train": held.train, "heldout": held.heldout, "sample": sample_of(held.heldout)}
        rendered = {split: [document_text(d) for d in some] for split, some in texts.items()}
        self.sizes = {split: sum(len(t.encode()) for t in some) for split, some in rendered.items()}
        self.ids = {
            split: [e.ids for e in words.encode_batch(some)] for split, some in rendered.items()
        }
        self.vocabulary, self.special = words.get_vocab_size(), specials_of(words)
        self.start, settings = Path(job.start) if job.start else None, self.settings
        shape = shape_of(read_json(self.start / "config.json")) if self.start else None
        self.context = min(settings.context, shape.context) if shape else settings.context
        self.pieces = {k: pieces_of(v, self.context, self.special.end) for k, v in self.ids.items()}
        sizes = [len(piece) for piece in self.pieces["train"]]
        self.owners = owners_of(held.train, self.ids["train"], self.context)
        decoder = job.kind == "decoder"
        self.epochs = settings.decoder_epochs if decoder else settings.encoder_epochs
        width = shape.width if shape else settings.width
        self.recipe, self.rate = recipe_of(settings, job.kind, width)
        self.tokens = sum(sizes) * self.epochs
        self.steps = schedule(sizes, settings.batch_tokens, self.epochs, settings.seed)

    def new_model(self, compute: str) -> tuple[Transformer, dict[str, Tensor]]:
        """The weights a run starts from, and a base's task head."""
        return beginning(self.start, self.job.kind, self.settings, self.vocabulary, compute)

    def batch(self, k: int) -> Batch:
        """All of step k, whoever computes which part of it."""
        chosen = [self.pieces["train"][i] for i in self.steps[k]]
        if self.job.kind == "decoder":
            return causal_batch(chosen)
        seed = f"{self.settings.seed}-{k}"
        return masked_batch(chosen, self.vocabulary, seed, self.special.mask)

    def names_of(self, k: int) -> list[str]:
        """The documents of step k."""
        return [self.owners[i] for i in self.steps[k]]

    def bits(self, model: Transformer, split: str) -> float | None:
        """Bits per byte of a split under a decoder."""
        with next(model.parameters()).device:  # where the batches are made, too
            return bits_per_byte(model, self.pieces[split], self.sizes[split], len(self.ids[split]))

    def point(self, step: Step, model: Transformer) -> list:
        """The curve at a step, as `pretrain` writes it."""
        if self.job.kind == "encoder":
            return [step.number, round(step.loss, 4)]
        per_byte = sum(map(len, self.ids["train"])) / max(1, self.sizes["train"])
        told = round(step.loss / math.log(2) * per_byte, 4)
        return [step.number, told, self.bits(model, "sample")]


def compute_on(device: torch.device, planned: str) -> str:
    """bf16 on a GPU that has it, else what the plan says."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else planned


def compiled_on(model: Transformer, device: torch.device) -> Transformer:
    """On a GPU the MLPs and norms are compiled, so that what lies between two products is one
    kernel; attention is fused already (`scaled_dot_product_attention` picks the kernel). Lengths
    change from step to step, so shapes stay open."""
    if device.type == "cuda":
        for module in model.modules():
            if isinstance(module, (MLP, Norm)):
                module.compile(dynamic=True)
    return model


def learn(
    study: Study, at: Worker, tell: Callable[[str], None]
) -> Iterator[tuple[Step, dict[str, Tensor]]]:
    """Train this worker's part of a study. Yields the steps the curve is made of, the last one
    among them, each with the weights brought together; all workers must take all of them."""
    model, _ = study.new_model(compute_on(at.device, study.settings.compute))
    model.to(at.device)
    if study.job.sharded:
        shard(model, at.device)
    compiled_on(model, at.device)
    if study.settings.compiled and at.device.type == "cpu":
        tell(
            say(
                "The plan's steps are compiled; those of several workers are not.",
                "계획과 달리 나누어 학습할 때는 단계를 컴파일하지 않습니다.",
            )
        )
    steps = len(study.steps)
    parameters, scratch = dict(model.named_parameters()), Path(study.job.scratch)
    loop = train_parallel(
        parameters,
        lambda k: part_loss(model, study.batch(k), at),
        steps,
        study.rate,
        scratch,
        recipe=study.recipe,
        names_of=study.names_of,
        data=study.job.data,
    )
    for step in report_progress(loop, steps, tell, pretraining(study.job.kind), study.tokens):
        if step.number % max(1, steps // CURVE_POINTS) == 0 or step.number == steps:
            yield step, whole(model)


@stage(version=5)
def pretrain_parallel(
    *,
    corpus: Artifact,
    tokenizer: Artifact,
    plan: Artifact,
    kind: str,
    base: Artifact | None = None,
    decoder: Artifact | None = None,
    sharded: bool = False,
    out: Path,
    run: Run,
) -> dict:
    """What `pretrain` makes, by all workers: a model folder and curve.json. The first worker calls
    this while the others `help_out`. How many they are is no part of the key: a run may go on with
    more or fewer, and then differs by rounding."""
    start = start_of(base, kind, decoder)
    job = Job(
        corpus=str(corpus.path),
        tokenizer=str(tokenizer.path),
        plan=str(plan.path),
        start=str(start) if start else "",
        kind=kind,
        sharded=sharded,
        scratch=str(run.scratch),
        data=digest_of(corpus.digest, tokenizer.digest, plan.digest),
    )
    at = present()
    at.tell(json.dumps(asdict(job)))
    study, curve = Study(job), kept_curve(run.scratch)
    compute = compute_on(at.device, study.settings.compute)
    plain, extra = study.new_model(compute)
    plain.to(at.device)
    notes = {
        "parameters": sum(p.numel() for p in plain.parameters()),
        "steps": len(study.steps),
        "tokens": study.tokens,
        "workers": at.world,
        "device": at.device.type,
        "compute": compute,
    }
    if kind == "decoder":
        notes["untrained_bits_per_byte"] = study.bits(plain, "heldout")
    for step, weights in learn(study, at, run.say):
        plain.load_state_dict(weights)
        if not any(point[0] == step.number for point in curve):
            curve.append(study.point(step, plain))
            write_atomically(run.scratch / "curve.json", json.dumps(curve))
    if kind == "decoder":
        size, end = study.sizes["heldout"], study.special.end
        notes["heldout_bits_per_byte"] = study.bits(plain, "heldout")
        notes["ngram_bits_per_byte"] = ngram_bits(study.ids, size, study.vocabulary, end)
    save(plain.cpu(), out, run.ancestry, extra)
    (out / "curve.json").write_text(json.dumps(curve) + "\n")
    (out / "notes.json").write_text(json.dumps(notes, sort_keys=True) + "\n")
    return notes


def help_out(at: Worker) -> None:
    """What every worker but the first does: its part of each job it is told, until there is
    none."""
    while job := at.tell(""):
        for _ in learn(Study(Job(**json.loads(job))), at, lambda text: None):
            pass


# ── the way in ──────────────────────────────────────────────────────────────────────────────────


def again(ws: Workspace, name: str, kind: str, plan: Path | None, sharded: bool) -> Artifact:
    """Pretrain once more, with the helpers there are, what a grown model was pretrained from: its
    corpus, tokenizer, base and the decoder an encoder began as, under its own plan or another.

    Raises OnsilError for an unknown name, one that no such part was pretrained for, and for a plan
    that is none.
    """
    _, _, model = ws.resolve(name)
    records = (record for _, record in history(ws, model.key) if record["stage"] == "pretrain")
    found = [record["arguments"] for record in records if record["arguments"]["kind"] == kind]
    if not found:
        raise OnsilError(
            en=(
                f"No {kind} was pretrained on the way to {name!r}.",
                "What it was pretrained from is what the workers would use again.",
                "Name a model that onsil grow made: onsil models",
            ),
            ko=(
                f"{name!r}의 이력에 사전학습한 {kind} 단계가 없습니다.",
                "작업자들은 그 단계의 말뭉치와 토크나이저를 다시 씁니다.",
                "onsil grow로 만든 모델의 이름을 주세요: onsil models",
            ),
        )
    (told, *_) = found
    parts = {
        part: told.get(part) and ws.artifact(told[part]["artifact"], told[part]["key"])
        for part in ("corpus", "tokenizer", "plan", "base", "decoder")
    }
    if plan:
        parts["plan"] = adopt_plan(ws, text=spelling_of(parse_plan(read_plan(plan))))
    return pretrain_parallel(ws, **parts, kind=kind, sharded=sharded)


def work(home: Path, *asked: Any) -> Artifact | None:
    """One worker's day: the first does `again`, the others help. The artefact, on the first."""
    with worker() as at:
        if at.rank:
            return help_out(at)
        made = again(Workspace(home, print), *asked)
        at.tell("")
        return made


def on_ray(workers: int, home: Path, *asked: Any) -> Artifact | None:
    """`work` by so many Ray workers, of a cluster that is there or one started here; a worker that
    dies is replaced, once, and all go on from the last checkpoint. Needs the extra [ray]."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # pyright: ignore
    from ray.train.torch import TorchTrainer  # pyright: ignore

    def day(config: dict) -> None:
        work(Path(config["home"]), *config["asked"])

    TorchTrainer(
        day,
        train_loop_config={"home": str(home), "asked": asked},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name="onsil", storage_path=str(home / "ray"), failure_config=FailureConfig(1)
        ),
    ).fit()
    return work(home, *asked)  # made by now: found, not made again


def main() -> int:
    parser = argparse.ArgumentParser("onsil.training.distributed", description=__doc__)
    parser.add_argument("name", help="a grown model: its corpus, tokenizer and base are used")
    parser.add_argument("--kind", choices=("decoder", "encoder"), default="decoder")
    parser.add_argument("--plan", type=Path, help="plan.json instead of the model's own")
    parser.add_argument("--sharded", action="store_true", help="lay the weights over the workers")
    parser.add_argument("--ray", type=int, metavar="N", help="N workers of a Ray cluster")
    told = parser.parse_args()
    asked = (Workspace.find().root.resolve(), told.name, told.kind, told.plan, told.sharded)
    try:
        made = on_ray(told.ray, *asked) if told.ray else work(*asked)
    except OnsilError as error:
        print(error, file=sys.stderr)
        return 1
    if made:
        print(made.path)
    return 0


if __name__ == "__main__":
    from onsil.training.distributed import main as entry  # so that stages know their module's name

    code = entry()
    leave(code) if "RANK" in os.environ else sys.exit(code)  # Ray has its own way to end
