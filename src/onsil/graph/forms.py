"""What a graph takes and gives, as JSON Schema, as far as its nodes say.

A model and its preprocessing have one form each; a step is somebody's function and may take any
object and give anything. What is told of a graph follows from where its values come in and out.
"""

from typing import Any

from onsil.graph.models import LONGEST_QUESTION
from onsil.graph.nodes import Beside, Model, Node, Parallel, Prep, Route, Serial, Step
from onsil.graph.values import Json

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
ASKED: Schema = {
    "type": "object",
    "oneOf": [{"required": ["question"]}, {"required": ["messages"]}],
    "properties": {
        "question": TEXT | {"pattern": "\\S", "maxLength": LONGEST_QUESTION},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {"role": TEXT, "content": TEXT},
            },
        },
    },
}
ANSWERED: Schema = {
    "type": "object",
    "required": ["text", "answered", "citations", "confidence", "model"],
    "properties": {
        "text": {"type": ["string", "null"]},
        "answered": {"type": "boolean"},
        "citations": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["document", "heading", "text"],
                "properties": {"document": TEXT, "heading": TEXT, "text": TEXT},
            },
        },
        "confidence": {"type": ["number", "null"]},
        "finish": {"enum": ["stop", "length"]},
        "model": {
            "type": "object",
            "required": ["name", "version", "digest"],
            "properties": {"name": TEXT, "version": TEXT, "digest": TEXT},
        },
    },
}
PREPARED: Schema = ASKED | {
    "required": ["tokens", "prep"],
    "properties": ASKED["properties"] | {"tokens": {"type": "integer"}, "prep": TEXT},
}


def takes(node: Node) -> Schema:
    """What a graph may be asked: an object, and of which form when that is known."""
    if isinstance(node, (Model, Prep)):
        return ASKED
    first = node.inside[:1] if isinstance(node, Serial) else node.inside
    forms = [takes(inner) for inner in first]
    same = forms and all(form == forms[0] for form in forms)
    return forms[0] if same else {"type": "object"}


def gives(node: Node) -> Schema:
    """What a graph answers; `{}` for anything."""
    match node:
        case Step():
            return {}
        case Model():
            return ANSWERED
        case Prep():
            return PREPARED
        case Serial():
            return gives(node.inside[-1])
        case Parallel():
            return _panel(node)
        case Route() | Beside(answers=True):
            return _any([gives(inner) for inner in node.inside])
    return gives(node.inside[0])


def _any(forms: list[Schema]) -> Schema:
    different = [form for n, form in enumerate(forms) if form not in forms[:n]]
    if len(different) == 1:
        return different[0]
    return {} if {} in different else {"anyOf": different}


def _panel(node: Parallel) -> Schema:
    votes: Json = dict(zip(node.names, map(gives, node.inside), strict=True))
    return {
        "type": "object",
        "required": ["answer", "voted", "errors"],
        "properties": {
            "answer": {} if node.join else {"type": "object", "properties": votes},
            "voted": {"type": "array", "items": {"enum": list(node.names)}},
            "errors": {"type": "object"},
        },
    }
