"""The doors of jobs, files and batches: OpenAI's own client, plain requests, and webhooks."""

import base64
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import postgres
import pytest
import uvicorn
from jobs_child import application, handlers
from test_jobs import pragma

from onsil.serving.guard import Refused
from onsil.serving.jobs import Claimed, JobStore, Worker, open_store
from onsil.serving.jobs import webhooks as hooks
from onsil.serving.jobs.answering import TRIES, BatchHandler
from onsil.serving.jobs.batches import Batches
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.webhooks import NotAllowed, Webhooks, deliveries, target


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    name = f"sqlite:///{tmp_path / 'jobs.db'}"
    opened = open_store(name if request.param == "sqlite" else postgres.shared().fresh())
    yield opened
    opened.close()


@pytest.fixture
def files(store: JobStore, tmp_path: Path) -> FileStore:
    return FileStore(store, tmp_path / "files", largest=200_000)


@pytest.fixture
def address(store: JobStore, files: FileStore) -> Iterator[str]:
    """A real server of the routes; nobody works yet."""
    hosts = frozenset({"127.0.0.1:9", "localhost:9"})
    config = uvicorn.Config(
        application(store, files, hosts), port=0, log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def door(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer kim"}) as client:
        yield client


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="kim", max_retries=0) as made:
        yield made


@contextmanager
def working(store: JobStore, made: Any) -> Iterator[Worker]:
    worker = Worker(store, made, lease=1.0, wait=0.01, threads=2)
    thread = worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(15)


def until(true: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def line(n: int, **body: Any) -> dict[str, Any]:
    request = {"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings"}
    return request | {"body": {"model": "desk", "input": f"text {n}"} | body}


def spelled(*lines: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in lines)


def rows(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(row) for row in client.files.content(file).text.splitlines()]


def new_batch(client: openai.OpenAI, content: bytes, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", **more
    )


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


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


def test_events_come_while_a_job_runs_and_go_on_behind_the_last(door, store, tmp_path):
    body = {"kind": "work", "input": {"n": 1, "seconds": 1.5}}
    place = door.post("/v1/jobs", json=body).headers["location"]
    with working(store, handlers(store, tmp_path)), door.stream("GET", f"{place}/events") as s:
        text = "".join(s.iter_text())
    assert all(part in text for part in ("event: running", '"progress": 3}', "event: done"))
    assert text.count("event: progress") >= 2
    last = [row for row in text.splitlines() if row.startswith("id: ")][-2].removeprefix("id: ")
    rest = door.get(f"{place}/events", headers={"Last-Event-ID": last}).text
    assert "event: done" in rest and "event: running" not in rest


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


def test_bytes_that_changed_on_the_disk_are_not_handed_out(client, files):
    made = client.files.create(file=("a", b"the words"), purpose="batch")
    path = next(p for p in files.folder.rglob("*") if p.is_file())
    path.write_bytes(b"the lords")
    with pytest.raises(openai.InternalServerError, match="damaged"):
        client.files.content(made.id)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_of_openais_client(client, store, tmp_path):
    content = spelled(line(1), line(2, input="refuse"), line(3)) + b"\n"
    made = new_batch(client, content, metadata={"for": "a test"})
    assert made.status == "validating" and made.metadata == {"for": "a test"}
    assert made.expires_at == pytest.approx(made.created_at + 24 * 3600, abs=2)
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).status == "completed")
    done = client.batches.retrieve(made.id)
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert done.in_progress_at and done.finalizing_at and done.completed_at and not done.errors
    answers = rows(client, done.output_file_id)
    assert [row["custom_id"] for row in answers] == ["c1", "c3"]
    first = answers[0]["response"]
    assert first["status_code"] == 200 and first["body"]["in"]["input"] == "text 1"
    assert first["body"]["model"] == "desk@v1" and answers[0]["error"] is None
    refused = rows(client, done.error_file_id)
    assert [row["custom_id"] for row in refused] == ["c2"]
    assert refused[0]["response"]["status_code"] == 400
    assert refused[0]["response"]["body"]["error"]["param"] == "input"
    assert [batch.id for batch in client.batches.list()] == [made.id]
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"


def test_a_batch_whose_file_is_not_in_order_fails_line_by_line(client, store, tmp_path):
    wrong = [
        line(1),
        line(1),
        line(2) | {"method": "GET"},
        line(3) | {"url": "/v1/completions"},
        line(4) | {"body": []},
        line(5, stream=True),
        line(6) | {"custom_id": 6},
        line(7) | {"extra": 1},
        {"custom_id": "c8", "method": "POST", "url": "/v1/embeddings"},
    ]
    made = new_batch(client, spelled(*wrong) + b"{no json}\n" + b"[" * 100 + b"\n")
    empty = new_batch(client, b"\n")
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).status == "failed")
        until(lambda: client.batches.retrieve(empty.id).status == "failed")
    errors = client.batches.retrieve(made.id).errors
    assert errors is not None and errors.data is not None
    assert {(error.line, error.code, error.param) for error in errors.data} == {
        (2, "duplicate_custom_id", "custom_id"),
        (3, "invalid_method", "method"),
        (4, "mismatched_url", "url"),
        (5, "invalid", "body"),
        (6, "invalid", "body.stream"),
        (7, "invalid", "custom_id"),
        (8, "unknown_field", "extra"),
        (9, "missing_required_parameter", "body"),
        (10, "invalid_json_line", None),
        (11, "invalid_json_line", None),
    }
    found = client.batches.retrieve(made.id)
    assert found.failed_at and found.output_file_id is None and found.in_progress_at is None
    assert client.batches.retrieve(empty.id).errors.data[0].code == "empty_file"


def test_a_cancelled_batch_keeps_what_was_answered(client, store, tmp_path):
    made = new_batch(client, spelled(*(line(n, slow=0.05) for n in range(200))))
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).request_counts.completed > 4)
        assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
        until(lambda: client.batches.retrieve(made.id).status == "cancelled")
    found = client.batches.retrieve(made.id)
    assert found.cancelling_at and found.cancelled_at
    answers, rest = rows(client, found.output_file_id), rows(client, found.error_file_id)
    assert len(answers) == found.request_counts.completed > 4
    assert len(answers) + len(rest) == 200
    assert {row["error"]["code"] for row in rest} == {"batch_cancelled"}
    waiting = new_batch(client, spelled(line(1)))
    assert client.batches.cancel(waiting.id).status == "cancelled"


def test_a_batch_that_expires_says_which_lines_were_not_answered(client, store, tmp_path):
    made = new_batch(client, spelled(*(line(n, slow=0.2) for n in range(40))))
    with store.database.transaction() as run:
        run("update jobs set expires = epoch() + 1")
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).status == "expired")
    found = client.batches.retrieve(made.id)
    assert found.expired_at and found.request_counts.completed > 0
    rest = rows(client, found.error_file_id)
    assert rest and {row["error"]["code"] for row in rest} == {"batch_expired"}


def test_batches_of_others_and_requests_that_are_none(client, address, door):
    made = new_batch(client, spelled(line(1)))
    with openai.OpenAI(base_url=f"{address}/v1", api_key="lee", max_retries=0) as lee:
        for call in (lee.batches.retrieve, lee.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        assert list(lee.batches.list()) == []
        with pytest.raises(openai.NotFoundError):
            lee.batches.create(
                input_file_id=made.input_file_id,
                endpoint="/v1/embeddings",
                completion_window="24h",
            )
    good = {
        "input_file_id": made.input_file_id,
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    for name, value in (
        ("endpoint", "/v1/files"),
        ("completion_window", "1h"),
        ("input_file_id", 5),
        ("metadata", {"a": 1}),
        ("metadata", {"a" * 65: "b"}),
        ("priority", 1),
    ):
        answer = door.post("/v1/batches", json=good | {name: value})
        assert answer.status_code == 400 and error_of(answer)["param"] == name
    assert door.get(f"/v1/jobs/{made.id.replace('batch_', 'job_')}").status_code == 404
    key = {"Idempotency-Key": "same"}
    twice = {door.post("/v1/batches", json=good, headers=key).json()["id"] for _ in range(2)}
    assert len(twice) == 1


def test_a_batch_without_its_input_file_fails(client, store, tmp_path):
    made = new_batch(client, spelled(line(1)))
    client.files.delete(made.input_file_id)
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).status == "failed")
    assert "was deleted" in client.batches.retrieve(made.id).errors.data[0].message


def test_a_line_that_ends_its_worker_is_answered_with_an_error(store, files):
    """Workers that die at one line (here: vanish within it) do so a few times, not for ever."""
    batches = Batches(store, files)
    text = [spelled(line(n)) for n in range(6)]
    files.write("kim", text, "in", "batch", "file-in")
    body = {"input_file_id": "file-in", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = batches.create("kim", None, body)
    asked: list[str] = []

    class Died(BaseException):
        pass

    def answer(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body["input"])
        if body["input"] == "text 2":
            raise Died
        return 200, {}

    handler = BatchHandler(store, files, answer, at_once=1)
    deaths = 0
    while (job := store.claim(["batch"], "w", 0.01)) is not None:
        try:
            store.finish(job.id, job.fence, handler(Claimed(store, job, 30.0)))
        except Died:
            deaths += 1
        time.sleep(0.02)
    found = batches.get("kim", made["id"])
    assert found["status"] == "completed" and deaths == TRIES + 1
    assert found["request_counts"] == {"total": 6, "completed": 5, "failed": 1}
    assert sorted(asked) == sorted([f"text {n}" for n in (0, 1, 3, 4, 5)] + ["text 2"] * deaths)


def test_a_busy_server_is_asked_again_and_a_coroutine_may_answer(store, files, monkeypatch):
    batches, tries = Batches(store, files), 0
    files.write("kim", [spelled(line(1), line(2))], "in", "batch", "file-in")
    body = {"input_file_id": "file-in", "endpoint": "/v1/embeddings", "completion_window": "24h"}
    made = batches.create("kim", None, body)

    async def answer(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Refused(503, "Busy.", "overloaded")
        return 200, {"n": tries}

    with working(store, {"batch": BatchHandler(store, files, answer)}):
        until(lambda: batches.get("kim", made["id"])["status"] == "completed")
    assert tries == 3 and batches.get("kim", made["id"])["request_counts"]["completed"] == 2


# ── webhooks ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def listener(statuses: list[int]) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A program that is told: its URL, and what it heard. It answers with the next status."""
    heard: list[tuple[dict[str, str], bytes]] = []

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/told?by=onsil", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def close_one(store: JobStore, url: str) -> str:
    job = store.submit("kim", None, "work", 1, fingerprint="", webhook=url)
    taken = store.claim(["work"], "w", 30)
    assert taken is not None
    store.finish(taken.id, taken.fence, None)
    return job.id


def test_a_webhook_is_signed_and_sent_until_it_is_heard(store):
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    with listener([500, 302]) as (url, heard):
        allowed = {url.split("/")[2]}
        job = close_one(store, url)
        teller = Webhooks(store, secret, allowed, wait=0.05)
        thread = teller.start()
        until(lambda: deliveries(store, job)[0]["state"] == "delivered")
        teller.stop()
        thread.join()
    assert len(heard) == 3 and len({body for _, body in heard}) == 1
    headers, body = heard[-1]
    told = json.loads(body)
    assert told["type"] == "job.done" and told["data"] == {"id": job}
    assert headers["webhook-id"] == told["id"] and headers["host"] in allowed
    with openai.OpenAI(api_key="x", webhook_secret=secret) as client:
        client.webhooks.verify_signature(body, headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body.replace(b"done", b"dead"), headers)


def test_a_webhook_is_not_forgotten_when_its_sender_dies(store):
    with listener([]) as (url, heard):
        job = close_one(store, url)
        with store.database.transaction() as run:  # one who took it and vanished, long ago
            run("update deliveries set attempts = 1, fence = 1, lease_from = 0, lease_until = 1e-9")
        teller = Webhooks(store, "whsec_eA==", {url.split("/")[2]})
        assert teller.deliver() and not teller.deliver()
    assert len(heard) == 1 and deliveries(store, job)[0]["attempts"] == 2


def test_a_webhook_nobody_hears_is_given_up(store, monkeypatch):
    monkeypatch.setattr(hooks, "MOST_ATTEMPTS", 2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    job = close_one(store, f"http://127.0.0.1:{port}/")
    teller = Webhooks(store, "whsec_eA==", {f"127.0.0.1:{port}"}, wait=0.0)
    assert teller.deliver() and teller.deliver() and not teller.deliver()
    found = deliveries(store, job)[0]
    assert found["state"] == "dead" and "ConnectionRefusedError" in found["error"]
    other = close_one(store, "http://127.0.0.1:1/")
    assert teller.deliver()
    assert "not on this server's list" in deliveries(store, other)[0]["error"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://me@localhost:80/",
        "http://localhost:80\\@evil.example/",
        "http://evil.example:80/#localhost:80",
        "ftp://localhost:80/",
        "http://localhost:port/",
        "http://localhost:80/ x",
        "http://localhost:80/" + "x" * 3000,
        "http://ｌocalhost:80/",
        "http://2130706433:80/",
        "file:///etc/passwd",
        "",
    ],
)
def test_addresses_that_are_not_called(url):
    with pytest.raises(NotAllowed):
        target(url, {"localhost:81", "[::1]:80"})


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("::1", True),
        ("fd00::7", True),
        ("::ffff:10.0.0.1", True),
        ("93.184.216.34", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("::ffff:93.184.216.34", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
    ],
)
def test_a_name_counts_by_the_address_it_has_now(monkeypatch, address, near):
    """The resolver is on the other side of a socket: here it says what a test wants."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    answer = [(family, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    if near:
        assert target("http://inside.example/x?y=1", {"inside.example:80"}).address == address
    else:
        with pytest.raises(NotAllowed, match="outside of this machine"):
            target("http://inside.example/", {"inside.example:80"})
