"""The server of one workspace's model: OpenAI's chat for programs, a page for people.

Requests run in threads, at most `MOST_AT_ONCE` of them; the next one is told to come back. A name
is resolved anew for every request, so that a new champion answers from the next question on and
nothing has to be restarted; a model is hashed before it answers for the first time.
"""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from onsil.errors import say
from onsil.lineage import Workspace, children, history
from onsil.serving.access import COOKIE, SESSION_SECONDS, Access
from onsil.serving.guard import Guard, Refused, parse
from onsil.serving.models import Models
from onsil.serving.openai_chat import (
    checked,
    chunks,
    completion,
    spoken,
)

MOST_AT_ONCE = 8
JSON = "application/json"
PAGE = Path(__file__).with_name("page")
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
log = logging.getLogger("onsil.serving")


class Server:
    """The routes. One instance serves one name of one workspace."""

    def __init__(self, ws: Workspace, name: str, access: Access):
        self.models, self.access, self.ws = Models(ws, name), access, ws
        self.places = asyncio.Semaphore(MOST_AT_ONCE)

    async def ask(self, reference: str, question: str):
        """(speaker, tokenizer, answer), off the event loop. Raises Refused (503) when all places
        are taken."""
        if self.places.locked():
            raise Refused(503, "Too many questions at once; come back in a second.", "overloaded")
        async with self.places:
            speaker, words = await run_in_threadpool(self.models.speaker, reference)
            answer = await run_in_threadpool(speaker.answerer.ask, question)
        return speaker, words, answer

    async def chat(self, request: Request) -> Response:
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind != JSON:
            raise Refused(415, f"The body is {kind!r}; this door takes {JSON}.")
        asked = checked(parse(request.state.body))
        speaker, words, answer = await self.ask(asked.model, asked.question)
        prompt, said = (len(words.encode(text).ids) for text in (asked.question, spoken(answer)))
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
        }
        log.info("%s answered=%s tokens=%d", speaker.reference, answer.text is not None, prompt)
        headers = {"X-AI-Generated": "true", "X-Onsil-Model": speaker.digest}
        if asked.stream:
            events = chunks(speaker, answer, usage, asked.usage_at_end)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        return JSONResponse(completion(speaker, answer, usage), headers=headers)

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models.listed()})

    async def one_model(self, request: Request) -> Response:
        reference = request.path_params["id"]
        speaker, _ = await run_in_threadpool(self.models.speaker, reference)
        found = next(m for m in self.models.listed() if m["id"] == speaker.reference)
        return JSONResponse(found)

    async def about(self, request: Request) -> Response:
        """What the page shows of the model: card, lineage, topics, questions to begin with."""
        return JSONResponse(await run_in_threadpool(self._about))

    def _about(self) -> dict[str, Any]:
        speaker, _ = self.models.speaker(self.models.name)
        _, _, made = self.ws.resolve(self.models.name)
        records = [record for _, record in history(self.ws, made.key)]
        examined = next(r for r in records if r["stage"] == "evaluate")
        card = json.loads((self.ws.artifact(examined["object"]) / "card.json").read_text("utf-8"))
        test = card["readers"][card["chosen"]]["test"]
        good = [s["question"] for s in card["samples"] if s["kind"] == "good"]
        return {
            "name": speaker.name,
            "version": speaker.version,
            "digest": speaker.digest,
            "reader": card["chosen"],
            "scores": {k: test[k] for k in ("f1", "citation_answerable", "abstained_share")},
            "documents": card["documents"]["read"],
            "topics": speaker.answerer.topics(8),
            "examples": good[:4],
            "lineage": [
                {"stage": r["stage"], "version": r["version"], "object": r["object"][:12]}
                for r in records
            ],
        }

    async def report(self, request: Request) -> Response:
        _, _, made = self.ws.resolve(self.models.name)
        found = children(self.ws, made, "write_report")
        if not found:
            raise Refused(404, "This model has no report.")
        path = self.ws.artifact(found[0]["object"]) / "report.html"
        return FileResponse(path, headers={"Content-Security-Policy": REPORT_POLICY})

    async def sign_in(self, request: Request) -> Response:
        """A one-time code for a cookie; anything else is told where the link stands."""
        session = self.access.redeem(request.query_params.get("code", ""))
        if session is None:
            return Response(_signed_out(), 401, media_type="text/html; charset=utf-8")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, session, SESSION_SECONDS, httponly=True, samesite="strict", path="/"
        )
        return answer


def _signed_out() -> str:
    said = say(
        "This link was used or has expired. Start `onsil serve` again for a new one.",
        "이미 썼거나 시간이 지난 링크입니다. `onsil serve`를 다시 실행하면 새 링크가 나옵니다.",
    )
    return f'<!doctype html><meta charset="utf-8"><title>onsil</title><p>{said}</p>'


async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def page_file(name: str, kind: str):
    async def send(request: Request) -> Response:
        return FileResponse(PAGE / name, media_type=kind)

    return send


def build(ws: Workspace, name: str, access: Access, hosts: frozenset[str]) -> Guard:
    """The whole ASGI application."""
    server = Server(ws, name, access)
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/sign-in", server.sign_in),
            Route("/v1/models", server.list_models),
            Route("/v1/models/{id:path}", server.one_model),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Route("/about", server.about),
            Route("/report", server.report),
            Route("/", page_file("index.html", "text/html; charset=utf-8")),
            Route("/page.css", page_file("page.css", "text/css; charset=utf-8")),
            Route("/page.js", page_file("page.js", "text/javascript; charset=utf-8")),
        ],
        exception_handlers={Refused: _refused, 404: _not_found, 405: _not_found},
    )
    return Guard(app, access, hosts)


async def _refused(request: Request, refused: Exception) -> Response:
    assert isinstance(refused, Refused)
    headers = {"Retry-After": "1"} if refused.status == 503 else None
    return Response(refused.body(), refused.status, headers, media_type="application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return Response(
        Refused(status, f"{request.method} {request.url.path} is not served here.").body(),
        status,
        media_type="application/json",
    )
