"""Model, corpus and lessons, under a plan, to a trained model: one loop for every objective."""

import importlib

_HOME = {
    "make_plan": "plan",
    "adopt_plan": "plan",
    "pretrain": "pretraining",
    "finetune": "finetuning",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"onsil.training.{_HOME[name]}"), name)
