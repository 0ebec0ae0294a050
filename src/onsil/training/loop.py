"""One loop for every objective. It yields steps; whoever calls it prints, evaluates, saves.

Loss is the sum over targets divided by their number, however many parts a batch is taken in;
weights and optimiser are float32, and a checkpoint in `scratch` makes a killed run continue to the
same bits: batches depend on (seed, step) alone, and the generator of random numbers is kept too.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from onsil.errors import OnsilError, say
from onsil.lineage.spelling import canonical, spell, sync, write_atomically
from onsil.models.weights import write_tensors
from onsil.training.optim import Optimizer, Recipe

Part = tuple[Tensor, int]  # Σ loss and number of targets


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number from 1, mean loss per target (nats), targets, and gradient
    norm before clipping."""

    number: int
    loss: float
    targets: int
    gradient_norm: float


def digest_of(*data: Any) -> str:
    """What `train` wants to know of the data: a digest of artefacts' digests, or of the data."""
    return hashlib.sha256(canonical(spell(data)).encode()).hexdigest()


def train(
    parameters: Mapping[str, Tensor],
    loss_of: Callable[[int], Part | Iterator[Part]],
    steps: int,
    peak: float,
    scratch: Path,
    checkpoints: int = 20,
    recipe: Recipe = Recipe(),
    *,
    names_of: Callable[[int], list[str]],
    data: str,
) -> Iterator[Step]:
    """Run `steps` steps on `parameters` at a peak rate, from the last checkpoint if there is one.

    `loss_of(k)` computes (Σ loss, targets) of step k, or yields them part by part when a batch is
    too large for the memory: the gradient is that of the whole. `names_of(k)` tells what was in
    step k, for the message when it fails; `data` is a digest of what is trained on (`digest_of`).
    Raises OnsilError at the first step whose loss or gradient is not finite or that has no target,
    before weights that are not finite are kept, and when `scratch` holds a run on other data.
    """
    optimizer = Optimizer(parameters, peak, steps, recipe)
    every = max(1, steps // checkpoints)
    for step in range(_restore(parameters, optimizer, scratch, data), steps):
        whole, targets = 0.0, 0
        for total, count in _parts(loss_of(step)):
            if total.requires_grad:
                total.backward()
            whole, targets = whole + float(total.detach()), targets + count
        weights = [p for p in parameters.values() if p.grad is not None]
        for weight in weights:
            weight.grad /= max(1, targets)  # type: ignore[operator]
        loss, norm = whole / max(1, targets), float("nan")
        if targets and math.isfinite(loss):
            norm = float(torch.nn.utils.clip_grad_norm_(weights, recipe.clip))
        if not math.isfinite(norm):
            raise cannot_step(step, loss, norm, targets, names_of(step))
        optimizer.step(step)
        saves = (step + 1) % every == 0 and step + 1 < steps
        if (saves or step + 1 == steps) and not finite(parameters):
            raise spoilt_by(step, names_of(step))
        yield Step(step + 1, loss, targets, norm)
        # After the yield: whatever the caller wrote down about this step is on disk by now.
        if saves:
            _save(parameters, optimizer, scratch, step + 1, data)


def _parts(loss: Part | Iterator[Part]) -> Iterator[Part]:
    return iter([loss]) if isinstance(loss, tuple) else loss


def cannot_step(step: int, loss: float, norm: float, targets: int, names: list[str]) -> OnsilError:
    """What is raised at a step whose loss or gradient is not finite or that has no target."""
    return stopped(
        step,
        names,
        f"loss {loss}, gradient norm {norm}, {targets} targets",
        f"손실 {loss}, 기울기 크기 {norm}, 정답 토큰 {targets}개",
    )


def finite(parameters: Mapping[str, Tensor]) -> bool:
    """Whether every weight is a number. A step of finite gradients can leave some that are not:
    the next loss would show it, but by then they would be kept, and after the last step none is."""
    return all(bool(torch.isfinite(p).all()) for p in parameters.values())


def spoilt_by(step: int, names: list[str]) -> OnsilError:
    """What is raised at a step whose weights are no longer finite."""
    return stopped(step, names, "weights are not finite", "가중치가 유한하지 않음")


def stopped(step: int, names: list[str], en: str, ko: str) -> OnsilError:
    """What is raised at a step that cannot be taken, with what was found and what was in it."""
    some = ", ".join(dict.fromkeys(names[:5])) + (" …" if len(names) > 5 else "")
    return OnsilError(
        en=(
            f"Training stopped at step {step + 1}: {en} ({some}).",
            "Going on would spoil the weights; nothing was kept from this step.",
            "Lower the learning rate in the plan, or look at the documents of this step.",
        ),
        ko=(
            f"{step + 1}번째 걸음에서 학습을 멈췄습니다: {ko}({some}).",
            "계속하면 가중치가 망가집니다. 이 걸음의 결과는 남기지 않았습니다.",
            "계획의 학습률을 낮추거나 이 걸음의 문서를 확인해 주세요.",
        ),
    )


def _save(
    parameters: Mapping[str, Tensor], optimizer: Optimizer, scratch: Path, step: int, data: str
) -> None:
    """Weights, the optimiser's state and the random generator's in one safetensors file, then the
    pointer to it, each atomic."""
    tensors = {f"weight/{name}": p.detach() for name, p in parameters.items()}
    tensors |= optimizer.state() | {"random": torch.get_rng_state()}
    file = scratch / f"step{step}.safetensors"
    write_tensors(tensors, file)
    sync(file)
    pointer = {"step": step, "file": file.name, "data": data}
    write_atomically(scratch / "latest.json", json.dumps(pointer))
    for old in scratch.glob("step*.safetensors"):
        if old != file:
            old.unlink()


def _restore(
    parameters: Mapping[str, Tensor], optimizer: Optimizer, scratch: Path, data: str
) -> int:
    pointer = scratch / "latest.json"
    if not pointer.exists():
        return 0
    latest = json.loads(pointer.read_text())
    if latest["data"] != data:
        raise _other_data(scratch, latest["data"], data)
    tensors = load_file(scratch / latest["file"])
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(tensors[f"weight/{name}"])
    optimizer.restore(tensors)
    torch.set_rng_state(tensors["random"])
    return latest["step"]


def _other_data(scratch: Path, there: str, here: str) -> OnsilError:
    return OnsilError(
        en=(
            f"{scratch} holds a run on other data ({there[:12] or 'unnamed'}, not {here[:12]}).",
            "Going on would mix two runs into one model.",
            "Give this run a folder of its own, or empty that one.",
        ),
        ko=(
            f"{scratch}에는 다른 자료로 하던 학습이 있습니다"
            f"({there[:12] or '이름 없음'} ≠ {here[:12]}).",
            "이어서 하면 두 학습이 한 모델에 섞입니다.",
            "이 학습에 새 폴더를 주거나 그 폴더를 비워 주세요.",
        ),
    )


def pretraining(kind: str) -> str:
    """What the pretraining of a decoder or an encoder is called while it runs."""
    if kind == "decoder":
        return say("Pretraining the language model", "언어 모델 사전학습")
    return say("Pretraining the reading model", "읽기 모델 사전학습")


def report_progress(
    steps: Iterator[Step], total: int, tell: Callable[[str], None], label: str, tokens: int
) -> Iterator[Step]:
    """Pass steps on; about every ten seconds tell step, loss, tokens/s and the time left."""
    start = last = time.monotonic()
    first: int | None = None
    for step in steps:
        first = step.number if first is None else first
        now = time.monotonic()
        if now - last > 10 or step.number == total:
            done, elapsed = step.number - first + 1, max(1e-9, now - start)
            left = round((total - step.number) * elapsed / done)
            rate = tokens / total * done / elapsed
            time_left = f"{left // 60}:{left % 60:02}"
            en = f"loss {step.loss:.3f} · {rate:,.0f} tokens/s · {time_left} left"
            ko = f"손실 {step.loss:.3f} · {rate:,.0f} tokens/s · 남은 시간 {time_left}"
            tell(f"{label} {step.number}/{total} · {say(en, ko)}")
            last = now
        yield step
