"""Jobs, files and batches of a whole server: the same answer later as now, also after a kill."""

import io
import json
import os
import signal
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai_forms import conforms
from served import make_pen, server

from onsil.serving.keys import add_key

CHAT = {
    "model": "pen",
    "messages": [{"role": "user", "content": "휴가"}],
    "max_tokens": 16,
    "seed": 3,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_pen(tmp_path_factory.mktemp("work"))


def key_of(home: Path) -> str:
    return (home / "key").read_text().strip()


def until(done, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := done()) is not None:
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def finished(client: httpx.Client, job: str):
    found = client.get(f"/v1/jobs/{job}").json()
    return found if found["status"] in ("done", "failed", "dead", "cancelled") else None


def batch_file(many: int) -> io.BytesIO:
    lines = [
        {
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": CHAT | {"seed": n},
        }
        for n in range(many)
    ]
    return io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_a_job_is_answered_as_the_door_would_and_only_once(home):
    with server(home, name="pen") as (address, _):
        headers = {"Authorization": f"Bearer {key_of(home)}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
            now = client.post("/v1/chat/completions", json=CHAT).json()
            asked = {"kind": "chat.completions", "input": CHAT}
            first = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"})
            again = client.post("/v1/jobs", json=asked, headers={"Idempotency-Key": "a"})
            assert first.status_code == 202 and again.json()["id"] == first.json()["id"]
            later = until(lambda: finished(client, first.json()["id"]))
            assert later["status"] == "done" and later["result"]["choices"] == now["choices"]
            changed = asked | {"input": CHAT | {"seed": 4}}
            other = client.post("/v1/jobs", json=changed, headers={"Idempotency-Key": "a"})
            assert other.status_code == 409
            bad = {"kind": "chat.completions", "input": CHAT | {"temperature": -1}}
            made = client.post("/v1/jobs", json=bad).json()
            assert "temperature" in until(lambda: finished(client, made["id"]))["error"]["message"]
            assert client.post("/v1/jobs", json={"kind": "x", "input": 1}).status_code == 400


def test_what_is_done_later_is_on_the_same_budget(home):
    key = add_key(home, "kim", tokens_per_day=10)
    with (
        server(home, name="pen") as (address, _),
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}) as client,
    ):
        made = client.post("/v1/jobs", json={"kind": "chat.completions", "input": CHAT}).json()
        mine = {"Authorization": f"Bearer {key_of(home)}"}
        look = f"/v1/jobs/{made['id']}"
        assert client.get(look, headers=mine).status_code == 404  # kim's alone
        refused = lambda: client.get("/v1/models").status_code == 429 or None  # noqa: E731
        assert until(refused)


def test_the_official_client_runs_a_batch(home):
    with (
        server(home, name="pen") as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key=key_of(home)) as official,
    ):
        file = official.files.create(file=("in.jsonl", batch_file(5)), purpose="batch")
        conforms(file.model_dump(exclude_unset=True), "OpenAIFile")
        made = official.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        conforms(made.model_dump(exclude_none=True), "Batch")  # null, in the examples, is absent
        done = until(
            lambda: ((b := official.batches.retrieve(made.id)).status == "completed" and b) or None
        )
        assert done.request_counts.completed == 5
        text = official.files.content(done.output_file_id).text
        rows = [json.loads(line) for line in text.splitlines()]
        assert {row["custom_id"] for row in rows} == {f"line-{n}" for n in range(5)}
        for row in rows:
            conforms(row["response"]["body"], "CreateChatCompletionResponse")
        seed = int(rows[0]["custom_id"].partition("-")[2])
        now = official.chat.completions.create(**CHAT | {"seed": seed})
        said = rows[0]["response"]["body"]["choices"][0]["message"]["content"]
        assert now.choices[0].message.content == said


def test_a_killed_server_goes_on_with_its_batch_where_it_was(home):
    """kill -9 in the midst of forty lines; each is answered once."""
    with server(home, name="pen") as (address, _):
        headers = {"Authorization": f"Bearer {key_of(home)}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
            sent = {"file": ("in.jsonl", batch_file(40))}
            file = client.post("/v1/files", files=sent, data={"purpose": "batch"}).json()
            asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
            batch = client.post("/v1/batches", json=asked | {"completion_window": "24h"}).json()
            look = f"/v1/batches/{batch['id']}"
            counts = lambda: client.get(look).json()["request_counts"]["completed"]  # noqa: E731
            until(lambda: counts() >= 5 or None)
            port = int(address.rpartition(":")[2])
            victim = next(
                p
                for p in psutil.Process().children(recursive=True)
                if any(c.laddr and c.laddr.port == port for c in p.net_connections("inet"))
            )
            os.kill(victim.pid, signal.SIGKILL)
    with (
        server(home, name="pen") as (address, _),
        httpx.Client(base_url=address, headers=headers, timeout=30) as client,
    ):
        done = until(
            lambda: ((b := client.get(look).json())["status"] == "completed" and b) or None, 90
        )
        assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        text = client.get(f"/v1/files/{done['output_file_id']}/content").text
        names = [json.loads(line)["custom_id"] for line in text.splitlines()]
        assert sorted(names) == sorted(f"line-{n}" for n in range(40))
