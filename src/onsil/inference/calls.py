"""Tool calls in what a model writes, found while it is written.

Two spellings are understood: `<tool_call>{"name": …, "arguments": …}</tool_call>` anywhere in the
text (Hermes, Qwen), and an answer that is nothing but such an object or a list of them (LLaMA 3,
and what `Grammars.call` lets through; "parameters" does for "arguments"). Only tools that were
offered are calls; the rest is text. Every character is looked at once: no pattern can be made to
backtrack (CVE-2025-48887).
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from onsil.inference.streaming import Stops

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Call(NamedTuple):
    """A call of a tool; `arguments` is JSON."""

    name: str
    arguments: str


class Calls:
    """Reads one answer. `add` gives what can be shown as text, `end` the rest and the calls."""

    def __init__(self, names: Iterable[str]):
        self.names = frozenset(names)
        self.calls: list[Call] = []
        self.held: list[str] = []
        self.place = "start" if self.names else "text"  # start · json · text · call
        self.mark = Stops([OPEN])

    def add(self, text: str) -> str:
        """What can be shown now."""
        if not self.names:
            return text
        if self.place == "start" and text.strip():
            begun = "".join([*self.held, text])
            self.place = "json" if begun.lstrip()[0] in "{[" else "text"
            self.held, text = [], begun
        if self.place in ("start", "json"):
            self.held.append(text)
            return ""
        shown: list[str] = []
        while text:
            text = self._on(text, shown)
        return "".join(shown)

    def _on(self, text: str, shown: list[str]) -> str:
        """Read up to the next mark; the text after it."""
        inside = self.place == "call"
        before, met = self.mark.add(text)
        (self.held if inside else shown).append(before)
        if not met:
            return ""
        if inside:
            body, self.held = "".join(self.held), []
            found = self._found(body)
            self.calls += found
            shown.append("" if found else OPEN + body + CLOSE)
        rest, self.place = self.mark.after, "text" if inside else "call"
        self.mark = Stops([OPEN if inside else CLOSE])
        return rest

    def end(self) -> tuple[str, list[Call]]:
        """What is left to show, and all calls."""
        rest = "".join(self.held) + self.mark.rest()
        if self.place == "json":
            self.calls += (found := self._found(rest))
            rest = "" if found else rest
        elif self.place == "call":
            rest = OPEN + rest
        self.held = []
        return rest, self.calls

    def _found(self, text: str) -> list[Call]:
        """The calls that a text of JSON is; none when any part of it is something else."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return []
        rows = told if isinstance(told, list) else [told]
        found = [self._call(row) for row in rows]
        return [call for call in found if call is not None] if all(found) else []

    def _call(self, row: Any) -> Call | None:
        if not isinstance(row, dict) or row.get("name") not in self.names:
            return None
        arguments = row.get("arguments", row.get("parameters", {}))
        if isinstance(arguments, str):
            return Call(row["name"], arguments)
        return Call(row["name"], json.dumps(arguments, ensure_ascii=False))
