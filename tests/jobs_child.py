"""Workers and servers for the tests to kill. Not a test itself.

    python tests/jobs_child.py worker URL LEASE [--without fence]
    python tests/jobs_child.py server URL FOLDER [--without commit]

`--without` takes one thing out that the promises rest on, so that a test can be seen to fail: the
fence check, or the commit before the answer.
"""

import argparse
import dataclasses
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onsil.serving.guard import Refused
from onsil.serving.jobs import Claimed, JobStore, open_store
from onsil.serving.jobs import store as module
from onsil.serving.jobs.__main__ import work
from onsil.serving.jobs.answering import BatchHandler
from onsil.serving.jobs.batches import Batches
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.routes import batch_routes, file_routes, job_routes
from onsil.serving.jobs.worker import Worker

UNITS = 3


def units(claimed: Claimed) -> dict[str, Any]:
    """A job of three units that take a moment each."""
    done = claimed.checkpoints()
    for number in range(UNITS):
        if f"line:{number}" not in done:
            time.sleep(claimed.payload["seconds"] / UNITS)
            told = {"n": claimed.payload["n"], "fence": claimed.fence}
            claimed.checkpoint(f"line:{number}", told, ok=number > 0)
    return {"n": claimed.payload["n"]}


HANDLERS = {"work": units}


def echo(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
    """What answers a batch's lines: an echo, and some refusals. `slow` seconds where asked."""
    time.sleep(body.get("slow", 0))
    if body.get("input") == "refuse":
        raise Refused(400, "No.", param="input")
    return 200, {"object": "echo", "endpoint": endpoint, "model": body["model"], "in": body}


def handlers(store: JobStore, folder: Path) -> Mapping[str, Any]:
    pinned = BatchHandler(store, FileStore(store, folder), echo, lambda name: f"{name}@v1")
    return {"work": units, "batch": pinned}


class Owned:
    """Stands for the guard: the bearer's key is the owner's name."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            held = dict(scope["headers"]).get(b"authorization", b"Bearer default")
            scope["state"] = {"owner": held.decode().partition(" ")[2]}
        await self.app(scope, receive, send)


def application(
    store: JobStore, files: FileStore, webhook_hosts: frozenset[str] = frozenset()
) -> Owned:
    """The job, file and batch routes alone."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return Response(error.body(), error.status, media_type="application/json")

    routes = [
        *job_routes(store, {"work": lambda _: "sha256:1", "play": lambda _: ""}, webhook_hosts),
        *file_routes(files),
        *batch_routes(Batches(store, files)),
    ]
    return Owned(Starlette(routes=routes, exception_handlers={Refused: refused}))


def serve(store: JobStore, folder: Path) -> None:
    """The routes on a free port, which is printed, and a worker in the same process."""
    import uvicorn

    files = FileStore(store, folder)
    Worker(store, handlers(store, folder), lease=1.0, threads=2, wait=0.05).start()
    config = uvicorn.Config(application(store, files), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)

    def tell() -> None:
        while not server.started:
            time.sleep(0.005)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    threading.Thread(target=tell, daemon=True).start()
    server.run()


def hasty(store: JobStore) -> None:
    """Answer first, commit after."""
    real = store.submit

    def submit(owner: str, key: str | None, kind: str, payload: Any, **more: Any) -> Any:
        now = time.time()
        blank = dict.fromkeys(field.name for field in dataclasses.fields(module.Job))
        promised = module.Job(**blank | {"id": f"key {key}", "state": "ready", "created": now})

        def late() -> None:
            time.sleep(0.3)
            real(owner, key, kind, payload, **more)

        threading.Thread(target=late, daemon=True).start()
        return promised

    store.submit = submit  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("mode", choices=["worker", "server"])
    reader.add_argument("url")
    reader.add_argument("more")
    reader.add_argument("--without", choices=["fence", "commit"])
    given = reader.parse_args()
    store = open_store(given.url)
    if given.without == "fence":
        module.HELD = "0 < ?"
    if given.without == "commit":
        hasty(store)
    if given.mode == "worker":
        work(Worker(store, HANDLERS, float(given.more)))
    else:
        serve(store, Path(given.more))


if __name__ == "__main__":
    sys.exit(main())
