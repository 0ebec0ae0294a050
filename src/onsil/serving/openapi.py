"""What this server says of itself: OpenAPI 3.1, made from the classes that check the requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from onsil.serving.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
)

# Doors of OpenAI's that wait for models that hear, speak or draw.
RESERVED = (
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
)
BODIES = {
    "/v1/chat/completions": ("The last question answered", ChatRequest),
    "/v1/completions": ("A text gone on with", CompletionRequest),
    "/v1/responses": ("The last question answered, as items", ResponseRequest),
    "/v1/embeddings": ("Texts as vectors", EmbeddingRequest),
}
READ = {
    "/v1/models": "Every version of the model served here",
    "/about": "What the page shows of the model",
    "/openapi.json": "This document",
}
TEMPLATE = "#/components/schemas/{model}"


def document(models: list[str]) -> dict[str, Any]:
    """The whole of it; `models` are the references that are served."""
    _, found = models_json_schema(
        [(kind, "validation") for _, kind in BODIES.values()], ref_template=TEMPLATE
    )
    for schema in found["$defs"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": models}
    paths: dict[str, Any] = {
        "/health": {
            "get": _operation("Alive", "200", security=[]),
        },
        "/v1/models/{model}": {
            "get": _operation("One version", "200", "404")
            | {
                "parameters": [
                    {
                        "name": "model",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "enum": models},
                    }
                ]
            }
        },
    }
    for path, summary in READ.items():
        paths[path] = {"get": _operation(summary, "200")}
    for path, (summary, kind) in BODIES.items():
        body = {"application/json": {"schema": {"$ref": TEMPLATE.format(model=kind.__name__)}}}
        told = _operation(summary, "200", "400", "404", "408", "413", "415", "503")
        paths[path] = {"post": told | {"requestBody": {"required": True, "content": body}}}
    for path in RESERVED:
        paths[path] = {"post": _operation("Reserved", "501")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "onsil", "version": "1", "description": __doc__},
        "paths": paths,
        "components": {
            "schemas": found["$defs"] | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
SAID = {
    "200": "Done",
    "400": "A field is wrong, and which",
    "401": "No key",
    "404": "No such model",
    "408": "Too slow",
    "413": "Too large",
    "415": "Not JSON",
    "501": "Not yet",
    "503": "Too many at once",
}


def _operation(summary: str, *statuses: str, **more: Any) -> dict[str, Any]:
    """One operation: what it does and what may come back; an error always has one form."""
    wrong = {"application/json": {"schema": {"$ref": TEMPLATE.format(model="Error")}}}
    statuses = (*statuses, "401") if "security" not in more else statuses
    answers = {
        status: {"description": SAID[status]} | ({} if status == "200" else {"content": wrong})
        for status in sorted(statuses)
    }
    return {"summary": summary, "responses": answers} | more
