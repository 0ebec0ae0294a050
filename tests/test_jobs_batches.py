"""Batches: OpenAI's own client, lines that are none, workers that die at one."""

import json
import threading
import time
from typing import Any

import job_doors
import job_stores
import openai
import pytest
from job_doors import error_of, line, new_batch, rows, spelled
from job_stores import until, working
from jobs_child import handlers

from onsil.serving.guard import Refused
from onsil.serving.jobs import Claimed, Later, NoRetry
from onsil.serving.jobs.answering import TRIES, BatchHandler
from onsil.serving.jobs.batches import Batches

url, store, files = job_stores.url, job_stores.store, job_doors.files
address, door, client = job_doors.address, job_doors.door, job_doors.client


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


def test_half_of_a_surrogate_pair_is_given_back_as_it_came(client, door, store, tmp_path):
    """In metadata and as the name of a field: neither makes a batch that nobody can look at."""
    odd = spelled(line(1)).replace(b"custom_id", b"\\ud800").rstrip()
    file = client.files.create(file=("x.jsonl", odd + b"\n"), purpose="batch")
    content = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    content = json.dumps(content | {"metadata": {"x": "\ud800"}})
    made = door.post("/v1/batches", content=content)
    assert made.status_code == 200 and made.json()["metadata"] == {"x": "\ud800"}
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: door.get(f"/v1/batches/{made.json()['id']}").json()["status"] == "failed")
    listed = door.get("/v1/batches").json()["data"]
    assert [batch["id"] for batch in listed] == [made.json()["id"]]
    error_of(door.post("/v1/batches", content='{"\\ud800": 1}'))


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
    with working(store, handlers(store, tmp_path / "files")):
        until(lambda: client.batches.retrieve(made.id).request_counts.completed > 0)
        with store.database.transaction() as run:
            run("update jobs set expires = epoch()")
        until(lambda: client.batches.retrieve(made.id).status == "expired")
    found = client.batches.retrieve(made.id)
    assert found.expired_at and found.request_counts.completed > 0
    rest = rows(client, found.error_file_id)
    assert rest and {row["error"]["code"] for row in rest} == {"batch_expired"}


def test_a_busy_server_holds_up_neither_the_end_of_a_batch_nor_of_its_worker(client, store, files):
    asked = threading.Event()

    def busy(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.set()
        return 503, {}

    made = new_batch(client, spelled(line(1), line(2)))
    handler = {"batch": BatchHandler(store, files, busy)}
    with working(store, handler, grace=600):
        assert asked.wait(30)
    job = store.get("kim", made.id.replace("batch_", "job_"))
    assert (job.state, job.attempts) == ("ready", 0)
    asked.clear()
    with working(store, handler):
        assert asked.wait(30)
        client.batches.cancel(made.id)
        until(lambda: client.batches.retrieve(made.id).status == "cancelled")
    found = client.batches.retrieve(made.id)
    codes = [row["error"]["code"] for row in rows(client, found.error_file_id)]
    assert codes == ["batch_cancelled"] * 2 and found.request_counts.failed == 0


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


def test_a_batch_whose_owner_must_wait_steps_aside_and_loses_no_line(client, store, files):
    """However often: what was turned away is not taken for what ended its worker."""
    asked_for, turned, other = [], 0, threading.Event()

    def answer(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal turned
        asked_for.append(body["input"])
        if body["input"] == "text 9":
            other.set()
        elif body["input"] == "text 1":
            time.sleep(0.1)  # still being answered when the next one is turned away
        elif body["input"] == "text 2" and turned < TRIES + 3:
            turned += 1
            raise Later("the budget is used up", 0.1 if other.is_set() else 3.0)
        return 200, {}

    asked = new_batch(client, spelled(*(line(n) for n in range(1, 8))))
    behind = new_batch(client, spelled(line(9)))
    with working(store, {"batch": BatchHandler(store, files, answer)}):
        until(lambda: client.batches.retrieve(behind.id).status == "completed")
        job = store.get("kim", asked.id.replace("batch_", "job_"))
        assert (job.state, job.attempts) == ("ready", 0)
        assert client.batches.retrieve(asked.id).status == "in_progress"
        until(lambda: client.batches.retrieve(asked.id).status == "completed")
    found = client.batches.retrieve(asked.id)
    assert found.request_counts.model_dump() == {"total": 7, "completed": 7, "failed": 0}
    assert turned == TRIES + 3 and asked_for.count("text 1") == 1


def test_a_batch_whose_key_is_gone_fails_as_a_whole(client, store, files):
    def answer(owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Any]:
        if body["input"] == "text 2":
            raise NoRetry("Its key was removed.")
        return 200, {}

    made = new_batch(client, spelled(*(line(n) for n in range(1, 8))))
    with working(store, {"batch": BatchHandler(store, files, answer, at_once=1)}):
        until(lambda: client.batches.retrieve(made.id).status == "failed")
    found = client.batches.retrieve(made.id)
    assert "removed" in found.errors.data[0].message
    assert found.request_counts.completed == 1 and found.output_file_id
    rest = rows(client, found.error_file_id)
    assert {row["error"]["code"] for row in rest} == {"batch_dead"} and len(rest) == 6
