"""OpenAI's chat as this model speaks it: what a request may say, what an answer looks like.

Every field is on one of two lists or refused by name. The model quotes documents deterministically,
so sampling fields are checked and then have no effect, which the documentation says; fields that
would promise what it cannot do (tools, log probabilities, other modalities) are refused.
"""

import json
import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onsil.errors import say
from onsil.retrieval.answering import Answer, Answerer
from onsil.retrieval.passages import Passage
from onsil.serving.guard import Refused

LONGEST_QUESTION, MOST_MESSAGES = 1_000, 1_000
# Numbers that are checked and have no effect: (least, most, whole).
NUMBERS = {
    "temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "max_tokens": (1, 1_000_000, True),
    "max_completion_tokens": (1, 1_000_000, True),
    "seed": (-(2**63), 2**63 - 1, True),
    "n": (1, 1, True),
}
TAKEN = {"model", "messages", "stream", "stream_options", "user", "metadata", "stop", "store"}
UNABLE = {
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format",
    "logprobs", "top_logprobs", "logit_bias", "modalities", "audio", "prediction",
    "reasoning_effort", "web_search_options", "service_tier", "verbosity", "prompt_cache_key",
    "safety_identifier",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Asked:
    """A checked request: which model, the last question, whether and how to stream."""

    model: str
    question: str
    stream: bool
    usage_at_end: bool


def checked(request: dict[str, Any]) -> Asked:
    """Raises Refused (400, naming the field) for anything outside the lists above."""
    for field, value in request.items():
        if field in UNABLE:
            if value in (None, False, [], {}, 0):
                continue
            raise Refused(400, f"{field} is not supported by this model.", param=field)
        if field not in TAKEN and field not in NUMBERS:
            raise Refused(400, f"Unknown field: {field}.", param=field)
    for field, (least, most, whole) in NUMBERS.items():
        _number(request, field, least, most, whole)
    stream = request.get("stream") or False
    if not isinstance(stream, bool):
        raise Refused(400, "stream must be true or false.", param="stream")
    options = request.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise Refused(400, "stream_options may hold include_usage.", param="stream_options")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "model must be the name of a model.", param="model")
    question = _last_question(request.get("messages"))
    return Asked(model, question, stream, bool(options.get("include_usage")))


def _number(request: dict, field: str, least: float, most: float, whole: bool) -> None:
    value = request.get(field)
    if value is None:
        return
    kind = int if whole else (int, float)
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most:
        wanted = "a whole number" if whole else "a number"
        raise Refused(400, f"{field} must be {wanted} from {least} to {most}.", param=field)


def _last_question(messages: Any) -> str:
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise Refused(400, "messages must be a list with at least one message.", param="messages")
    said = [(m.get("role"), _text(m)) for m in messages if isinstance(m, dict)]
    if len(said) != len(messages) or any(role not in ROLES for role, _ in said):
        raise Refused(400, f"Each message needs a role of {', '.join(ROLES)}.", param="messages")
    question = next((text for role, text in reversed(said) if role == "user"), "").strip()
    if not question:
        raise Refused(400, "There is no user message with text.", param="messages")
    if len(question) > LONGEST_QUESTION:
        length = f"{len(question):,} characters; at most {LONGEST_QUESTION:,} are read"
        raise Refused(400, f"The question has {length}.", param="messages")
    return question


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    if not isinstance(parts, list) or len(texts) != len(parts):
        raise Refused(400, "A message's content must be text.", param="messages")
    joined = "\n".join(text for text in texts if isinstance(text, str))
    if "\0" in joined or any(0xD800 <= ord(c) < 0xE000 for c in joined):
        raise Refused(400, "The text holds NUL or half of a surrogate pair.", param="messages")
    return joined


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and what it is called at this moment."""

    name: str
    version: str
    digest: str
    answerer: Answerer

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


def spoken(answer: Answer) -> str:
    """The text of an answer, or the sentence that says there is none."""
    if answer.text is not None:
        return answer.text
    return say("Not in the documents.", "문서에서 찾지 못했습니다.")


def annotations(answer: Answer) -> list[dict[str, Any]]:
    """The passages behind an answer (or nearest to the question) as url_citation annotations, with
    document, heading and passage beside OpenAI's own fields."""
    text = spoken(answer)
    return [_citation(passage, len(text)) for passage in answer.citations]


def _citation(passage: Passage, length: int) -> dict[str, Any]:
    place = {"document": passage.document, "heading": passage.heading, "passage": passage.text}
    cited = {
        "start_index": 0,
        "end_index": length,
        "title": f"{passage.document} · {passage.heading}",
        "url": f"urn:onsil:document:{passage.document}",
    }
    return {"type": "url_citation", "url_citation": cited} | place


def lineage_of(speaker: Speaker, answer: Answer) -> dict[str, Any]:
    """What an answer says of itself: which bytes made it, and that a machine did."""
    return {
        "name": speaker.name,
        "version": speaker.version,
        "digest": speaker.digest,
        "answered": answer.text is not None,
        "confidence": round(answer.confidence, 4),
        "generated_by_ai": True,
        "notice": say(
            "This answer was generated by AI. Check the source for anything important.",
            "이 답변은 인공지능이 생성했습니다. 중요한 내용은 원문을 확인하세요.",
        ),
    }


def completion(speaker: Speaker, answer: Answer, usage: dict[str, int]) -> dict[str, Any]:
    """One chat.completion."""
    message = {
        "role": "assistant",
        "content": spoken(answer),
        "refusal": None,
        "annotations": annotations(answer),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _frame(speaker, "chat.completion") | {
        "choices": [choice],
        "usage": usage,
        "onsil": lineage_of(speaker, answer),
    }


def chunks(
    speaker: Speaker, answer: Answer, usage: dict[str, int], usage_at_end: bool
) -> Iterator[str]:
    """The same as server-sent events: words, then annotations with the reason for the end."""
    frame = _frame(speaker, "chat.completion.chunk")

    def event(delta: dict, reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(frame | {"choices": [choice]} | more)

    yield event({"role": "assistant", "content": ""})
    words = spoken(answer).split(" ")
    for n, word in enumerate(words):
        yield event({"content": word if n == 0 else " " + word})
    yield event({"annotations": annotations(answer)}, "stop", onsil=lineage_of(speaker, answer))
    if usage_at_end:
        yield _event(frame | {"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _frame(speaker: Speaker, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": speaker.reference,
        "system_fingerprint": speaker.digest,
    }


def model_object(name: str, version: str, digest: str, created: float) -> dict[str, Any]:
    return {
        "id": f"{name}@{version}",
        "object": "model",
        "created": int(created),
        "owned_by": "onsil",
        "digest": digest,
    }
