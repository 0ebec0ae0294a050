"""Attention in windows: the same numbers as under a mask, in memory that grows with the text and
not with its square."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from onsil.models.attention import View
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer

SHAPE = replace(decoder_shape(97, 64, 2, 4096), pattern="L", window=8, kv_heads=1)


@pytest.mark.parametrize("length", [17, 40, 64])
def test_blocks_of_a_window_equal_the_mask(length, monkeypatch):
    model = Transformer(SHAPE).initialise(1)
    ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(1))
    blocks = model(ids)
    blocks.square().mean().backward()
    back = model.blocks[0].attention.k.weight.grad.clone()
    model.zero_grad()
    monkeypatch.setattr(View, "near", lambda self, kind: False)
    masked = model(ids)
    masked.square().mean().backward()
    error, size = (float(t.detach().abs().max()) for t in (blocks - masked, masked))
    assert error < 1e-6 * max(1.0, size)
    assert torch.allclose(back, model.blocks[0].attention.k.weight.grad, atol=1e-6)


def test_documents_keep_their_own_windows():
    """A window never reaches over the border of a document."""
    model = Transformer(SHAPE).initialise(1)
    a, b = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(2))
    together = model(torch.cat([a, b])[None], lengths=[30, 30])[0]
    apart = torch.cat([model(a[None])[0], model(b[None])[0]])
    assert torch.allclose(together, apart, atol=1e-6)


def test_a_step_outside_the_window_is_not_seen():
    """Two layers of eight see fifteen back: the sixteenth changes nothing."""
    model = Transformer(SHAPE).initialise(1)
    ids = torch.randint(5, 97, (1, 40), generator=torch.Generator().manual_seed(3))
    far, near = ids.clone(), ids.clone()
    far[0, 39 - 15], near[0, 39 - 14] = 3, 3
    last = model(ids)[0, -1]
    assert torch.equal(model(far)[0, -1], last)
    assert not torch.equal(model(near)[0, -1], last)


MEMORY = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from onsil.models.shape import decoder_shape
from onsil.models.transformer import Transformer
pattern, length = sys.argv[1], int(sys.argv[2])
window = 64 if pattern == "L" else 0
model = Transformer(replace(decoder_shape(97, 64, 1, 2**16), pattern=pattern, window=window))
model.initialise(0)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
model.encode(torch.zeros(1, 256, dtype=torch.long)).square().mean().backward()
before = peak()
ids = torch.zeros(1, length, dtype=torch.long)
keep = torch.ones(1, length, dtype=torch.bool) if pattern == "masked" else None
model.encode(ids).square().mean().backward()
print(json.dumps(peak() - before))
"""


def peak_mb(length: int) -> float:
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, "L", str(length)], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def test_memory_grows_with_the_text_and_not_with_its_square():
    """Four times the text takes at most 5.5 times the memory (a mask of T × T would take 16)."""
    small, large = peak_mb(8_192), peak_mb(32_768)
    assert large < 5.5 * small, (small, large)
