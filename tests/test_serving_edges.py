"""The doors at their edges: bytes that are no request, clients that dawdle or hang up, the key."""

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from served import grow_small, server
from starlette.types import ASGIApp, Receive, Scope, Send

from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.serving import app, connection, guard
from onsil.serving.access import Access, key_of
from onsil.serving.connection import PatientConnection
from onsil.serving.speaking import Ask, Delta, End, Pieces, Speaker

QUESTION, OTHER = "쓰지 않은 연차는 며칠까지 이월되나요?", "숙박비는 하루 얼마까지 주나요?"
DOOR = "/v1/chat/completions"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("edges"))


@pytest.fixture(scope="module")
def address(home):
    with server(home) as (address, _):
        yield address


@pytest.fixture
def key(home, address) -> str:
    return (home / "key").read_text().strip()


@pytest.fixture
def client(address, key) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client
        assert client.post(DOOR, json=body()).status_code == 200  # it still answers


def body(question: str = QUESTION, **changed) -> dict:
    return {"model": "desk", "messages": [{"role": "user", "content": question}]} | changed


def refused(response: httpx.Response, status: int, word: str = "") -> None:
    assert response.status_code == status, response.text
    assert word in response.json()["error"]["message"], response.text


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def said(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def head(address: str, *lines: str) -> bytes:
    first = (f"POST {DOOR} HTTP/1.1", f"Host: {address.removeprefix('http://')}", *lines)
    return "\r\n".join(first).encode() + b"\r\n\r\n"


# -- bytes that are no request ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\0", "not JSON"),
        (b'{"model": "desk"\0}', "not JSON"),
        (json.dumps(body("가\0나")).encode(), "NUL"),
        (b'{"model": "desk", "messages": "\xc0\xaf"}', "not UTF-8 (byte 31)"),
        ('{"model": "휴가"}'.encode("cp949"), "not UTF-8 (byte 11)"),
        ('{"model": "desk"}'.encode("utf-16"), "not UTF-8"),
        (b'\xef\xbb\xbf{"model": "desk"}', "not JSON"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_body_with_nul_wrong_bytes_or_no_end_is_named(client, content, word):
    refused(client.post(DOOR, content=content), 400, word)


@pytest.mark.parametrize(
    "line", ["GET /%00 HTTP/1.1", "GET /%ff%fe HTTP/1.1", "GET /../../etc/passwd HTTP/1.1"]
)
def test_a_path_with_nul_wrong_bytes_or_dots_is_not_served(address, client, key, line):
    with connect(address) as connection:
        lines = (line, f"Host: {address[7:]}", f"Authorization: Bearer {key}", "Connection: close")
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert said(connection).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "x"])
def test_a_form_of_another_page_is_not_read_as_json(client, kind):
    content = json.dumps(body())
    refused(client.post(DOOR, content=content, headers={"Content-Type": kind}), 415, kind)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_by_any_spelling_is_read(client, kind):
    content = json.dumps(body())
    assert client.post(DOOR, content=content, headers={"Content-Type": kind}).status_code == 200


def test_a_question_of_a_megabyte_is_refused_by_body_or_by_length(client):
    refused(client.post(DOOR, json=body("a" * 1_000_000)), 413, "1,000,000")
    refused(client.post(DOOR, json=body("a" * 900_000)), 400, "900,000 characters")
    refused(client.post(DOOR, json=body(messages=[])), 400, "at least 1")
    refused(client.post(DOOR, json=body(messages=[{}])), 400, "role")


# -- the key, the host, the cookie --------------------------------------------------------------


def test_a_key_counts_in_the_header_alone(address, client, key):
    for query in (f"key={key}", f"api_key={key}", f"access_token={key}"):
        refused(httpx.post(f"{address}{DOOR}?{query}", json=body()), 401)
    for value in ("", "Bearer", f"Basic {key}", f"Bearer {key}x", f"Bearer {key[:-1]}"):
        refused(httpx.get(f"{address}/v1/models", headers={"Authorization": value}), 401)
    refused(httpx.get(f"{address}/v1/models", headers=[(b"Authorization", b"Bearer \xff")]), 401)
    refused(httpx.get(f"{address}/v1/models", headers={"Api-Key": key}), 401)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost", "127.0.0.1:1", "desk.localhost:{port}", "0.0.0.0:{port}", ""],
)
def test_the_host_must_be_this_one_with_its_port(address, client, host):
    named = host.format(port=address.rpartition(":")[2])
    refused(client.get("/v1/models", headers={"Host": named}), 421)
    refused(client.get("/health", headers={"Host": named}), 421)


def test_http_1_0_without_a_host_is_refused(address, client):
    with connect(address) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 421 " in said(connection).splitlines()[0]


def test_servers_that_start_at_once_share_one_whole_key(monkeypatch, tmp_path):
    monkeypatch.delenv("ONSIL_KEY", raising=False)
    start = threading.Barrier(8)

    def made(_: int) -> str:
        start.wait()
        return key_of(tmp_path, print)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(made, range(8)))
    assert found == {(tmp_path / "key").read_text().strip()} and len(found.pop()) >= 32
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_the_key_never_stands_under_its_name_half_written(monkeypatch, tmp_path):
    """Killed while it writes, it leaves no key, and the next start makes a whole one."""
    monkeypatch.delenv("ONSIL_KEY", raising=False)

    def cut(descriptor: int) -> None:
        assert not (tmp_path / "key").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(os, "fsync", cut)
        key_of(tmp_path, print)
    assert list(tmp_path.iterdir()) == []
    assert len(key_of(tmp_path, print)) >= 32


def test_a_key_others_could_read_is_closed_with_a_word(monkeypatch, tmp_path):
    monkeypatch.delenv("ONSIL_KEY", raising=False)
    told: list[str] = []
    made = key_of(tmp_path, told.append)
    assert told == []
    for mode in (0o644, 0o640, 0o606):
        (tmp_path / "key").chmod(mode)
        assert key_of(tmp_path, told.append) == made
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert str(tmp_path / "key") in told.pop() and told == []


@pytest.mark.parametrize("kept", ["", "\n", "short\n"])
def test_an_empty_or_cut_key_file_opens_no_door(monkeypatch, tmp_path, kept):
    monkeypatch.delenv("ONSIL_KEY", raising=False)
    (tmp_path / "key").write_text(kept)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(OnsilError, match=f"has {len(kept.strip())} characters") as caught:
        key_of(tmp_path, print)
    assert f"{len(kept.strip())}자" in caught.value.ko[0]


# -- clients that dawdle or hang up -------------------------------------------------------------

KEY = {"Authorization": f"Bearer {'k' * 32}"}


@contextmanager
def listening(made: Callable[[frozenset[str]], ASGIApp]) -> Iterator[str]:
    """The address of an application that runs in a thread, as `onsil serve` has it."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        doors = made(frozenset({host}))
        config = uvicorn.Config(
            doors, http=PatientConnection, log_level="error", access_log=False, lifespan="on"
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{host}"
        finally:
            running.should_exit = running.force_exit = True
            thread.join()


@pytest.fixture
def doors(home) -> Iterator[str]:
    """The real doors in this process, so that a limit can be made short enough for a test."""
    with listening(lambda hosts: app.build(Workspace(home), "desk", Access("k" * 32), hosts)) as at:
        yield at


@dataclass(frozen=True)
class Slow(Speaker):
    """A speaker that says nothing until it is let go, and notes when nobody listens."""

    begun: threading.Event = field(default_factory=threading.Event, kw_only=True)
    let_go: threading.Event = field(default_factory=threading.Event, kw_only=True)
    ended: threading.Event = field(default_factory=threading.Event, kw_only=True)

    async def say(self, ask: Ask) -> Pieces:
        self.begun.set()
        try:
            while not self.let_go.is_set():
                await asyncio.sleep(0.005)
            yield Delta("done")
            yield End("stop", 1, 1)
        finally:
            self.ended.set()


@pytest.fixture
def speaker(monkeypatch) -> Slow:
    found = Slow("desk", "v1", "0" * 64)
    monkeypatch.setattr(app.Models, "speaker", lambda *_: found)
    return found


def drip(connection: socket.socket, data: bytes, seconds: float = 20) -> bytes:
    """Send a byte again and again until the server closes; what it said."""
    until = time.monotonic() + seconds
    connection.settimeout(0.1)
    heard = b""
    while time.monotonic() < until:
        try:
            connection.sendall(data)
            if not (part := connection.recv(65536)):
                return heard
            heard += part
        except TimeoutError:
            continue
        except ConnectionError:
            return heard
    raise AssertionError(f"still open after {seconds} s: {heard!r}")


def test_headers_that_never_end_and_silence_are_ended_and_others_served(doors, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    with connect(doors) as silent, connect(doors) as slow, connect(doors) as second:
        second.sendall(f"GET /health HTTP/1.1\r\nHost: {doors[7:]}\r\n\r\n".encode())
        assert second.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        second.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        assert httpx.get(f"{doors}/health").status_code == 200
        assert drip(slow, b"a").startswith(b"HTTP/1.1 408")
        assert b"HTTP/1.1 408" in drip(second, b"a")
        assert said(silent) == b""
    assert httpx.get(f"{doors}/health").status_code == 200


def test_a_body_that_never_ends_is_ended_and_its_connection_too(doors, monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    with connect(doors) as slow, connect(doors) as uninvited:
        slow.sendall(
            head(doors, f"Authorization: {KEY['Authorization']}", "Content-Length: 900000")
        )
        uninvited.sendall(head(doors, "Content-Length: 900000"))
        assert httpx.get(f"{doors}/v1/models", headers=KEY).status_code == 200
        heard = drip(slow, b" ")
        assert heard.startswith(b"HTTP/1.1 408") and b"timeout_error" in heard
        assert drip(uninvited, b" ").startswith(b"HTTP/1.1 401")
    assert httpx.get(f"{doors}/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_take_longer_than_the_patience_with_headers(
    doors, monkeypatch, speaker, stream
):
    """The clock stops while there is work."""
    monkeypatch.setattr(connection, "PATIENCE", 0.05)
    threading.Timer(0.5, speaker.let_go.set).start()
    made = httpx.post(doors + DOOR, json=body(stream=stream), headers=KEY)
    assert made.status_code == 200 and "done" in made.text


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_before_the_first_word_is_no_longer_worked_for(doors, speaker, stream):
    content = json.dumps(body(stream=stream)).encode()
    lines = (f"Authorization: {KEY['Authorization']}", f"Content-Length: {len(content)}")
    with connect(doors) as hasty:
        hasty.sendall(head(doors, *lines) + content)
        assert speaker.begun.wait(20)
    assert speaker.ended.wait(20)


def test_a_client_that_hangs_up_is_no_longer_worked_for(doors, monkeypatch):
    """Only the answer is made endless."""
    ended = threading.Event()

    async def endless(*_: object, **__: object) -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0.005)
                yield "data: {}\n\n"
        finally:
            ended.set()

    monkeypatch.setattr(app.openai_chat, "chunks", endless)
    content = json.dumps(body(stream=True)).encode()
    lines = (f"Authorization: {KEY['Authorization']}", f"Content-Length: {len(content)}")
    with connect(doors) as client:
        client.sendall(head(doors, *lines) + content)
        heard = b""
        while heard.count(b"data: {}") < 10:
            heard += client.recv(65536)
        assert not ended.is_set() and httpx.get(f"{doors}/health").status_code == 200
    assert ended.wait(20)


@dataclass(frozen=True)
class Breaking(Speaker):
    """A speaker that breaks off in the midst of a text."""

    async def say(self, ask: Ask) -> Pieces:
        yield Delta("half")
        raise RuntimeError("secret words")


def test_a_stream_that_breaks_ends_with_an_error(doors, monkeypatch, caplog):
    """Its status was sent long ago; so the last event says it, and OpenAI's client raises it."""
    with (
        monkeypatch.context() as broken,
        openai.OpenAI(base_url=f"{doors}/v1", api_key="k" * 32, max_retries=0) as official,
    ):
        broken.setattr(app.Models, "speaker", lambda *_: Breaking("desk", "v1", "0" * 64))
        for door, asked in ((DOOR, body()), ("/v1/responses", {"model": "desk", "input": "?"})):
            answered = httpx.post(doors + door, json=asked | {"stream": True}, headers=KEY)
            assert answered.status_code == 200 and "half" in answered.text
            last = json.loads(answered.text.rstrip().rpartition("data: ")[2])
            assert last["error"]["type"] == "server_error" and "secret" not in answered.text
        with pytest.raises(openai.APIError, match="broke off"):
            list(official.chat.completions.create(**body(), stream=True))
    assert "secret words" in caplog.text  # in the log, for the owner
    assert httpx.post(doors + DOOR, json=body(), headers=KEY).status_code == 200


def test_two_questions_at_once_get_each_its_own_answer(client):
    def ask(question: str) -> str:
        message = client.post(DOOR, json=body(question)).json()["choices"][0]["message"]
        return json.dumps(message, ensure_ascii=False)

    alone = {question: ask(question) for question in (QUESTION, OTHER)}
    assert alone[QUESTION] != alone[OTHER]
    with ThreadPoolExecutor(2) as pool:
        asked = [QUESTION, OTHER] * 4
        assert list(pool.map(ask, asked)) == [alone[question] for question in asked]


# -- crowds -------------------------------------------------------------------------------------


def test_a_probe_is_heard_from_the_midst_of_a_crowd():
    """While the loop is held up, a hundred callers come, and last of all one who asks whether the
    server is alive: of the hundred only a few passes' worth are served before."""
    holding, let_go, order = threading.Event(), threading.Event(), []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        if scope["path"] == "/hold":
            holding.set()
            assert let_go.wait(20)
        order.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def asks(path: str) -> socket.socket:
        made = connect(address)
        lines = (f"GET {path} HTTP/1.1", f"Host: {address[7:]}", "Connection: close")
        made.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        return made

    with listening(lambda hosts: noting) as address:
        made = [asks("/hold")]
        assert holding.wait(20)
        made += [asks(f"/{n}") for n in range(100)] + [asks("/health")]
        let_go.set()
        for one in made:
            with one:
                assert said(one).startswith(b"HTTP/1.1 204")
    assert order.index("/health") <= 4 * connection.TURN
    assert [path for path in order if path[1:].isdigit()] == [f"/{n}" for n in range(100)]


def test_only_so_many_bodies_are_held_at_once(doors, monkeypatch):
    """The one too many is told to come back before its body is read; who only asks is answered."""
    monkeypatch.setattr(guard, "AT_ONCE", 1)
    begun = head(doors, f"Authorization: {KEY['Authorization']}", "Content-Length: 2")
    with connect(doors) as first:
        first.sendall(begun)
        tries = (httpx.post(doors + DOOR, json={}, headers=KEY) for _ in range(100))
        late = next(late for late in tries if late.status_code != 400)  # the first has come in
        refused(late, 503, "come back")
        assert late.headers["retry-after"] == "1"
        assert httpx.get(f"{doors}/v1/models", headers=KEY).status_code == 200
        first.sendall(b"{}")
        assert first.recv(65536).startswith(b"HTTP/1.1 400")
    refused(httpx.post(doors + DOOR, json={}, headers=KEY), 400, "model")
