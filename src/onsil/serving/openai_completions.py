"""OpenAI's older door, plain continuation: a text goes in and the model writes on."""

import json
from typing import Any

from onsil.serving.openai_chat import frame
from onsil.serving.schemas import CompletionRequest
from onsil.serving.speaking import Ask, End, Events, Pieces, Said, Speaker

LIMIT = 16  # tokens, where none is named: OpenAI's own default


def asked(request: CompletionRequest) -> Ask:
    """The request as every speaker understands it."""
    return Ask(
        request.model,
        prompt=request.prompt,
        limit=request.max_tokens or LIMIT,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        bias={int(token): by for token, by in (request.logit_bias or {}).items()},
        seed=request.seed,
        stops=request.stops,
        logprobs=request.logprobs,
    )


def completion(speaker: Speaker, said: Said) -> dict[str, Any]:
    """One text_completion."""
    choice = {
        "index": 0,
        "text": said.text,
        "logprobs": _chances(said.chances),
        "finish_reason": said.end.reason,
    }
    return frame(speaker, "text_completion", "cmpl") | {
        "choices": [choice],
        "usage": said.end.usage,
        "onsil": speaker.lineage(said.end),
    }


async def chunks(speaker: Speaker, pieces: Pieces, usage_at_end: bool) -> Events:
    """The same as server-sent events."""
    told = frame(speaker, "text_completion", "cmpl")
    at = 0

    def event(text: str, reason: str | None, chances: Any = None, **more: Any) -> str:
        choice = {"index": 0, "text": text, "logprobs": chances, "finish_reason": reason}
        return f"data: {json.dumps(told | {'choices': [choice]} | more, ensure_ascii=False)}\n\n"

    async for piece in pieces:
        if isinstance(piece, End):
            yield event("", piece.reason, onsil=speaker.lineage(piece))
            if usage_at_end:
                whole = told | {"choices": [], "usage": piece.usage}
                yield f"data: {json.dumps(whole, ensure_ascii=False)}\n\n"
        else:
            yield event(piece.text, None, _chances(list(piece.chances), at))
            at += len(piece.text)
    yield "data: [DONE]\n\n"


def _chances(entries: list[dict[str, Any]], at: int = 0) -> dict[str, Any] | None:
    """Log probabilities as this door writes them: lists side by side, offsets in characters."""
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "tokens": [e["token"] for e in entries],
        "token_logprobs": [e["logprob"] for e in entries],
        "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries],
        "text_offset": offsets,
    }
