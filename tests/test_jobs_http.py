"""The doors of jobs and files: OpenAI's own client, plain requests."""

import json
import socket
from typing import Any

import httpx
import job_doors
import job_stores
import openai
import pytest
from job_doors import error_of
from job_stores import pragma, until, working
from jobs_child import application, handlers

from onsil.serving.jobs import open_store, routes
from onsil.serving.jobs.files import FileStore

url, store, files = job_stores.url, job_stores.store, job_doors.files
address, door, client = job_doors.address, job_doors.door, job_doors.client


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_is_accepted_done_and_read(door, store, tmp_path):
    body = {"kind": "work", "input": {"n": 5, "seconds": 0.03}}
    key = {"Idempotency-Key": "one"}
    made = door.post("/v1/jobs", json=body, headers=key)
    assert made.status_code == 202 and made.json()["status"] == "ready"
    place = made.headers["location"]
    assert place == f"/v1/jobs/{made.json()['id']}"
    assert door.post("/v1/jobs", json=body, headers=key).json()["id"] == made.json()["id"]
    other = door.post("/v1/jobs", json=body | {"max_attempts": 9}, headers=key)
    assert other.status_code == 409 and error_of(other)["code"] == "conflict"
    with working(store, handlers(store, tmp_path)):
        until(lambda: door.get(place).json()["status"] == "done")
    found = door.get(place).json()
    assert found["result"] == {"n": 5} and found["progress"] == 3 and found["attempts"] == 1
    again = door.post("/v1/jobs", json=body, headers=key)
    assert again.status_code == 202 and again.json()["result"] == {"n": 5}
    stranger = {"Authorization": "Bearer lee"}
    for method, path in (("GET", place), ("DELETE", place), ("POST", f"{place}/retry")):
        hidden = door.request(method, path, headers=stranger)
        assert hidden.status_code == 404 and error_of(hidden)["code"] == "not_found"
    assert door.get("/v1/jobs", headers=stranger).json()["data"] == []
    assert door.get("/v1/jobs").json()["data"][0]["id"] == found["id"]
    assert door.get(place, headers=stranger).status_code == 404


def test_a_dead_job_is_retried_and_a_waiting_one_cancelled(door, store):
    body = {"kind": "play", "input": "x", "max_attempts": 1}
    place = door.post("/v1/jobs", json=body).headers["location"]
    assert door.post(f"{place}/retry").status_code == 409
    broken = True

    def handler(claimed: Any) -> str:
        if broken:
            raise ValueError("the string broke")
        return "music"

    with working(store, {"play": handler}):
        until(lambda: door.get(place).json()["status"] == "dead")
        error = door.get(place).json()["error"]
        assert error == {"kind": "ValueError", "message": "the string broke"}
        broken = False
        assert door.post(f"{place}/retry").status_code == 202
        until(lambda: door.get(place).json()["status"] == "done")
        with door.stream("GET", f"{place}/events") as stream:
            told = [text for text in stream.iter_lines() if text.startswith("event")]
    steps = ["ready", "running", "failed", "dead", "ready", "running", "done", "progress"]
    assert told == [f"event: {step}" for step in steps]
    waiting = door.post("/v1/jobs", json={"kind": "work", "input": 1}).headers["location"]
    assert door.delete(waiting).json()["status"] == "cancelled"
    assert door.post(f"{waiting}/cancel").json()["status"] == "cancelled"


def test_events_come_while_a_job_runs_and_go_on_behind_the_last(door, store, tmp_path, monkeypatch):
    monkeypatch.setattr(routes, "GLANCE", 0.02)
    body = {"kind": "work", "input": {"n": 1, "seconds": 0.6}}
    place = door.post("/v1/jobs", json=body).headers["location"]
    with working(store, handlers(store, tmp_path)), door.stream("GET", f"{place}/events") as s:
        text = "".join(s.iter_text())
    assert all(part in text for part in ("event: running", '"progress": 3}', "event: done"))
    assert text.count("event: progress") >= 2
    last = [row for row in text.splitlines() if row.startswith("id: ")][-2].removeprefix("id: ")
    rest = door.get(f"{place}/events", headers={"Last-Event-ID": last}).text
    assert "event: done" in rest and "event: running" not in rest


def test_events_of_no_job_and_from_nowhere(door):
    """What schemathesis leaves out, because a stream goes on while its job waits."""
    place = door.post("/v1/jobs", json={"kind": "work", "input": 1}).headers["location"]
    door.delete(place)
    whole = door.get(f"{place}/events").text
    assert "event: cancelled" in whole
    for junk in ("", "x", "-1", "1.5", "9" * 400, "١"):
        said = door.get(f"{place}/events", headers={"Last-Event-ID": junk.encode()})
        assert said.status_code == 200 and said.text == whole
    assert (
        "event: ready" not in door.get(f"{place}/events", headers={"Last-Event-ID": "9" * 18}).text
    )
    for path, more in (
        ("job_0", {}),
        ("x%00y", {}),
        ("%ff", {}),
        (place.rpartition("/")[2], {"Authorization": "Bearer lee"}),
    ):
        hidden = door.get(f"/v1/jobs/{path}/events", headers=more)
        assert hidden.status_code == 404 and error_of(hidden)["code"] == "not_found"
    assert door.post(f"{place}/events").status_code == 405


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": 1}, "kind"),
        ({"kind": "batch", "input": 1}, "kind"),
        ({"kind": "work"}, "input"),
        ({"kind": "work", "input": 1, "max_attempts": 0}, "max_attempts"),
        ({"kind": "work", "input": 1, "max_attempts": True}, "max_attempts"),
        ({"kind": "work", "input": 1, "expires_in": -1}, "expires_in"),
        ({"kind": "work", "input": 1, "priority": 1}, "priority"),
        ({"kind": "work", "input": 1, "webhook": 5}, "webhook"),
        ({"kind": "work", "input": 1, "webhook": "http://127.0.0.1:10/"}, "webhook"),
        ({"kind": "work", "input": 1, "webhook": "http://169.254.169.254/"}, "webhook"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_its_field(door, body, param):
    answer = door.post("/v1/jobs", json=body)
    assert answer.status_code == 400 and error_of(answer)["param"] == param
    assert door.get("/v1/jobs").json()["data"] == []


def test_requests_that_are_none_are_refused_and_the_next_one_works(door):
    kind = {"Content-Type": "application/json"}
    huge = b'{"kind": "work", "input": 1e999}'
    for content, more, status in (
        (b"[]", {}, 400),
        (huge, {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b'{"kind": "work", "input": 1}', {"Idempotency-Key": "x" * 300}, 400),
    ):
        answer = door.post("/v1/jobs", content=content, headers=kind | more)
        assert answer.status_code == status, answer.text
        error_of(answer)
    for path in ("/v1/jobs/x%00y", "/v1/jobs/job_0", "/v1/files/%ff", "/v1/batches/batch_x"):
        assert door.get(path).status_code == 404
    for query in ("limit=0", "limit=x", "limit=101", "after=none"):
        assert door.get(f"/v1/jobs?{query}").status_code in (400, 404)
    odd = {"kind": "work", "input": "\0 \ud800 가"}
    content = json.dumps(odd).encode()
    assert door.post("/v1/jobs", content=content, headers=kind).status_code == 202


def test_a_store_that_cannot_write_is_said_and_loses_nothing(tmp_path):
    """507 and 503 in OpenAI's form; the job accepted before is still there."""
    store = open_store(tmp_path / "jobs.db")
    app = application(store, FileStore(store, tmp_path / "files"))
    door = httpx.Client(transport=_InThread(app), base_url="http://here")
    safe = door.post("/v1/jobs", json={"kind": "work", "input": "safe"}).json()["id"]
    pragma(store, f"max_page_count = {pragma(store, 'page_count')}")
    full = door.post("/v1/jobs", json={"kind": "work", "input": "x" * 100_000})
    assert full.status_code == 507 and error_of(full)["code"] == "store_full"
    pragma(store, "max_page_count = 100000")
    pragma(store, "query_only = on")
    unwritable = door.post("/v1/jobs", json={"kind": "work", "input": 1})
    assert unwritable.status_code == 503 and error_of(unwritable)["type"] == "server_error"
    assert "jobs.db" not in full.text + unwritable.text  # where it lies is no caller's business
    pragma(store, "query_only = off")
    assert door.get(f"/v1/jobs/{safe}").json()["status"] == "ready"
    assert door.post("/v1/jobs", json={"kind": "work", "input": 1}).status_code == 202
    store.close()


class _InThread(httpx.BaseTransport):
    """httpx's ASGI transport for plain calls."""

    def __init__(self, app: Any):
        self._inner = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        import anyio

        async def ask() -> httpx.Response:
            answer = await self._inner.handle_async_request(request)
            content = await answer.aread()
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)

        return anyio.run(ask)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_files_of_openais_client(client, address, files):
    content = "내용\n".encode() * 100
    made = client.files.create(file=("../../etc/규정.jsonl", content), purpose="batch")
    assert (made.bytes, made.filename, made.purpose) == (len(content), "규정.jsonl", "batch")
    assert made.status == "processed" and client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    twin = client.files.create(file=("twin", content), purpose="batch")
    assert [file.id for file in client.files.list()] == [twin.id, made.id]
    assert [file.id for file in client.files.list(order="asc", limit=1)] == [made.id, twin.id]
    stored = [path for path in files.folder.rglob("*") if path.is_file()]
    assert len(stored) == 1  # the same content lies there once
    with openai.OpenAI(base_url=f"{address}/v1", api_key="lee", max_retries=0) as lee:
        assert list(lee.files.list()) == []
        for call in (lee.files.retrieve, lee.files.content, lee.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
    assert client.files.delete(made.id).deleted
    assert client.files.content(twin.id).content == content
    client.files.delete(twin.id)
    assert [path for path in files.folder.rglob("*") if path.is_file()] == []
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_file_that_is_too_large_or_a_form_that_is_none(client, door, files):
    with pytest.raises(openai.APIStatusError) as e:
        client.files.create(file=("big", b"x" * 300_000), purpose="batch")
    assert e.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    parts = {"file": ("a", b"x"), "purpose": (None, "batch")}
    for content, kind, status in (
        (b"", "multipart/form-data", 415),
        (b"", "application/json", 415),
        (b"nonsense", "multipart/form-data; boundary=b", 400),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', None, 400),
        (b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n', None, 400),
        (b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--', None, 400),
        (b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 9999, None, 400),
        (b"--b\r\nX: " + b"x" * 9999, None, 400),
    ):
        headers = {"Content-Type": kind or "multipart/form-data; boundary=b"}
        answer = door.post("/v1/files", content=content, headers=headers)
        assert answer.status_code == status, (content[:80], answer.text)
        error_of(answer)
    assert door.post("/v1/files", files=parts).status_code == 200
    assert len(list((files.folder / "incoming").iterdir())) == 0


def test_an_upload_that_its_caller_leaves_is_not_kept(address, files, door):
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
    host, _, port = address.removeprefix("http://").partition(":")
    aside = files.folder / "incoming"
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + head
        )
        until(lambda: list(aside.iterdir()))
    until(lambda: not list(aside.iterdir()))
    assert door.get("/v1/files").json()["data"] == []


def test_bytes_that_changed_on_the_disk_are_not_handed_out(client, files):
    made = client.files.create(file=("a", b"the words"), purpose="batch")
    path = next(p for p in files.folder.rglob("*") if p.is_file())
    path.write_bytes(b"the lords")
    with pytest.raises(openai.InternalServerError, match="damaged"):
        client.files.content(made.id)
