"""Memory a training step needs, from the shape alone, and what the machine has.

Four float32 numbers a weight (the weight, its gradient, two moments of AdamW) and three more while
a checkpoint is written; what the forward pass keeps for the way back, and one layer of it again for
the gradients on that way; the vocabulary's scores of one chunk of rows (`objectives.LOSS_CHUNK`),
four times: scores, log-probabilities, and the two as they are freed. What is kept was counted in
the code with `torch.autograd.graph.saved_tensors_hooks` and written down as a formula in widths;
the test counts again. Documents are taken to be as long as the context; shorter ones need less.

In bfloat16 another part grows with the documents: oneDNN compiles kernels for every length of a
document that it meets, and two caches keep them, torch's and its own, as many kernels each as
`LRU_CACHE_CAPACITY` and `ONEDNN_PRIMITIVE_CACHE_CAPACITY` say (1,024 where nothing does; importing
onsil says 64 and 256). Measured: about 2 MB a length in each cache, six kernels a length, and 3 MB
where the processor multiplies tiles (AMX).

Left out: what the process holds already (text, tokens, the trigram), which the plan measures, and
the allocator's own slack. The test holds a measured peak to between two thirds and one and a half
times the estimate.
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

from onsil.errors import OnsilError
from onsil.lineage.machine import processor_flags
from onsil.models.shape import Shape, hybrid_shape

FLOAT = 4
# Share of the float32 bytes that bfloat16 keeps a token: RMS norms and rotations keep no float32 of
# their own, layer norms a copy of their input.
BF16_SHARE = {True: 0.424, False: 0.56}  # gated, not gated
KERNEL_CACHES, CAPACITY = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"), 1024
KERNELS_A_LENGTH, BYTES_A_LENGTH, WITH_TILES = 6, 2 * 2**20, 3 * 2**20
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
DEPTHS, SLENDER, STOUT = range(2, 25), 12, 64  # width ÷ depth of the shapes a size is looked for in
NEAR = 0.25  # a size further from every shape than this is refused


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    checkpoint: int
    activations: int
    logits: int
    kernels: int

    @property
    def total(self) -> int:
        """All at once, except that a checkpoint is written when no step is under way."""
        step = self.activations + self.logits
        kept = self.weights + self.gradients + self.optimizer + self.kernels
        return kept + max(step, self.checkpoint)


def weights_in(shape: Shape) -> int:
    """Weights of a stack, counted on a model without any storage."""
    import torch

    from onsil.models.transformer import Transformer

    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(shape).parameters())


def kept_per_token(shape: Shape, compute: str, length: int, kind: str = "G") -> int:
    """Bytes that one layer keeps of a token until the way back, in documents of `length`; `kind`:
    what the layer sees (`Shape.kind`)."""
    from onsil.models.attention import SHORT  # up to here attention weights are kept in bf16

    D, H = shape.width, shape.heads * shape.head_width
    G = shape.kv_heads * shape.head_width
    wide = compute != "bf16"
    inner = 4 if wide else 3  # gate, up, their product; narrow, the gate's activation is made anew
    if kind == "C":  # beside the MLP's: gates, rows before, their products
        numbers = (14 if wide else 12) * D + inner * shape.hidden
        return (FLOAT if wide else FLOAT // 2) * numbers
    if shape.gated:  # norms, queries, keys and values, MLP
        numbers = 6 * D + 4 * H + 4 * G + inner * shape.hidden
    else:
        numbers = 4 * D + 4 * H + 2 * shape.hidden
    kept = FLOAT * numbers
    if not wide:
        scores = 2 * shape.heads * length if length <= SHORT else 0
        kept = round(kept * BF16_SHARE[shape.gated]) + scores
    return kept


def compiled_kernels(lengths: int) -> int:
    """Bytes of the bfloat16 kernels for so many different lengths, as far as the caches go."""
    kept, each = 0, WITH_TILES if "amx_bf16" in processor_flags() else BYTES_A_LENGTH
    for cache in KERNEL_CACHES:
        told = os.environ.get(cache, "")
        capacity = int(told) if told.isdecimal() else CAPACITY
        kept += round(each * min(lengths, capacity / KERNELS_A_LENGTH))
    return kept


def training_memory(shape: Shape, compute: str, tokens: int, lengths: int = 1) -> Memory:
    """Memory of training `shape` with steps of `tokens` tokens, in documents of its context;
    `lengths`: how many different lengths the documents have."""
    from onsil.training.objectives import KEPT_SCORES, LOSS_CHUNK

    n = weights_in(shape)
    length = min(shape.context, tokens)
    kinds = [shape.kind(layer) for layer in range(shape.depth)]
    kept = [kept_per_token(shape, compute, length, kind) for kind in kinds]
    layers = (sum(kept) + max(kept)) * tokens
    ends = 5 * FLOAT * shape.width * tokens  # embedding, last norm, rows that meet the vocabulary
    copies = 2 * n if compute == "bf16" else 0  # weights cast for the products are kept too
    chunk = min(tokens, LOSS_CHUNK) * shape.vocabulary
    waiting = min(tokens * shape.vocabulary, KEPT_SCORES) if compute == "bf16" else 0
    head = shape.vocabulary * shape.width
    return Memory(
        weights=FLOAT * n,
        gradients=FLOAT * n,
        optimizer=2 * FLOAT * n,
        checkpoint=3 * FLOAT * n,
        activations=layers + ends + copies,
        logits=4 * FLOAT * chunk + 2 * waiting + 2 * FLOAT * head,
        kernels=compiled_kernels(lengths) if compute == "bf16" else 0,
    )


def nearest_shape(size: int, vocabulary: int, context: int) -> tuple[Shape, int]:
    """The decoder shape nearest to `size` weights, the vocabulary's rows counted, and how many it
    really has. Raises OnsilError when none is near: most often the vocabulary alone is larger."""
    found: list[tuple[float, int, int, int]] = []
    for width in WIDTHS:
        one = hybrid_shape(vocabulary, width, 1, context)
        heads = 2 * width * one.head_width * (one.heads + one.kv_heads) + 2 * one.head_width
        mixing = {"G": heads, "C": 4 * width * width + one.taps * width}
        rest = 3 * width * one.hidden + 2 * width
        for depth in DEPTHS:
            if SLENDER <= width / depth <= STOUT:
                kinds = hybrid_shape(vocabulary, width, depth, context).pattern
                layers = sum(mixing[kind] + rest for kind in kinds)
                count = (vocabulary + 1) * width + layers
                found.append((abs(count - size) / size, -width, depth, count))
    off, width, depth, count = min(found)
    if off > NEAR:
        raise OnsilError(
            en=(
                f"No decoder of {size:,} weights: the nearest has {count:,}.",
                f"Each token of the vocabulary ({vocabulary:,}) takes a row of the width.",
                "Ask for a size near that, or leave --size out.",
            ),
            ko=(
                f"가중치가 {size:,}개인 언어 모델은 만들 수 없습니다. 가장 가까운 것은 "
                f"{count:,}개입니다.",
                f"어휘 {vocabulary:,}개가 저마다 모델 너비만큼 가중치를 씁니다.",
                "그에 가까운 크기를 주거나 --size를 빼 주세요.",
            ),
        )
    return hybrid_shape(vocabulary, -width, depth, context), count


def resident() -> int:
    """The most bytes this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Machine:
    """Bytes of memory: all there is for this process, and what is free of it now."""

    total: int
    available: int


def machine_memory(root: Path = Path("/")) -> Machine | None:
    """What /proc/meminfo and the control group say; None where the system does not tell."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        total, available = told["MemTotal"], told["MemAvailable"]
    except (OSError, ValueError, IndexError, KeyError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max": no limit
        return Machine(total, available)
    return Machine(min(total, limit), min(available, max(0, limit - used + _cached(group))))


def _cached(group: Path) -> int:
    """Bytes of files a control group holds that nobody used of late; they give way when needed."""
    try:
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(told.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def refuse_beyond(needed: int, machine: Machine | None) -> None:
    """Raises OnsilError when the machine does not have what a run needs, whatever is closed."""
    if machine is None or needed <= machine.total:
        return
    have, want = machine.total / 2**20, needed / 2**20
    raise OnsilError(
        en=(
            f"This plan needs about {want:,.0f} MB of memory; the machine has {have:,.0f} MB.",
            "The system would end the run half-way.",
            "Ask for a smaller --size, or run it on a larger machine.",
        ),
        ko=(
            f"이 계획에는 메모리가 약 {want:,.0f} MB 필요한데 이 컴퓨터에는 {have:,.0f} MB가 "
            "있습니다.",
            "그대로 실행하면 도중에 시스템이 중단시킵니다.",
            "--size를 줄이거나 메모리가 더 큰 컴퓨터에서 실행해 주세요.",
        ),
    )
