"""How fast a training step is: the same model, dtype and batch in ours and in its peers.

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate \\
        lightning==2.6.6 jsonargparse==4.41.0 && PEERS/bin/pip install --no-deps litgpt==0.5.13
    python benchmarks/step_speed.py PEERS/bin/python --nanogpt FOLDER [--cell llama-4k-bf16]

Every side begins with the same weights, written once as a published checkpoint, and takes the same
rows in the same order: 8 of 256 tokens a step. Beside ours stand transformers' Trainer (`bf16`,
`use_cpu`), a plain loop over transformers' model (autocast, fused AdamW), the same loop over the
compiled model, litgpt's own `pretrain` (which compiles too, in the precision it picks by itself),
and, for the shape of GPT-2, nanoGPT's own train.py with the flags its README gives for a CPU
(float32; that is its only dtype there, so that cell is float32 for all).

Each side is a process of its own; they take turns, a step a round, and count the processor time of
the process, all threads together. What is compiled is compiled before the first round that counts;
ours runs a second time without.
The losses of the first step must agree before any round is believed. Weights are drawn so wide that
a loss says which weights it belongs to. One row a cell goes to benchmarks/results/step_speed.jsonl:
tokens a core-second, ours ÷ each peer with an interval over rounds, the peak of resident memory
whole and beyond what importing takes, how much of our step is matrix products, and how fast those
are beside the fastest square product of the same process.
"""

import argparse
import json
import math
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
import torch
from sft import RESULTS, Side, bootstrap, say

OUT = RESULTS.with_name("step_speed.jsonl")
ROWS, LENGTH, ROUNDS, WARM, SEED = 8, 256, 10, 2, 1
STEPS, PROFILED = ROUNDS + WARM, 5
LLAMA = ("trainer", "plain", "compiled", "litgpt")
CELLS: dict[str, dict[str, Any]] = {
    "llama-4k-bf16": {"vocabulary": 4_096, "dtype": "bf16", "peers": LLAMA},
    "llama-32k-bf16": {"vocabulary": 32_000, "dtype": "bf16", "peers": LLAMA},
    "llama-4k-fp32": {"vocabulary": 4_096, "dtype": "fp32", "peers": LLAMA},
    "gpt-4k-fp32": {"vocabulary": 4_096, "dtype": "fp32", "peers": ("trainer", "nanogpt")},
}
WIDTH, DEPTH, HEADS, HIDDEN = 256, 6, 4, 688
AGREE = {"fp32": 1e-3, "bf16": 2e-2}  # nats between the first losses
MATRICES = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def prepare(folder: Path, cell: dict[str, Any]) -> None:
    """Weights as a published checkpoint, rows as numbers, and what the cell is."""
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    shared = {"vocab_size": cell["vocabulary"], "initializer_range": 0.08, "bos_token_id": None}
    shared |= {"eos_token_id": None, "tie_word_embeddings": True}
    if cell["name"].startswith("gpt"):
        config = transformers.GPT2Config(
            n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS, n_positions=LENGTH, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu", **shared,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=LENGTH,
            **shared,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    ids = torch.randint(0, cell["vocabulary"], (STEPS * ROWS, LENGTH))
    save_file({"ids": ids}, folder / "rows.safetensors")
    (folder / "cell.json").write_text(json.dumps(cell))


def rows_of(folder: Path) -> torch.Tensor:
    """steps·ROWS × LENGTH ids; the target of each is the next one, and the last has none."""
    from safetensors.torch import load_file

    return load_file(folder / "rows.safetensors")["ids"]


# ── what every side says: memory after importing, then a line a step ────────────────────────────


def megabytes(key: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


class Turns:
    """Says how long each step took, and waits to be asked for the next."""

    def __init__(self, parameters: int):
        say(parameters=parameters, imported=IMPORTED)
        self.number = 0
        self.begin()

    def begin(self) -> None:
        self.loss, self.start = float("nan"), time.process_time()

    def end(self) -> None:
        seconds = time.process_time() - self.start
        self.number += 1
        say(seconds=seconds, loss=float(self.loss), peak=megabytes("VmHWM"))
        self.begin()


IMPORTED = 0.0


def imported() -> None:
    """Everything a side needs is there now; models come next."""
    global IMPORTED
    IMPORTED = megabytes("VmRSS")


def ours(folder: Path, cell: dict[str, Any], compile: bool = True) -> None:
    """As a plan of minutes has it where a C++ compiler is, or without one."""
    from onsil.models.checkpoint import load
    from onsil.models.compiling import compiled
    from onsil.training.loop import train
    from onsil.training.objectives import Batch, token_loss

    imported()
    model, _ = load(folder, cell["dtype"])
    ids = rows_of(folder)
    targets = torch.cat((ids[:, 1:], torch.full((len(ids), 1), -100)), 1)
    rows, lengths = ids.view(STEPS, 1, -1), [LENGTH] * ROWS
    wanted = targets.view(STEPS, 1, -1)
    parameters = dict(model.named_parameters())

    def loss_of(k: int):
        return token_loss(model, Batch(rows[k % STEPS], lengths, wanted[k % STEPS]))

    turns = Turns(sum(p.numel() for p in parameters.values()))
    stretches = compiled(model, ROWS * LENGTH) if compile else nullcontext()
    with tempfile.TemporaryDirectory() as scratch, stretches:
        many = STEPS + 2 * PROFILED + 1
        told = {"names_of": lambda k: [f"batch {k % STEPS}"], "data": "rows"}
        steps = train(parameters, loss_of, many, 1e-4, Path(scratch), 1, **told)
        for step in steps:
            turns.loss = step.loss
            turns.end()
            if step.number == STEPS:
                break
        say(**products(lambda: next(steps), cell["dtype"]))


def products(step: Callable[[], Any], dtype: str) -> dict[str, float]:
    """How much of a step is matrix products and how fast they are, medians of a few steps.

    The profiler gives shares and counts operations; seconds are of the processor and of other
    steps, so that another process on the core does not look like slow products.
    """
    from torch.profiler import ProfilerActivity, profile

    shares, seconds, operations = [], [], 0
    for _ in range(PROFILED):
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
            step()
        each = seen.key_averages()
        inside = [e for e in each if e.key in MATRICES or e.key.startswith(FUSED)]
        whole = sum(e.self_cpu_time_total for e in each)
        shares.append(sum(e.self_cpu_time_total for e in inside) / whole)
        operations = sum(e.flops for e in inside)
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    share, gflop, took = statistics.median(shares), operations / 1e9, statistics.median(seconds)
    of = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    return {
        "share": share,
        "gflop": gflop,
        "gflops_in_products": gflop / (took * share),
        "gflops_of_step": gflop / took,
        "peak_gflops": max(square(size, of) for size in (512, 1_024, 2_048)),
    }


def square(size: int, dtype: torch.dtype) -> float:
    """GFLOP a core-second of the best of eight square products."""
    a, b = torch.randn(2, size, size).to(dtype)
    best = math.inf
    for _ in range(8):
        start = time.process_time()
        a @ b
        best = min(best, time.process_time() - start)
    return 2 * size**3 / 1e9 / best


def trainer(folder: Path, cell: dict[str, Any]) -> None:
    """transformers' Trainer, its default arguments but for precision and rows in their order."""
    import transformers

    imported()
    ids = rows_of(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    labels = ids.clone()
    labels[:, 0] = -100  # nothing predicts it, but the Trainer would count it as a target
    rows = [{"input_ids": a, "labels": b} for a, b in zip(ids, labels, strict=True)]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any):
            return torch.utils.data.SequentialSampler(rows)  # pyright: ignore[reportArgumentType]

        def compute_loss(self, *arguments: Any, **more: Any):
            loss = super().compute_loss(*arguments, **more)
            turns[0].loss = loss.detach()
            return loss

    turns: list[Turns] = []

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any):
            turns.append(Turns(sum(p.numel() for p in model.parameters())))

        def on_step_end(self, *_: Any, **__: Any):
            turns[0].end()

    settings = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=STEPS, per_device_train_batch_size=ROWS,
        use_cpu=True, bf16=cell["dtype"] == "bf16", report_to=[], save_strategy="no",
        learning_rate=1e-4, disable_tqdm=True, logging_steps=STEPS,
    )  # fmt: skip
    InOrder(model=model, args=settings, train_dataset=rows, callbacks=[Watch()]).train()  # pyright: ignore[reportArgumentType]


def plain(folder: Path, cell: dict[str, Any], compiled: bool = False) -> None:
    """A loop of ten lines over transformers' model."""
    import transformers

    imported()
    ids = rows_of(folder).view(STEPS, ROWS, LENGTH)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    turns = Turns(sum(p.numel() for p in model.parameters()))
    for row in ids:
        with torch.autocast("cpu", torch.bfloat16, enabled=cell["dtype"] == "bf16"):
            loss = forward(input_ids=row, labels=row, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.loss = loss.detach()
        turns.end()


def litgpt(folder: Path, cell: dict[str, Any]) -> None:
    """`litgpt.pretrain.main` on our rows; its validation, which is no training, is left out."""
    import lightning
    from litgpt import Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    imported()
    config = Config(
        name="same", block_size=LENGTH, vocab_size=cell["vocabulary"], n_layer=DEPTH,
        padded_vocab_size=cell["vocabulary"], n_head=HEADS, n_embd=WIDTH, rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=1e-6,
        mlp_class_name="LLaMAMLP", intermediate_size=HIDDEN,
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, state, load_file(folder / "model.safetensors"))
    (folder / "litgpt").mkdir()
    torch.save(state, folder / "litgpt" / "lit_model.pth")
    size = sum(v.numel() for k, v in state.items() if k != "lm_head.weight")
    ids = rows_of(folder)
    rows = torch.cat((ids, torch.full((len(ids), 1), -100)), 1)
    turns: list[Turns] = []

    class Told(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i: int):
            if i % ROWS == 0:  # asked for the first row of a step: the one before is done
                turns[0].end() if turns else turns.append(Turns(size))
            return rows[i]

    class Rows(DataModule):
        def connect(self, *_: Any, **__: Any):
            pass

        def train_dataloader(self):
            return torch.utils.data.DataLoader(Told(), batch_size=ROWS)

        val_dataloader = train_dataloader

    whole = pretrain.chunked_cross_entropy

    def noted(*arguments: Any, **more: Any):
        loss = whole(*arguments, **more)
        if turns:
            turns[0].loss = loss.detach()
        return loss

    pretrain.chunked_cross_entropy = noted
    pretrain.validate = lambda *_, **__: torch.zeros(())
    pretrain.save_checkpoint = lambda *_, **__: None
    precision = pretrain.get_default_supported_precision(training=True)
    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, precision=precision if cell["dtype"] == "bf16" else "32-true"
    )
    train = TrainArgs(
        save_interval=None, global_batch_size=ROWS, micro_batch_size=ROWS, max_norm=1.0,
        max_tokens=STEPS * ROWS * LENGTH, tie_embeddings=True, lr_warmup_steps=1,
    )  # fmt: skip
    pretrain.main(
        fabric=fabric, devices=1, seed=SEED, initial_checkpoint_dir=folder / "litgpt", resume=False,
        config=config, data=Rows(), out_dir=folder / "litgpt", tokenizer_dir=None, tokenizer=None,
        train=train, eval=EvalArgs(final_validation=False), optimizer="AdamW", num_nodes=1,
    )  # fmt: skip
    turns[0].end()


def nanogpt(folder: Path, cell: dict[str, Any]) -> None:
    """train.py as its README calls it on a CPU; only weights and rows are put in place."""
    from safetensors.torch import load_file

    peer, home = Path(cell["nanogpt"]), folder / "nanogpt"
    (home / "data" / "here").mkdir(parents=True)
    sys.path.insert(0, str(peer))
    import model as theirs  # pyright: ignore[reportMissingImports]

    imported()
    ids = rows_of(folder)
    for name in ("train", "val"):
        ids.numpy().astype("uint16").tofile(home / "data" / "here" / f"{name}.bin")
    (home / "configurator.py").write_text((peer / "configurator.py").read_text())
    os.chdir(home)
    rows = ids.view(STEPS, ROWS, LENGTH)
    targets = torch.cat((rows[..., 1:], torch.full((STEPS, ROWS, 1), -1)), 2)
    turns: list[Turns] = []
    made, forward = theirs.GPT.__init__, theirs.GPT.forward

    def filled(self: Any, config: Any) -> None:
        config.vocab_size = cell["vocabulary"]
        made(self, config)
        told = load_file(folder / "model.safetensors")
        with torch.no_grad():
            for name, weight in self.named_parameters():
                there = told[name if name in told else name.replace("transformer.", "")]
                turned = name.endswith(("attn.weight", "c_fc.weight", "c_proj.weight"))
                weight.copy_(there.T if turned else there)

    def fed(self: Any, x: torch.Tensor, y: torch.Tensor | None = None):
        if not self.training:
            return forward(self, x, y)
        if turns:
            turns[0].end()
        else:
            turns.append(Turns(sum(p.numel() for p in self.parameters())))
        k = min(turns[0].number, STEPS - 1)
        logits, loss = forward(self, rows[k], targets[k])
        turns[0].loss = loss.detach()
        return logits, loss

    theirs.GPT.__init__, theirs.GPT.forward = filled, fed
    torch.save = lambda *_, **__: None
    sys.argv = [
        "train.py", "--device=cpu", "--compile=False", "--dataset=here", f"--batch_size={ROWS}",
        f"--block_size={LENGTH}", f"--n_layer={DEPTH}", f"--n_head={HEADS}", f"--n_embd={WIDTH}",
        "--dropout=0.0", "--gradient_accumulation_steps=1", f"--max_iters={STEPS}", "--bias=True",
        f"--eval_interval={10 * STEPS}", "--eval_iters=1", "--log_interval=1",
    ]  # fmt: skip
    runpy.run_path(str(peer / "train.py"), run_name="__main__")


SIDES: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "onsil": ours,
    "onsil, not compiled": lambda folder, cell: ours(folder, cell, compile=False),
    "trainer": trainer,
    "plain": plain,
    "compiled": lambda folder, cell: plain(folder, cell, compiled=True),
    "litgpt": litgpt,
    "nanogpt": nanogpt,
}


# ── rounds ──────────────────────────────────────────────────────────────────────────────────────


def compare(peer: str, folder: Path, cell: dict[str, Any]) -> dict[str, Any]:
    prepare(folder, cell)
    asked = {"onsil": sys.executable, "onsil, not compiled": sys.executable}
    asked |= dict.fromkeys(cell["peers"], peer)
    sides = {name: Side(py, __file__, "--side", name, str(folder)) for name, py in asked.items()}
    first = {name: side.first for name, side in sides.items()}
    assert len({row["parameters"] for row in first.values()}) == 1, first
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(STEPS):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            seen[name].append(next(sides[name].rows))
        print({name: round(rows[-1]["seconds"], 3) for name, rows in seen.items()}, flush=True)
        losses = [rows[0]["loss"] for rows in seen.values()]
        assert max(losses) - min(losses) < AGREE[cell["dtype"]], losses
    inside = next(sides["onsil"].rows)
    seconds = {name: [r["seconds"] for r in rows[WARM:]] for name, rows in seen.items()}
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    fastest = min(cell["peers"], key=lambda name: middle[name])
    told = {}
    for name in list(asked)[1:]:
        each = [b / a for a, b in zip(seconds["onsil"], seconds[name], strict=True)]
        told[name] = [round(statistics.median(each), 2), *bootstrap(each)]
    tokens = ROWS * LENGTH
    return {
        "tokens_per_core_second": {name: round(tokens / s) for name, s in middle.items()},
        "fastest_peer": fastest,
        "ours_over_fastest": told[fastest],
        "ours_over": told,
        "first_loss": {name: round(rows[0]["loss"], 4) for name, rows in seen.items()},
        "peak_mb": {name: round(rows[-1]["peak"]) for name, rows in seen.items()},
        "peak_mb_beyond_import": {
            name: round(rows[-1]["peak"] - first[name]["imported"]) for name, rows in seen.items()
        },
        "products": {
            **{key: round(value, 3) for key, value in inside.items()},
            "of_peak_in_products": round(inside["gflops_in_products"] / inside["peak_gflops"], 3),
            "of_peak_of_step": round(inside["gflops_of_step"] / inside["peak_gflops"], 3),
        },
        "parameters": first["onsil"]["parameters"],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", help="the python of the peers, or the folder of a side")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--cell", action="append", choices=list(CELLS))
    parser.add_argument("--threads", type=int, choices=[1, 2], default=1)
    parser.add_argument("--side", choices=list(SIDES))
    asked = parser.parse_args()
    if asked.side:
        folder = Path(asked.peer)
        cell = json.loads((folder / "cell.json").read_text())
        torch.set_num_threads(cell["threads"])
        SIDES[asked.side](folder, cell)
        return 0
    from recorded import circumstances

    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    for name in asked.cell or CELLS:
        cell = CELLS[name] | {"name": name, "threads": asked.threads}
        cell["nanogpt"] = str(asked.nanogpt.resolve()) if asked.nanogpt else ""
        if not asked.nanogpt:
            cell["peers"] = [peer for peer in cell["peers"] if peer != "nanogpt"]
        with tempfile.TemporaryDirectory() as folder:
            row = {"cell": name} | compare(asked.peer, Path(folder), cell)
        row |= {
            "rounds": ROUNDS, "tokens_a_step": ROWS * LENGTH, "rows": ROWS,
            "load": [round(x, 1) for x in os.getloadavg()],
            **circumstances(), "threads": asked.threads,
        }  # fmt: skip
        print(json.dumps(row, indent=1))
        with OUT.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
