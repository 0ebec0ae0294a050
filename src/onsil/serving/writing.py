"""The speaker of a model that writes: chats rendered by its own template, an engine behind it.

Rendering, counting and compiling a grammar happen off the event loop, and what is wrong with them
is the caller's (400). A caller who stops listening frees the engine's slot within a step.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from onsil.errors import OnsilError
from onsil.inference.calls import Call, Calls
from onsil.inference.engine import Busy, Request, Token
from onsil.inference.grammar import Grammar
from onsil.inference.loading import ServedModel
from onsil.inference.sampling import Sampling
from onsil.serving.guard import Refused, busy
from onsil.serving.speaking import Ask, Delta, End, Pieces, Speaker

LIMIT = 512  # tokens, where none is named
BROKEN = {
    "deadline": (504, "The answer was not done in time.", "timeout_error"),
    "cancelled": (503, "The server ended this answer; ask again.", "server_error"),
    "error": (500, "The model broke off; the server's log says why.", "server_error"),
}


@dataclass(frozen=True)
class Writing(Speaker):
    """A decoder."""

    served: ServedModel
    queues: ClassVar[bool] = True

    async def say(self, ask: Ask) -> Pieces:
        engine = self.served.engine
        if 0 < engine.queue <= engine.waiting:
            raise busy()  # before the work of reading the request
        request = await run_in_threadpool(self.request_of, ask)
        try:
            stream = engine.submit(request)
        except Busy as e:
            raise busy() from e
        except OnsilError as e:
            raise cannot(e) from e
        calls = Calls(tool["function"]["name"] for tool in ask.tools)
        written, reason = 0, "stop"
        try:
            async for piece in stream:
                written += len(piece.tokens)
                reason = piece.reason or reason
                text = calls.add(piece.text)
                chances = () if ask.logprobs is None else told(piece.tokens)
                if text or chances:
                    yield Delta(text, chances)
        finally:
            stream.cancel()
        if reason in BROKEN:
            status, message, kind = BROKEN[reason]
            raise Refused(status, message, kind)
        rest, found = calls.end()
        if rest:
            yield Delta(rest)
        reason = "tool_calls" if found else reason
        yield End(reason, len(request.ids), written, tool_calls=spelled(found))

    def request_of(self, ask: Ask) -> Request:
        """What the engine is asked. Raises Refused (400)."""
        prompts = self.served.prompts
        self._known("logit_bias", ask.bias)
        try:
            if ask.prompt is None:
                ids = prompts.chat(ask.messages, ask.tools)
            else:
                self._known("prompt", () if isinstance(ask.prompt, str) else ask.prompt)
                ids = prompts.text(ask.prompt) if isinstance(ask.prompt, str) else tuple(ask.prompt)
            grammar = self.grammar_of(ask)
        except OnsilError as e:
            raise cannot(e) from e
        seed = secrets.randbits(62) if ask.seed is None else ask.seed
        return Request(
            ids,
            ask.limit or LIMIT,
            Sampling(
                temperature=ask.temperature,
                top_p=ask.top_p,
                seed=seed,
                presence_penalty=ask.presence_penalty,
                frequency_penalty=ask.frequency_penalty,
                logit_bias=tuple(sorted(ask.bias.items())),
            ),
            prompts.stop,
            ask.stops,
            ask.logprobs,
            grammar,
            ask.deadline,
            ask.owner,
        )

    def _known(self, field: str, tokens: Iterable[int]) -> None:
        size = self.served.engine.vocabulary
        if (unknown := next((token for token in tokens if token >= size), None)) is not None:
            message = f"{field}: token {unknown} is none of this model's {size:,}."
            raise Refused(400, message, param=field)

    def grammar_of(self, ask: Ask) -> Grammar | None:
        grammars = self.served.grammars
        if isinstance(ask.tool_choice, dict):
            return grammars.call(ask.tools, ask.tool_choice["function"]["name"])
        if ask.tools and ask.tool_choice == "required":
            return grammars.call(ask.tools)
        if ask.format is None:
            return None
        return grammars.json() if isinstance(ask.format, str) else grammars.json(ask.format)

    def embed(self, texts: Sequence[str]) -> tuple[NDArray, int]:
        """(N, D), and how many tokens were read. Raises Refused (400)."""
        try:
            ids = [self.served.prompts.text(text) for text in texts]
            return self.served.engine.embed(ids), sum(map(len, ids))
        except OnsilError as e:
            raise cannot(e) from e


def cannot(error: OnsilError) -> Refused:
    """What a model refuses is the caller's to change."""
    return Refused(400, " ".join(error.en))


def told(tokens: Sequence[Token]) -> tuple[dict[str, Any], ...]:
    """Tokens with their chances, as OpenAI writes them."""
    return tuple(
        _chance(token.text, token.logprob)
        | {"top_logprobs": [_chance(text, chance) for _, text, chance in token.top]}
        for token in tokens
    )


def _chance(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def spelled(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as OpenAI writes them."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
