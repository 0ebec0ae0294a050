"""A graph's failures as a caller hears them, and its trace as he may see it."""

import logging
import math
from typing import Any

from starlette.responses import Response

from onsil.graph import Answer, BadInput, Busy, Failure, Late, NoQuorum, NotReady, Open
from onsil.serving.ai_mark import AIMark
from onsil.serving.guard import JsonAnswer, Refused

LONGEST_TRACE = 50  # steps told in a header
log = logging.getLogger("onsil.serving")


def refused(failure: Failure) -> Refused:
    """A failure as an OpenAI error: what the caller can do about it. What the exception of a step
    said is not in it."""
    told = failure.message + (f" (step {failure.step})" if failure.step else "")
    match failure:
        case BadInput():
            return Refused(400, told, code=failure.kind)
        case Busy() | Open():
            return Refused(503, told, "overloaded", code=failure.kind)
        case Late():
            return Refused(504, told, "timeout_error", code=failure.kind)
        case NotReady():
            return Refused(503, told, "server_error", code=failure.kind)
        case NoQuorum() if all(e["kind"] == BadInput.kind for e in failure.errors.values()):
            return Refused(400, told, code=failure.kind)
        case NoQuorum():
            return Refused(503, told, "server_error", code=failure.kind)
    return Refused(500, told, "server_error", code=failure.kind)


def refusal(failure: Failure) -> Response:
    """The same as a response; its Retry-After is the failure's own."""
    said = refused(failure)
    headers = {"Server-Timing": timing(failure.trace)}
    if said.status == 503:
        headers["Retry-After"] = str(math.ceil(failure.retry_after or 1))
    return Response(said.body(), said.status, headers, media_type="application/json")


def answered(made: Answer, mark: AIMark) -> Response:
    """An answer as a response: the value alone is the body, the rest stands in headers."""
    models = ", ".join(f"{p['name']}@{p['version']}={p['digest']}" for p in made.models.values())
    headers = mark.headers() | {"Server-Timing": timing(made.trace)}
    if models:
        headers["X-Onsil-Model"] = _ascii(models)
    return JsonAnswer(made.value, headers=headers)


def timing(trace: list[dict[str, Any]]) -> str:
    """A trace as the header Server-Timing (W3C): milliseconds, step and outcome."""
    return ", ".join(
        f'step;dur={line["seconds"] * 1000:.3f};desc="{_ascii(line["step"])} {line["outcome"]}"'
        for line in trace[:LONGEST_TRACE]
    )


def _ascii(text: str) -> str:
    """`text` fit for a header's quotes."""
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "_" for c in text)


def logged(place: str, failure: Failure) -> None:
    """What happened, for the owner. What an exception said may quote what was asked, so that is
    told at level debug only."""
    log.warning("%s: %s in step %s", place, failure.kind, failure.step)
    if failure.detail:
        log.debug("%s: %s", failure.step, failure.detail)
