"""What a long life would gather: kernels for sizes met once, and heaps of threads (docs/log.md,
"Kernels that are kept")."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served import make_pen, server

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
from onsil.serving.run import one_heap

if sys.argv[1] == "one":
    one_heap()
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


@pytest.mark.parametrize("asked", ["one", "as they come"])
def test_threads_of_a_server_share_one_heap(asked):
    run = subprocess.run(
        [sys.executable, "-c", THREADS, asked], capture_output=True, text=True, check=True
    )
    assert (run.stdout.count("<heap nr=") == 1) == (asked == "one"), run.stdout


def test_a_server_has_one_heap_from_its_first_thread_on(tmp_path):
    """glibc's further heaps lie at multiples of 64 MiB."""
    note, home = tmp_path / "pid", make_pen(tmp_path)
    first = f"import os; open({str(note)!r}, 'w').write(str(os.getpid()))"
    with server(home, first=first, name="pen") as (address, _):
        headers = {"Authorization": f"Bearer {(home / 'key').read_text().strip()}"}
        body = {"model": "pen", "prompt": "?", "max_tokens": 4}
        said = httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)
        assert said.status_code == 200
        lines = Path(f"/proc/{note.read_text()}/maps").read_text().splitlines()
    nameless = [line.split() for line in lines if len(line.split()) == 5]
    starts = [int(where.partition("-")[0], 16) for where, may, *_ in nameless if may[1] == "w"]
    assert starts and not [hex(start) for start in starts if start % (64 << 20) == 0]
