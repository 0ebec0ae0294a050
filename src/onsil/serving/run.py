"""A server's life: a socket, a warm model, the address told, requests until it is interrupted."""

import socket

from onsil.errors import OnsilError, say
from onsil.lineage import Workspace
from onsil.serving.access import Access, key_of, refuse_open_door
from onsil.serving.app import build
from onsil.serving.models import Models


def serve(ws: Workspace, name: str, host: str, port: int, tell) -> None:
    """Serve until interrupted. Prints the key's place, the sign-in link and what to type."""
    import uvicorn

    from onsil.serving.connection import PatientConnection

    refuse_open_door(host)
    access = Access(key_of(ws.root, tell))
    models = Models(ws, name)
    speaker, _ = models.speaker(name)  # warm: whole, and loads
    speaker.answerer.ask("?")
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        names = {"localhost", "127.0.0.1", "[::1]", shown.lower()}
        hosts = frozenset(f"{n}:{port}" for n in names) | (names if port == 80 else frozenset())
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else shown}:{port}"
        link = f"{address}/sign-in?code={access.new_code()}"
        tell(
            say(
                f"{speaker.reference} is served at {address}/v1  (key: {ws.root / 'key'})\n"
                f"Page, once within 10 minutes: {link}\n"
                "Ctrl-C ends.",
                f"{speaker.reference}: {address}/v1 에서 답합니다 (키: {ws.root / 'key'})\n"
                f"웹 화면(10분 안에 한 번): {link}\n"
                "Ctrl-C로 끝냅니다.",
            )
        )
        config = uvicorn.Config(
            build(ws, name, access, hosts),
            http=PatientConnection,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=64_000,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes calls from now on, before its address is told. Raises OnsilError when the
    port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
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
