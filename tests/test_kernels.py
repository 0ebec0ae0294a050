"""What a long life would gather: kernels for sizes met once, and heaps of threads (docs/log.md,
"Kernels that are kept")."""

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


THREADS = """
import ctypes, sys, threading
from onsil.serving.run import few_arenas

if sys.argv[1] == "few":
    few_arenas()
libc, all_here = ctypes.CDLL(None), threading.Barrier(9)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p

def hold():
    libc.malloc(1000)
    all_here.wait()
    all_here.wait()

for _ in range(8):
    threading.Thread(target=hold).start()
all_here.wait()
told = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, told)
libc.fclose(told)
all_here.wait()
"""


@pytest.mark.parametrize("asked", ["few", "as they come"])
def test_threads_of_a_server_share_two_heaps(asked):
    run = subprocess.run(
        [sys.executable, "-c", THREADS, asked], capture_output=True, text=True, check=True
    )
    assert (run.stdout.count("<heap nr=") <= 2) == (asked == "few"), run.stdout
