"""A request without a network: the server asks itself, to be warm and to replay what it said.

It comes in behind the guard, as the workspace's owner or as whoever is named.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from onsil.serving.keys import OWNER
from onsil.serving.request_log import Observation


@dataclass(frozen=True)
class Reply:
    """What came back, whole."""

    status: int
    body: bytes
    seen: Observation
    wait: float = 0.0  # seconds until it makes sense to ask again, of a refusal that says so

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The refusal's own sentence; empty when it was none."""
        return "" if self.status < 400 else self.json["error"]["message"]


async def post(
    app: ASGIApp, path: str, body: dict[str, Any], owner: str = OWNER, seed: int | None = None
) -> Reply:
    """POST `body` to a route of `app`; `seed` is for what is drawn where the body has none. Raises
    what the application raises."""
    text, seen = json.dumps(body).encode(), Observation("inside", "POST", path, seed=seed)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
        "state": {"body": text, "owner": owner, "observation": seen},
    }
    parts: list[bytes] = []
    status, headers = 0, dict[bytes, bytes]()

    async def receive() -> Message:
        await asyncio.Event().wait()  # nobody hangs up
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        headers.update(message.get("headers", ()))
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    wait = headers.get(b"retry-after", b"")
    return Reply(status, b"".join(parts), seen, float(wait) if wait.isdigit() else 0.0)
