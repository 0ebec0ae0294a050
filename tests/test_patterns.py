"""The seven patterns: each example runs, and all give the same bytes to the same questions."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import grow_small
from test_graph import running

from onsil.errors import OnsilError
from onsil.graph import BadInput, Open, model, shadow, step
from onsil.graph.failures import KINDS
from onsil.lineage import Workspace
from onsil.serving.access import Access
from onsil.serving.commands import placed
from onsil.serving.deployed import doors, read_deployment
from onsil.serving.deployment import App
from onsil.serving.schedules import Every, Scheduler, cron_times

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "serving"
FILES = sorted(EXAMPLES.glob("[1-7]_*.py"))
KEY, HOST = "k" * 32, "desk.test"
GOLDEN = [
    "쓰지 않은 연차는 며칠까지 이월되나요?",
    "병가는 1년에 며칠까지 쓸 수 있나요?",
    "숙박비는 하루에 얼마까지 지급하나요?",
    unicodedata.normalize("NFD", "숙박비는 하루에 얼마까지 지급하나요?"),
    "우주 정거장의 주차 요금은 얼마인가요?",
    "How many days of leave are carried over?",
    "What is the capital of France?",
    "hi",
    "연차 " * 300,
    "  <script>alert(1)</script> 기관의 상징물은?  ",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("patterns"))


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """The examples find the workspace, and a folder of their own to read and write in."""
    monkeypatch.setenv("ONSIL_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.asynccontextmanager
async def client_of(app: App, placement: Any = "inline") -> AsyncIterator[httpx.AsyncClient]:
    """A client of a deployment, opened and warm, with its key."""
    app.open(placement)
    try:
        guard = doors(app, Access(KEY), frozenset({HOST}))
        await app.ready()
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=guard),
            base_url=f"http://{HOST}",
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        ) as client:
            yield client
    finally:
        await asyncio.to_thread(app.close)


async def done(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """A job when it is over."""
    while True:
        job = (await client.get(path)).json()
        if job["status"] in ("done", "dead", "cancelled", "expired"):
            return job
        await asyncio.sleep(0.05)


async def answers(file: Path, placement: str = "inline") -> list[bytes]:
    """What an example answers to the golden questions, byte for byte."""
    app = read_deployment(file)
    if file.stem == "4_batch":
        asked = "".join(json.dumps({"question": q}, ensure_ascii=False) + "\n" for q in GOLDEN)
        Path("questions.jsonl").write_text(asked, encoding="utf-8")
    async with client_of(app, placement) as client:
        if file.stem == "3_asynchronous":
            return [await later(client, question) for question in GOLDEN]
        if file.stem == "4_batch":
            app.start_batch("nightly", 1_000_000.0)
            out = Path("answers/nightly-19700112T134640Z.jsonl")
            while not out.exists():
                await asyncio.sleep(0.05)
            return [spelled(json.loads(line)["value"]) for line in out.read_text().splitlines()]
        made = []
        for question in GOLDEN:
            said = await client.post("/v1/ask", json={"question": question})
            assert said.status_code == 200, said.text
            made.append(said.content)
        return made


async def later(client: httpx.AsyncClient, question: str) -> bytes:
    said = await client.post("/v1/jobs", json={"input": {"question": question}})
    assert said.status_code == 202, said.text
    job = await done(client, said.headers["Location"])
    assert job["status"] == "done", job
    return spelled(job["result"])


def spelled(value: Any) -> bytes:
    """A value as a response has it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.fixture(scope="module")
def golden(home, tmp_path_factory) -> list[bytes]:
    """The answers of the first pattern."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONSIL_HOME", str(home))
        return asyncio.run(answers(FILES[0]))


def test_the_golden_answers_are_answers(golden, home):
    told = [json.loads(answer) for answer in golden]
    assert "5일" in told[0]["text"] and "60일" in told[1]["text"] and "80,000원" in told[2]["text"]
    assert golden[2] == golden[3]  # typed on a Mac
    assert not told[4]["answered"] and not told[6]["answered"] and told[7]["answered"]
    digest = Workspace(home).resolve("desk")[2].digest
    assert {t["model"]["digest"] for t in told} == {digest} and len(set(golden)) >= 6


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_pattern_gives_the_same_bytes(file, golden, here):
    assert asyncio.run(answers(file)) == golden


def test_there_are_seven_and_each_says_when_and_at_what_price():
    assert len(FILES) == 7
    for n, file in enumerate(FILES, 1):
        text = file.read_text(encoding="utf-8")
        assert text.startswith(f'"""Pattern {n}, ')
        assert all(f"\n{word}" in text for word in ("When: ", "For it: ", "Against it: "))
        assert len(text.splitlines()) <= 60


# ── the doors of a deployment ───────────────────────────────────────────────────────────────────


@pytest.fixture
def app(here) -> App:
    return App()


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
    for path in ("ask", "/health"):
        with pytest.raises(OnsilError, match=f"'{path}' cannot be the path"):
            app.serve(path, model("desk"))
    for times in ({}, {"every": 60, "cron": "* * * * *"}):
        with pytest.raises(OnsilError, match="has every="):
            app.batch("n", model("desk"), list, here, **times)
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
        assert "question must be text" in job["error"]["message"]


@running
async def test_a_failed_attempt_is_repeated_and_no_more_often_than_said(app):
    calls: dict[str, int] = {}

    def flaky(value: dict[str, Any]) -> str:
        calls[value["q"]] = calls.get(value["q"], 0) + 1
        if calls[value["q"]] <= value["fails"]:
            raise ConnectionError("secret words")
        return "done"

    app.jobs("/v1/jobs", step(flaky), retries=1)
    async with client_of(app) as client:
        for q, fails, status, times in (("a", 1, "done", 2), ("b", 9, "dead", 2)):
            body = {"input": {"q": q, "fails": fails}}
            said = await client.post("/v1/jobs", json=body)
            job = await done(client, said.headers["Location"])
            assert (job["status"], job["attempts"], calls[q]) == (status, times, times)
            assert "secret" not in json.dumps(job)


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
        while len(sunk) < 2:
            await asyncio.sleep(0.05)
    assert len(set(sunk)) == len(sunk)  # a new one each second


@pytest.mark.parametrize(("before", "submitted"), [(None, []), (0.0, ["last"])])
def test_a_slot_that_was_missed_is_made_up_for_but_not_before_the_first(before, submitted):
    slots: list[float] = []
    times = Every(1e6)
    scheduler = Scheduler()
    scheduler.add(times, slots.append, before)
    scheduler.start()
    time.sleep(0.1)
    scheduler.stop()
    assert slots == [times.last(time.time()) for _ in submitted]


@pytest.mark.parametrize(
    ("line", "now", "last"),
    [
        ("* * * * *", "2026-03-01 10:20:31", "2026-03-01 10:20"),
        ("0 2 * * *", "2026-03-01 10:20:00", "2026-03-01 02:00"),
        ("0 2 * * *", "2026-03-01 01:59:59", "2026-02-28 02:00"),
        ("*/15 9-17 * * 1-5", "2026-03-02 08:00:00", "2026-02-27 17:45"),
        ("30 6 29 2 *", "2026-03-01 00:00:00", "2024-02-29 06:30"),
        ("0 0 1 * 0", "2026-03-10 00:00:00", "2026-03-08 00:00"),
        ("5,35 */6 * 1,7 *", "2026-03-01 00:00:00", "2026-01-31 18:35"),
        ("0 12 * * 7", "2026-03-02 00:00:00", "2026-03-01 12:00"),
    ],
)
def test_the_last_slot_of_a_cron_line(line, now, last):
    found = cron_times(line).last(datetime.fromisoformat(now).timestamp())
    assert datetime.fromtimestamp(found) == datetime.fromisoformat(last)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "* * * *",
        "60 * * * *",
        "a * * * *",
        "5-1 * * * *",
        "*/0 * * * *",
        "* * 0 * *",
        "-1 * * * *",
        "1-2-3 * * * *",
    ],
)
def test_what_is_no_cron_line(line):
    with pytest.raises(OnsilError, match="is no cron line"):
        cron_times(line)


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
    return ({"n": n, "question": "숙박비는 하루에 얼마까지 지급하나요?"} for n in range(30))

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
    while not effects.exists() or len(effects.read_text().splitlines()) < 8:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    begun = effects.read_text().splitlines()
    print(f"killed after {len(begun)} rows were begun")
    subprocess.run(command, cwd=here, check=True, timeout=120)
    (out,) = (here / "out").glob("*.jsonl")
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["input"]["n"] for row in made] == list(range(30))
    assert all("80,000원" in row["value"]["text"] for row in made)
    again = [n for n in effects.read_text().splitlines()[len(begun) :] if n in begun]
    assert len(again) <= 3  # those that were under way


# ── a real server ───────────────────────────────────────────────────────────────────────────────


def test_a_deployment_is_a_server_like_any_other(home, here):
    program = (
        "from onsil.serving.deployed import read_deployment, Path\n"
        f"read_deployment(Path({str(EXAMPLES / '6_serial.py')!r})).run(port=0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    try:
        line = process.stdout.readline()
        found = re.match(r"Served at (\S+) ", line)
        assert found, line + process.stderr.read()
        key = (home / "key").read_text().strip()
        with httpx.Client(base_url=found[1], headers={"Authorization": f"Bearer {key}"}) as client:
            said = client.post("/v1/ask", json={"question": GOLDEN[0]})
            assert said.status_code == 200 and "5일" in said.json()["text"]
            assert said.headers["x-request-id"]
            assert client.get("/ready").json() == {"status": "ready"}
            assert httpx.post(f"{found[1]}/v1/ask", json={}).status_code == 401
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and not errors, errors


# ── the page ────────────────────────────────────────────────────────────────────────────────────


def test_the_page_prints_what_it_says(here, capsys):
    text = (EXAMPLES.parents[1] / "docs" / "patterns.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(block, scope)
    told = re.findall(r"^print\(.*\)  # (.+)$", "".join(blocks), re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == told and len(told) == 5


def test_the_page_knows_every_word_and_every_failure():
    text = (EXAMPLES.parents[1] / "docs" / "patterns.md").read_text(encoding="utf-8")
    words = ("step", "model", "prep", "par", "route", "cache", "breaker", "shadow", "canary")
    assert all(re.search(rf"^\| .*`{word}\(", text, re.MULTILINE) for word in words)
    assert all(f"`{kind.__name__}`" in text for kind in KINDS.values())
    assert all(file.stem.split("_", 1)[1].split("_")[0] in text for file in FILES)
