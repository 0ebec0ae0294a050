"""onsil (온실): grow a small language model of your own from your own documents.

The verbs of the whole journey live here and load lazily, so that `import onsil` costs nothing
until one is used. Nothing inside a room imports this module.
"""

import importlib
import os

# Two OpenMP threads that spin while waiting are ten times slower than one on a busy machine;
# this must be set before torch is imported (docs/log.md, "threads").
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN compiles a kernel for each number of rows it meets, half a megabyte each, and two caches
# keep 1,024 of them: one holds what the other lets go (docs/log.md, "Kernels that are kept").
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

__version__ = "0.1.0"

_HOME = {
    "OnsilError": "errors",
    "Workspace": "lineage",
    "Artifact": "lineage",
    "stage": "lineage",
    "read": "documents",
    "curate": "corpus",
    "train_tokenizer": "tokenizer",
    "make_plan": "training",
    "pretrain": "training",
    "finetune": "training",
    "write_lessons": "instruction",
    "evaluate": "evaluation",
    "Answerer": "retrieval",
    "load_checkpoint": "release",
    "inspect_model": "release",
    "export_model": "release",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"onsil has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"onsil.{_HOME[name]}"), name)
