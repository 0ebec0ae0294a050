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

WIDTH, DEPTH, HEADS, HIDDEN = 256, 4, 4, 688  # the LLaMA of Trainer and litgpt, head untied


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

        logits_of = lambda x: whole(x, x)[0]  # noqa: E731
        judge.note(checkpoint["iter_num"] * ROW * ROWS, nats_by(logits_of))

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
    """transformers' Trainer with its default arguments and bf16 on a LLaMA; `--set lr=10`
    multiplies its default learning rate of 5e-5. A row has 255 targets here: labels are the
    inputs, as its documentation has it, and the model shifts them."""
    import transformers

    rows = rows_of(home, told.seed)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return {"input_ids": rows[i][:-1], "labels": rows[i][:-1]}

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step % told.every and state.global_step != told.steps:
                return
            model.eval()
            judge.note(state.global_step * ROW * ROWS, nats_by(lambda x: model(input_ids=x).logits))
            model.train()

    transformers.set_seed(told.seed)
    judge.clock = Clock()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=DEPTH,
            num_attention_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=ROW,
            tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        output_dir=str(home / "trainer"), max_steps=told.steps, per_device_train_batch_size=ROWS,
        use_cpu=True, bf16=True, report_to=[], save_strategy="no", seed=told.seed,
        learning_rate=5e-5 * float(dict(told.set).get("lr", 1)), logging_steps=told.steps,
        disable_tqdm=True,
    )  # fmt: skip
    told_by = [Watch()]
    transformers.Trainer(model, arguments, train_dataset=Rows(), callbacks=told_by).train()
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": "bf16"}


def litgpt(home: Path, judge, told) -> dict:
    """`litgpt pretrain` with the settings of its smallest recipe (config_hub/pretrain/debug.yaml:
    bf16-mixed, AdamW at 6e-4, 100 steps of warm-up) on a LLaMA; it compiles the model by itself.
    `--set lr=2` multiplies the rate and the one it falls to."""
    sys.path.insert(0, str(told.peer))
    from litgpt import Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule

    rows = rows_of(home, told.seed)
    seen: dict = {"steps": 0}

    class Rows(DataModule):
        def connect(self, *_, **__):
            pass

        def train_dataloader(self):
            return torch.utils.data.DataLoader(rows, batch_size=ROWS)

        val_dataloader = train_dataloader

    def validate(fabric, model, _, max_iters, verbose=True):
        whole = model.module  # as it was before compiling
        seen["parameters"] = sum(p.numel() for p in whole.parameters())
        if not verbose:  # a look at the first rows before training
            return torch.zeros(())
        seen["steps"] += told.every
        with fabric.autocast():
            return torch.tensor(judge.note(seen["steps"] * ROW * ROWS, nats_by(whole)))

    pretrain.validate = validate
    pretrain.save_checkpoint = lambda *_, **__: None
    times = float(dict(told.set).get("lr", 1))
    judge.clock = Clock()
    pretrain.setup(
        model_name="llama",
        model_config=Config(
            name="llama", block_size=ROW, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY,
            n_layer=DEPTH, n_head=HEADS, n_embd=WIDTH, intermediate_size=HIDDEN, bias=False,
            rotary_percentage=1.0, parallel_residual=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        ),
        out_dir=home / "litgpt",
        precision="bf16-mixed",
        data=Rows(),
        train=TrainArgs(
            save_interval=None, log_interval=100, global_batch_size=ROWS, micro_batch_size=ROWS,
            max_tokens=told.steps * ROW * ROWS, max_norm=1.0, lr_warmup_steps=100,
            min_lr=6e-5 * times,
        ),
        eval=EvalArgs(interval=told.every, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 6e-4 * times, "weight_decay": 0.1, "betas": (0.9, 0.95)},
        },
        devices=1,
        logger_name="csv",
        seed=told.seed,
    )  # fmt: skip
    return {"parameters": seen["parameters"], "dtype": "bf16-mixed"}


def rows_of(home: Path, seed: int) -> list[torch.Tensor]:
    """Rows of ROW + 1 ids in the order of `batches`."""
    return [row for x, y in batches(home, seed) for row in torch.cat([x, y[:, -1:]], 1)]


def nats_by(logits_of):
    """What the judge asks for, of a model that turns ids into logits."""

    def nats(x, y):
        logits = logits_of(x).float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, y.flatten(), reduction="none")

    return nats
