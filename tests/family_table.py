"""The generated parts of docs/families.md: rows that the tests fill in with what they measured.

A test that has measured a case, or passed for it, leaves a note; the last test of its file compares
the notes with the page. Errors differ by machine, so names, switches and verdicts are compared and
an error only with the bound. `ONSIL_WRITE_DOCS=1 python -m pytest tests/test_families.py` writes
the page instead; rows that a run did not measure are never made up.
"""

import os
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onsil.models.shape import Rotary, Shape

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
BOUND = 1e-5
PROOFS = ("same bits back", "cached decode", "padding left", "padding right", "documents")
HEADER = ("case", "family", "unlike LLaMA", "error", *PROOFS)
SIZES = {"vocabulary", "width", "depth", "heads", "hidden", "context", "norm_epsilon"}


def switches(shape: Any) -> str:
    """What a shape says otherwise than LLaMA of the same sizes, in the words of Shape; of one made
    of several, what each says, and what stands otherwise than it mostly does beside them."""
    if not isinstance(shape, Shape):
        values = {field.name: getattr(shape, field.name) for field in fields(shape)}
        parts = {name: value for name, value in values.items() if is_dataclass(value)}
        told = [f"**{name}** {switches(value)}" for name, value in parts.items()]
        usual = {f.name: f.default for f in fields(shape) if f.default is not MISSING}
        own = ", ".join(differences(shape, replace(shape, **usual)))
        return "; ".join([*told, *([own] if own else [])]) or "nothing"
    shape = replace(shape, vocabulary=shape.vocabulary or 1)  # a tower of images has no words
    sizes = {name: getattr(shape, name) for name in SIZES}
    plain = Shape(**sizes, qk_norm="none", tied=False, head_width=shape.head_width)
    told = differences(shape, plain)
    if shape.head_width != shape.width // shape.heads:
        told.insert(0, f"head_width {shape.head_width}")
    return ", ".join(told) or "nothing"


def differences(value: Any, plain: Any) -> list[str]:
    told = []
    for field in fields(value):
        one, other = getattr(value, field.name), getattr(plain, field.name)
        if one == other:
            continue
        if isinstance(one, Rotary):
            told.append(f"{field.name} ({', '.join(differences(one, Rotary())) or 'usual'})")
        elif isinstance(one, bool):
            told.append(field.name if one else f"not {field.name}")
        elif isinstance(one, tuple):
            shown = "divisors" if isinstance(value, Rotary) else ", ".join(map(str, one))
            told.append(f"{field.name} {shown}")
        elif isinstance(one, float):
            told.append(f"{field.name} {one:.3g}")
        else:
            told.append(f"{field.name} {one or 'none'}")
    return told


class Notes:
    """What the tests of one file found, case by case."""

    def __init__(self, section: str):
        self.section = section
        self.found: dict[str, dict[str, str]] = {}

    def error(self, name: str, model: Any, got: torch.Tensor, wanted: torch.Tensor) -> None:
        """The largest difference of what comes out, relative to max(1, the largest of it); of all
        that is measured under one name, the worst."""
        row = self.found.setdefault(name, {})
        relative = float((got - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
        relative = max(relative, float(row.get("error", 0.0)))
        row |= {"case": name, "family": model.origin.family, "error": f"{relative:.0e}"}
        row["unlike LLaMA"] = switches(model.shape)

    def passed(self, name: str, proof: str) -> None:
        assert proof in PROOFS
        self.found.setdefault(name, {})[proof] = "yes"

    def settle(self, cases: list[str]) -> None:
        """Write the table, or compare it with the notes."""
        if os.environ.get("ONSIL_WRITE_DOCS") == "1":
            assert list(self.found) == cases, "run the whole file to write the page"
            rows = [[self.found[name].get(key, "–") for key in HEADER] for name in cases]
            replace_part(self.section, [list(HEADER), ["---"] * len(HEADER), *rows])
        table = part(self.section)
        assert [row[0] for row in table[2:]] == cases, HOW
        for cells in table[2:]:
            row = dict(zip(HEADER, cells, strict=True))
            assert float(row["error"]) <= BOUND, row
            for key, value in self.found.get(cells[0], {}).items():
                if key == "error":
                    assert float(value) <= BOUND, (cells[0], value)
                else:
                    assert row[key] == value, f"{cells[0]}: {key} is {value!r} now. {HOW}"


HOW = "Write docs/families.md again: ONSIL_WRITE_DOCS=1 python -m pytest on this file"


def markers(section: str) -> tuple[str, str]:
    return f"<!-- {section}: written by the tests -->\n", f"<!-- end of {section} -->"


def part(section: str) -> list[list[str]]:
    """The cells between the markers of a section."""
    start, end = markers(section)
    text = PAGE.read_text(encoding="utf-8").split(start)[1].split(end)[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.split("\n") if line
    ]


def replace_part(section: str, rows: list[list[str]]) -> None:
    start, end = markers(section)
    before, rest = PAGE.read_text(encoding="utf-8").split(start)
    after = rest.split(end)[1]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    PAGE.write_text(before + start + table + end + after, encoding="utf-8")
