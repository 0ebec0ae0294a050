"""Answers that obey a JSON schema: before each token, which tokens may come.

llguidance (Microsoft, MIT) turns a schema into an Earley parser over bytes and, at each place, into
a mask over the vocabulary; it is used for that alone. In front of it stands a check of our own, as
schemas come from callers: size, depth (llama.cpp's server dies of 60,000 nested groups), counts
like `minItems: 10⁹`, references that lead in circles or elsewhere, and then a trial in a child
process that is given up after `SECONDS`. What passed is kept, the least used going first once the
kept ones are estimated to fill `CACHE_BYTES`; a thousand schemas do not fill the memory.

Keywords that cannot be kept exactly (`not`, `uniqueItems`, lookaround in a `pattern`) are refused
by name rather than ignored, so what ends with "stop" obeys the schema. Between JSON's parts at most
one space is allowed: a small model that may write white space writes nothing else.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onsil.errors import OnsilError
from onsil.inference.confined import Confined, GaveUp
from onsil.inference.ending import computing

LARGEST, DEEPEST, MOST_NODES = 64_000, 64, 10_000  # characters, levels, values of a schema
MOST_REPEATS, LONGEST_PATTERN = 10_000, 1_000
SECONDS = 1.0
CACHE_BYTES, SCHEMA_BYTES, GROWTH = 16 << 20, 120_000, 60  # kept; each at least; × its text
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# Keywords whose value says something of the same place of the answer.
SAME_PLACE = ("anyOf", "oneOf", "allOf", "if", "then", "else", "not")
OPTIONS = {"whitespace_pattern": " ?"}
OBJECT = {"type": "object"}


class BadSchema(OnsilError):
    """A schema that is refused, with what is wrong about it."""

    def __init__(self, en: str, ko: str):
        super().__init__(
            en=(
                f"The schema cannot be used: {en}.",
                "An answer is made to obey it token by token, which takes a schema of modest size "
                "in keywords that can be checked on the way.",
                "Make it simpler, or leave response_format and strict tools out.",
            ),
            ko=(
                f"스키마를 쓸 수 없습니다: {ko}.",
                "토큰마다 스키마를 지키게 하므로, 크기가 적당하고 쓰는 도중에 확인할 수 있는 "
                "키워드로 된 스키마여야 합니다.",
                "스키마를 간단히 하거나 response_format과 strict 도구를 빼 주세요.",
            ),
        )


class Broken(Exception):
    """The parser could not go on; the request ends with an error."""


class Matcher:
    """Where one answer stands in its grammar. `finished`: nothing but the end may follow."""

    def __init__(self, inner: Any):
        self.inner, self.finished = inner, False

    def masked(self, scores_V: Tensor) -> Tensor:
        """The scores, −inf for what may not come. Raises Broken."""
        bits = np.frombuffer(self.inner.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(scores_V)].astype(bool)
        missing = len(scores_V) - len(allowed)
        allowed = np.pad(allowed, (0, missing)) if missing else allowed
        return torch.where(torch.from_numpy(allowed), scores_V, -torch.inf)

    def accept(self, token: int) -> None:
        """Go on by a token. Raises Broken."""
        self.inner.consume_token(token)
        self._check()
        self.finished = self.inner.is_stopped()

    def _check(self) -> None:
        if self.inner.is_error():  # its own words quote the answer, and these end in a log
            raise Broken(f"the grammar's parser stopped: {self.inner.stop_reason()}")


class Grammar:
    """A compiled grammar, for any number of answers."""

    def __init__(self, inner: Any):
        self.inner = inner

    def start(self) -> Matcher:
        return Matcher(self.inner.deep_copy())


class Grammars:
    """Compiles for one tokenizer. `stop`: the tokens that may end an answer; `vocabulary`: the rows
    of the model's scores, which may be more than the tokenizer's tokens."""

    def __init__(
        self,
        tokenizer: Any,
        stop: frozenset[int],
        vocabulary: int,
        confined: Confined | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.tokenizer, self.stop, self.vocabulary = tokenizer, stop, vocabulary
        self.confined, self.cache_bytes = confined or Confined(), cache_bytes
        self.kept: OrderedDict[str, tuple[Grammar, int]] = OrderedDict()
        self.bytes = 0
        self.lock = threading.Lock()
        self._words: Any = None

    @computing()
    def json(self, schema: Mapping[str, Any] | None = None) -> Grammar:
        """Of a schema; of any object when there is none. Raises BadSchema within about a second."""
        schema = OBJECT if schema is None else schema
        checked(schema)
        text = json.dumps(schema, ensure_ascii=False)
        with self.lock:
            if text in self.kept:
                self.kept.move_to_end(text)
                return self.kept[text][0]
        grammar, size = self._compiled(text)
        with self.lock:
            self._keep(text, grammar, size)
        return grammar

    def call(self, tools: Sequence[Mapping[str, Any]], name: str | None = None) -> Grammar:
        """Of a call of one of OpenAI's tool definitions (of the one of this name):
        {"name": …, "arguments": {…}}. Raises BadSchema."""
        functions = [tool["function"] for tool in tools]
        some = [f for f in functions if name is None or f["name"] == name]
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": {"$ref": f"#/$defs/{number}"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for number, function in enumerate(some)
        ]
        wanted = {
            str(number): _moved(function.get("parameters") or OBJECT, f"#/$defs/{number}")
            for number, function in enumerate(some)
        }
        return self.json({"anyOf": calls, "$defs": wanted})

    def _compiled(self, text: str) -> tuple[Grammar, int]:
        import llguidance

        if self._words is None:
            self._words = self._tokenizer()
        asked = {"schema": text, "options": OPTIONS}
        try:
            tried = self.confined.ask(asked, SECONDS)
        except GaveUp as e:
            raise BadSchema(
                f"working it out takes more than {SECONDS:g} s",
                f"처리하는 데 {SECONDS:g}초가 넘게 걸립니다",
            ) from e
        if "error" in tried:
            what = re.sub(r"\s+", " ", tried["error"])[:200].rstrip(".")
            raise BadSchema(what, what)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        inner = llguidance.LLMatcher(self._words, tried["grammar"], log_level=0, limits=limits)
        if inner.is_error():
            what = re.sub(r"\s+", " ", inner.get_error())[:200].rstrip(".")
            raise BadSchema(what, what)
        return Grammar(inner), SCHEMA_BYTES + GROWTH * len(tried["grammar"])

    def _keep(self, text: str, grammar: Grammar, size: int) -> None:
        if text in self.kept or size > self.cache_bytes:
            return
        self.kept[text] = (grammar, size)
        self.bytes += size
        while self.bytes > self.cache_bytes:
            self.bytes -= self.kept.popitem(last=False)[1][1]

    def _tokenizer(self) -> Any:
        import llguidance

        try:
            words = self.tokenizer.to_str()
            ends = sorted(self.stop) or None
            return llguidance.LLTokenizer(words, n_vocab=self.vocabulary, eos_token=ends)
        except (ValueError, RuntimeError) as e:
            what = str(e)[:200]
            raise BadSchema(
                f"this model's tokenizer is not made of bytes ({what})",
                f"이 모델의 토크나이저는 바이트로 이루어져 있지 않습니다({what})",
            ) from e


def _moved(schema: Any, to: str) -> Any:
    """A schema that lies inside another one: its references to itself begin at `to`."""
    if isinstance(schema, list):
        return [_moved(part, to) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, to) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = to + reference[1:]
    return moved


# ── the check ───────────────────────────────────────────────────────────────────────────────────


def checked(schema: Any) -> None:
    """Raises BadSchema for what is too large, too deep, or leads in circles."""
    if not isinstance(schema, Mapping):
        raise BadSchema("it is not an object", "객체가 아닙니다")
    size = 0
    for depth, many, node in _walked(schema):
        if depth > DEEPEST:
            raise BadSchema(
                f"it is nested deeper than {DEEPEST}", f"{DEEPEST}단계보다 깊이 겹쳐 있습니다"
            )
        size += len(node) if isinstance(node, str) else 8
        if many > MOST_NODES or size > LARGEST:
            raise BadSchema(
                f"it has more than {MOST_NODES:,} values or {LARGEST:,} characters",
                f"값이 {MOST_NODES:,}개를 넘거나 글자가 {LARGEST:,}자를 넘습니다",
            )
        if isinstance(node, Mapping):
            _modest(node)
    _no_circles(schema)


def _walked(schema: Any) -> Iterator[tuple[int, int, Any]]:
    """(level, how many so far, value) of everything in it, keys too; by hand, not by recursion."""
    stack, many = [(0, schema)], 0
    while stack:
        depth, node = stack.pop()
        many += 1
        yield depth, many, node
        if isinstance(node, Mapping):
            for key, value in node.items():
                stack += [(depth + 1, str(key)), (depth + 1, value)]
        elif isinstance(node, (list, tuple)):
            stack += [(depth + 1, value) for value in node]


def _modest(node: Mapping[str, Any]) -> None:
    for key in COUNTS:
        value = node.get(key)
        if isinstance(value, (int, float)) and not 0 <= value <= MOST_REPEATS:
            raise BadSchema(
                f"{key} is {value:g}, not between 0 and {MOST_REPEATS:,}",
                f"{key}가 {value:g}입니다. 0에서 {MOST_REPEATS:,} 사이여야 합니다",
            )
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        if len(pattern) > LONGEST_PATTERN:
            raise BadSchema(
                f"a pattern has more than {LONGEST_PATTERN:,} characters",
                f"pattern이 {LONGEST_PATTERN:,}자를 넘습니다",
            )
        if re.search(r"\(\?<?[=!]", pattern):
            raise BadSchema(
                f"the pattern {pattern[:60]!r} looks around",
                f"pattern {pattern[:60]!r}에 전후방 탐색이 있습니다",
            )
    if "x-guidance" in node:
        raise BadSchema("x-guidance is not for callers", "x-guidance는 쓸 수 없습니다")
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise BadSchema(
            f"$ref {reference[:60]!r} leads elsewhere", f"$ref {reference[:60]!r}가 밖을 가리킵니다"
        )


def _no_circles(schema: Mapping[str, Any]) -> None:
    """A reference may lead back to where it is used, but only through a property or an item."""
    places = {id(node): node for _, _, node in _walked(schema) if isinstance(node, Mapping)}
    done: set[int] = set()
    for start in places.values():
        stack: list[tuple[Mapping[str, Any], Iterator]] = [
            (start, iter(_same_place(schema, start)))
        ]
        path = {id(start)}
        while stack and id(start) not in done:
            node, others = stack[-1]
            other = next(others, None)
            if other is None:
                stack.pop()
                path.discard(id(node))
                done.add(id(node))
            elif id(other) in path:
                raise BadSchema("a $ref leads back to itself", "$ref가 자기 자신으로 돌아옵니다")
            elif id(other) not in done:
                stack.append((other, iter(_same_place(schema, other))))
                path.add(id(other))


def _same_place(schema: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = []
    for key in SAME_PLACE:
        value = node.get(key)
        found += value if isinstance(value, (list, tuple)) else [value]
    if isinstance(node.get("$ref"), str):
        found.append(_pointed(schema, node["$ref"]))
    return [part for part in found if isinstance(part, Mapping)]


def _pointed(schema: Any, reference: str) -> Any:
    """What a local JSON pointer names; None when there is no such place."""
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and key in schema:
            schema = schema[key]
        elif isinstance(schema, list) and key.isdigit() and int(key) < len(schema):
            schema = schema[int(key)]
        else:
            return None
    return schema
