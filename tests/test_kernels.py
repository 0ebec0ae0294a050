"""What a long life would gather: kernels for sizes met once, and heaps of threads (docs/log.md,
"Kernels that are kept")."""

import os
import signal
import subprocess
import sys

import httpx
import pytest
from job_stores import until
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


TELLS_ITS_HEAPS = """
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def tell(*_):
    told = ctypes.c_void_p(libc.fopen({heaps!r}.encode(), b"w"))
    libc.malloc_info(0, told)
    libc.fclose(told)
    os.rename({heaps!r}, {heaps!r} + ".whole")

signal.signal(signal.SIGUSR1, tell)
open({pid!r}, "w").write(str(os.getpid()))
"""


def test_a_server_has_one_heap_from_its_first_thread_on(tmp_path):
    pid, heaps, home = tmp_path / "pid", tmp_path / "heaps", make_pen(tmp_path)
    first = TELLS_ITS_HEAPS.format(heaps=str(heaps), pid=str(pid))
    with server(home, first=first, name="pen") as (address, _):
        headers = {"Authorization": f"Bearer {(home / 'key').read_text().strip()}"}
        body = {"model": "pen", "prompt": "?", "max_tokens": 4}
        said = httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)
        assert said.status_code == 200
        os.kill(int(pid.read_text()), signal.SIGUSR1)
        whole = tmp_path / "heaps.whole"
        until(whole.exists)
        assert whole.read_text().count("<heap nr=") == 1, whole.read_text()
