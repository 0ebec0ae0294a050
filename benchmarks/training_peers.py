"""The peers of benchmarks/training.py, each run by its own code from a folder outside this project.

nanochat and nanoGPT run their own training scripts unchanged: this file only hands them the rows
and puts the judge where they would measure themselves. Their settings are those of their own
documentation for a CPU, with the size of model, rows and batch set to those of the benchmark.
"""

import os
import pickle
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import torch
from training import ROW, ROWS, VOCABULARY, Clock, batches


def nanochat(home: Path, judge, told) -> dict:
    """scripts/base_train.py as runs/runcpu.sh calls it; NANOCHAT_DTYPE is the caller's to set.

    `--set lr=2` multiplies its three learning rates: the tuning ours had too.
    """
    sys.path.insert(0, str(told.peer))
    told.set = dict(told.set)
    os.environ.setdefault("NANOCHAT_BASE_DIR", str(home / "nanochat"))
    sys.modules["wandb"] = types.ModuleType("wandb")
    import nanochat.checkpoint_manager as manager
    import nanochat.dataloader as loader
    import nanochat.loss_eval as evaluation
    import nanochat.tokenizer as tokenizer

    class Words:
        def get_vocab_size(self):
            return VOCABULARY

    def rows(*_, **__):
        for x, y in batches(home, told.seed):
            yield x, y, {"epoch": 1, "pq_idx": 0, "rg_idx": 0}

    seen = {"steps": 0}

    def evaluate(model, *_):
        whole = getattr(model, "_orig_mod", model)
        nats = lambda x, y: whole(x, y, loss_reduction="none")  # noqa: E731
        seen["parameters"] = sum(p.numel() for p in whole.parameters())
        bits = judge.note(seen["steps"] * ROWS * ROW, nats)
        seen["steps"] += told.every
        return bits

    tokenizer.get_tokenizer = Words
    tokenizer.get_token_bytes = lambda device="cpu": judge.bytes
    loader.tokenizing_distributed_data_loader_with_state_bos_bestfit = rows
    loader.tokenizing_distributed_data_loader_bos_bestfit = rows
    evaluation.evaluate_bpb = evaluate
    manager.save_checkpoint = lambda *_, **__: None
    times = float(told.set.get("lr", 1))
    torch.manual_seed(told.seed)
    import nanochat.common as common

    real = common.compute_init

    def seeded(*args, **kwargs):
        out = real(*args, **kwargs)
        torch.manual_seed(told.seed)
        torch.set_num_threads(told.threads)
        return out

    common.compute_init = seeded
    sys.argv = [
        "base_train", "--device-type=cpu", f"--depth={told.set.get('depth', 4)}",
        f"--aspect-ratio={told.set.get('aspect', 48)}", "--head-dim=64", "--window-pattern=L",
        f"--max-seq-len={ROW}", f"--device-batch-size={ROWS}", f"--total-batch-size={ROW * ROWS}",
        f"--num-iterations={told.steps}", f"--eval-every={told.every}", "--eval-tokens=1",
        "--core-metric-every=-1", "--sample-every=-1", "--run=dummy",
        f"--embedding-lr={0.3 * times}", f"--unembedding-lr={0.008 * times}",
        f"--matrix-lr={0.02 * times}",
    ]  # fmt: skip
    judge.clock = Clock()
    runpy.run_module("scripts.base_train", run_name="__main__")
    return {
        "parameters": seen["parameters"],
        "dtype": os.environ.get("NANOCHAT_DTYPE", "default"),
    }


def nanogpt(home: Path, judge, told) -> dict:
    """train.py with the flags its README gives for a CPU, and the batch and learning rate of its
    small-model recipe (config/train_shakespeare_char.py)."""
    folder = home / "nanogpt" / "data" / "here"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        np.load(home / f"{name}.npy").astype(np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": VOCABULARY}))
    os.chdir(folder.parents[1])
    Path("configurator.py").write_text((told.peer / "configurator.py").read_text())
    sys.path.insert(0, str(told.peer))
    import model as peer

    made, real = {}, peer.GPT.__init__

    def remember(self, config):
        real(self, config)
        made["model"] = self
        torch.manual_seed(1337 + told.seed)
        torch.set_num_threads(told.threads)

    def keep(checkpoint, _):
        whole = made["model"]

        def nats(x, y):
            logits, _ = whole(x, y)
            return torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), y.flatten(), reduction="none"
            )

        judge.note(checkpoint["iter_num"] * ROW * ROWS, nats)

    peer.GPT.__init__ = remember
    torch.save = keep
    judge.clock = Clock()
    rate = 1e-3 * float(dict(told.set).get("lr", 1))
    sys.argv = [
        "train.py", "--device=cpu", "--compile=False", "--dataset=here", f"--batch_size={ROWS}",
        f"--block_size={ROW}", "--n_layer=4", "--n_head=3", "--n_embd=192", "--dropout=0.0",
        "--gradient_accumulation_steps=1", f"--max_iters={told.steps}",
        f"--lr_decay_iters={told.steps}", f"--learning_rate={rate}",
        f"--min_lr={rate / 10}", "--beta2=0.99", "--warmup_iters=100",
        f"--eval_interval={told.every}", "--eval_iters=1", "--log_interval=100",
        "--always_save_checkpoint=True", "--bias=False",
    ]  # fmt: skip
    runpy.run_path(str(told.peer / "train.py"), run_name="__main__")
    return {"parameters": sum(p.numel() for p in made["model"].parameters()), "dtype": "fp32"}


def trainer(home: Path, judge, told) -> dict:
    """transformers' Trainer with its default arguments and bf16 on a LLaMA of the size of
    nanochat's stack; `--set lr=10` multiplies its default learning rate of 5e-5."""
    import transformers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    rows = [row for x, y in batches(home, told.seed) for row in torch.cat([x, y[:, -1:]], 1)]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return {"input_ids": rows[i][:-1], "labels": rows[i][:-1]}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step % told.every and state.global_step != told.steps:
                return
            model.eval()

            def nats(x, y):
                logits = model(input_ids=x).logits.float()
                return torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), y.flatten(), reduction="none"
                )

            judge.note(state.global_step * ROW * ROWS, nats)
            model.train()

    transformers.set_seed(told.seed)
    judge.clock = Clock()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=192, num_hidden_layers=4, num_attention_heads=3,
            intermediate_size=512, max_position_embeddings=ROW, tie_word_embeddings=False,
        )
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(home / "trainer"), max_steps=told.steps, per_device_train_batch_size=ROWS,
        use_cpu=True, bf16=True, report_to=[], save_strategy="no", seed=told.seed,
        learning_rate=5e-5 * float(dict(told.set).get("lr", 1)), logging_steps=told.steps,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Watch()]).train()
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": "bf16"}
