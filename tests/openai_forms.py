"""Answers against OpenAI's published forms, for the tests of the doors. Not a test itself."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

FIXTURE = Path(__file__).with_name("fixtures") / "openai_schemas.json"


@cache
def published() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schemas = dict(published()["schemas"])
    # The form wants a reason in every chunk; the published examples and clients have null until the
    # last one, and so have we.
    chunk = json.loads(json.dumps(schemas["CreateChatCompletionStreamResponse"]))
    reason = chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]
    reason |= {"type": ["string", "null"], "enum": [*reason["enum"], None]}
    schemas["CreateChatCompletionStreamResponse"] = chunk
    whole = {"components": {"schemas": schemas}, "$ref": f"#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator(whole)


def conforms(value: Any, name: str) -> None:
    """Raises AssertionError that names what is not as published."""
    wrong = sorted(validator(name).iter_errors(value), key=lambda e: -len(e.absolute_path))
    assert not wrong, "\n".join(f"{list(e.absolute_path)}: {e.message[:300]}" for e in wrong[:5])


def events(text: str) -> list[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


EVENTS = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.output_text.annotation.added": "ResponseOutputTextAnnotationAddedEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
}
