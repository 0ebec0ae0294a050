"""Kernels for sizes met once are let go (docs/log.md, "Kernels that are kept")."""

import os
import subprocess
import sys

import pytest

CHILD = """
import onsil
import psutil
import torch

weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(256, 64), 8)
resident = lambda: psutil.Process().memory_info().rss / 2**20
before = resident()
for rows in range(1, 501):
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 64), weight, None, "none", [], "")
print(resident() - before)
"""


@pytest.mark.parametrize("bounded", [True, False])
def test_five_hundred_sizes_do_not_stay_in_memory(bounded):
    """And without the bounds they do, or the test would show nothing."""
    names = {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    told = {} if bounded else dict.fromkeys(names, "1024")
    run = subprocess.run(
        [sys.executable, "-c", CHILD], env=clean | told, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (float(run.stdout) < 200) == bounded, run.stdout
