"""One loop for every objective. It yields steps; whoever calls it prints, evaluates, saves.

Loss is the sum over targets divided by their number, weights and optimiser are float32, and a
checkpoint in `scratch` makes a killed run continue to the same bits: batches depend on (seed, step)
alone and nothing else is random.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onsil.errors import OnsilError
from onsil.lineage.spelling import sync, write_atomically


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number from 1, mean loss per target (nats), targets, and gradient
    norm before clipping."""

    number: int
    loss: float
    targets: int
    gradient_norm: float


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over the first 5 %, flat, then linear to zero over the last 40 %."""
    warm, decay = max(1, round(0.05 * steps)), max(1, round(0.4 * steps))
    return peak * min(1.0, (step + 1) / warm, (steps - step) / decay)


def train(
    parameters: Mapping[str, Tensor],
    loss_of: Callable[[int], tuple[Tensor, int]],
    steps: int,
    peak: float,
    scratch: Path,
    checkpoints: int = 20,
) -> Iterator[Step]:
    """Run `steps` steps of AdamW on `parameters`, from the last checkpoint if there is one.

    `loss_of(k)` computes (Σ loss, targets) of step k. Raises OnsilError at the first step whose
    loss or gradient is not finite or that has no target.
    """
    matrices = [p for p in parameters.values() if p.dim() > 1]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    every = max(1, steps // checkpoints)
    for step in range(_restore(parameters, optimizer, scratch), steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        total, targets = loss_of(step)
        loss = total / max(1, targets)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        if not targets or not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            raise _stopped(step, float(loss.detach()), norm, targets)
        optimizer.step()
        optimizer.zero_grad()
        yield Step(step + 1, float(loss.detach()), targets, norm)
        # After the yield: whatever the caller wrote down about this step is on disk by now.
        if (step + 1) % every == 0 and step + 1 < steps:
            _save(parameters, optimizer, scratch, step + 1)


def _stopped(step: int, loss: float, norm: float, targets: int) -> OnsilError:
    return OnsilError(
        en=(
            f"Training stopped at step {step + 1}: loss {loss}, gradient norm {norm}, "
            f"{targets} targets.",
            "Going on would spoil the weights; nothing was kept from this step.",
            "Lower the learning rate in the plan, or look at the documents of this step.",
        ),
        ko=(
            f"{step + 1}번째 걸음에서 학습을 멈췄습니다: 손실 {loss}, 기울기 크기 {norm}, "
            f"정답 토큰 {targets}개.",
            "계속하면 가중치가 망가집니다. 이 걸음의 결과는 남기지 않았습니다.",
            "계획의 학습률을 낮추거나 이 걸음의 문서를 확인해 주세요.",
        ),
    )


def _save(parameters: Mapping[str, Tensor], optimizer, scratch: Path, step: int) -> None:
    """Weights and both moments in one safetensors file, then the pointer to it, each atomic."""
    tensors = {f"weight/{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        state = optimizer.state[p]
        tensors[f"first/{name}"], tensors[f"second/{name}"] = state["exp_avg"], state["exp_avg_sq"]
    file = scratch / f"step{step}.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    sync(file)
    write_atomically(scratch / "latest.json", json.dumps({"step": step, "file": file.name}))
    for old in scratch.glob("step*.safetensors"):
        if old != file:
            old.unlink()


def _restore(parameters: Mapping[str, Tensor], optimizer, scratch: Path) -> int:
    pointer = scratch / "latest.json"
    if not pointer.exists():
        return 0
    latest = json.loads(pointer.read_text())
    tensors = load_file(scratch / latest["file"])
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"weight/{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(latest["step"])),
                "exp_avg": tensors[f"first/{name}"],
                "exp_avg_sq": tensors[f"second/{name}"],
            }
    return latest["step"]


def report_progress(
    steps: Iterator[Step], total: int, say: Callable[[str], None], label: str, tokens: int
) -> Iterator[Step]:
    """Pass steps on; about every ten seconds say step, loss, tokens/s and the time left."""
    start = last = time.monotonic()
    first: int | None = None
    for step in steps:
        first = step.number if first is None else first
        now = time.monotonic()
        if now - last > 10 or step.number == total:
            done, elapsed = step.number - first + 1, max(1e-9, now - start)
            left = round((total - step.number) * elapsed / done)
            rate = tokens / total * done / elapsed
            say(
                f"{label} {step.number}/{total} · 손실(loss) {step.loss:.3f} · "
                f"{rate:,.0f} tokens/s · 남은 시간(ETA) {left // 60}:{left % 60:02}"
            )
            last = now
        yield step
