"""OpenAI's chat: what is asked, as every speaker understands it, and how an answer is written.

A streamed piece costs one call of json.dumps on its text: everything around it is written once.
"""

import json
import time
import uuid
from typing import Any

from onsil.serving.schemas import ChatRequest, Message, SchemaFormat
from onsil.serving.speaking import Ask, End, Events, Pieces, Said, Speaker


def asked(request: ChatRequest) -> Ask:
    """The request as every speaker understands it."""
    choice = request.tool_choice or "auto"
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []]
    return Ask(
        request.model,
        [turn(message) for message in request.messages],
        limit=request.limit,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        bias={int(token): by for token, by in (request.logit_bias or {}).items()},
        seed=request.seed,
        stops=request.stops,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=[] if choice == "none" else tools,
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        format=wanted_format(request),
    )


def turn(message: Message) -> dict[str, Any]:
    """One message, its parts joined, nothing that is empty."""
    more = message.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": message.text} | more


def wanted_format(request: ChatRequest) -> str | dict[str, Any] | None:
    found = request.response_format
    if isinstance(found, SchemaFormat):
        return found.json_schema.schema_ or {}
    return "json_object" if found is not None and found.type == "json_object" else None


def completion(speaker: Speaker, said: Said) -> dict[str, Any]:
    """One chat.completion."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said.text if said.text or not said.end.tool_calls else None,
        "refusal": None,
        "annotations": said.end.annotations,
    }
    if said.end.tool_calls:
        message["tool_calls"] = said.end.tool_calls
    chances = {"content": said.chances, "refusal": None} if said.chances else None
    choice = {
        "index": 0,
        "message": message,
        "logprobs": chances,
        "finish_reason": said.end.reason,
    }
    return frame(speaker, "chat.completion", "chatcmpl") | {
        "choices": [choice],
        "usage": said.end.usage,
        "onsil": speaker.lineage(said.end),
    }


async def chunks(speaker: Speaker, pieces: Pieces, usage_at_end: bool) -> Events:
    """The same as server-sent events: text, then annotations or calls with the reason."""
    told = frame(speaker, "chat.completion.chunk", "chatcmpl")
    start = f"data: {json.dumps(told, ensure_ascii=False)[:-1]}, "

    def event(delta: dict, reason: str | None = None, chances: Any = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        choice |= {"logprobs": chances} if chances else {}
        return start + json.dumps({"choices": [choice]} | more, ensure_ascii=False)[1:] + "\n\n"

    head = start + '"choices": [{"index": 0, "finish_reason": null, '
    yield event({"role": "assistant", "content": ""})
    async for piece in pieces:
        if isinstance(piece, End):
            last: dict[str, Any] = {"annotations": piece.annotations} if piece.annotations else {}
            if piece.tool_calls:
                calls = enumerate(piece.tool_calls)
                last["tool_calls"] = [{"index": n} | call for n, call in calls]
            yield event(last, piece.reason, onsil=speaker.lineage(piece))
            if usage_at_end:
                whole = told | {"choices": [], "usage": piece.usage}
                yield f"data: {json.dumps(whole, ensure_ascii=False)}\n\n"
        elif piece.chances:
            chances = {"content": list(piece.chances), "refusal": None}
            yield event({"content": piece.text}, chances=chances)
        else:
            text = json.dumps(piece.text, ensure_ascii=False)
            yield f'{head}"delta": {{"content": {text}}}}}]}}\n\n'
    yield "data: [DONE]\n\n"


def frame(speaker: Speaker, kind: str, prefix: str) -> dict[str, Any]:
    """What every object of an answer begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
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
