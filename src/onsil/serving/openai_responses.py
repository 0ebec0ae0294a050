"""OpenAI's Responses: the same answer as items, and its text and tool events.

Nothing is stored between calls (`store` may only be false): whoever goes on sends what was said.
"""

import json
import time
import uuid
from typing import Any

from onsil.serving.schemas import (
    InputCall,
    InputMessage,
    InputOutput,
    ResponseRequest,
    SchemaText,
)
from onsil.serving.speaking import Ask, End, Events, Pieces, Said, Speaker


def asked(request: ResponseRequest) -> Ask:
    """The request as every speaker understands it."""
    said = [{"role": "system", "content": request.instructions}] if request.instructions else []
    items = request.input
    if isinstance(items, str):
        said.append({"role": "user", "content": items})
    else:
        said.extend(_turn(item) for item in items)
    choice = request.tool_choice or "auto"
    tools = [_tool(tool.model_dump(exclude_none=True)) for tool in request.tools or []]
    return Ask(
        request.model,
        said,
        limit=request.max_output_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        logprobs=request.top_logprobs,
        tools=[] if choice == "none" else tools,
        tool_choice=choice if isinstance(choice, str) else _tool(choice.model_dump()),
        format=_format(request),
    )


def _tool(found: dict[str, Any]) -> dict[str, Any]:
    """Responses' flat tool as chat's."""
    return {"type": "function", "function": {k: v for k, v in found.items() if k != "type"}}


def _format(request: ResponseRequest) -> str | dict[str, Any] | None:
    found = request.text.format if request.text else None
    if isinstance(found, SchemaText):
        return found.schema_ or {}
    return "json_object" if found is not None and found.type == "json_object" else None


def _turn(item: InputMessage | InputCall | InputOutput) -> dict[str, Any]:
    if isinstance(item, InputCall):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if isinstance(item, InputOutput):
        return {"role": "tool", "content": item.output, "tool_call_id": item.call_id}
    role = "system" if item.role == "developer" else item.role
    parts = [item.content] if isinstance(item.content, str) else [p.text for p in item.content]
    return {"role": role, "content": "\n".join(parts)}


class Writing:
    """One response while it is made: its object, its items, its numbered events."""

    def __init__(self, speaker: Speaker, request: ResponseRequest):
        self.speaker, self.number = speaker, 0
        self.message = f"msg_{uuid.uuid4().hex}"
        self.object: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": speaker.reference,
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": _dumped(request.text) or {"format": {"type": "text"}},
            "tool_choice": _dumped(request.tool_choice) or "auto",
            "tools": [_whole(tool.model_dump()) for tool in request.tools or []],
            "top_p": request.top_p,
            "truncation": "disabled",
            "metadata": request.metadata or {},
        }

    def whole(self, said: Said) -> dict[str, Any]:
        """The finished object."""
        end = said.end
        items = [self.said_item(said.text, said.chances, end)] if said.text else []
        return self.object | self.ended(end) | {"output": items + self.calls(end)}

    def ended(self, end: End) -> dict[str, Any]:
        short = end.reason == "length"
        return {
            "status": "incomplete" if short else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if short else None,
            "usage": {
                "input_tokens": end.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": end.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": end.prompt_tokens + end.completion_tokens,
            },
            "onsil": self.speaker.lineage(end),
        }

    def part(self, text: str, chances: list[dict[str, Any]], end: End | None) -> dict[str, Any]:
        marks = [_flat(found) for found in end.annotations] if end else []
        return {"type": "output_text", "text": text, "annotations": marks, "logprobs": chances}

    def said_item(self, text: str, chances: list[dict[str, Any]], end: End) -> dict[str, Any]:
        state = "incomplete" if end.reason == "length" else "completed"
        content = [self.part(text, chances, end)]
        return self.item(content, state)

    def item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self.message,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def calls(self, end: End) -> list[dict[str, Any]]:
        return [
            {
                "id": f"fc_{call['id']}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
            for call in end.tool_calls
        ]

    def event(self, kind: str, **told: Any) -> str:
        """One numbered event, as it goes over the line."""
        value = {"type": f"response.{kind}", "sequence_number": self.number} | told
        self.number += 1
        return f"event: {value['type']}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"

    async def events(self, pieces: Pieces) -> Events:
        """The same answer as it comes."""
        yield self.event("created", response=self.object)
        yield self.event("in_progress", response=self.object)
        place = {"item_id": self.message, "output_index": 0, "content_index": 0}
        texts: list[str] = []
        chances: list[dict[str, Any]] = []
        async for piece in pieces:
            if isinstance(piece, End):
                async for event in self._closing("".join(texts), chances, piece, place):
                    yield event
                return
            if not texts:
                item = self.item([], "in_progress")
                yield self.event("output_item.added", output_index=0, item=item)
                yield self.event("content_part.added", part=self.part("", [], None), **place)
            texts.append(piece.text)
            chances.extend(piece.chances)
            more = list(piece.chances)
            yield self.event("output_text.delta", delta=piece.text, logprobs=more, **place)

    async def _closing(
        self, text: str, chances: list[dict[str, Any]], end: End, place: dict[str, Any]
    ) -> Events:
        items = []
        if text:
            part, item = self.part(text, chances, end), self.said_item(text, chances, end)
            for n, mark in enumerate(part["annotations"]):
                told = {"annotation_index": n, "annotation": mark}
                yield self.event("output_text.annotation.added", **told, **place)
            yield self.event("output_text.done", text=text, logprobs=chances, **place)
            yield self.event("content_part.done", part=part, **place)
            yield self.event("output_item.done", output_index=0, item=item)
            items.append(item)
        for n, call in enumerate(self.calls(end), len(items)):
            begun = call | {"arguments": "", "status": "in_progress"}
            where = {"item_id": call["id"], "output_index": n}
            told = {"arguments": call["arguments"]}
            yield self.event("output_item.added", output_index=n, item=begun)
            delta = {"delta": call["arguments"]}
            yield self.event("function_call_arguments.delta", **delta, **where)
            yield self.event("function_call_arguments.done", name=call["name"], **told, **where)
            yield self.event("output_item.done", output_index=n, item=call)
            items.append(call)
        done = self.object | self.ended(end) | {"output": items}
        yield self.event(str(done["status"]), response=done)


def _flat(annotation: dict[str, Any]) -> dict[str, Any]:
    """Chat's annotation as Responses writes it."""
    more = {k: v for k, v in annotation.items() if k != "url_citation"}
    return more | annotation["url_citation"]


def _dumped(found: Any) -> Any:
    if found is None or isinstance(found, str):
        return found
    return found.model_dump(exclude_none=True, by_alias=True)


def _whole(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as an answer names it: its schema and `strict` are there, if only as null."""
    return {k: v for k, v in tool.items() if v is not None or k in ("parameters", "strict")}
