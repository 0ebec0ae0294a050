"""The doors: /v1/jobs, and OpenAI's /v1/files and /v1/batches.

Every one acts for `request.state.owner`, which the guard sets by the key; what is another's does
not exist. The store is ordinary blocking code and is called in a thread. 202 is sent when the job
is on the disk, and not before.
"""

import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from functools import wraps
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from onsil.serving.guard import JsonAnswer, Refused, parse
from onsil.serving.jobs.batches import Batches
from onsil.serving.jobs.files import File, FileStore
from onsil.serving.jobs.job import Event, Job, Json, StoreError, fingerprint_of
from onsil.serving.jobs.store import JobStore
from onsil.serving.jobs.upload import Upload
from onsil.serving.jobs.webhooks import NotAllowed, deliveries, target

KEY = re.compile(r"[\x21-\x7e]{1,255}")
FIELDS = {"kind", "input", "max_attempts", "expires_in", "webhook"}
ATTEMPTS, MOST_ATTEMPTS = 3, 20  # of a request that does not say, and that any may ask for
LONGEST = 30 * 24 * 3600.0  # seconds to expiry
PAGE, MOST_LISTED = 20, {"jobs": 100, "batches": 100, "files": 10_000}
CODES = {
    404: "not_found",
    409: "conflict",
    500: "file_damaged",
    503: "store_unavailable",
    507: "store_full",
}
GLANCE, SILENCE = 0.5, 15.0  # seconds between looks, and between signs of life in a stream

log = logging.getLogger("onsil.serving.jobs")


def owner_of(request: Request) -> str:
    return getattr(request.state, "owner", "default")


def told(door: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """A door whose store's errors are answers."""

    @wraps(door)
    async def answered(request: Request) -> Response:
        try:
            return await door(request)
        except StoreError as e:
            kind = "invalid_request_error" if e.status < 500 else "server_error"
            if e.status >= 500:
                log.warning("%s %s", *e.en[:2])
            raise Refused(e.status, e.en[0], kind, code=CODES[e.status]) from e

    return answered


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that came. Raises Refused."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise Refused(415, f"The body is {kind!r}; this door takes application/json.")
    body = getattr(request.state, "body", None)
    return parse(await request.body() if body is None else body)


def key_of(request: Request) -> str | None:
    """The Idempotency-Key; None without one. Raises Refused."""
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    return key


def page_of(request: Request, what: str) -> tuple[int, str | None]:
    """limit and after of a list. Raises Refused."""
    text, most = request.query_params.get("limit", str(PAGE)), MOST_LISTED[what]
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise Refused(400, f"limit must be from 1 to {most}.", param="limit")
    return int(text), request.query_params.get("after")


def listing(rows: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list object of up to limit + 1 rows."""
    shown = rows[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > limit,
    }


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────


def job_view(job: Job) -> dict[str, Any]:
    """A job as its owner sees it; the trace of an error stays here."""
    error = job.error and {"kind": job.error["kind"], "message": job.error["message"]}
    times = {
        "created_at": job.created,
        "started_at": job.started,
        "finished_at": job.finished,
        "expires_at": job.expires,
        "cancelling_at": job.cancelling,
    }
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "status": job.state,
        "attempts": job.attempts,
        "max_attempts": job.max_attempts,
        "progress": job.progress,
        "result": job.result,
        "error": error,
        **{name: None if at is None else round(at, 3) for name, at in times.items()},
    }


def accept(
    store: JobStore,
    owner: str,
    key: str | None,
    body: dict[str, Any],
    kinds: Mapping[str, Callable[[Json], str]],
    webhook_hosts: Collection[str],
    attempts: int,
) -> Job:
    """The job that a request asks for, on the disk. Raises Refused and StoreError."""
    for name in {*body} - FIELDS:
        raise Refused(400, f"{name[:64]!r} is not known here.", param=name[:64])
    kind = body.get("kind", next(iter(kinds)) if len(kinds) == 1 else None)
    if not isinstance(kind, str) or kind not in kinds:
        raise Refused(400, f"kind must be one of {', '.join(sorted(kinds))}.", param="kind")
    if "input" not in body:
        raise Refused(400, "input is missing.", param="input")
    attempts = body.get("max_attempts", attempts)
    if type(attempts) is not int or not 1 <= attempts <= MOST_ATTEMPTS:
        raise Refused(400, f"max_attempts must be 1 to {MOST_ATTEMPTS}.", param="max_attempts")
    expires, webhook = body.get("expires_in"), body.get("webhook")
    if expires is not None and (type(expires) not in (int, float) or not 0 < expires <= LONGEST):
        raise Refused(400, f"expires_in must be seconds up to {LONGEST:.0f}.", param="expires_in")
    if webhook is not None:
        try:
            target(webhook if isinstance(webhook, str) else "", webhook_hosts)
        except NotAllowed as e:
            raise Refused(400, f"This webhook will not be called: {e}.", param="webhook") from e
    shape = {"max_attempts": attempts, "expires_in": expires, "webhook": webhook}
    try:
        fingerprint = fingerprint_of(body["input"], kinds[kind](body["input"]), shape)
    except ValueError as e:  # 1e999 is JSON, and no number that can be kept
        raise Refused(400, f"input cannot be kept: {e}.", param="input") from e
    return store.submit(
        *(owner, key, kind, body["input"]),
        fingerprint=fingerprint,
        max_attempts=attempts,
        expires=expires,
        webhook=webhook,
    )


def job_routes(
    store: JobStore,
    kinds: Mapping[str, Callable[[Json], str]],
    webhook_hosts: Collection[str] = (),
    path: str = "/v1/jobs",
    attempts: int = ATTEMPTS,
) -> list[Route]:
    """Jobs of these kinds, tried so often unless the request says otherwise; each with a
    function of the input that gives the digest of the model that would do it now, which is part of
    what an idempotency key stands for."""
    names = tuple(kinds)

    def found(owner: str, identity: str) -> Job:
        job = store.get(owner, identity)
        if job.kind not in names:
            raise Refused(404, f"There is no job {identity!r} here.", code="not_found")
        return job

    async def one(request: Request) -> Job:
        return await run_in_threadpool(found, owner_of(request), request.path_params["id"])

    @told
    async def create(request: Request) -> Response:
        body, key, owner = await body_of(request), key_of(request), owner_of(request)
        job = await run_in_threadpool(
            accept, store, owner, key, body, kinds, webhook_hosts, attempts
        )
        return JsonAnswer(job_view(job), 202, headers={"Location": f"{path}/{job.id}"})

    @told
    async def show(request: Request) -> Response:
        job = await one(request)
        sent = await run_in_threadpool(deliveries, store, job.id)
        return JsonAnswer(job_view(job) | {"deliveries": sent})

    @told
    async def list_all(request: Request) -> Response:
        limit, after = page_of(request, "jobs")
        rows = await run_in_threadpool(store.listed, owner_of(request), names, limit + 1, after)
        return JsonAnswer(listing([job_view(job) for job in rows], limit))

    @told
    async def cancel(request: Request) -> Response:
        job = await one(request)
        return JsonAnswer(job_view(await run_in_threadpool(store.cancel, job.owner, job.id)))

    @told
    async def retry(request: Request) -> Response:
        job = await one(request)
        again = await run_in_threadpool(store.retry, job.owner, job.id)
        return JsonAnswer(job_view(again), 202)

    @told
    async def events(request: Request) -> Response:
        job = await one(request)
        last = request.headers.get("last-event-id", "0")
        seen = int(last) if re.fullmatch(r"[0-9]{1,18}", last) else 0
        stream = _events(store, job, seen)
        return StreamingResponse(stream, media_type="text/event-stream")

    return [
        Route(path, create, methods=["POST"]),
        Route(path, list_all, methods=["GET"]),
        Route(f"{path}/{{id}}", show, methods=["GET"]),
        Route(f"{path}/{{id}}", cancel, methods=["DELETE"]),
        Route(f"{path}/{{id}}/cancel", cancel, methods=["POST"]),
        Route(f"{path}/{{id}}/retry", retry, methods=["POST"]),
        Route(f"{path}/{{id}}/events", events, methods=["GET"]),
    ]


async def _events(store: JobStore, job: Job, seen: int) -> AsyncIterator[str]:
    """Every step of a job's history and every change of its progress, until it is over."""
    progress, silent = -1, 0.0
    while True:
        try:
            job = await run_in_threadpool(store.get, job.owner, job.id)
            steps = await run_in_threadpool(store.events, job.owner, job.id, seen)
        except StoreError as e:
            yield f"event: error\ndata: {Refused(e.status, e.en[0]).body().decode()}\n\n"
            return
        for step in steps:
            seen = step.seq
            yield f"id: {step.seq}\nevent: {step.state}\ndata: {json.dumps(_step(step))}\n\n"
        if job.progress != progress:
            progress = job.progress
            yield f"event: progress\ndata: {json.dumps({'progress': progress})}\n\n"
        if job.closed:
            return
        silent = 0.0 if steps else silent + GLANCE
        if silent >= SILENCE:
            silent = 0.0
            yield ": still here\n\n"
        await anyio.sleep(GLANCE)


def _step(step: Event) -> Json:
    error = step.error and {"kind": step.error["kind"], "message": step.error["message"]}
    return {"at": round(step.at, 3), "attempt": step.attempt, "error": error}


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def file_view(file: File) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


async def received(request: Request, files: FileStore) -> File:
    """An upload, whole and named. Raises Refused and StoreError."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > files.largest + 10_000:  # what else a form says
        raise Refused(413, f"The file is larger than {files.largest:,} bytes.", param="file")
    upload = Upload(files, request.headers.get("content-type", ""))
    try:
        if (body := getattr(request.state, "body", None)) is not None:
            await run_in_threadpool(upload.feed, body)
        else:
            async for part in request.stream():
                await run_in_threadpool(upload.feed, part)
        incoming = upload.finish()
        if upload.fields.get("purpose") != "batch":
            raise Refused(400, "purpose must be batch.", param="purpose")
        owner = owner_of(request)
        return await run_in_threadpool(files.keep, owner, incoming, upload.filename, "batch")
    finally:
        with anyio.CancelScope(shield=True):  # the caller may be gone; what came of it goes too
            await run_in_threadpool(upload.discard)


def file_routes(files: FileStore) -> list[Route]:
    """OpenAI's files. The guard must leave the body of `POST /v1/files` in the stream; it is
    counted here."""

    @told
    async def create(request: Request) -> Response:
        return JsonAnswer(file_view(await received(request, files)))

    @told
    async def list_all(request: Request) -> Response:
        limit, after = page_of(request, "files")
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Refused(400, "order must be asc or desc.", param="order")
        purpose, owner = request.query_params.get("purpose"), owner_of(request)
        if purpose not in (None, "batch", "batch_output"):
            raise Refused(400, "purpose must be batch or batch_output.", param="purpose")
        rows = await run_in_threadpool(
            files.listed, owner, limit + 1, after, purpose, order == "asc"
        )
        return JsonAnswer(listing([file_view(file) for file in rows], limit))

    @told
    async def show(request: Request) -> Response:
        found = await run_in_threadpool(files.get, owner_of(request), request.path_params["id"])
        return JsonAnswer(file_view(found))

    @told
    async def content(request: Request) -> Response:
        found = await run_in_threadpool(files.get, owner_of(request), request.path_params["id"])
        path = await run_in_threadpool(files.path, found)
        return FileResponse(path, media_type="application/octet-stream")

    @told
    async def delete(request: Request) -> Response:
        identity = request.path_params["id"]
        await run_in_threadpool(files.delete, owner_of(request), identity)
        return JsonAnswer({"id": identity, "object": "file", "deleted": True})

    return [
        Route("/v1/files", create, methods=["POST"]),
        Route("/v1/files", list_all, methods=["GET"]),
        Route("/v1/files/{id}", show, methods=["GET"]),
        Route("/v1/files/{id}", delete, methods=["DELETE"]),
        Route("/v1/files/{id}/content", content, methods=["GET"]),
    ]


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def batch_routes(batches: Batches) -> list[Route]:
    """OpenAI's batches."""

    @told
    async def create(request: Request) -> Response:
        body, key = await body_of(request), key_of(request)
        return JsonAnswer(await run_in_threadpool(batches.create, owner_of(request), key, body))

    @told
    async def show(request: Request) -> Response:
        identity = request.path_params["id"]
        return JsonAnswer(await run_in_threadpool(batches.get, owner_of(request), identity))

    @told
    async def cancel(request: Request) -> Response:
        identity = request.path_params["id"]
        return JsonAnswer(await run_in_threadpool(batches.cancel, owner_of(request), identity))

    @told
    async def list_all(request: Request) -> Response:
        limit, after = page_of(request, "batches")
        rows = await run_in_threadpool(batches.listed, owner_of(request), limit + 1, after)
        return JsonAnswer(listing(rows, limit))

    return [
        Route("/v1/batches", create, methods=["POST"]),
        Route("/v1/batches", list_all, methods=["GET"]),
        Route("/v1/batches/{id}", show, methods=["GET"]),
        Route("/v1/batches/{id}/cancel", cancel, methods=["POST"]),
    ]
