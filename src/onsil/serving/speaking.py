"""Who answers: a model that quotes documents, or one that writes; to the doors they are the same.

A door makes an `Ask` of its request. A speaker answers with pieces of text and at last an `End`:
why it stopped, what it cites or calls, how many tokens went in and out. The quoting one is a grown
model: deterministic, with sources, and it says when the documents do not answer. The writing one is
any decoder behind an engine, and what it says is drawn as the request asks.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.concurrency import run_in_threadpool

from onsil.inference.ending import computing
from onsil.retrieval.answering import Answer, Answerer, not_found
from onsil.retrieval.passages import Passage
from onsil.serving.ai_mark import AIMark
from onsil.serving.guard import Refused

LONGEST_QUESTION = 1_000  # characters


@dataclass(frozen=True)
class Ask:
    """What is wanted, whichever door it came in by.

    `messages` are OpenAI's, content as text; `prompt` is for plain continuation instead. `logprobs`
    is how many alternatives to tell of each token (None: no word on chances). `format` is None,
    "json_object" or a JSON schema. `deadline` is on the monotonic clock.
    """

    model: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    prompt: str | list[int] | None = None
    limit: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    format: str | dict[str, Any] | None = None
    owner: str = "default"
    deadline: float | None = None


@dataclass(frozen=True)
class Delta:
    """Some more text; `chances` are OpenAI's entries of log probabilities, one a token."""

    text: str
    chances: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class End:
    """How it ended. `reason` is stop, length, tool_calls or content_filter."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    annotations: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    answered: bool = True
    confidence: float | None = None

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


Pieces = AsyncGenerator[Delta | End, None]
Events = AsyncGenerator[str, None]


@dataclass(frozen=True)
class Speaker:
    """A model and what it is called at this moment. `queues`: it bounds its own work."""

    queues: ClassVar[bool] = False
    mark: AIMark = field(default=AIMark(), kw_only=True)
    name: str
    version: str
    digest: str

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def say(self, ask: Ask) -> Pieces:
        """Pieces of text and at last an End. Raises Refused before the first piece, or not at all
        for what the caller could have known."""
        raise NotImplementedError

    def lineage(self, end: End) -> dict[str, Any]:
        """What an answer says of itself: which bytes made it, and that a machine did."""
        told = {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "answered": end.answered,
        } | self.mark.fields()
        return told if end.confidence is None else told | {"confidence": round(end.confidence, 4)}


# ── quoting ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Quoting(Speaker):
    """A grown model: the last user message is the question, the answer is quoted."""

    answerer: Answerer
    tokenizer: Any

    async def say(self, ask: Ask) -> Pieces:
        question = quotable(ask)
        answer, counts = await run_in_threadpool(self._answer, question)
        for n, word in enumerate(spoken(answer).split(" ")):
            yield Delta(word if n == 0 else " " + word)
        yield End(
            "stop",
            *counts,
            annotations=annotations(answer),
            answered=answer.text is not None,
            confidence=answer.confidence,
        )

    @computing()
    def _answer(self, question: str) -> tuple[Answer, list[int]]:
        """The answer, and the tokens of both."""
        answer = self.answerer.ask(question)
        texts = (question, spoken(answer))
        return answer, [len(self.tokenizer.encode(text).ids) for text in texts]


def quotable(ask: Ask) -> str:
    """The question. Raises Refused (400) for what a model that quotes cannot do."""
    wanted = {
        "tools": ask.tools,
        "logprobs": ask.logprobs is not None,
        "response_format": ask.format,
        "logit_bias": ask.bias,
    }
    for name, value in wanted.items():
        if value:
            raise Refused(400, f"{name}: this model quotes documents and has none.", param=name)
    asked = (m["content"] for m in reversed(ask.messages) if m["role"] == "user")
    question = next(asked, "").strip()
    if not question:
        raise Refused(400, "There is no user message with text.", param="messages")
    if len(question) > LONGEST_QUESTION:
        length = f"{len(question):,} characters; at most {LONGEST_QUESTION:,} are read"
        raise Refused(400, f"The question has {length}.", param="messages")
    return question


def spoken(answer: Answer) -> str:
    """The text of an answer, or the sentence that says there is none."""
    if answer.text is not None:
        return answer.text
    return not_found(answer.question)


def annotations(answer: Answer) -> list[dict[str, Any]]:
    """The passages behind an answer (or nearest to the question) as url_citation annotations, with
    document, heading and passage beside OpenAI's own fields."""
    return [_citation(passage, len(spoken(answer))) for passage in answer.citations]


def _citation(passage: Passage, length: int) -> dict[str, Any]:
    place = {"document": passage.document, "heading": passage.heading, "passage": passage.text}
    cited = {
        "start_index": 0,
        "end_index": length,
        "title": f"{passage.document} · {passage.heading}",
        "url": f"urn:onsil:document:{passage.document}",
    }
    return {"type": "url_citation", "url_citation": cited} | place


# ── gathering ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Said:
    """A whole answer."""

    text: str
    chances: list[dict[str, Any]]
    end: End


async def gathered(pieces: Pieces) -> Said:
    """All of it."""
    texts: list[str] = []
    chances: list[dict[str, Any]] = []
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, End):
                return Said("".join(texts), chances, piece)
            texts.append(piece.text)
            chances.extend(piece.chances)
    raise RuntimeError("a speaker stopped without saying why")
