"""Grammars: what ends obeys its schema, and no schema hangs, crashes or fills the memory."""

import json
import random
import time
from functools import cache
from typing import Any

import jsonschema
import psutil
import pytest
import torch
from engines import SENTENCE, WORDS, V, ids_of, small, told
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from onsil.inference import Sampling
from onsil.inference.engine import Engine, Request
from onsil.inference.grammar import OPTIONS, BadSchema, Broken, Grammars
from onsil.inference.slots import Slots

END = WORDS.token_to_id("<|end|>")


@pytest.fixture(scope="module")
def grammars():
    made = Grammars(WORDS, frozenset([END]), V + 3)
    yield made
    made.confined.close()


def answer(grammar, seed: int, most: int = 400) -> str | None:
    """What a model of pure noise writes under a grammar; None when it does not come to an end."""
    matcher, draw, ids = grammar.start(), torch.Generator().manual_seed(seed), []
    while len(ids) < most and not matcher.finished:
        scores = torch.randn(V + 3, generator=draw) * 2
        scores[END] += 4
        scores[WORDS.encode('"').ids[0]] += 6  # or strings never end
        token = int(matcher.masked(scores).argmax())
        if token == END:
            break
        matcher.accept(token)
        ids.append(token)
    else:
        return WORDS.decode(ids) if matcher.finished else None
    return WORDS.decode(ids)


leaves = st.one_of(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer", "minimum": -5, "maximum": 1000},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 3},
            {"type": "string", "pattern": "^[가-힣]{1,4}$"},
            {"const": "연차"},
        ]
    ),
    st.lists(st.text('가나ab"\\\n🙂', max_size=4), min_size=1, max_size=4, unique=True).map(
        lambda texts: {"enum": texts}
    ),
)


def larger(parts):
    names = st.text("가나다abc_", min_size=1, max_size=4)
    objects = st.dictionaries(names, parts, min_size=1, max_size=3).flatmap(
        lambda found: st.sets(st.sampled_from(sorted(found))).map(
            lambda needed: {
                "type": "object",
                "properties": found,
                "required": sorted(needed),
                "additionalProperties": False,
            }
        )
    )
    lists = st.builds(
        lambda items, least: {
            "type": "array", "items": items, "minItems": least, "maxItems": least + 2
        },
        parts, st.integers(0, 2),
    )  # fmt: skip
    return st.one_of(
        objects, lists, st.lists(parts, min_size=1, max_size=3).map(lambda p: {"anyOf": p})
    )


@given(st.recursive(leaves, larger, max_leaves=6), st.integers(0, 1000))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_ends_obeys_its_schema(grammars, schema, seed):
    text = answer(grammars.json(schema), seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


def test_enough_of_them_end(grammars):
    schema = {"type": "object", "properties": {"이름": {"type": "string"}}, "required": ["이름"]}
    ended = [answer(grammars.json(schema), seed) for seed in range(10)]
    assert sum(text is not None for text in ended) >= 5


def test_the_engine_writes_what_the_schema_asks_for(grammars):
    engine = Engine(Slots(small(), 3), WORDS)
    own = Grammars(WORDS, frozenset([END]), V, grammars.confined)
    wanted = {
        "type": "object",
        "properties": {
            "일수": {"type": "integer", "minimum": 0, "maximum": 99},
            "승인": {"type": "boolean"},
        },
        "required": ["일수", "승인"],
        "additionalProperties": False,
    }
    try:
        for seed in range(4):
            request = Request(
                ids_of(SENTENCE),
                60,
                Sampling(1.0, 1.0, seed),
                frozenset([END]),
                grammar=own.json(wanted),
            )
            free = Request(ids_of(SENTENCE), 60, Sampling(1.0, 1.0, seed))
            (text, _, reason), beside = told(engine.submit(request)), engine.submit(free)
            assert reason == "stop"
            jsonschema.validate(json.loads(text), wanted)
            assert told(beside)[2] == "length"
    finally:
        engine.close(drain=False)


def test_a_call_names_one_of_the_tools(grammars):
    day = {"type": "object", "properties": {"day": {"$ref": "#/$defs/d"}}, "required": ["day"],
           "$defs": {"d": {"enum": ["월", "화"]}}, "additionalProperties": False}  # fmt: skip
    tools = [
        {"type": "function", "function": {"name": "leave", "parameters": day}},
        {"type": "function", "function": {"name": "now"}},
    ]
    called = {
        json.loads(text)["name"] for s in range(12) if (text := answer(grammars.call(tools), s))
    }
    assert called <= {"leave", "now"} and called
    for seed in range(3):
        text = answer(grammars.call(tools, "leave"), seed)
        assert text is not None
        made = json.loads(text)
        assert made["name"] == "leave" and made["arguments"]["day"] in ("월", "화")


# ── schemas made to hurt ────────────────────────────────────────────────────────────────────────


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def exponential(many: int) -> dict[str, Any]:
    """2ⁿ branches from n pairs."""

    def branch(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": "string"}}}

    return {"allOf": [{"anyOf": [branch(f"a{i}"), branch(f"b{i}")]} for i in range(many)]}


TWO = {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}
HURTS: dict[str, tuple[Any, str]] = {
    "nested 60,000": (nested(60_000), "deeper than 64"),
    "nested 40": (nested(40), "deeper than 64"),
    "minItems": ({"type": "array", "minItems": 10**9}, "not between 0 and 10,000"),
    "maxLength": ({"type": "string", "maxLength": 10**12}, "not between 0 and 10,000"),
    "negative": ({"type": "string", "minLength": -1}, "not between 0 and 10,000"),
    "lookbehind": ({"type": "string", "pattern": "(?<=a)b"}, "looks around"),
    "lookahead": ({"type": "string", "pattern": "(?!a)b"}, "looks around"),
    "backreference": ({"type": "string", "pattern": r"(a)\1"}, "backreferences are not supported"),
    "long pattern": ({"type": "string", "pattern": "a|" * 5000}, "more than 1,000 characters"),
    "cycle": ({"$ref": "#"}, "leads back to itself"),
    "cycle of two": ({"$ref": "#/$defs/a", "$defs": TWO}, "leads back to itself"),
    "nowhere": ({"$ref": "#/$defs/none"}, "does not exist"),
    "elsewhere": ({"$ref": "http://127.0.0.1:1/schema.json"}, "leads elsewhere"),
    "a file": ({"$ref": "file:///etc/passwd"}, "leads elsewhere"),
    "exponential": (exponential(11), "more than 0.5 s|too large a grammar"),
    "not": ({"not": {"type": "string"}}, "Unimplemented"),
    "unique": ({"type": "array", "uniqueItems": True}, "Unimplemented"),
    "too many names": ({"enum": [str(n) for n in range(20_000)]}, "more than 10,000 values"),
    "options": ({"type": "string", "x-guidance": {"lenient": True}}, "not for callers"),
    "no type": ({"type": "bogus"}, "Invalid type"),
    "no object": (["string"], "not an object"),
}


@pytest.mark.parametrize("name", HURTS)
def test_a_schema_made_to_hurt_is_refused_and_the_next_one_is_not(name, grammars, monkeypatch):
    schema, refusal = HURTS[name]
    with monkeypatch.context() as hurried, pytest.raises(BadSchema, match=refusal):
        if name == "exponential":
            hurried.setattr("onsil.inference.grammar.SECONDS", 0.5)
        grammars.json(schema)
    assert answer(grammars.json({"const": "다음"}), 1) == '"다음"'


def test_what_the_child_lets_through_costs_its_parent_no_more(grammars):
    """Else a schema that just passes would hold up everybody."""
    schema = json.dumps(exponential(9))
    grammars.json({"type": "string"})
    child = psutil.Process(grammars.confined.schemas.process.pid)
    before = sum(child.cpu_times()[:2])
    tried = grammars.confined.ask({"schema": schema, "options": OPTIONS}, 60)
    there = sum(child.cpu_times()[:2]) - before
    before = time.process_time()
    LLMatcher(grammars._words, tried["grammar"], log_level=0)
    assert time.process_time() - before < 2 * there


def test_patterns_that_backtrack_elsewhere_and_recursion_are_fine(grammars):
    grammars.json({"type": "string", "pattern": "^(a+)+$"})
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}
    grammars.json({"$ref": "#/$defs/n", "$defs": {"n": tree}})


def test_thousands_of_schemas_do_not_fill_the_memory(grammars):
    few = Grammars(WORDS, frozenset([END]), V, grammars.confined, cache_bytes=2_000_000)
    for number in range(60):
        few.json({"const": f"{number}"})
        assert few.bytes <= 2_000_000
    assert 0 < len(few.kept) < 60
    first, again = few.json({"const": "59"}), few.json({"const": "59"})
    assert first is again
    assert few.json({"const": "0"}) is not first


def test_a_token_that_may_not_come_breaks_its_own_answer_alone(grammars):
    grammar = grammars.json({"type": "boolean"})
    broken, good = grammar.start(), grammar.start()
    with pytest.raises(Broken) as told:
        broken.accept(WORDS.encode("연차").ids[0])
    assert "연" not in str(told.value)
    for token in WORDS.encode("true").ids:
        assert torch.isfinite(good.masked(torch.zeros(V + 3))[token])
        good.accept(token)
    assert good.finished


def test_a_tokenizer_that_is_not_bytes_says_so():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Grammars(Tokenizer(WordLevel({"a": 0, "b": 1}, "a")), frozenset([0]), 2)
    try:
        with pytest.raises(BadSchema):
            words.json({"type": "string"})
    finally:
        words.confined.close()


@cache
def schema_of(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    return {"enum": [str(draw.random()) for _ in range(3)]}


def test_two_threads_compile_at_once(grammars):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: answer(grammars.json(schema_of(n % 5)), n), range(20)))
    assert all(json.loads(text) in schema_of(n % 5)["enum"] for n, text in enumerate(made) if text)
