"""Name tables: what a tensor of ours is called on disk, walked both ways.

A rule pairs stems of ours with stems on disk; `#` is the layer. Most are one to one and keep the
tensor as it is. The rest are packings, each with its way back: transposed (GPT-2's Conv1D), q, k, v
in one matrix (side by side, or head by head), gate and up in one, experts apart, a norm a head.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from onsil.models.shape import Shape

LAYER = re.compile(r"(?<=blocks\.)\d+(?=\.)")
Change = Callable[[list[Tensor]], list[Tensor]]


def unchanged(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


@dataclass(frozen=True)
class Rule:
    """Stems of ours, stems on disk, and the change each way; `#` is the layer."""

    ours: tuple[str, ...]
    disk: tuple[str, ...]
    read: Change = unchanged
    write: Change = unchanged
    bare: bool = False  # the name on disk has no .weight


def pairs_in(text: str) -> dict[str, str]:
    """A table written as «ours=disk ours=disk …»."""
    return dict(pair.split("=") for pair in text.split())  # type: ignore[misc]


def plain(table: dict[str, str], ours: str = "", disk: str = "") -> list[Rule]:
    """One to one; both sides may share a beginning."""
    return [Rule((ours + a,), (disk + b,)) for a, b in table.items()]


def turned(ours: str, disk: str) -> Rule:
    """A Conv1D: the matrix lies the other way."""
    flip: Change = lambda ts: [t.T.contiguous() if t.dim() == 2 else t for t in ts]  # noqa: E731
    return Rule((ours,), (disk,), flip, flip)


def beside(ours: tuple[str, ...], disk: str, rows: list[int], flip: bool = False) -> Rule:
    """Matrices stacked in one, each with so many rows; `flip` for a Conv1D."""

    def read(ts: list[Tensor]) -> list[Tensor]:
        whole = ts[0].T if flip and ts[0].dim() == 2 else ts[0]
        return [part.contiguous() for part in whole.split(rows, 0)]

    def write(ts: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(ts, 0)
        return [whole.T.contiguous() if flip and whole.dim() == 2 else whole]

    return Rule(ours, (disk,), read, write)


def head_by_head(ours: tuple[str, ...], disk: str, heads: int) -> Rule:
    """q, k, v of the first head, then of the second … (GPT-NeoX, BLOOM)."""

    def read(ts: list[Tensor]) -> list[Tensor]:
        by_head = ts[0].unflatten(0, (heads, len(ours), -1))
        return [part.flatten(0, 1).contiguous() for part in by_head.unbind(1)]

    def write(ts: list[Tensor]) -> list[Tensor]:
        return [torch.stack([t.unflatten(0, (heads, -1)) for t in ts], 1).flatten(0, 2)]

    return Rule(ours, (disk,), read, write)


def stacked(ours: str, disk: Iterable[str]) -> Rule:
    """One tensor of ours is a list of them on disk (experts, norms of heads)."""
    return Rule(
        (ours,),
        tuple(disk),
        lambda ts: [torch.stack(ts)],
        lambda ts: [t.contiguous() for t in ts[0].unbind(0)],
    )


@dataclass(frozen=True)
class Pairing:
    """A rule at one layer and leaf: names of ours, names on disk."""

    rule: Rule
    ours: tuple[str, ...]
    disk: tuple[str, ...]


def pairings(rules: list[Rule], own: Iterable[str], without: Iterable[str] = ()) -> list[Pairing]:
    """Every rule at every layer and leaf that these parameters of ours ask for, in their order."""
    by_first = {rule.ours[0]: rule for rule in rules}
    rest = {stem for rule in rules for stem in rule.ours[1:]}
    found = []
    for name in own:
        if name in without:
            continue
        stem, dot, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias") or name in by_first:
            stem, dot, leaf = name, "", ""
        numbers = LAYER.findall(stem)
        general = LAYER.sub("#", stem)
        if general in rest:
            continue
        rule = by_first[general]
        end = "" if rule.bare else f"{dot}{leaf}" or ".weight"
        put: Callable[[str], str] = lambda s: s.replace("#", "".join(numbers))  # noqa: B023, E731
        ours = tuple(put(s) + f"{dot}{leaf}" for s in rule.ours)
        found.append(Pairing(rule, ours, tuple(put(s) + end for s in rule.disk)))
    return found


QKV = ("blocks.#.attention.q", "blocks.#.attention.k", "blocks.#.attention.v")


def qkv_rows(shape: Shape) -> list[int]:
    """Rows of q, k and v when they lie in one matrix."""
    keys = shape.kv_heads * shape.head_width
    return [shape.heads * shape.head_width, keys, keys]
