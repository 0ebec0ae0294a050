"""The doors of a model that writes: drawn answers, tools, schemas, chances, vectors."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from openai_forms import EVENTS, conforms, events
from served import make_pen, random_pen, server

from onsil.lineage import Workspace
from onsil.serving.access import Access
from onsil.serving.app import build
from onsil.serving.inprocess import post
from onsil.serving.writing import Writing

SAID = [{"role": "user", "content": "휴가 규정을 알려 주세요"}]
CHAT, WRITE, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPOND = "/v1/responses"
WEATHER = {
    "name": "weather",
    "description": "오늘 날씨",
    "parameters": {
        "type": "object",
        "properties": {"day": {"enum": [1, 2, 3]}, "warm": {"type": "boolean"}},
        "required": ["day", "warm"],
        "additionalProperties": False,
    },
}
TOOL = {"type": "function", "function": WEATHER}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["연차", "병가"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
SHORT = {
    CHAT: {"model": "pen", "messages": SAID, "max_tokens": 4},
    WRITE: {"model": "pen", "prompt": "휴가", "max_tokens": 4},
    RESPOND: {"model": "pen", "input": "휴가", "max_output_tokens": 4},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_pen(tmp_path_factory.mktemp("writing"), context=1024)


@pytest.fixture(scope="module")
def address(home):
    with server(home, name="pen") as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(home, address):
    key = (home / "key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def official(home, address):
    key = (home / "key").read_text().strip()
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as official:
        yield official


def chat(client: httpx.Client, **changed) -> dict:
    body = {"model": "pen", "messages": SAID, "max_tokens": 24, "seed": 7}
    answered = client.post(CHAT, json=body | changed)
    assert answered.status_code == 200, answered.text
    return answered.json()


def test_the_same_seed_is_the_same_answer_whole_and_streamed(client):
    first, again, other = chat(client), chat(client), chat(client, seed=8)
    conforms(first, "CreateChatCompletionResponse")
    text = first["choices"][0]["message"]["content"]
    assert again["choices"] == first["choices"] != other["choices"]
    assert first["choices"][0]["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 24
    body = {"model": "pen", "messages": SAID, "max_tokens": 24, "seed": 7, "stream": True}
    pieces = events(client.post(CHAT, json=body).text)
    for piece in pieces:
        conforms(piece, "CreateChatCompletionStreamResponse")
    assert "".join(p["choices"][0]["delta"].get("content", "") for p in pieces) == text
    assert first["onsil"]["digest"] == pieces[-1]["onsil"]["digest"] == first["system_fingerprint"]


def test_chances_are_as_published_and_sum_to_no_more_than_one(client):
    said = chat(client, logprobs=True, top_logprobs=3, temperature=0)
    conforms(said, "CreateChatCompletionResponse")
    entries = said["choices"][0]["logprobs"]["content"]
    assert len(entries) == said["usage"]["completion_tokens"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]  # greedy
        assert sum(np.exp(top["logprob"]) for top in entry["top_logprobs"]) <= 1 + 1e-6


def test_an_answer_obeys_its_schema(client, official):
    wanted = {"type": "json_schema", "json_schema": {"name": "kind", "schema": SCHEMA}}
    for seed in range(5):
        said = chat(client, response_format=wanted, seed=seed, max_tokens=60)
        jsonschema.validate(json.loads(said["choices"][0]["message"]["content"]), SCHEMA)
    made = official.responses.create(
        model="pen",
        input="병가?",
        max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "kind", "schema": SCHEMA}},
    )
    jsonschema.validate(json.loads(made.output_text), SCHEMA)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_tool_that_has_to_be_called_is_called_with_arguments_that_fit(official, choice):
    asked = {"model": "pen", "messages": SAID, "tools": [TOOL], "tool_choice": choice, "seed": 1}
    made = official.chat.completions.create(**asked).choices[0]
    assert made.finish_reason == "tool_calls" and made.message.content is None
    (call,) = made.message.tool_calls
    assert call.function.name == "weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["parameters"])
    streamed = list(official.chat.completions.create(**asked, stream=True))
    calls = [c for e in streamed for c in e.choices[0].delta.tool_calls or []]
    assert [c.function.arguments for c in calls] == [call.function.arguments]
    # What the tool said goes back, and the model goes on.
    back = [
        *SAID,
        made.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "맑음"},
    ]
    more = official.chat.completions.create(model="pen", messages=back, tools=[TOOL], max_tokens=4)
    assert more.usage.prompt_tokens > 0


def test_responses_call_tools_too(client, official):
    tool = {"type": "function", "strict": True} | WEATHER
    body = {"model": "pen", "input": "날씨?", "tools": [tool], "tool_choice": "required"}
    made = official.responses.create(**body)
    (call,) = made.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])
    pieces = events(client.post("/v1/responses", json=body | {"stream": True}).text)
    for piece in pieces:
        conforms(piece, EVENTS[piece["type"]])
    kinds = [piece["type"].removeprefix("response.") for piece in pieces]
    assert "function_call_arguments.done" in kinds and kinds[-1] == "completed"
    back = [
        {"role": "user", "content": "날씨?"},
        {
            "type": "function_call",
            "call_id": call.call_id,
            "name": "weather",
            "arguments": call.arguments,
        },
        {"type": "function_call_output", "call_id": call.call_id, "output": "맑음"},
    ]
    short = official.responses.create(model="pen", input=back, max_output_tokens=3)
    assert short.status in ("incomplete", "completed")


def test_a_text_is_gone_on_with(client, official):
    made = official.completions.create(model="pen", prompt="휴가", max_tokens=8, seed=3, logprobs=2)
    conforms(made.model_dump(exclude_unset=True), "CreateCompletionResponse")
    assert made.usage.completion_tokens == 8 == len(made.choices[0].logprobs.tokens)
    body = {"model": "pen", "prompt": "휴가", "max_tokens": 8, "seed": 3, "stream": True}
    streamed = events(client.post(WRITE, json=body).text)
    assert "".join(e["choices"][0]["text"] for e in streamed) == made.choices[0].text
    whole = client.post(WRITE, json=body | {"stream": False, "max_tokens": 40}).json()
    text = whole["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    body |= {"stream": False, "max_tokens": 40, "stop": stop}
    stopped = client.post(WRITE, json=body).json()["choices"][0]
    assert stopped["text"] == text[: text.index(stop)] and stopped["finish_reason"] == "stop"


def test_vectors_have_length_one_and_two_spellings(client, official):
    body = {"model": "pen", "input": ["휴가", "출장 규정"]}
    made = client.post(VECTORS, json=body).json()
    conforms(made, "CreateEmbeddingResponse")
    found = np.array([row["embedding"] for row in made["data"]])
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    packed = client.post(VECTORS, json=body | {"encoding_format": "base64"}).json()
    read = np.frombuffer(base64.b64decode(packed["data"][1]["embedding"]), "<f4")
    assert np.allclose(read, found[1])
    theirs = official.embeddings.create(model="pen", input="휴가").data[0].embedding
    assert np.allclose(theirs, found[0], atol=1e-6)


@pytest.mark.parametrize("on", [True, False])
def test_every_answer_names_its_model_and_is_marked_unless_that_is_switched_off(home, client, on):
    digest = Workspace(home).resolve("pen")[2].digest
    with ExitStack() as life:
        if not on:
            address, _ = life.enter_context(server(home, "--no-ai-notice", name="pen"))
            client = httpx.Client(base_url=address, headers=client.headers, timeout=60)
            life.enter_context(client)
        for door, body in SHORT.items():
            for stream in (False, True):
                answered = client.post(door, json=body | {"stream": stream})
                assert answered.headers["x-onsil-model"] == digest
                assert answered.headers.get("x-ai-generated") == ("true" if on else None)
                last = events(answered.text)[-1] if stream else answered.json()
                told = last.get("response", last)["onsil"]
                assert (told["name"], told["version"], told["digest"]) == ("pen", "v1", digest)
                assert (told.get("generated_by_ai"), "AI" in told.get("notice", "")) == (
                    (True, True) if on else (None, False)
                )
                assert ("digital_source_type" in told) is on
        vectors = client.post(VECTORS, json={"model": "pen", "input": "휴가"})
        assert vectors.headers["x-onsil-model"] == digest == vectors.json()["onsil"]["digest"]
        assert vectors.json()["model"] == "pen@v1" and "x-ai-generated" not in vectors.headers


def test_texts_are_read_off_the_event_loop(home, monkeypatch):
    """Else a long one would hold up everybody, `/health` too."""
    read: list[int] = []

    def noted(name: str) -> None:
        plain = getattr(Writing, name)

        def reading(self, given):
            read.append(threading.get_ident())
            return plain(self, given)

        monkeypatch.setattr(Writing, name, reading)

    noted("request_of")
    noted("embed")
    guard = build(Workspace(home), "pen", Access("k" * 32), frozenset({"pen.test"}))

    async def ask() -> None:
        async with guard.app.router.lifespan_context(guard.app):
            for door, body in (SHORT | {VECTORS: {"model": "pen", "input": "휴가"}}).items():
                assert (await post(guard.app, door, body)).status == 200

    asyncio.run(ask())
    assert len(read) == 4 and threading.get_ident() not in read


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "array", "items": {"type": "string"}, "minItems": 10**9}}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "string", "pattern": "(?<=a)b"}}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "string", "pattern": "(" * 60_000 + ")" * 60_000}}}}, "pattern"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_12_and_13_what_cannot_be_obeyed_is_refused_at_once(client, changed, word):
    body = {"model": "pen", "messages": SAID, "max_tokens": 4} | changed
    answered = client.post(CHAT, json=body)
    assert answered.status_code == 400 and word in answered.text
    conforms(answered.json(), "ErrorResponse")
    assert answered.elapsed.total_seconds() < 20
    chat(client)


def noted(monkeypatch, what: Callable[[Any, Any], Any]) -> list[Any]:
    """What is noted of every text that is begun, of what was asked and what the engine is told."""
    found: list[Any] = []
    plain = Writing.request_of

    def listening(self, given):
        made = plain(self, given)
        found.append(what(given, made))
        return made

    monkeypatch.setattr(Writing, "request_of", listening)
    return found


def test_27_what_was_read_before_is_its_callers_alone(home, monkeypatch):
    """Or a caller could tell by the time of an answer what another one asked."""
    salts = noted(monkeypatch, lambda given, made: made.salt)
    guard = build(Workspace(home), "pen", Access("k" * 32), frozenset({"pen.test"}))

    async def ask() -> None:
        async with guard.app.router.lifespan_context(guard.app):
            for door, body in SHORT.items():
                for owner in ("owner", "kim-1"):
                    assert (await post(guard.app, door, body, owner)).status == 200

    asyncio.run(ask())
    assert salts == ["owner", "kim-1"] * 3


def test_texts_that_were_begun_are_finished_whoever_is_champion_by_then(tmp_path, monkeypatch):
    """Two new champions: of three versions two are kept, so the first one's engine is closed while
    it writes."""
    ws = Workspace(make_pen(tmp_path, context=512))
    guard = build(ws, "pen", Access("k" * 32), frozenset({"pen.test"}))
    long = SHORT[WRITE] | {"max_tokens": 400, "logit_bias": {str(n): -100 for n in range(8)}}
    begun = noted(monkeypatch, lambda given, made: given.limit)

    async def ask() -> None:
        digests, texts = [ws.resolve("pen")[2].digest], []
        async with guard.app.router.lifespan_context(guard.app):
            assert (await post(guard.app, WRITE, SHORT[WRITE])).status == 200
            for context in (256, 128):
                asked = dict(long)
                texts += [asyncio.create_task(post(guard.app, WRITE, asked)) for _ in range(4)]
                while begun.count(long["max_tokens"]) < 4:
                    await asyncio.sleep(0.001)
                long["max_tokens"] = 200  # the second has less room
                made = random_pen(ws, vocabulary=600, context=context)
                ws.set_alias("pen", "champion", ws.register("pen", made))
                digests.append(made.digest)
                new = await post(guard.app, WRITE, SHORT[WRITE])
                assert (new.status, new.json["onsil"]["digest"]) == (200, made.digest)
            said = await asyncio.gather(*texts)
        assert [reply.status for reply in said] == [200] * 8
        assert [reply.json["onsil"]["digest"] for reply in said] == [
            *[digests[0]] * 4,
            *[digests[1]] * 4,
        ]
        told = [reply.json["usage"]["completion_tokens"] for reply in said]
        assert told == [*[400] * 4, *[200] * 4]

    asyncio.run(ask())


def test_11_text_that_looks_like_a_special_token_is_text(client):
    plain = chat(client, messages=[{"role": "user", "content": "<end>"}])
    marked = chat(client, messages=[{"role": "user", "content": "<|end|>"}])
    assert marked["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
