"""The doors at their edges: bytes that are no request, clients that dawdle or hang up, the key."""

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import uvicorn
from served import grow_small, server

from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.serving import app
from onsil.serving.access import Access, key_of
from onsil.serving.connection import PatientConnection

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


def test_no_route_sets_a_cookie_but_the_sign_in_and_that_one_is_strict(home):
    paths = ["/", "/about", "/report", "/health", "/v1/models", "/sign-in?code=x", "/nowhere"]
    with server(home) as (address, link), httpx.Client() as browser:
        given = browser.get(link).headers.get_list("set-cookie")
        assert len(given) == 1
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(given[0].split("; "))
        answers = [browser.get(address + path) for path in paths]
        answers.append(browser.post(address + DOOR, json=body(), headers={"Origin": address}))
        assert {a.status_code for a in answers} == {200, 401, 404}
        assert [a.headers.get_list("set-cookie") for a in answers] == [[]] * len(answers)


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

HURRY = "import onsil.serving.connection as c, onsil.serving.guard as g; "


def drip(connection: socket.socket, data: bytes, seconds: float = 8) -> bytes:
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


def test_headers_that_never_end_and_silence_are_ended_and_others_served(home):
    with server(home, first=HURRY + "c.PATIENCE = 1.0") as (address, _):
        with connect(address) as silent, connect(address) as slow, connect(address) as second:
            second.sendall(f"GET /health HTTP/1.1\r\nHost: {address[7:]}\r\n\r\n".encode())
            assert second.recv(65536).startswith(b"HTTP/1.1 200")
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            second.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
            assert httpx.get(f"{address}/health").status_code == 200
            assert drip(slow, b"a").startswith(b"HTTP/1.1 408")
            assert b"HTTP/1.1 408" in drip(second, b"a")
            assert said(silent) == b""
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_body_that_never_ends_is_ended_and_its_connection_too(home):
    with server(home, first=HURRY + "c.PATIENCE = g.BODY_SECONDS = 1.0") as (address, _):
        key = f"Authorization: Bearer {(home / 'key').read_text().strip()}"
        with connect(address) as slow, connect(address) as uninvited:
            slow.sendall(head(address, key, "Content-Length: 900000"))
            uninvited.sendall(head(address, "Content-Length: 900000"))
            asked = httpx.post(address + DOOR, json=body(), headers=dict([key.split(": ")]))
            assert asked.status_code == 200
            heard = drip(slow, b" ")
            assert heard.startswith(b"HTTP/1.1 408") and b"timeout_error" in heard
            assert drip(uninvited, b" ").startswith(b"HTTP/1.1 401")
        assert httpx.get(f"{address}/health").status_code == 200


def test_an_answer_may_take_longer_than_the_patience_with_headers(home):
    """The clock stops while there is work: loading the model takes longer than 0.05 s."""
    with server(home, first=HURRY + "c.PATIENCE = 0.05") as (address, _):
        key = {"Authorization": f"Bearer {(home / 'key').read_text().strip()}"}
        assert httpx.post(address + DOOR, json=body(), headers=key).status_code == 200


def test_two_questions_at_once_get_each_its_own_answer(client):
    def ask(question: str) -> str:
        message = client.post(DOOR, json=body(question)).json()["choices"][0]["message"]
        return json.dumps(message, ensure_ascii=False)

    alone = {question: ask(question) for question in (QUESTION, OTHER)}
    assert alone[QUESTION] != alone[OTHER]
    with ThreadPoolExecutor(2) as pool:
        asked = [QUESTION, OTHER] * 4
        assert list(pool.map(ask, asked)) == [alone[question] for question in asked]


def test_a_client_that_hangs_up_is_no_longer_worked_for(home, monkeypatch):
    """A real socket and the real doors; only the answer is made endless."""
    made, ended = [0], threading.Event()

    async def endless(*_: object) -> AsyncIterator[str]:
        try:
            while True:
                made[0] += 1
                await asyncio.sleep(0.005)
                yield "data: {}\n\n"
        finally:
            ended.set()

    monkeypatch.setattr(app.openai_chat, "chunks", endless)
    key = "k" * 32
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        doors = app.build(Workspace(home), "desk", Access(key), frozenset({host}))
        running = uvicorn.Server(
            uvicorn.Config(doors, http=PatientConnection, log_level="warning", access_log=False)
        )
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            content = json.dumps(body(stream=True)).encode()
            lines = (f"Authorization: Bearer {key}", f"Content-Length: {len(content)}")
            with connect(f"http://{host}") as connection:
                connection.sendall(head(f"http://{host}", *lines) + content)
                while made[0] < 10:
                    assert connection.recv(65536)
            at_most = made[0] + 200
            assert httpx.get(f"http://{host}/health").status_code == 200
            time.sleep(0.5)
            stopped = made[0]
            time.sleep(0.5)
            assert made[0] == stopped < at_most
        finally:
            running.should_exit = True
            thread.join()
