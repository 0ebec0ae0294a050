"""A deployment: its doors, its jobs and batches, its traces, its own OpenAPI, a real server."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import deployments
import httpx
import pytest
from test_graph import running
from test_openapi import LEFT_OUT
from test_patterns import GOLDEN, client_of, done

from onsil.errors import OnsilError
from onsil.graph import BadInput, Open, model, shadow, step
from onsil.lineage import Workspace
from onsil.serving.commands import placed
from onsil.serving.deployed import read_deployment
from onsil.serving.deployment import App
from onsil.serving.keys import add_key, list_keys, remove_key
from onsil.serving.operations import LOG
from onsil.serving.request_log import read_lines

# ── the doors of a deployment ───────────────────────────────────────────────────────────────────


home, here, app = deployments.home, deployments.here, deployments.app


@running
async def test_every_route_of_a_deployment_asks_for_the_key(app):
    app.serve("/v1/ask", model("desk"))
    app.jobs("/v1/jobs", model("desk"))
    async with client_of(app) as client:
        del client.headers["Authorization"]
        for method, path in (
            ("POST", "/v1/ask"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/jobs/x"),
            ("GET", "/comparisons"),
            ("GET", "/nothing"),
        ):
            said = await client.request(method, path, json={"question": "?"})
            assert (
                said.status_code == 401 and said.json()["error"]["type"] == "authentication_error"
            )
        assert (await client.get("/health")).status_code == 200


@running
async def test_a_failure_tells_the_caller_what_he_can_do(app):
    async def slow(value: Any) -> Any:
        await asyncio.sleep(5)

    def broken(value: Any) -> Any:
        raise ValueError("secret words")

    def closed(value: Any) -> Any:
        raise Open("It is left alone for a while.", "x", retry_after=6.2)

    def refuse(value: Any) -> Any:
        raise BadInput("question must be short.")

    one = step(slow, max_inflight=1)
    app.serve("/slow", one, timeout=0.2)
    for fn in (broken, closed, refuse):
        app.serve(f"/{fn.__name__}", step(fn))
    app.serve("/nobody", step(refuse, name="r") >> model("desk"))
    async with client_of(app) as client:
        first, second = await asyncio.gather(
            client.post("/slow", json={}), client.post("/slow", json={})
        )
        assert {first.status_code, second.status_code} == {503, 504}
        busy = first if first.status_code == 503 else second
        assert busy.headers["retry-after"] == "1" and busy.json()["error"]["code"] == "busy"
        for path, status, code, words in (
            ("/slow", 504, "late", "step slow"),
            ("/broken", 500, "failed", "raised ValueError"),
            ("/closed", 503, "open", "left alone"),
            ("/refuse", 400, "bad_input", "must be short"),
        ):
            said = await client.post(path, json={})
            error = said.json()["error"]
            assert (said.status_code, error["code"]) == (status, code) and words in error["message"]
            assert set(error) == {"message", "type", "param", "code"} and "secret" not in said.text
            assert "step;dur=" in said.headers["server-timing"]
        assert (await client.post("/closed", json={})).headers["retry-after"] == "7"
        for body, status in ((b"[1]", 400), (b"{", 400), (b"", 400), (b"[" * 10_000, 400)):
            said = await client.post("/refuse", content=body)
            assert said.status_code == status and said.json()["error"]["message"]
        plain = await client.post("/refuse", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 415
        assert (await client.get("/refuse")).status_code == 405


@running
async def test_an_answer_names_its_models_and_its_steps(app, home):
    app.serve("/v1/ask", step(lambda value: value, name="tidy·정리") >> model("desk"))
    async with client_of(app) as client:
        said = await client.post("/v1/ask", json={"question": GOLDEN[0]})
    digest = Workspace(home).resolve("desk")[2].digest
    assert said.headers["x-onsil-model"] == f"desk@v1={digest}"
    assert said.headers["x-ai-generated"] == "true"
    assert re.fullmatch(
        r'step;dur=[\d.]+;desc="tidy___ ok", step;dur=[\d.]+;desc="desk ok"',
        said.headers["server-timing"],
    )


@running
async def test_what_a_shadow_found_can_be_read(app):
    other = step(lambda value: {"text": "other"}, name="other")
    node = shadow(model("desk"), other, 1.0)
    app.serve("/v1/ask", node)
    async with client_of(app) as client:
        for question in GOLDEN[:2]:
            await client.post("/v1/ask", json={"question": question})
        await app.graph(node).settled()
        told = (await client.get("/comparisons")).json()["/v1/ask"]
    assert told[0]["different"] == 2 and told[0]["other"] == "other"
    assert len(told[0]["differing"]) == 2 and GOLDEN[0] not in json.dumps(told, ensure_ascii=False)


@running
async def test_one_model_is_loaded_once_for_all_paths(app):
    app.serve("/a", model("desk@champion"))
    app.serve("/b", step(lambda value: value, name="s") >> model("desk"))
    async with client_of(app):
        assert app._ground and app._ground.models and len(app._ground.models._held) == 1


def test_what_cannot_be_deployed_is_refused(app, here):
    app.serve("/a", model("desk"))
    with pytest.raises(OnsilError, match="'/a' is there twice"):
        app.jobs("/a", model("desk"))
    for path in ("ask", "/health", "/openapi.json", "/v1/feedback"):
        with pytest.raises(OnsilError, match=f"'{path}' cannot be the path"):
            app.serve(path, model("desk"))
    for times in ({}, {"every": 60, "cron": "* * * * *"}):
        with pytest.raises(OnsilError, match="has every="):
            app.batch("n", model("desk"), list, here, **times)
    for every in (0, -1, 0.5, float("nan")):
        with pytest.raises(OnsilError, match=f"every={every} is no time"):
            app.batch("n", model("desk"), list, here, every=every)
    with pytest.raises(OnsilError, match="asks no model"):
        App().first_model()
    (here / "serve.py").write_text("app = 1\n")
    with pytest.raises(OnsilError, match=r"serve\.py has no app"):
        read_deployment(here / "serve.py")
    with pytest.raises(OnsilError, match=r"no file .*gone\.py"):
        read_deployment(here / "gone.py")
    with pytest.raises(OnsilError, match="--placement moon"):
        placed("moon")


# ── jobs and batches ────────────────────────────────────────────────────────────────────────────


@running
async def test_a_job_is_one_however_often_it_is_sent_and_bad_input_is_not_repeated(app):
    app.jobs("/v1/jobs", model("desk"))
    async with client_of(app) as client:
        body, key = {"input": {"question": GOLDEN[0]}}, {"Idempotency-Key": "k1"}
        sent = [await client.post("/v1/jobs", json=body, headers=key) for _ in range(3)]
        assert len({s.json()["id"] for s in sent}) == 1 and sent[0].status_code == 202
        other = await client.post("/v1/jobs", json={"input": {"question": "?"}}, headers=key)
        assert other.status_code == 409
        bad = await client.post("/v1/jobs", json={"input": {"nothing": 1}})
        job = await done(client, bad.headers["Location"])
        assert job["status"] == "dead" and job["attempts"] == 1
        assert "question or messages" in job["error"]["message"]


@running
async def test_a_failed_attempt_is_repeated_and_no_more_often_than_said(app):
    calls: dict[str, int] = {}

    def flaky(value: dict[str, Any]) -> str:
        calls[value["q"]] = calls.get(value["q"], 0) + 1
        if calls[value["q"]] <= value["fails"]:
            raise ConnectionError("secret words")
        return "done"

    app.jobs("/v1/jobs", step(flaky), attempts=2)
    async with client_of(app) as client:
        sent = [
            await client.post("/v1/jobs", json={"input": {"q": q, "fails": fails}})
            for q, fails in (("a", 1), ("b", 9))
        ]
        jobs = [await done(client, said.headers["Location"]) for said in sent]
        assert [(job["status"], job["attempts"]) for job in jobs] == [("done", 2), ("dead", 2)]
        assert calls == {"a": 2, "b": 2} and "secret" not in json.dumps(jobs)


@running
async def test_two_queues_never_do_each_others_jobs(app):
    for path in ("/a.b", "/a/b", "/batch", "/batch/some"):
        app.jobs(path, step(lambda value, path=path: path, name="s"))
    app.batch("some", model("desk"), list, lambda slot, rows: None, every=10**9)
    async with client_of(app) as client:
        for path in ("/a.b", "/a/b", "/batch", "/batch/some"):
            said = await client.post(path, json={"input": {}})
            assert (await done(client, said.headers["Location"]))["result"] == path


@running
async def test_who_is_on_the_list_is_told_when_a_job_is_done(app):
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    app.jobs("/v1/jobs", step(lambda value: 1, name="s"))
    how = {"secret": "s" * 32, "webhook_hosts": [f"127.0.0.1:{port}"]}
    async with other, client_of(app, **how) as client:
        for host, status in (("127.0.0.1:1", 400), (f"127.0.0.1:{port}", 202)):
            body = {"input": {}, "webhook": f"http://{host}/told"}
            assert (await client.post("/v1/jobs", json=body)).status_code == status
        while not heard:
            await asyncio.sleep(0.02)
    assert heard[0].startswith(b"POST /told ") and b"webhook-signature" in heard[0].lower()


@running
async def test_a_job_that_is_cancelled_ends(app):
    ended: list[str] = []

    async def slow(value: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    app.jobs("/v1/jobs", step(slow))
    async with client_of(app) as client:
        said = await client.post("/v1/jobs", json={"input": {}})
        path = said.headers["Location"]
        while (await client.get(path)).json()["status"] != "running":
            await asyncio.sleep(0.02)
        await client.delete(path)
        assert (await done(client, path))["status"] == "cancelled" and ended == ["cancelled"]


@running
async def test_a_job_whose_key_was_removed_while_it_waited_is_not_worked_at(app, home):
    asked: list[Any] = []

    def work(value: Any) -> Any:
        asked.append(value)
        if len(asked) == 1:
            raise ValueError("not yet")
        return value

    app.jobs("/v1/jobs", step(work))
    add_key(home, "kim")
    (kim,) = (key.owner for key in list_keys(home))
    async with client_of(app):
        store = app._store
        assert store is not None
        made = store.submit(kim, None, "/v1/jobs", {}, fingerprint="")
        while not asked:
            await asyncio.sleep(0.02)
        remove_key(home, "kim")
        while not (job := store.get(kim, made.id)).closed:
            await asyncio.sleep(0.05)
    assert job.error is not None and "was removed" in job.error["message"] and len(asked) == 1


@running
async def test_a_job_that_waits_for_a_breaker_can_be_cancelled(app):
    asked: list[int] = []

    def closed(value: Any) -> Any:
        asked.append(1)
        raise Open("It is left alone for a while.", "x", retry_after=300)

    app.jobs("/v1/jobs", step(closed))
    async with client_of(app) as client:
        path = (await client.post("/v1/jobs", json={"input": {}})).headers["Location"]
        while not asked:
            await asyncio.sleep(0.02)
        await client.delete(path)
        assert (await done(client, path))["status"] == "cancelled" and len(asked) == 1


@running
async def test_a_slot_runs_once_and_rows_keep_their_errors(app, here):
    read: list[int] = []
    sunk: list[tuple[str, list[dict[str, Any]]]] = []

    def rows() -> Any:
        read.append(1)
        yield from ({"question": q} for q in GOLDEN[:2])
        yield {"question": 3}
        yield "no object"

    def sink(slot: str, made: Any) -> None:
        sunk.append((slot, list(made)))

    app.batch("some", model("desk"), rows, sink, every=3600)
    app.batch("empty", model("desk"), list, here, every=3600)
    async with client_of(app):
        for _ in range(3):
            app.start_batch("some", 7200.0)
        app.start_batch("empty", 7200.0)
        while not sunk or not (here / "empty-19700101T020000Z.jsonl").exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
    ((slot, made),) = sunk
    assert slot == "19700101T020000Z" and len(read) == 1
    assert [row["row"] for row in made] == [1, 2, 3, 4]
    assert made[0]["value"]["answered"] and made[0]["error"] is None
    assert [row["error"] and row["error"]["code"] for row in made] == [
        None,
        None,
        *["bad_input"] * 2,
    ]
    assert made[3]["input"] == "no object" and made[2]["value"] is None
    assert (here / "empty-19700101T020000Z.jsonl").read_text() == ""


@running
async def test_a_slot_comes_by_itself(app):
    sunk: list[str] = []
    app.batch("clock", model("desk"), list, lambda slot, rows: sunk.append(slot), every=1)
    async with client_of(app):
        while not sunk:
            await asyncio.sleep(0.05)
    assert len(set(sunk)) == len(sunk)


SLOW_BATCH = """
import json, os, sys, time
from pathlib import Path
from onsil.graph import model, step
from onsil.serving.deployment import App

@step(on="pool")
def slowly(value):
    with open("effects", "a") as f:
        f.write(f"{value['n']}\\n")
    time.sleep(0.1)
    return value

def rows():
    return ({"n": n, "question": "숙박비는 하루에 얼마까지 지급하나요?"} for n in range(10))

app = App()
app.batch("rows", slowly >> model("desk"), rows, Path("out"), every=10**12, at_once=2)
"""
RUN = """
import asyncio, sys
from pathlib import Path
from onsil.serving import deployment
from onsil.serving.deployed import read_deployment
deployment.LEASE = 1.0
async def main():
    app = read_deployment(Path("serve.py"))
    app.open()
    await app.ready()
    app.start_batch("rows", 0.0)
    while not list(Path("out").glob("*.jsonl")):
        await asyncio.sleep(0.05)
    await asyncio.to_thread(app.close)
asyncio.run(main())
"""


def test_a_batch_that_is_killed_goes_on_with_the_rows_that_are_left(home, here):
    (here / "serve.py").write_text(SLOW_BATCH)
    command = [sys.executable, "-c", RUN]
    first = subprocess.Popen(command, cwd=here, start_new_session=True)
    effects = here / "effects"
    until = time.monotonic() + 60
    while not effects.exists() or len(effects.read_text().splitlines()) < 4:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    begun = effects.read_text().splitlines()
    subprocess.run(command, cwd=here, check=True, timeout=120)
    (out,) = (here / "out").glob("*.jsonl")
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["input"]["n"] for row in made] == list(range(10))
    assert all("80,000원" in row["value"]["text"] for row in made)
    again = [n for n in effects.read_text().splitlines()[len(begun) :] if n in begun]
    assert len(again) <= 3  # those that were under way


# ── a real server ───────────────────────────────────────────────────────────────────────────────


SERVED = """
from onsil.graph import model, prep, step
from onsil.serving.deployment import App

@step
def tidy(value):
    return value

app = App()
app.serve("/v1/ask", prep("desk") >> model("desk"))
app.jobs("/v1/jobs", tidy >> model("desk"))
"""


def test_a_deployment_is_a_server_like_any_other(home, here):
    (here / "serve.py").write_text(SERVED)
    program = "from onsil.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "serve", "serve.py", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    try:
        found = re.match(r"Served at (\S+) ", line := process.stdout.readline())
        assert found, line + process.stderr.read()
        address, key = found[1], f"Bearer {(home / 'key').read_text().strip()}"
        with httpx.Client(base_url=address, headers={"Authorization": key}) as client:
            said = client.post("/v1/ask", json={"question": GOLDEN[0]})
            assert said.status_code == 200 and "5일" in said.json()["text"]
            assert said.headers["x-request-id"]
            assert client.get("/ready").json() == {"status": "ready"}
            for path in ("/v1/ask", "/openapi.json"):
                assert httpx.request("GET", address + path).status_code == 401
        fuzzed(address, key, here)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    said = [row for row in errors.splitlines() if "Invalid HTTP request" not in row]
    assert process.returncode == 0 and not said, errors
    logged = next(row for row in read_lines(home / LOG) if row["route"] == "/v1/ask")
    assert logged["model"] == "desk@v1" and len(logged["digest"]) == 64


def fuzzed(address: str, key: str, here: Path) -> None:
    """Requests at the edges of what its own OpenAPI says."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{address}/openapi.json", "-H", f"Authorization: {key}"]
    command += ["--mode", "all", "--phases", "coverage", "--exclude-checks", LEFT_OUT]
    command += ["--seed", "1", "--include-path", "/v1/ask"]  # jobs: tests/test_openapi.py
    run = subprocess.run(command, capture_output=True, text=True, cwd=here)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
