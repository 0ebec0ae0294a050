"""Training steps in compiled stretches: everything between two attentions is a few kernels.

What a token alone decides (norms, products, gates, rotation, the residual) is compiled by torch's
inductor, which joins the passes over memory between two matrix products; attention stays as it
is. A quarter more tokens a second where products are cheap (docs/log.md, "Compiled stretches"),
for half a minute of a C++ compiler, so it is for runs of minutes and a plan says when.

The same code in every run, so that a run that was killed goes on with the same bits: everything is
compiled before the first step, for any number of tokens, and nothing afterwards; what does not fit
(a single token) runs uncompiled.
"""

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onsil.errors import OnsilError
from onsil.models.attention import Views
from onsil.models.transformer import MLP, Block, Transformer

WIRINGS = ("pre", "post", "output", "sandwich")  # those of one branch after the other
OURS = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")


def compiler() -> str:
    """The C++ compiler that is asked, with its version; empty where there is none."""
    path = shutil.which(os.environ.get("CXX") or "g++")
    told = path and subprocess.run([path, "--version"], capture_output=True, text=True)
    return told.stdout.partition("\n")[0].strip() if told else ""


@contextmanager
def compiled(model: Transformer, tokens: int) -> Iterator[None]:
    """Inside, `model` computes without a cache in compiled stretches, made for steps of about
    `tokens`. Raises OnsilError where the compiler does not do it."""
    blocks = [block for block in model.blocks if isinstance(block, Block) and _fits(block)]
    with _own_folder():
        try:
            with warnings.catch_warnings():  # torch warns of what it does itself while it traces
                warnings.simplefilter("ignore")
                torch._dynamo.reset()  # what earlier runs compiled was not made for this one
                kernels = {f.__name__: torch.compile(f) for f in (_ahead, _after, _convolved)}
                for block in blocks:
                    block.stretches = partial(_stretches, kernels)
                try:
                    _try(model, tokens)
                except Exception as e:
                    raise _refused(e) from e
            with torch.compiler.set_stance("eager_on_recompile"):
                yield
        finally:
            for block in blocks:
                block.stretches = None


def _fits(block: Block) -> bool:
    return block.shape.wiring in WIRINGS and block.cross is None and isinstance(block.mlp, MLP)


@contextmanager
def _own_folder() -> Iterator[None]:
    """Code is made and loaded where nobody else writes, and nothing is left."""
    before = {name: os.environ.get(name) for name in OURS}
    with tempfile.TemporaryDirectory(prefix="onsil-") as folder:
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _refused(error: Exception) -> OnsilError:
    asked, why = compiler() or "g++", (str(error).strip() or type(error).__name__).splitlines()[0]
    return OnsilError(
        en=(
            f"The training steps could not be compiled ({asked}: {why}).",
            "The plan says they are, and steps that are not would make other weights.",
            "Install g++ and Python's headers (Debian: g++ python3-dev), or make a plan anew here.",
        ),
        ko=(
            f"학습 단계를 컴파일하지 못했습니다({asked}: {why}).",
            "계획은 컴파일한 코드로 학습하라고 되어 있고, 그렇게 하지 않으면 가중치가 달라집니다.",
            "g++와 파이썬 헤더(데비안: g++ python3-dev)를 설치하거나 계획을 새로 세워 주세요.",
        ),
    )


def _try(model: Transformer, tokens: int) -> None:
    """A step there and back that leaves nothing behind, of documents as rows and of documents laid
    end to end."""
    long = max(2, min(256, tokens // 2, model.shape.context))
    many = max(2, tokens // long)
    wanted = [p for p in model.parameters() if p.requires_grad]
    for lengths in ([long] * many, [long] * (many - 1) + [long - 1]):
        ids_1T = torch.zeros(1, sum(lengths), dtype=torch.long)
        states = model.encode(ids_1T, lengths=lengths)
        torch.autograd.grad(states.sum(dtype=torch.float32), wanted, allow_unused=True)


def _open(rows: int, *tensors: Tensor | None) -> None:
    """Of these the number of tokens changes from step to step (the second last dimension, or the
    last of two), and so does that of `rows`, where there are several."""
    for t in tensors:
        if t is not None:
            torch._dynamo.maybe_mark_dynamic(t, max(1, t.dim() - 2))
            if len(t) == rows > 1:
                torch._dynamo.maybe_mark_dynamic(t, 0)


def _ahead(block: Block, x_BTD: Tensor, at_BT: Tensor, tables: Any, told_BTX: Tensor | None):
    """Up to attention: queries, keys and values, laid out by heads."""
    attention = block.attention
    assert attention is not None
    h_BTD = block.entering(x_BTD, block.attention_norm)
    heads = attention.project(h_BTD, h_BTD, at_BT, tables, told_BTX)[:3]
    return tuple(each.contiguous() for each in heads)


def _after(block: Block, x_BTD: Tensor, y_BTX: Tensor) -> Tensor:
    """From attention to the end of the block."""
    assert block.attention is not None
    norms = block.attention_norm, block.attention_norm_out
    x_BTD = block.joined(x_BTD, block.attention.o(y_BTX), *norms)
    return block.branch(x_BTD, block.mlp, block.mlp_norm, block.mlp_norm_out)


def _convolved(block: Block, x_BTD: Tensor, at_BT: Tensor) -> Tensor:
    """A whole block whose tokens meet in a short convolution."""
    mix = block.convolution
    assert mix is not None
    norms = block.attention_norm, block.attention_norm_out
    x_BTD = block.branch(x_BTD, lambda h: mix.convolved(h, at_BT), *norms)
    return block.branch(x_BTD, block.mlp, block.mlp_norm, block.mlp_norm_out)


def _stretches(
    kernels: dict[str, Any], block: Block, x_BTD: Tensor, views: Views, table: Any
) -> Tensor:
    """`Block.forward` without a cache or a source. Rows are laid end to end where tokens are alone,
    so that there is one form of it."""
    rows, attention, at_BT = len(x_BTD), block.attention, views.q_BT
    x_1ND = x_BTD.flatten(0, 1)[None]
    if attention is None:
        at_1N = at_BT.expand(rows, -1).reshape(1, -1)
        _open(1, x_1ND, at_1N)
        return kernels["_convolved"](block, x_1ND, at_1N).view_as(x_BTD)
    tables, told_BTX = attention.told_by(views, x_BTD.dtype)
    _open(rows, x_BTD, at_BT, told_BTX, *(tables or ()))
    q, k, v = kernels["_ahead"](block, x_BTD, at_BT, tables, told_BTX)
    y_BTX = attention.mix(q, k, v, views, table).transpose(1, 2).flatten(2)
    y_1NX = y_BTX.flatten(0, 1)[None]
    _open(1, x_1ND, y_1NX)
    return kernels["_after"](block, x_1ND, y_1NX).view_as(x_BTD)
