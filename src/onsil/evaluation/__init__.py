"""Model and questions to a report card: metrics with intervals, baselines, the HTML report."""

import importlib

_HOME = {"evaluate": "examination", "gather_questions": "examination", "write_report": "report"}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"onsil.evaluation.{_HOME[name]}"), name)
