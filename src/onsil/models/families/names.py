"""What a tensor of ours is called on disk, walked both ways: names.txt, read.

A line pairs a name of ours with a name on disk; `#` is a number, mostly the layer's. Most keep the
tensor as it is. The rest are packings, each with its way back: transposed (GPT-2's Conv1D), q, k, v
in one matrix (side by side, or head by head), gate and up in one, experts apart, a norm a head.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
Change = Callable[[list[Tensor]], list[Tensor]]


def tables(text: str) -> dict[str, list[tuple[str, str]]]:
    """For each table of such a text its lines, what stands left and right of the «=»."""
    found: dict[str, list[tuple[str, str]]] = {}
    here: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("["):
            here = found[line.strip("[]")] = []
        elif line and not line.startswith(";"):
            ours, equals, disk = line.partition("=")
            here.append((ours.strip(), disk.strip()) if equals else ("", line))
    return found


TABLES = tables((files("onsil.models.families") / "names.txt").read_text(encoding="utf-8"))


def said(table: str, shape: Any, ours: str = "", disk: str = "") -> dict[str, str]:
    """`{name of ours: name on disk, and how it is packed}` of a table and all it is like, both
    sides with these beginnings."""
    found: dict[str, str] = {}
    for left, right in TABLES[table]:
        right, _, word = right.partition(" if ")
        if word and not attrgetter(word)(shape):
            continue
        there, like, other = right.partition("like ")
        if like:
            found |= said(other, shape, ours + left, disk + there.strip())
        else:
            found[ours + left] = disk + right
    return found


# ── rules ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rule:
    """Names of ours, names on disk, and the change each way."""

    ours: tuple[str, ...]
    disk: tuple[str, ...]
    read: Change = list  # unchanged
    write: Change = list


def rules_of(table: str, shape: Any) -> list[Rule]:
    """The rules of a table for a shape; packings ask a `Shape` for the sizes of their parts."""
    return [rule_of(ours, disk, shape) for ours, disk in said(table, shape).items()]


def rule_of(ours: str, disk: str, shape: Any) -> Rule:
    """What a line says."""
    disk, _, packing = disk.partition(" ")
    home, _, leaves = ours.rpartition(".")
    parts = tuple(f"{home}.{leaf}" for leaf in leaves.split("+")) if "+" in leaves else (ours,)
    if "*" in disk:
        heads = {"q_norm": shape.heads, "k_norm": shape.kv_heads}
        return apart(ours, disk, heads.get(leaves, shape.experts))
    match packing:
        case "transposed":
            return flipped(rule_of(ours, disk, shape))
        case "by head":
            return head_by_head(parts, disk, shape.heads)
        case "one row":
            row: Change = lambda ts: [ts[0][None].contiguous()]  # noqa: E731
            return Rule(parts, (disk,), lambda ts: [ts[0][0].contiguous()], row)
    assert not packing, f"names.txt: {packing!r} is no packing"
    return beside(parts, disk, shape) if len(parts) > 1 else Rule(parts, (disk,))


def flipped(rule: Rule) -> Rule:
    """The same of a matrix that lies the other way (Conv1D)."""

    def flip(ts: list[Tensor]) -> list[Tensor]:
        return [t.T.contiguous() if t.dim() == 2 else t for t in ts]

    return replace(rule, read=lambda ts: rule.read(flip(ts)), write=lambda ts: flip(rule.write(ts)))


def beside(ours: tuple[str, ...], disk: str, shape: Any) -> Rule:
    """Matrices stacked in one, each with as many rows as the shape says."""
    keys = shape.kv_heads * shape.head_width
    sizes = {"q": shape.heads * shape.head_width, "k": keys, "v": keys}
    rows = [sizes.get(name.rpartition(".")[2], shape.hidden) for name in ours]
    return Rule(
        ours,
        (disk,),
        lambda ts: [part.contiguous() for part in ts[0].split(rows, 0)],
        lambda ts: [torch.cat(ts, 0)],
    )


def head_by_head(ours: tuple[str, ...], disk: str, heads: int) -> Rule:
    """q, k, v of the first head, then of the second … (GPT-NeoX, BLOOM)."""

    def read(ts: list[Tensor]) -> list[Tensor]:
        by_head = ts[0].unflatten(0, (heads, len(ours), -1))
        return [part.flatten(0, 1).contiguous() for part in by_head.unbind(1)]

    def write(ts: list[Tensor]) -> list[Tensor]:
        return [torch.stack([t.unflatten(0, (heads, -1)) for t in ts], 1).flatten(0, 2)]

    return Rule(ours, (disk,), read, write)


def apart(ours: str, disk: str, count: int) -> Rule:
    """One tensor of ours is so many on disk (experts, norms of heads)."""
    return Rule(
        (ours,),
        tuple(disk.replace("*", str(i)) for i in range(count)),
        lambda ts: [torch.stack(ts)],
        lambda ts: [t.contiguous() for t in ts[0].unbind(0)],
    )


# ── rules at the parameters of a model ──────────────────────────────────────────────────────────


def numbered(name: str, numbers: list[str]) -> str:
    for number in numbers:
        name = name.replace("#", number, 1)
    return name


def pairings(rules: list[Rule], own: Iterable[str], without: Iterable[str] = ()) -> list[Rule]:
    """Every rule at every layer and leaf that these parameters of ours ask for, in their order; the
    names are whole ones then."""
    by_first = {rule.ours[0]: rule for rule in rules}
    rest = {name for rule in rules for name in rule.ours[1:]}
    found = []
    for name in own:
        if name in without:
            continue
        numbers, general, leaf = NUMBER.findall(name), NUMBER.sub("#", name), ""
        if general not in by_first:
            general, dot, leaf = general.rpartition(".")
            leaf = dot + leaf
        if general in rest:
            continue
        rule = by_first[general]
        ours, disk = (
            tuple(numbered(name, numbers) + leaf for name in side)
            for side in (rule.ours, rule.disk)
        )
        found.append(replace(rule, ours=ours, disk=disk))
    return found
