"""What this server says of itself: OpenAPI 3.1, made from the classes that check the requests.

A table of operations: method, path, what it does, what it takes, what may come back. A test holds
it against the routes that there are.
"""

from typing import Any

from pydantic.json_schema import models_json_schema

from onsil.serving.feedback import FIELDS as FEEDBACK
from onsil.serving.feedback import VERDICTS
from onsil.serving.jobs.batches import ENDPOINTS
from onsil.serving.jobs.routes import MOST_ATTEMPTS, MOST_LISTED
from onsil.serving.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
)
from onsil.serving.work import KINDS

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
OPEN: dict[str, Any] = {"security": []}
Operations = list[tuple[str, str, dict[str, Any]]]
LINE, NOT_BLANK = "^[^\\u0000]*$", "^[^\\u0000]*\\S[^\\u0000]*$"
BATCH = {
    "type": "object",
    "required": ["input_file_id", "endpoint", "completion_window"],
    "additionalProperties": False,
    "properties": {
        "input_file_id": {"type": "string"},
        "endpoint": {"enum": list(ENDPOINTS)},
        "completion_window": {"enum": ["24h"]},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64, "pattern": LINE},
            "additionalProperties": {"type": "string", "maxLength": 512, "pattern": LINE},
        },
    },
}
TOLD = {
    "type": "object",
    "required": ["request_id", "verdict", "question"],
    "additionalProperties": False,
    "properties": {
        name: {"type": "string", "maxLength": most, "pattern": LINE}
        for name, most in FEEDBACK.items()
    }
    | {
        name: {"type": "string", "maxLength": FEEDBACK[name], "pattern": NOT_BLANK}
        for name in ("request_id", "question")
    }
    | {"verdict": {"enum": list(VERDICTS)}},
}
FILE = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
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
    200: "Done",
    201: "Kept",
    202: "Accepted, and on the disk",
    400: "A field is wrong, and which",
    401: "No key",
    403: "Not with this key",
    404: "No such thing here",
    405: "Not this method",
    408: "Too slow",
    409: "Not as things stand",
    413: "Too large",
    415: "Of another kind",
    429: "The budget of this key is used up",
    500: "It broke here, and in which step",
    501: "Not yet",
    503: "Too many at once",
    504: "Out of time, and in which step",
    507: "The disk is full",
}
# What may come back from any door behind the key.
ALWAYS = (401, 404, 429)
TEMPLATE = "#/components/schemas/{model}"


def document(models: list[str], doors: Operations | None = None) -> dict[str, Any]:
    """The whole of it; `models` are the references that are served, `doors` those of a deployment,
    which has none of OpenAI's."""
    schemas: dict[str, Any] = {}
    if doors is None:
        _, found = models_json_schema(
            [(kind, "validation") for _, kind in BODIES.values()], ref_template=TEMPLATE
        )
        schemas = found["$defs"]
        doors = [*_doors(models), *_work()]
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": models}
    paths: dict[str, Any] = {}
    for path, method, operation in [*doors, *_operations()]:
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "onsil", "version": "1", "description": __doc__},
        "paths": paths,
        "components": {
            "schemas": schemas | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _doors(models: list[str]) -> Operations:
    made: Operations = [
        ("/v1/models", "get", _operation("Every version of the model served here", 200)),
        (
            "/v1/models/{id}",
            "get",
            _operation("One version", 200, parameters=[_in_path({"enum": models})]),
        ),
    ]
    for path, (summary, kind) in BODIES.items():
        body = _json({"$ref": TEMPLATE.format(model=kind.__name__)})
        made.append(
            (path, "post", _operation(summary, 200, 400, 408, 413, 415, 503, requestBody=body))
        )
    made += [(path, "post", _operation("Reserved", 501)) for path in RESERVED]
    made.append(("/about", "get", _operation("What the page shows of the model", 200)))
    return made


def graph_door(
    path: str, takes: dict[str, Any], gives: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """A graph of a deployment, answered while the caller waits."""
    refused = (400, 408, 413, 415, 500, 503, 504)
    made = _operation("The answer of a graph", 200, *refused, requestBody=_json(takes))
    made["responses"]["200"]["content"] = {"application/json": {"schema": gives}}
    return path, "post", made


def job_doors(path: str, kinds: list[str], takes: dict[str, Any]) -> Operations:
    """The jobs of some kinds, each with the input it takes."""
    job = _in_path({"type": "string", "minLength": 1, "pattern": LINE})
    body = {
        "type": "object",
        "required": ["input"] if len(kinds) == 1 else ["kind", "input"],
        "additionalProperties": False,
        "properties": {
            "kind": {"enum": kinds},
            "input": takes,
            "max_attempts": {"type": "integer", "minimum": 1, "maximum": MOST_ATTEMPTS},
            "expires_in": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 2_592_000},
            "webhook": {"type": ["string", "null"], "pattern": "^https?://"},
        },
    }
    refused = (400, 409, 413, 415, 503, 507)
    return [
        (path, "post", _operation("A job", 202, *refused, requestBody=_json(body))),
        (path, "get", _operation("My jobs", 200, 400, parameters=_page("jobs"))),
        (f"{path}/{{id}}", "get", _operation("How a job stands", 200, parameters=[job])),
        (f"{path}/{{id}}", "delete", _operation("Cancel", 200, 409, parameters=[job])),
        (f"{path}/{{id}}/cancel", "post", _operation("Cancel", 200, 409, parameters=[job])),
        (f"{path}/{{id}}/retry", "post", _operation("Once more", 202, 409, parameters=[job])),
        (f"{path}/{{id}}/events", "get", _operation("As it goes", 200, parameters=[job])),
    ]


def _work() -> Operations:
    file, batch = (_in_path({"type": "string", "minLength": 1, "pattern": LINE}),) * 2
    refused = (400, 409, 413, 415, 503, 507)
    made: Operations = [
        *job_doors("/v1/jobs", list(KINDS), {"type": "object"}),
        (
            "/v1/files",
            "post",
            _operation(
                "A file of requests",
                *(200, 400, 413, 415, 507),
                requestBody={
                    "required": True,
                    "content": {"multipart/form-data": {"schema": FILE}},
                },
            ),
        ),
        (
            "/v1/files",
            "get",
            _operation(
                "My files",
                *(200, 400),
                parameters=[
                    *_page("files"),
                    _query("order", {"enum": ["asc", "desc"]}),
                    _query("purpose", {"enum": ["batch", "batch_output"]}),
                ],
            ),
        ),
        ("/v1/files/{id}", "get", _operation("A file", 200, parameters=[file])),
        ("/v1/files/{id}", "delete", _operation("Forget it", 200, 409, parameters=[file])),
        ("/v1/files/{id}/content", "get", _operation("Its bytes", 200, parameters=[file])),
        ("/v1/batches", "post", _operation("A batch", 200, *refused, requestBody=_json(BATCH))),
        ("/v1/batches", "get", _operation("My batches", 200, 400, parameters=_page("batches"))),
        ("/v1/batches/{id}", "get", _operation("How it stands", 200, parameters=[batch])),
        ("/v1/batches/{id}/cancel", "post", _operation("Cancel", 200, 409, parameters=[batch])),
    ]
    return made


def _operations() -> Operations:
    feedback = _operation("What somebody thought of it", 201, 400, 413, 415, 507)
    return [
        ("/health", "get", _operation("Alive", 200, **OPEN)),
        ("/ready", "get", _operation("A question would be answered", 200, 503, **OPEN)),
        ("/metrics", "get", _operation("For Prometheus", 200)),
        ("/monitor/data", "get", _operation("How it is used", 200, 403)),
        ("/v1/feedback", "post", feedback | {"requestBody": _json(TOLD)}),
        ("/openapi.json", "get", _operation("This document", 200)),
    ]


def _operation(summary: str, *statuses: int, **more: Any) -> dict[str, Any]:
    """One operation: what it does and what may come back; an error always has one form."""
    wrong = {"application/json": {"schema": {"$ref": TEMPLATE.format(model="Error")}}}
    every = {*statuses} if "security" in more else {*statuses, *ALWAYS}
    answers = {
        str(status): {"description": SAID[status]} | ({"content": wrong} if status >= 400 else {})
        for status in sorted(every)
    }
    return {"summary": summary, "responses": answers} | more


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _in_path(schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": "id", "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _page(what: str) -> list[dict[str, Any]]:
    number = {"type": "integer", "minimum": 1, "maximum": MOST_LISTED[what]}
    return [_query("limit", number), _query("after", {"type": "string"})]


COMPARISONS = ("/comparisons", "get", _operation("What shadows and canaries found", 200))
