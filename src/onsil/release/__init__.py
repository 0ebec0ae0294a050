"""Checkpoints across the door: published ones in, looked at, and everything out again.

`checkpoints` adopts a folder as an artefact, `inspection` reads what a folder says of itself, its
terms of use among it, `export` writes the layout that other tools open, `merging` makes one model
of several that began as one.
"""

import importlib

_HOME = {
    "check_checkpoint": "checkpoints",
    "load_checkpoint": "checkpoints",
    "name_of": "checkpoints",
    "inspect_model": "inspection",
    "described": "inspection",
    "export_model": "export",
    "merge_models": "merging",
    "method_of": "merging",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"onsil.release.{_HOME[name]}"), name)
