"""A server's life from outside: checked, listening, warm, told, at work, drained, gone.

It listens before its model is loaded, so that `/health` answers at once, and says its address only
when a first question was answered: whoever reads the address can use it.
"""

import asyncio
import ctypes
import errno
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from onsil.errors import OnsilError, say
from onsil.lineage import Workspace
from onsil.serving.access import Access, key_of, place_of_key, refuse_open_door
from onsil.serving.settings import Settings

if TYPE_CHECKING:
    from onsil.serving.life import Life

# What is asked to be warm, until something answers: a model may chat, write or measure.
FIRST = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "?", "max_tokens": 1}),
    ("/v1/embeddings", {"input": "?"}),
)
AFTER = 2  # seconds for what is cut off to end well
M_ARENA_MAX = -8  # glibc's malloc.h


def serve(ws: Workspace, name: str, settings: Settings, tell: Callable[[str], object]) -> None:
    """Serve until told to stop. Prints the key's place, the sign-in link and what to type. Raises
    OnsilError when it cannot begin."""
    access_key = admitted(ws.root, settings, tell)
    name = ws.resolve(name)[0]
    with listening(settings.host, settings.port) as listener:
        _serve(ws, name, settings, access_key, listener, tell)


def admitted(home: Path, settings: Settings, tell: Callable[[str], object]) -> str:
    """The owner's key of a server that may begin, with its traces on. Raises OnsilError for a door
    that would be open to everybody or a certificate that cannot work."""
    from onsil.serving import tracing

    one_heap()  # before any thread has one of its own
    refuse_open_door(settings.host)
    if settings.tls:
        settings.tls.checked()
    if endpoint := tracing.endpoint():
        tracing.start(endpoint)
    return key_of(home, tell)


def _serve(
    ws: Workspace,
    name: str,
    settings: Settings,
    key: str,
    listener: socket.socket,
    tell: Callable[[str], object],
) -> None:
    from onsil.serving.app import build
    from onsil.serving.operations import Operations

    port = listener.getsockname()[1]
    operations = Operations(ws, name, settings)
    access = Access(key, operations.ring)
    guard = build(
        *(ws, name, access, settings.allowed(port), settings.mark),
        jobs=settings.jobs,
        webhook_hosts=settings.webhook_hosts,
        keep_days=settings.keep_days,
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
        loop="onsil.serving.life:PatientLoop",
        http=PatientConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
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


def one_heap() -> None:
    """Let all threads share one heap. glibc gives them up to eight a processor, and what is freed
    in one of them serves no other: 250 MiB an hour of varied requests, 50 with two (docs/log.md,
    "Kernels that are kept")."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other systems have other heaps
        mallopt(M_ARENA_MAX, 1)


async def warmed(ws: Workspace, name: str, doors: ASGIApp) -> str:
    """The `name@version` that answered a first question, asked of the doors themselves. Raises
    OnsilError when something is damaged or none of them answers."""
    from onsil.serving.checking import self_check
    from onsil.serving.inprocess import post
    from onsil.serving.models import DAMAGED

    _, version, made = ws.resolve(name)
    await asyncio.to_thread(self_check, ws)
    said = []
    for path, body in FIRST:
        reply = await post(doors, path, {"model": f"{name}@{version}"} | body)
        if reply.status == 200:
            return f"{name}@{version}"
        if reply.json["error"]["code"] == DAMAGED:
            await asyncio.to_thread(ws.whole, made)  # raises, and says what to do
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
    link, key = f"{address}/sign-in?code={code}", place_of_key(ws.root)
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
    port is taken or the host is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, UnicodeError) as e:
        listener.close()
        why = e.strerror if isinstance(e, OSError) else "this is no host name"
        en, ko = NO_LISTENING.get(getattr(e, "errno", 0), OTHER_HOST)
        raise OnsilError(
            en=(f"{host}:{port} cannot be used: {why}.", *en),
            ko=(f"{host}:{port}를 쓸 수 없습니다: {why}.", *ko),
        ) from e
    return listener


# What stands behind an error of bind(), and what to do, in English and Korean.
OTHER_HOST = (
    (
        "A server can only listen at an address of its own machine.",
        "Leave out --host to stay here.",
    ),
    ("이 컴퓨터의 주소에서만 열 수 있습니다.", "이 컴퓨터에서만 쓰려면 --host를 빼 주세요."),
)
NO_LISTENING = {
    errno.EADDRINUSE: (
        (
            "Another program is listening there, perhaps another onsil.",
            "Choose another one: --port 8001 (0 takes any that is free).",
        ),
        (
            "다른 프로그램(먼저 연 onsil일 수도 있습니다)이 쓰고 있습니다.",
            "다른 포트를 골라 주세요: --port 8001 (0이면 빈 포트를 씁니다).",
        ),
    ),
    errno.EACCES: (
        ("Ports below 1024 are the administrator's.", "Choose another one: --port 8001."),
        ("1024 미만의 포트는 관리자만 쓸 수 있습니다.", "다른 포트를 골라 주세요: --port 8001"),
    ),
}
