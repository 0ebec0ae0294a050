"""A server's life from outside: checked, listening, warm, told, at work, drained, gone.

It listens before its model is loaded, so that `/health` answers at once, and says its address only
when a first question was answered: whoever reads the address can use it.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from onsil.errors import OnsilError, say
from onsil.lineage import Workspace
from onsil.serving.access import Access, key_of, refuse_open_door
from onsil.serving.ai_mark import AIMark
from onsil.serving.settings import Settings
from onsil.serving.tls import TLSFiles

if TYPE_CHECKING:
    from onsil.serving.life import Life

# What is asked to be warm, until something answers: a model may chat, write or measure.
FIRST = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "?", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "?"}),
)
AFTER = 2  # seconds for what is cut off to end well


def settings_of(
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    hostnames: tuple[str, ...] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    drain_seconds: float = 20.0,
    ai_notice: bool = True,
    log_predictions: bool = False,
    traces: str = "",
    jobs: str = "",
    webhook_hosts: tuple[str, ...] = (),
) -> Settings:
    """Settings from what the command line said. Raises OnsilError for one TLS file without the
    other."""
    if (tls_cert is None) != (tls_key is None):
        raise OnsilError(
            en=(
                "Only one of --tls-cert and --tls-key was given.",
                "A certificate without its key proves nothing, and the other way round.",
                "Give both, or neither.",
            ),
            ko=(
                "--tls-cert와 --tls-key 중 하나만 지정했습니다.",
                "인증서와 키는 함께 있어야 쓸 수 있습니다.",
                "둘 다 지정하거나 둘 다 빼 주세요.",
            ),
        )
    tls = TLSFiles(tls_cert, tls_key) if tls_cert and tls_key else None
    mark = AIMark(ai_notice)
    rest = log_predictions, traces, jobs, webhook_hosts
    return Settings(host, port, hostnames, tls, drain_seconds, mark, *rest)


def serve(
    ws: Workspace, name: str, host: str, port: int, tell: Callable[[str], object], **more: Any
) -> None:
    """Serve until told to stop; `more` are the other arguments of `settings_of`. Prints the key's
    place, the sign-in link and what to type. Raises OnsilError when it cannot begin."""
    settings = settings_of(host, port, **more)
    refuse_open_door(settings.host)
    if settings.tls:
        settings.tls.checked()
    access_key = key_of(ws.root, tell)
    name = ws.resolve(name)[0]
    with listening(settings.host, settings.port) as listener:
        _serve(ws, name, settings, access_key, listener, tell)


def _serve(
    ws: Workspace,
    name: str,
    settings: Settings,
    key: str,
    listener: socket.socket,
    tell: Callable[[str], object],
) -> None:
    from onsil.serving import tracing
    from onsil.serving.app import build
    from onsil.serving.operations import Operations

    port = listener.getsockname()[1]
    if endpoint := tracing.endpoint_of(settings.traces):
        tracing.start(endpoint)
    operations = Operations(ws, name, settings)
    access = Access(key, operations.ring)
    guard = build(
        *(ws, name, access, settings.allowed(port), settings.mark),
        jobs=settings.jobs,
        webhook_hosts=settings.webhook_hosts,
        routes=operations.routes(),
        watch=operations.metrics.watch,
    )
    doors = guard.app

    async def warm() -> None:
        reference = await warmed(ws, name, doors)
        operations.life.warm = True
        tell(_told(ws, settings, port, reference, access.new_code()))

    try:
        run(operations.around(guard), settings, operations.life, warm, listener)
    finally:
        operations.close()


def run(
    app: ASGIApp,
    settings: Settings,
    life: "Life",
    warm: Callable[[], Coroutine[Any, Any, None]],
    listener: socket.socket,
) -> None:
    """Uvicorn as every server here has it, until it is told to stop. Raises what `warm` raised."""
    import uvicorn

    from onsil.serving.connection import PatientConnection
    from onsil.serving.life import DrainingServer

    config = uvicorn.Config(
        app,
        http=PatientConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=AFTER,
        h11_max_incomplete_event_size=64_000,
        ssl_certfile=str(settings.tls.cert) if settings.tls else None,
        ssl_keyfile=str(settings.tls.key) if settings.tls else None,
    )
    server = DrainingServer(config, life, settings.drain_seconds, warm)
    server.run(sockets=[listener])
    if server.failure:
        raise server.failure


async def warmed(ws: Workspace, name: str, doors: ASGIApp) -> str:
    """The `name@version` that answered a first question, asked of the doors themselves. Raises
    OnsilError when something is damaged or none of them answers."""
    from onsil.serving.checking import self_check
    from onsil.serving.inprocess import post

    _, version, made = ws.resolve(name)
    await asyncio.to_thread(self_check, ws)
    await asyncio.to_thread(ws.whole, made)
    said = []
    for path, body in FIRST:
        reply = await post(doors, path, {"model": f"{name}@{version}"} | body)
        if reply.status == 200:
            return f"{name}@{version}"
        said.append(f"{path}: {reply.message}")
    raise OnsilError(
        en=(
            f"{name}@{version} answers nothing.",
            "\n".join(said),
            "Serve a model that was grown from documents, or one that can write.",
        ),
        ko=(
            f"{name}@{version}이(가) 아무 요청에도 답하지 못합니다.",
            "\n".join(said),
            "문서로 기른 모델이나 글을 쓸 수 있는 모델을 지정해 주세요.",
        ),
    )


def _told(ws: Workspace, settings: Settings, port: int, reference: str, code: str) -> str:
    address = f"{settings.scheme}://{settings.shown}:{port}"
    link, key = f"{address}/sign-in?code={code}", ws.root / "key"
    return say(
        f"{reference} is served at {address}/v1  (key: {key})\n"
        f"Page, once within 10 minutes: {link}\n"
        "Ctrl-C ends.",
        f"{reference}: {address}/v1 에서 답합니다 (키: {key})\n"
        f"웹 화면(10분 안에 한 번): {link}\n"
        "Ctrl-C로 끝냅니다.",
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes calls from now on, before its address is told. Raises OnsilError when the
    port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as e:
        listener.close()
        raise OnsilError(
            en=(
                f"{host}:{port} cannot be used: {e.strerror}.",
                "Another program may be listening there.",
                "Choose another one: --port 8001 (0 takes any that is free).",
            ),
            ko=(
                f"{host}:{port}를 쓸 수 없습니다: {e.strerror}.",
                "다른 프로그램이 쓰고 있을 수 있습니다.",
                "다른 포트를 골라 주세요: --port 8001 (0이면 빈 포트를 씁니다).",
            ),
        ) from e
    return listener
