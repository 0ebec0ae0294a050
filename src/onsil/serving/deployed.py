"""A deployment file read and served: `onsil serve FILE.py`.

The file makes an `App` and calls it `app`. It is read as a module of its own name, its folder on
the path, so that processes and actors find its functions again. The doors of a deployment are its
graphs' alone; around them stands what stands around `onsil serve NAME`: guard, life, keys, budgets,
log, metrics.
"""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from onsil.errors import OnsilError, say
from onsil.graph.functions import module_from_file
from onsil.graph.running import Placement
from onsil.serving.access import Access, place_of_key
from onsil.serving.app import HANDLERS, health
from onsil.serving.deployment import App
from onsil.serving.guard import Guard
from onsil.serving.operations import Operations
from onsil.serving.run import admitted, listening, run
from onsil.serving.settings import Settings


def read_deployment(file: Path) -> App:
    """The `app` of a deployment file. Raises OnsilError for a file without one, or no file."""
    if not file.is_file():
        raise OnsilError(
            en=(
                f"There is no file {file}.",
                "A name that ends in .py is a deployment; what to serve stands in it.",
                "Give the path of one (examples/serving/ has seven), or the name of a model.",
            ),
            ko=(
                f"{file} 파일이 없습니다.",
                ".py로 끝나는 이름은 배포 파일이고, 무엇을 서빙할지 그 안에 적습니다.",
                "배포 파일의 경로(examples/serving/에 일곱 가지)나 모델 이름을 지정해 주세요.",
            ),
        )
    name = re.sub(r"\W", "_", file.stem)
    found = getattr(module_from_file(f"deployment_{name}", file.resolve()), "app", None)
    if not isinstance(found, App):
        raise OnsilError(
            en=(
                f"{file} has no app.",
                "A deployment file makes one: app = App().",
                "Look at examples/serving/ for seven that do.",
            ),
            ko=(
                f"{file}에 app이 없습니다.",
                "배포 파일에는 app = App()이 있어야 합니다.",
                "examples/serving/에 있는 일곱 가지 예를 보세요.",
            ),
        )
    return found


def doors(app: App, access: Access, hosts: frozenset[str], routes: Sequence[Route] = ()) -> Guard:
    """The routes of an opened deployment, and those of who runs it, behind their guard."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
        yield
        await run_in_threadpool(app.close)

    return Guard(
        Starlette(
            lifespan=lifespan,
            routes=[Route("/health", health), *app.routes(), *routes],
            exception_handlers=HANDLERS,
        ),
        access,
        hosts,
    )


def serve_deployment(
    app: App, placement: Placement, settings: Settings, tell: Callable[[str], object]
) -> None:
    """Serve until told to stop. Prints the key's place and every path. Raises OnsilError when it
    cannot begin."""
    key = admitted(app.ws.root, settings, tell)
    app.mark = settings.mark
    with listening(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        operations = Operations(app.ws, app.first_model(), settings)
        access = Access(key, operations.ring)

        async def warm() -> None:
            await app.ready()
            operations.life.warm = True
            address = f"{settings.scheme}://{settings.shown}:{port}"
            tell(told(app, address, place_of_key(app.ws.root)))

        try:
            secret, told_hosts = access.secret("webhooks"), settings.webhook_hosts
            app.open(placement, settings.jobs, secret, told_hosts, settings.keep_days)
            guard = doors(app, access, settings.allowed(port), operations.routes())
            around = operations.around(guard, app.paths())
            run(around, settings, operations.life, warm, listener)
        finally:
            app.close()
            operations.close()


def told(app: App, address: str, key: str) -> str:
    """What is served where."""
    lines = [f"{address}{path}" for path in app.paths()]
    end = say("Ctrl-C ends.", "Ctrl-C로 끝냅니다.")
    head = say(f"Served at {address}  (key: {key})", f"{address} 에서 답합니다 (키: {key})")
    return "\n".join([head, *lines, end])
