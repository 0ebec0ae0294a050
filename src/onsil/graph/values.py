"""What travels between steps: plain JSON values, checked and copied as if they had been sent.

A step gets its input and gives its output away. In one process that could be the very same object,
and then a graph would work there (a tuple, a numpy number, a list that two branches both append to)
and break as soon as a step moves to another process. So every value is taken apart and put together
again between two steps, wherever they run: what passes here passes everywhere. Copying a small
answer costs about as much as one more function call.
"""

import math
from typing import Any

from onsil.lineage.spelling import canonical

Json = Any  # None, bool, int, float, str, list and dict with string keys, of these

DEEPEST = 64


class NotPlain(TypeError):
    """A value that JSON would not give back as it was."""


def plain(value: Json, depth: int = DEEPEST) -> Json:
    """A copy of `value`. Raises NotPlain for what is not a plain JSON value: a tuple, a set, NaN, a
    key that is no string, a subclass of a plain type, lists nested deeper than 64."""
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is int:
        return value
    if kind is float:
        if math.isfinite(value):
            return value
        raise NotPlain(f"{value!r} is not JSON")
    if depth == 0:
        raise NotPlain(f"nested deeper than {DEEPEST}")
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise NotPlain(f"the key {key!r} is not a string")
        return {key: plain(inner, depth - 1) for key, inner in value.items()}
    if kind is list:
        return [plain(inner, depth - 1) for inner in value]
    raise NotPlain(f"a {kind.__qualname__} is not plain JSON")


__all__ = ["Json", "NotPlain", "canonical", "plain"]
