"""The door for programs: OpenAI's own client, and everything that must be kept out."""

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest
from served import grow_small, server

from onsil.errors import OnsilError
from onsil.serving.access import Access, key_of, place_of_key, refuse_open_door
from onsil.serving.guard import DEEPEST, LARGEST_BODY, Refused, parse
from onsil.serving.speaking import Ask, Delta, End, Speaker, gathered

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def address(home):
    with server(home) as (address, _):
        yield address


@pytest.fixture
def key(home, address) -> str:
    return (home / "key").read_text().strip()


@pytest.fixture
def client(address, key):
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def body(**changed) -> dict:
    return {"model": "desk", "messages": [{"role": "user", "content": QUESTION}]} | changed


def still_answers(client: httpx.Client) -> None:
    """Whatever was thrown at it, the next question is answered."""
    said = client.post("/v1/chat/completions", json=body())
    assert said.status_code == 200, said.text


def refused(response: httpx.Response, status: int, word: str = "") -> None:
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert error["message"] and error["type"] and word in json.dumps(error, ensure_ascii=False)


# -- OpenAI's client ----------------------------------------------------------------------------


def test_the_official_client_gets_an_answer_with_its_source(address, key):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key) as official:
        assert [m.id for m in official.models.list()] == ["desk@v1"]
        assert official.models.retrieve("desk@champion").id == "desk@v1"
        made = official.chat.completions.create(
            model="desk", messages=[{"role": "user", "content": QUESTION}], temperature=0
        )
    message = made.choices[0].message
    assert made.model == "desk@v1" and made.choices[0].finish_reason == "stop"
    assert message.annotations and message.content
    cited = message.annotations[0].model_dump()
    assert cited["document"] == "휴가규정.md" and cited["heading"] == "제3조(연차의 이월)"
    assert made.usage and made.usage.total_tokens == (
        made.usage.prompt_tokens + made.usage.completion_tokens
    )
    extra = made.model_dump()["onsil"]
    assert extra["digest"] == made.system_fingerprint and extra["generated_by_ai"] is True


def test_streamed_it_is_the_same_answer(address, key):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key) as official:
        asked = {"model": "desk", "messages": [{"role": "user", "content": QUESTION}]}
        whole = official.chat.completions.create(**asked).choices[0].message
        stream = official.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        events = list(stream)
    deltas = [e.choices[0].delta for e in events if e.choices]
    assert "".join(d.content or "" for d in deltas) == whole.content
    last = deltas[-1].model_dump()["annotations"]
    assert [a["heading"] for a in last] == [a.model_dump()["heading"] for a in whole.annotations]
    assert events[-1].usage and events[-1].usage.completion_tokens > 0


def test_what_the_documents_do_not_say_is_said_to_be_missing(client):
    asked = [{"role": "user", "content": "zxqv wkjh"}]
    said = client.post("/v1/chat/completions", json=body(messages=asked)).json()
    assert said["onsil"]["answered"] is False
    assert said["choices"][0]["message"]["content"] == "Not in the documents."
    asked = [{"role": "user", "content": "뷁뛝 쒧쒧?"}]  # the server's own language is English
    said = client.post("/v1/chat/completions", json=body(messages=asked)).json()
    assert said["choices"][0]["message"]["content"] == "문서에서 찾지 못했습니다."


def test_the_last_user_message_is_the_question(client):
    talk = [
        {"role": "system", "content": "짧게"},
        {"role": "user", "content": "병가는 며칠까지 쓸 수 있나요?"},
        {"role": "assistant", "content": "60일까지"},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    said = client.post("/v1/chat/completions", json=body(messages=talk)).json()
    assert said["choices"][0]["message"]["annotations"][0]["heading"] == "제3조(연차의 이월)"


# -- what a request may say ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 7}, "top_p"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**18}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"n": 100_000}, "n"),
        ({"seed": True}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"x": 1}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n_discard": -1}, "n_discard"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "가" * 1001}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages"),
    ],
)
def test_a_field_that_cannot_be_meant_is_named(client, changed, named):
    refused(client.post("/v1/chat/completions", json=body(**changed)), 400, named)
    still_answers(client)


def test_half_a_surrogate_and_numbers_that_are_none(client):
    for text in (
        '{"model": "desk", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "desk", "messages": [], "\\ud800": 1}',
        '{"model": "desk", "messages": [], "temperature": NaN}',
        '{"model": "desk", "messages": [], "temperature": 1e999}',
    ):
        refused(client.post("/v1/chat/completions", content=text), 400)
    still_answers(client)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe{}"])
def test_a_body_that_is_no_object(client, content):
    refused(client.post("/v1/chat/completions", content=content), 400)
    still_answers(client)


def test_another_model_is_not_found(client):
    for name in ("desk@v9", "other", "../desk", "desk@"):
        response = client.post("/v1/chat/completions", json=body(model=name))
        assert response.status_code in (200, 404), response.text
        assert response.status_code == 404 or name == "desk@"
    refused(client.get("/v1/models/nobody"), 404, "nobody")
    still_answers(client)


# -- who may come in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", "/v1/models/desk", "/about", "/report", "/page.js", "/docs", "/nowhere"],
)
def test_without_a_key_every_route_is_shut(address, client, path):
    refused(httpx.get(address + path), 401)
    wrong = {"Authorization": "Bearer nearly-the-right-key"}
    refused(httpx.get(address + path, headers=wrong), 401)
    cookie = f"onsil_session_{httpx.URL(address).port}=x"
    refused(httpx.post(address + path, json=body(), headers={"Cookie": cookie}), 401)
    still_answers(client)


def test_only_who_reads_pages_is_told_in_words(address, client):
    page = httpx.get(address, headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.status_code == 401 and "not signed in" in page.text
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for accept in ("*/*", "application/json"):
        refused(httpx.get(address, headers={"Accept": accept}), 401)
    html = {"Accept": "text/html"}
    refused(httpx.post(f"{address}/v1/chat/completions", json=body(), headers=html), 401)
    refused(httpx.get(address, headers=html | {"Host": "evil.example"}), 421)


def test_health_is_open_and_says_nothing_else(address):
    response = httpx.get(f"{address}/health")
    assert response.json() == {"status": "ok"}


def test_another_host_name_or_origin_is_refused(client):
    refused(client.get("/v1/models", headers={"Host": "evil.example"}), 421)
    refused(client.get("/v1/models", headers={"Origin": "http://evil.example"}), 403)
    refused(client.get("/v1/models", headers={"Origin": "null"}), 403)
    still_answers(client)


def test_answers_carry_headers_that_keep_a_browser_in(client):
    headers = client.get("/v1/models").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_the_link_works_once_and_sets_the_one_cookie_which_needs_an_origin_to_write(home):
    with server(home) as (address, link), httpx.Client() as browser:
        first = browser.get(link)
        assert first.status_code == 303
        (given,) = first.headers.get_list("set-cookie")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(given.split("; "))
        assert httpx.get(link).status_code == 401
        door = f"{address}/v1/chat/completions"
        refused(browser.post(door, json=body()), 403, "origin")
        paths = ["/", "/about", "/report", "/health", "/v1/models", "/sign-in?code=x", "/nowhere"]
        answers = [browser.get(address + path) for path in paths]
        answers.append(browser.post(door, json=body(), headers={"Origin": address}))
        assert [a.status_code for a in answers] == [200, 200, 200, 200, 200, 401, 404, 200]
        assert [a.headers.get_list("set-cookie") for a in answers] == [[]] * len(answers)


def test_the_page_works_by_the_name_that_a_proxy_has(home):
    """The proxy speaks TLS at the usual port; it may keep `Host` or put this address there."""
    with server(home, "--hostname", "ask.example.kr") as (address, link), httpx.Client() as browser:
        named = {"Host": "ask.example.kr"}
        signed = browser.get(link, headers=named | {"X-Forwarded-Proto": "https"})
        (given,) = signed.headers.get_list("set-cookie")
        assert signed.status_code == 303 and "Secure" in given.split("; ")
        cookie = {"Cookie": given.partition(";")[0]}
        door = f"{address}/v1/chat/completions"
        mine = cookie | {"Origin": "https://ask.example.kr"}
        for host in (named, {"Host": f"ask.example.kr:{address.rpartition(':')[2]}"}, {}):
            assert httpx.post(door, json=body(), headers=mine | host).status_code == 200
        for other in ("https://example.kr", "https://ask.example.kr.evil.kr", "https://localhost"):
            refused(httpx.post(door, json=body(), headers=mine | {"Origin": other}), 403)
        refused(httpx.get(address, headers=cookie | {"Host": "evil.kr"}), 421)


def test_two_servers_of_one_machine_leave_each_other_signed_in(home):
    with server(home) as (one, link), server(home) as (two, other), httpx.Client() as browser:
        assert [browser.get(at).status_code for at in (link, other)] == [303, 303]
        assert [browser.get(f"{at}/about").status_code for at in (one, two)] == [200, 200]


def test_the_key_is_its_owners_alone(home, key):
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600 and len(key) >= 32


def test_codes_and_sessions_expire(monkeypatch):
    import onsil.serving.access as access

    now = [0.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: now[0])
    door = Access("k" * 32)
    code = door.new_code()
    session = door.redeem(code)
    assert session and door.session_fits(session) and door.redeem(code) is None
    late = door.new_code()
    now[0] += access.CODE_SECONDS + 1
    assert door.redeem(late) is None
    now[0] += access.SESSION_SECONDS
    assert not door.session_fits(session)


def test_other_machines_only_with_a_key_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.delenv("ONSIL_KEY", raising=False)
    with pytest.raises(OnsilError, match="let other machines in"):
        refuse_open_door("0.0.0.0")
    monkeypatch.setenv("ONSIL_KEY", "short")
    with pytest.raises(OnsilError, match="5 characters"):
        key_of(tmp_path, print)
    monkeypatch.setenv("ONSIL_KEY", "a-key-somebody-chose-on-purpose")
    refuse_open_door("0.0.0.0")
    assert key_of(tmp_path, print) == "a-key-somebody-chose-on-purpose"
    assert place_of_key(tmp_path) == "$ONSIL_KEY"


def test_a_key_is_one_that_a_header_can_carry(monkeypatch, tmp_path):
    monkeypatch.setenv("ONSIL_KEY", "  0123456789abcdef0123 \n")
    assert key_of(tmp_path, print) == "0123456789abcdef0123"
    for key, odd in (("우리회사문서서버비밀열쇠입니다2026", "우"), ("0123456789 abcdef", " ")):
        monkeypatch.setenv("ONSIL_KEY", key)
        with pytest.raises(OnsilError, match=f"holds '{odd}'"):
            key_of(tmp_path, print)
    monkeypatch.delenv("ONSIL_KEY")
    assert place_of_key(tmp_path) == str(tmp_path / "key")


# -- too much -----------------------------------------------------------------------------------


def test_a_body_too_large_is_refused_while_it_comes(client):
    refused(client.post("/v1/chat/completions", content=b" " * (LARGEST_BODY + 1)), 413)

    def pieces():
        for _ in range(30):
            yield b" " * 50_000

    refused(client.post("/v1/chat/completions", content=pieces()), 413)
    still_answers(client)


def test_json_nested_too_deep_is_refused_before_it_is_built(client):
    text = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
    refused(client.post("/v1/chat/completions", content=text), 400, "nested")
    still_answers(client)
    with pytest.raises(Refused):
        parse(("[" * (DEEPEST + 1)).encode())
    assert parse(b'{"a": "[[[[\\"[["}') == {"a": '[[[["[['}


def test_too_many_headers(client):
    response = client.get("/v1/models", headers={"X-Much": "x" * 40_000})
    assert response.status_code in (400, 431)
    still_answers(client)


def test_half_open_requests_do_not_keep_others_out(address, client):
    host, port = address.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(50)]
    for connection in held:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
    assert httpx.get(f"{address}/health", timeout=10).status_code == 200
    still_answers(client)
    for connection in held:
        connection.close()


def test_the_page_counts_the_documents_that_were_kept(tmp_path):
    """Copies are read and left out, so more are read than it can answer from."""
    from onsil.lineage import Workspace, history
    from onsil.serving import app

    ws = Workspace(grow_small(tmp_path / "home"))
    made = ws.resolve("desk")[2]
    examined = next(r for _, r in history(ws, made.key) if r["stage"] == "evaluate")
    path = ws.artifact(examined["object"]).path / "card.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    card["corpus"]["documents_out"] = card["documents"]["read"] - 1
    path.chmod(0o600)
    path.write_text(json.dumps(card), encoding="utf-8")
    told = app.Server(ws, "desk", Access("k" * 32))._about()
    assert told["documents"] == card["corpus"]["documents_out"] == 2


class Slow(Speaker):
    """A speaker that waits to be let go, to fill a server with."""

    released = threading.Event()

    async def say(self, ask):
        while not self.released.is_set():
            await asyncio.sleep(0.005)
        yield Delta("done")
        yield End("stop", 1, 1)


def test_more_than_it_can_do_at_once_is_told_to_come_back(home):
    from onsil.lineage import Workspace
    from onsil.serving import app

    async def crowd() -> list[int]:
        server = app.Server(Workspace(home), "desk", Access("k" * 32))
        speaker = Slow("desk", "v1", "0" * 64)

        async def one() -> int:
            try:
                await gathered(server.spoken(speaker, Ask("desk")))
            except Refused as e:
                return e.status
            return 200

        waiting = [asyncio.create_task(one()) for _ in range(app.MOST_AT_ONCE)]
        await asyncio.sleep(0.1)
        late = await one()
        Slow.released.set()
        return [*await asyncio.gather(*waiting), late]

    statuses = asyncio.run(crowd())
    assert statuses[-1] == 503 and set(statuses[:-1]) == {200}


def test_a_taken_port_is_said(home, address):
    port = address.rpartition(":")[2]
    run = subprocess.run(
        [sys.executable, "-m", "onsil", "serve", "desk", "--port", port],
        env=os.environ | {"ONSIL_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "--port" in run.stderr and "Traceback" not in run.stderr


def test_a_damaged_champion_is_said_and_the_next_one_answers_without_a_restart(
    home, address, client
):
    from onsil.lineage import Workspace

    ws = Workspace(home)
    _, _, made = ws.resolve("desk")
    version = ws.register("desk", type(made)("0" * 64, made.path, made.key))
    ws.set_alias("desk", "champion", version)
    refused(client.post("/v1/chat/completions", json=body()), 503, "model_damaged")
    ws.set_alias("desk", "champion", "v1")
    still_answers(client)
