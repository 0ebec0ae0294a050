"""The server of one workspace's model: OpenAI's doors for programs, a page for people.

A door checks its request, makes an `Ask` of it, and writes down what the model's speaker says. What
works is bounded: `MOST_AT_ONCE` answers are in the making, the next caller is told to come back. A
caller who hangs up is no longer worked for.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Match, Route

from onsil.evaluation.report import page_of
from onsil.evaluation.report_words import READERS, called
from onsil.lineage import Workspace, history
from onsil.serving import openai_chat, openai_completions, openai_embeddings, openai_responses
from onsil.serving.access import SESSION_SECONDS, Access, cookie_of
from onsil.serving.ai_mark import AIMark
from onsil.serving.guard import SECONDS, Guard, JsonAnswer, Refused, busy, parse
from onsil.serving.jobs.keeping import DAYS
from onsil.serving.models import Models
from onsil.serving.openapi import RESERVED, document
from onsil.serving.request_log import heard, observation
from onsil.serving.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
    checked,
)
from onsil.serving.speaking import Ask, Events, Pieces, Quoting, Said, Speaker, gathered
from onsil.serving.work import Work

MOST_AT_ONCE, MARK = 8, AIMark()
JSON = "application/json"
PAGE = Path(__file__).with_name("page")
SIGNED_OUT = (PAGE / "signed_out.html").read_bytes()
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SCORES = ("f1", "answered_share", "citation", "abstained_share")  # of all test questions
R = TypeVar("R", bound=BaseModel)
log = logging.getLogger("onsil.serving")


class Server:
    """The routes. One instance serves one name of one workspace."""

    def __init__(self, ws: Workspace, name: str, access: Access, mark: AIMark = MARK):
        self.models, self.access, self.ws = Models(ws, name, mark=mark), access, ws
        self.mark = mark
        self.places = asyncio.Semaphore(MOST_AT_ONCE)

    # ── answering ───────────────────────────────────────────────────────────────────────────────

    def read(self, request: Request, kind: type[R]) -> R:
        """The body as its class. Raises Refused."""
        sent = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if sent != JSON:
            raise Refused(415, f"The body is {sent!r}; this door takes {JSON}.")
        return checked(kind, parse(request.state.body))

    async def spoken(self, speaker: Speaker, ask: Ask) -> Pieces:
        """What a speaker says. One without a queue of its own holds a place until its answer is
        found, not while it is read out to a slow caller."""
        async with aclosing(speaker.say(ask)) as pieces:
            if not speaker.queues:
                self.admit()
                async with self.places:
                    first = await anext(pieces)
                yield first
            async for piece in pieces:
                yield piece

    def admit(self) -> None:
        """Raises Refused (503) when all places are taken."""
        if self.places.locked():
            raise busy()

    async def answer(
        self,
        request: Request,
        speaker: Speaker,
        ask: Ask,
        whole: Callable[[Said], dict[str, Any]],
        events: Callable[[Pieces], Events] | None,
    ) -> Response:
        """The response of a door: `whole` writes an answer down, `events` streams it instead."""
        operation = "chat" if ask.prompt is None else "text_completion"
        seen, until = observation(request), time.monotonic() + SECONDS - 5
        drawn = secrets.randbits(62) if seen.seed is None else seen.seed
        seen.seed = drawn if ask.seed is None else ask.seed  # to be drawn again by a replay
        ask = replace(ask, owner=request.state.owner, deadline=until, seed=seen.seed)
        pieces = heard(request, operation, speaker, self.spoken(speaker, ask))
        headers = self.mark.headers() | {"X-Onsil-Model": speaker.digest}
        if events is None:
            said = await unless_gone(request, gathered(pieces))
            return JsonAnswer(whole(said), headers=headers)
        seen.streamed = True
        # What can be refused is refused before anything is sent.
        first = await unless_gone(request, anext(pieces))
        stream = ending_well(events(resumed(first, pieces)))
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def told(
        self,
        request: Request,
        wanted: ChatRequest | CompletionRequest,
        found: Callable[[str], Speaker],
        form: ModuleType,
    ) -> Response:
        """The response to `wanted` of the speaker that is `found` by its name, in the form of
        `openai_chat` or `openai_completions`."""
        speaker = await run_in_threadpool(found, wanted.model)
        events = partial(form.chunks, speaker, usage_at_end=wanted.usage_at_end)
        whole = partial(form.completion, speaker)
        ask = form.asked(wanted)
        return await self.answer(request, speaker, ask, whole, events if wanted.stream else None)

    async def chat(self, request: Request) -> Response:
        wanted = self.read(request, ChatRequest)
        return await self.told(request, wanted, self.models.speaker, openai_chat)

    async def complete(self, request: Request) -> Response:
        wanted = self.read(request, CompletionRequest)
        return await self.told(request, wanted, self.models.writer, openai_completions)

    async def respond(self, request: Request) -> Response:
        wanted = self.read(request, ResponseRequest)
        speaker = await run_in_threadpool(self.models.speaker, wanted.model)
        writing = openai_responses.Writing(speaker, wanted)
        ask = openai_responses.asked(wanted)
        events = writing.events if wanted.stream else None
        return await self.answer(request, speaker, ask, writing.whole, events)

    async def embed(self, request: Request) -> Response:
        wanted = self.read(request, EmbeddingRequest)
        speaker = await run_in_threadpool(self.models.writer, wanted.model)
        self.admit()
        async with self.places:
            texts = openai_embeddings.texts_of(wanted)
            vectors, tokens = await run_in_threadpool(speaker.embed, texts)
        seen = observation(request)
        seen.operation, seen.model, seen.digest = "embeddings", speaker.reference, speaker.digest
        seen.prompt_tokens = tokens
        told = openai_embeddings.embeddings(speaker, wanted, vectors, tokens)
        return JsonAnswer(told, headers={"X-Onsil-Model": speaker.digest})

    # ── models and the page ─────────────────────────────────────────────────────────────────────

    async def list_models(self, request: Request) -> Response:
        listed = await run_in_threadpool(self.models.listed)
        return JsonAnswer({"object": "list", "data": listed})

    async def described(self, request: Request) -> Response:
        return JsonAnswer(await run_in_threadpool(self._described))

    def _described(self) -> dict[str, Any]:
        return document([self.models.name, *(model["id"] for model in self.models.listed())])

    async def one_model(self, request: Request) -> Response:
        found = await run_in_threadpool(self.models.named, request.path_params["id"])
        listed = await run_in_threadpool(self.models.listed)
        return JsonAnswer(next(m for m in listed if m["id"] == found.reference))

    async def about(self, request: Request) -> Response:
        """What the page shows of the model: card, lineage, topics, questions to begin with."""
        return JsonAnswer(await run_in_threadpool(self._about))

    def _about(self) -> dict[str, Any]:
        name, version, made = self.ws.resolve(self.models.name)
        records = [record for _, record in history(self.ws, made.key)]
        told = {
            "name": name,
            "version": version,
            "digest": made.digest,
            "lineage": [
                {"stage": r["stage"], "version": r["version"], "object": r["object"][:12]}
                for r in records
            ],
        }
        meant = f"{name}@{version}"
        speaker = self.models.speaker(meant) if self.models.quotes(meant) else None
        if not isinstance(speaker, Quoting):
            return told
        examined = next((r for r in records if r["stage"] == "evaluate"), None)
        if examined is None:
            raise Refused(503, "The record of its examination is damaged.", "server_error")
        card = json.loads((self.ws.artifact(examined["object"]) / "card.json").read_text("utf-8"))
        test = card["readers"][card["chosen"]]["test"]
        good = [s["question"] for s in card["samples"] if s["kind"] == "good"]
        ko, en = called(READERS, card["chosen"])
        return told | {
            "reader": card["chosen"],
            "reader_names": {"ko": ko, "en": en},
            "scores": {k: test[k] for k in SCORES},
            "documents": card["corpus"]["documents_out"],
            "topics": speaker.answerer.topics(8),
            "examples": good[:4],
        }

    async def report(self, request: Request) -> Response:
        name, _, made = self.ws.resolve(self.models.name)
        page = page_of(self.ws, made, name)
        if page is None:
            raise Refused(404, "This model has no report.")
        return FileResponse(page, headers={"Content-Security-Policy": REPORT_POLICY})

    async def sign_in(self, request: Request) -> Response:
        """A one-time code for a cookie; anything else is told where the link stands."""
        session = self.access.redeem(request.query_params.get("code", ""))
        if session is None:
            return Response(SIGNED_OUT, 401, media_type="text/html; charset=utf-8")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            cookie_of(request.scope),
            session,
            SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            path="/",
            secure="https" in (request.url.scheme, request.headers.get("x-forwarded-proto")),
        )
        return answer


async def health(request: Request) -> Response:
    return JsonAnswer({"status": "ok"})


def page_file(name: str, kind: str):
    async def send(request: Request) -> Response:
        return FileResponse(PAGE / name, media_type=kind)

    return send


# ── streams ─────────────────────────────────────────────────────────────────────────────────────

T = TypeVar("T")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is ended when the caller hangs up first."""
    doing = asyncio.ensure_future(work)
    hearing = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((doing, hearing), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Refused(499, "The caller hung up.", "cancelled")
        return await doing
    finally:
        for task in (doing, hearing):
            task.cancel()


async def resumed(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What was taken to see whether it comes, and what follows."""
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def ending_well(events: Events) -> Events:
    """Events; what goes wrong on the way is the last of them, for the status was sent long ago."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Refused as refused:
        yield f"data: {refused.body().decode()}\n\n"
    except Exception:
        log.exception("a stream broke")
        broken = Refused(500, "The answer broke off; ask again.", "server_error")
        yield f"data: {broken.body().decode()}\n\n"


def build(
    ws: Workspace,
    name: str,
    access: Access,
    hosts: frozenset[str],
    mark: AIMark = MARK,
    jobs: str = "",
    webhook_hosts: Collection[str] = (),
    keep_days: float = DAYS,
    routes: Sequence[Route] = (),
    watch: Callable[[str, Callable[[], float | None]], None] = lambda name, value: None,
) -> Guard:
    """The doors behind their guard. `jobs`: the URL of a job store, "" for the workspace's own;
    `webhook_hosts`: `host:port` of those who may be called when a job is done; `keep_days`: as in
    `Settings`; `routes`: more of them; `watch`: who is given gauges to read."""
    server = Server(ws, name, access, mark)
    secret = access.secret("webhooks")
    pinned = server.models.pinned
    work = Work(ws, lambda: guard.app, pinned, secret, jobs, webhook_hosts, keep_days)

    watch("onsil.queue.depth", server.models.waiting)
    watch("onsil.slots", server.models.places)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        work.start(asyncio.get_running_loop())
        yield
        await run_in_threadpool(work.stop)
        await run_in_threadpool(server.models.close)

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/health", health),
            Route("/sign-in", server.sign_in),
            Route("/openapi.json", server.described),
            Route("/v1/models", server.list_models),
            Route("/v1/models/{id}", server.one_model),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/v1/completions", server.complete, methods=["POST"]),
            Route("/v1/embeddings", server.embed, methods=["POST"]),
            Route("/v1/responses", server.respond, methods=["POST"]),
            *work.routes(),
            *routes,
            *(Route(path, not_yet, methods=["POST"]) for path in RESERVED),
            Route("/about", server.about),
            Route("/report", server.report),
            Route("/", page_file("index.html", "text/html; charset=utf-8")),
            Route("/page.css", page_file("page.css", "text/css; charset=utf-8")),
            Route("/page.js", page_file("page.js", "text/javascript; charset=utf-8")),
        ],
        exception_handlers=HANDLERS,
    )
    guard = Guard(app, access, hosts, SIGNED_OUT)
    return guard


async def not_yet(request: Request) -> Response:
    raise Refused(
        501, f"{request.url.path} is reserved: no model here speaks or draws.", "not_implemented"
    )


async def _refused(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = {"Retry-After": "1"} if refused.status == 503 else None
    return Response(refused.body(), refused.status, headers, media_type="application/json")


async def _broken(request: Request, error: Exception) -> Response:
    """What nobody foresaw: told in the log, and to the caller only that it was."""
    log.exception("%s %s broke", request.method, request.url.path, exc_info=error)
    broken = Refused(500, "Something went wrong here; the log says what.", "server_error")
    return Response(broken.body(), 500, media_type=JSON)


async def _not_found(request: Request, error: Exception) -> Response:
    """No such path (404), or none by that method (405, which says by which)."""
    path = dict(request.scope) | {"type": "http"}
    found = (route for route in request.app.routes if route.matches(path)[0] is not Match.NONE)
    allowed = {method for route in found for method in route.methods or ()}
    status = 405 if allowed else 404
    return Response(
        Refused(status, f"{request.method} {request.url.path} is not served here.").body(),
        status,
        headers={"Allow": ", ".join(sorted(allowed))} if allowed else None,
        media_type=JSON,
    )


# What becomes of every refusal, also in a deployment.
HANDLERS: Any = {Refused: _refused, 404: _not_found, 405: _not_found, 500: _broken}
