"""Forward and backward of a family: our transformer beside the published class.

    python benchmarks/models.py [FAMILY ...]

The published class (attn_implementation="sdpa") is made at random and saved; both sides load the
same weights, float32, one thread. They must agree on the logits and on the gradient of the
embedding before anything is timed. Then they take turns (ours first on even rounds) in one process;
the ratio of a round is our CPU time over theirs, the result its median with a bootstrap interval.
Peak memory is that of a process of its own for each side, three steps, with what imports alone take
told apart.
Both run as they would be trained here: dropout off, no cache, the same cross-entropy on all
positions. Appends one row to benchmarks/results/models.jsonl.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from recorded import append, circumstances
from torch.nn import functional as F

ROUNDS, SEED = 10, 1
BATCH, LENGTH, VOCABULARY = 4, 256, 8_000
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": LENGTH,
}  # fmt: skip
GATED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 688, "sliding_window": None}
# Family → its config and the published class.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": (GATED, "LlamaForCausalLM"),
    "gpt2": (
        {"vocab_size": VOCABULARY, "n_embd": 256, "n_layer": 6, "n_head": 4, "n_positions": LENGTH},
        "GPT2LMHeadModel",
    ),
    "bert": (SIZES | {"intermediate_size": 1024}, "BertForMaskedLM"),
    "t5": (
        {
            "vocab_size": VOCABULARY, "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 3,
            "num_decoder_layers": 3, "num_heads": 4,
        },
        "T5ForConditionalGeneration",
    ),
    "mixtral": (GATED | {"num_local_experts": 4}, "MixtralForCausalLM"),
}  # fmt: skip
Step = Callable[[], torch.Tensor]


def published(family: str, folder: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, FAMILIES[family][1])
    if not folder.exists():
        torch.manual_seed(SEED)
        kind(kind.config_class(**FAMILIES[family][0])).save_pretrained(folder)
    return kind.from_pretrained(folder, attn_implementation="sdpa").eval()


def ours(folder: Path) -> Any:
    from onsil.models.checkpoint import load

    return load(folder)[0].eval()


def step_of(side: str, family: str, folder: Path) -> tuple[Any, Step]:
    """The model, and one forward and backward of it that gives the logits."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, VOCABULARY, (2, BATCH, LENGTH), generator=generator)
    if side == "ours":
        model = ours(folder)
        ask = (lambda: model(ids[0], ids[1])) if family == "t5" else (lambda: model(ids[0]))
    else:
        model = published(family, folder)
        told: dict[str, Any] = {"input_ids": ids[0]}
        told |= {"decoder_input_ids": ids[1]} if family == "t5" else {}
        told |= {} if family == "bert" else {"use_cache": False}
        ask = lambda: model(**told).logits  # noqa: E731

    def step() -> torch.Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        logits = ask()
        F.cross_entropy(logits.flatten(0, 1), ids[1].flatten()).backward()
        return logits.detach()

    return model, step


def gradient(model: Any) -> torch.Tensor:
    """Of the embedding: what came all the way back."""
    found = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.shape == (VOCABULARY, 256) and "head" not in name and "position" not in name
    ]
    return found[0]


def bootstrap(values: list[float]) -> list[float]:
    """The middle 95 % of medians of 2,000 draws with replacement."""
    generator = torch.Generator().manual_seed(SEED)
    draws = torch.randint(0, len(values), (2_000, len(values)), generator=generator)
    medians = torch.tensor(values)[draws].median(1).values.sort().values
    return [round(float(medians[i]), 3) for i in (50, 1_949)]


def peak(side: str, family: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--alone", side, family, str(folder)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


def resident() -> float:
    """MB this process has held at most (Linux; getrusage counts what it was forked from too)."""
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)


def alone(side: str, family: str, folder: Path) -> None:
    """In a process of its own: peak resident memory in MB after three steps."""
    if side == "ours":
        import onsil.models.checkpoint  # noqa: F401
    else:
        import transformers

        getattr(transformers, FAMILIES[family][1])
    imports = resident()
    _, step = step_of(side, family, folder)
    for _ in range(3):
        step()
    print(json.dumps({"imports": imports, "peak": resident()}))


def compare(family: str, folder: Path) -> dict[str, Any]:
    theirs, their_step = step_of("theirs", family, folder)
    mine, my_step = step_of("ours", family, folder)
    wanted, got = their_step(), my_step()
    error = float((got - wanted).abs().max() / wanted.abs().max())
    back = float((gradient(mine) - gradient(theirs)).abs().max() / gradient(theirs).abs().max())
    assert error < 1e-4 and back < 1e-3, (family, error, back)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    pair = [("ours", my_step), ("theirs", their_step)]
    for number in range(ROUNDS):
        for name, step in pair if number % 2 == 0 else pair[::-1]:
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    memory = {side: peak(side, family, folder) for side in ("ours", "theirs")}
    return {
        "family": family,
        "ratio": round(statistics.median(ratios), 3),
        "interval": bootstrap(ratios),
        "cpu_s": {name: round(statistics.median(taken), 4) for name, taken in times.items()},
        "memory_mb": memory,
        "logits": f"{error:.0e}",
        "gradients": f"{back:.0e}",
        "parameters": sum(p.numel() for p in mine.parameters()),
    }


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--alone"]:
        return alone(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as home:
        for family in sys.argv[1:] or FAMILIES:
            rows.append(compare(family, Path(home) / family))
            print(json.dumps(rows[-1]), flush=True)
    result = {
        **circumstances(),
        "transformers": transformers.__version__,
        "threads": 1,
        "batch": BATCH,
        "length": LENGTH,
        "rounds": ROUNDS,
        "seed": SEED,
        "rows": rows,
    }
    append("models", result)


if __name__ == "__main__":
    main()
