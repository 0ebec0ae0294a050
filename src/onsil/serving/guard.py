"""What every request passes before anything of ours looks at it.

Default deny: a route is public only if it is named here. Host and Origin are checked because a
page elsewhere can make a browser talk to this machine (DNS rebinding); bodies are limited while
they stream in; a request that takes too long is ended. Written as plain ASGI, so that streamed
answers pass through untouched.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsil.serving.access import Access, cookie_of
from onsil.serving.keys import OWNER

PUBLIC = ("/health", "/sign-in")
LARGEST_BODY, DEEPEST = 1_000_000, 64
UPLOADS, LARGEST_FILE = ("/v1/files",), 101_000_000  # bodies that are read as they come
BODY_SECONDS, SECONDS = 30.0, 600.0  # for a body to arrive, for an answer to leave
LARGEST_HEADERS = 32_000
AT_ONCE = 256  # requests at work that may carry a body
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SENT = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Refused(Exception):
    """An answer instead of the work: HTTP status, message, OpenAI's error type, field named."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.param, self.code = kind, param, code

    def body(self) -> bytes:
        """OpenAI's error object."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return spelled({"error": error})


class Guard:
    """ASGI middleware: checks, limits and headers around `app`. `hosts`: allowed Host values;
    `signed_out`: what a person without a session reads in a browser, where there are pages."""

    def __init__(
        self, app: ASGIApp, access: Access, hosts: frozenset[str], signed_out: bytes = b""
    ):
        self.app, self.access, self.hosts = app, access, hosts
        self.signed_out = signed_out
        self.working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                named = {name for name, _ in message["headers"]}
                extra = [header for header in SENT if header[0] not in named]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            scope["state"] = scope.get("state", {}) | {"owner": self._admit(scope)}
            with self._place(scope["method"]):
                await self._passed(scope, receive, sending)
        except Refused as refused:
            if not started:
                await refuse(sending, refused, self.signed_out if _reads(scope) else b"")
        except TimeoutError:
            if not started:
                await refuse(sending, Refused(408, "The request took too long.", "timeout_error"))

    @contextmanager
    def _place(self, method: str) -> Iterator[None]:
        """One of `AT_ONCE` places, for what may carry a body: so many bodies are in memory at most.
        What only asks needs none, and is answered also when all are taken. Raises Refused (503)."""
        if method in ("GET", "HEAD"):
            yield
            return
        if self.working >= AT_ONCE:
            raise busy()
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the doors, with the body read. Raises Refused, TimeoutError."""
        if scope["path"] in UPLOADS:
            receive = _counted(scope, receive)
        else:
            async with asyncio.timeout(BODY_SECONDS):
                scope["state"]["body"] = await _whole_body(scope, receive)
        async with asyncio.timeout(SECONDS):
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> str:
        """Whose request it is ("" on public routes). Raises Refused unless host, origin and key are
        in order."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LARGEST_HEADERS:
            raise Refused(431, "The headers are too large.")
        if headers.get("host", "").lower() not in self.hosts:
            raise Refused(421, "This server does not answer to that host name.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() not in self.hosts:
            raise Refused(403, "Requests from other origins are refused.", "permission_error")
        if scope["path"] in PUBLIC:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and (owner := self.access.owner_of(key.strip())):
            return owner
        if self.access.session_fits(_session(headers.get("cookie", ""), cookie_of(scope))):
            if scope["method"] in ("GET", "HEAD") or origin is not None:
                return OWNER
            raise Refused(403, "A page's request must name its origin.", "permission_error")
        raise Refused(401, "A key is needed: Authorization: Bearer KEY.", "authentication_error")


def busy() -> Refused:
    return Refused(503, "Too many questions at once; come back in a second.", "overloaded")


def _session(cookies: str, name: str) -> str:
    try:
        found = SimpleCookie(cookies).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


async def _whole_body(scope: Scope, receive: Receive) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    _declared_within(scope, LARGEST_BODY)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "The request ended before its body did.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise _too_large(LARGEST_BODY)
        if not message.get("more_body"):
            return b"".join(parts)


def _counted(scope: Scope, receive: Receive) -> Receive:
    """The body of an upload as it comes. Raises Refused (413) when it becomes too large."""
    _declared_within(scope, LARGEST_FILE)
    size = 0

    async def counting() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST_FILE:
            raise _too_large(LARGEST_FILE)
        return message

    return counting


def _declared_within(scope: Scope, most: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large(most)


def _too_large(most: int) -> Refused:
    return Refused(413, f"The body is larger than {most:,} bytes.")


def spelled(value: Any) -> bytes:
    """As JSON. Half of a surrogate pair, which UTF-8 cannot hold, stays an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class JsonAnswer(Response):
    """JSON, whatever a request put into it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return spelled(content)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused for anything else, before it is built when it is
    nested too deep."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Refused(400, f"The body is not UTF-8 (byte {e.start}).") from e
    depth = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            if depth > DEEPEST:
                raise Refused(400, f"The JSON is nested deeper than {DEEPEST}.")
        elif character in "]}":
            depth -= 1
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except ValueError as e:
        raise Refused(400, f"The body is not JSON: {e}.") from e
    if not isinstance(found, dict):
        raise Refused(400, "The body must be a JSON object.")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reads(scope: Scope) -> bool:
    """Whether a person looks at the answer: browsers ask for a page by its name."""
    accepted = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return scope["method"] in ("GET", "HEAD") and b"text/html" in accepted


async def refuse(send: Send, refused: Refused, signed_out: bytes = b"") -> None:
    """OpenAI's error object; `signed_out` instead of it, if there is one, to whom has no key."""
    body, kind = refused.body(), b"application/json"
    if refused.status == 401 and signed_out:
        body, kind = signed_out, b"text/html; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
