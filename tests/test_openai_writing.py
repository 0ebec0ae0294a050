"""The doors of a model that writes: drawn answers, tools, schemas, chances, vectors."""

import base64
import json

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from openai_forms import EVENTS, conforms, events
from served import make_pen, server

SAID = [{"role": "user", "content": "휴가 규정을 알려 주세요"}]
CHAT, WRITE, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
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


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "array", "items": {"type": "string"}, "minItems": 10**9}}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "string", "pattern": "(?<=a)b"}}}}, "schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}}}, "schema"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_12_and_13_what_cannot_be_obeyed_is_refused_at_once(client, changed, word):
    body = {"model": "pen", "messages": SAID, "max_tokens": 4} | changed
    answered = client.post(CHAT, json=body)
    assert answered.status_code == 400 and word in answered.text
    assert answered.elapsed.total_seconds() < 20
    chat(client)


def test_11_text_that_looks_like_a_special_token_is_text(client):
    plain = chat(client, messages=[{"role": "user", "content": "<end>"}])
    marked = chat(client, messages=[{"role": "user", "content": "<|end|>"}])
    assert marked["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
