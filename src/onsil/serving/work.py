"""Work that outlives its request, for one server: jobs, files, batches, and who does them.

A job's input is the body of a door (`chat.completions`, `responses` …), answered by that door from
within, so that later and now are one and the same answer. The model is pinned when the job is
first begun: what is tried again is tried with the same one. A server works at its own jobs in a
thread and at batches in another; with `--jobs postgresql://…` several servers share the work.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp

from onsil.lineage import Workspace
from onsil.serving.guard import Refused
from onsil.serving.inprocess import Reply, post
from onsil.serving.jobs import Claimed, Later, NoRetry, Worker, open_store
from onsil.serving.jobs.answering import BatchHandler
from onsil.serving.jobs.batches import KIND, Batches
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.keeping import DAYS
from onsil.serving.jobs.routes import batch_routes, file_routes, job_routes
from onsil.serving.jobs.webhooks import Webhooks

STORE, FILES = "jobs/jobs.db", "jobs/files"  # in the workspace
KINDS = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
}
LEASE = 10.0  # seconds until what a killed server was at is taken up again


class Work:
    """`doors`: what stands behind the guard; `pinned`: a reference as one that never
    means another model (raises Refused)."""

    def __init__(
        self,
        ws: Workspace,
        doors: Callable[[], ASGIApp],
        pinned: Callable[[str], str],
        secret: str,
        url: str = "",
        webhook_hosts: Collection[str] = (),
        keep_days: float = DAYS,
    ):
        self.doors, self.pinned, self.hosts = doors, pinned, webhook_hosts
        self.store = open_store(url or Path(ws.root) / STORE)
        self.files = FileStore(self.store, Path(ws.root) / FILES)
        handlers = {kind: partial(self._job, path) for kind, path in KINDS.items()}
        batches = BatchHandler(self.store, self.files, self._answer, pinned)
        self.workers = [
            Worker(self.store, handlers, LEASE, days=keep_days),
            Worker(self.store, {KIND: batches}, LEASE, days=keep_days),
        ]
        self.webhooks = Webhooks(self.store, secret, webhook_hosts)
        self.loop: asyncio.AbstractEventLoop | None = None

    def routes(self) -> list[Route]:
        """/v1/jobs, /v1/files, /v1/batches."""
        kinds = dict.fromkeys(KINDS, self._meant)
        return [
            *job_routes(self.store, kinds, self.hosts),
            *file_routes(self.files),
            *batch_routes(Batches(self.store, self.files)),
        ]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work at what there is, asking the doors on `loop`."""
        self.loop = loop
        self.threads = [each.start() for each in (*self.workers, self.webhooks)]

    def stop(self) -> None:
        """Finish or give back what runs, and close the store."""
        for each in (*self.workers, self.webhooks):
            each.stop()
        for thread in self.threads:
            thread.join()
        self.store.close()

    def _meant(self, body: Any) -> str:
        """Which model a body means now; "" where it names none that is here, as its door will say
        when the job is done. Raises Refused for what is no body."""
        if not isinstance(body, dict):
            raise Refused(400, "input must be an object: the body of a door.", param="input")
        reference = body.get("model")
        try:
            return self.pinned(reference) if isinstance(reference, str) else ""
        except Refused:
            return ""

    def _asked(self, owner: str, endpoint: str, body: dict[str, Any]) -> Reply:
        """What a door says, from a thread of a worker's; on the owner's budget. Raises Later where
        that is used up for now, NoRetry where the owner's key is no more."""
        assert self.loop is not None
        wanted = post(self.doors(), endpoint, body | {"stream": False}, owner)
        reply = asyncio.run_coroutine_threadsafe(wanted, self.loop).result()
        if reply.status == 429:
            raise Later(reply.message, reply.wait)
        if reply.status == 401:
            raise NoRetry(reply.message)
        return reply

    def _answer(self, owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of a door, for a line of a batch."""
        reply = self._asked(owner, endpoint, body)
        return reply.status, reply.json

    def _job(self, endpoint: str, claimed: Claimed) -> Any:
        """The answer of a door. Raises NoRetry for what would be refused again, Later for what was
        turned away: a full house is no failed attempt, a damaged model is one."""
        body = claimed.payload if isinstance(claimed.payload, dict) else {}
        found = claimed.checkpoints()
        if "model" not in found and isinstance(body.get("model"), str):
            try:
                claimed.checkpoint("model", self.pinned(body["model"]))
            except Refused as e:
                raise NoRetry(e.message) from e
            found = claimed.checkpoints()
        reply = self._asked(claimed.owner, endpoint, body | {"model": found.get("model", "")})
        if reply.status < 400:
            return reply.json
        if reply.status != 503:
            raise NoRetry(reply.message)
        if reply.json["error"]["type"] == "overloaded":
            raise Later(reply.message, reply.wait)
        raise RuntimeError(reply.message)
