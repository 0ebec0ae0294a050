"""Every door of OpenAI's: their published forms, their own client, what is asked of a field."""

import httpx
import openai
import pytest
from openai_forms import EVENTS, conforms, events, published
from served import grow_small, server

from onsil.serving.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
)

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return grow_small(tmp_path_factory.mktemp("surface"))


@pytest.fixture(scope="module")
def address(home):
    with server(home) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(home, address):
    key = (home / "key").read_text().strip()
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


@pytest.fixture(scope="module")
def official(home, address):
    key = (home / "key").read_text().strip()
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as official:
        yield official


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CreateChatCompletionRequest", ChatRequest),
        ("CreateCompletionRequest", CompletionRequest),
        ("CreateEmbeddingRequest", EmbeddingRequest),
        ("CreateResponse", ResponseRequest),
    ],
)
def test_every_published_field_is_known_by_name(name, kind):
    assert set(published()["fields"][name]) == set(kind.model_fields)


def test_models_and_errors_are_as_published(client):
    listed = client.get("/v1/models").json()
    conforms(listed, "ListModelsResponse")
    conforms(client.get(f"/v1/models/{listed['data'][0]['id']}").json(), "Model")
    for response in (
        client.get("/v1/models/nobody"),
        client.get("/nowhere"),
        client.post("/v1/chat/completions", json={}),
        client.post("/v1/responses", json={"model": "desk", "input": []}),
        client.put("/v1/chat/completions"),
    ):
        assert 400 <= response.status_code < 500
        conforms(response.json(), "ErrorResponse")


def test_a_chat_is_as_published_whole_and_streamed(client):
    door, body = "/v1/chat/completions", {"model": "desk", "messages": MESSAGES}
    whole = client.post(door, json=body).json()
    conforms(whole, "CreateChatCompletionResponse")
    streamed = client.post(
        door, json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.text.endswith("data: [DONE]\n\n")
    pieces = events(streamed.text)
    for piece in pieces:
        conforms(piece, "CreateChatCompletionStreamResponse")
    text = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces if p["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["usage"] == whole["usage"]


def test_a_response_is_as_published_whole_and_streamed(client):
    body = {"model": "desk", "input": QUESTION}
    whole = client.post("/v1/responses", json=body).json()
    conforms(whole, "Response")
    pieces = events(client.post("/v1/responses", json=body | {"stream": True}).text)
    for n, piece in enumerate(pieces):
        conforms(piece, EVENTS[piece["type"]])
        assert piece["sequence_number"] == n
    kinds = [piece["type"].removeprefix("response.") for piece in pieces]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    deltas = "".join(p["delta"] for p in pieces if p["type"] == "response.output_text.delta")
    assert deltas == whole["output"][0]["content"][0]["text"]
    assert pieces[-1]["response"]["usage"] == whole["usage"]


def test_the_official_client_reads_responses_with_their_sources(official):
    made = official.responses.create(model="desk", input=QUESTION)
    assert made.status == "completed" and made.output_text
    cited = made.output[0].content[0].annotations[0]
    assert cited.type == "url_citation" and "휴가규정.md" in cited.title
    told = official.responses.create(
        model="desk",
        instructions="짧게",
        input=[
            {"role": "user", "content": "병가는 며칠까지 쓸 수 있나요?"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "60일까지"}]},
            {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        ],
        stream=True,
    )
    seen = list(told)
    assert seen[-1].type == "response.completed"
    assert seen[-1].response.output_text == made.output_text


@pytest.mark.parametrize(
    "path",
    ["/v1/audio/speech", "/v1/audio/transcriptions", "/v1/images/generations"],
)
def test_doors_that_wait_for_their_models_say_so(client, path):
    response = client.post(path, json={"model": "desk"})
    assert response.status_code == 501
    conforms(response.json(), "ErrorResponse")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_a_response_that_cannot_be_meant_is_refused_by_name(client, changed, named):
    response = client.post("/v1/responses", json={"model": "desk", "input": QUESTION} | changed)
    assert response.status_code == 400 and named in response.text


def test_a_grown_model_goes_on_with_texts_and_measures_them_too(official):
    made = official.completions.create(model="desk", prompt="연차는", max_tokens=4, temperature=0)
    assert made.usage.completion_tokens >= 1
    assert len(official.embeddings.create(model="desk", input="연차").data[0].embedding)
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="tools"):
        official.chat.completions.create(model="desk", messages=MESSAGES, tools=[tool])
