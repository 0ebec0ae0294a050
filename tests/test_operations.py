"""What a server tells of itself: its log, metrics and traces, the mark, the soak."""

import asyncio
import gzip
import json
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from job_doors import listener
from prometheus_client.parser import text_string_to_metric_families
from served import grow_small, server
from typer.main import get_command

from onsil.cli import app as cli
from onsil.errors import OnsilError
from onsil.serving import tracing
from onsil.serving.ai_mark import AIMark
from onsil.serving.metrics import GAUGES, MODELS, TABLE, Metrics
from onsil.serving.request_log import (
    JsonLines,
    Observation,
    append_whole,
    declared,
    line,
    observed,
    read_lines,
)

QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"
DOOR = "/v1/chat/completions"


def body(**changed) -> dict:
    return {"model": "desk", "messages": [{"role": "user", "content": QUESTION}]} | changed


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("operations"))


@pytest.fixture(scope="module")
def address(home) -> Iterator[str]:
    """A server for the tests that only ask."""
    with server(home) as (address, _):
        yield address


def authorised(home: Path, **more) -> dict[str, str]:
    return {"Authorization": f"Bearer {(home / 'key').read_text().strip()}", **more}


# -- requests and their log -----------------------------------------------------------------------


def test_every_line_says_what_happened_and_not_a_word_of_what_was_said(home, address):
    path = home / "logs/requests.jsonl"
    headers = authorised(home, **{"x-request-id": "mine-1"})
    answered = httpx.post(address + DOOR, json=body(), headers=headers)
    assert answered.headers["x-request-id"] == "mine-1"
    odd = httpx.get(f"{address}/v1/models/desk@v1", headers=headers | {"x-request-id": "a b!"})
    assert re.fullmatch(r"req-[0-9a-f]{32}", odd.headers["x-request-id"])
    assert httpx.get(f"{address}/nowhere").status_code == 401
    until = time.monotonic() + 60  # a thread of its own writes
    while not any(row["status"] == 401 and "route" not in row for row in read_lines(path)):
        assert time.monotonic() < until
        time.sleep(0.01)
    rows = {row["id"]: row for row in read_lines(path)}
    row = rows["mine-1"]
    assert row["route"] == DOOR and row["status"] == 200 and row["owner"] == "owner"
    assert row["model"] == "desk@v1" and row["digest"] == answered.json()["system_fingerprint"]
    usage = answered.json()["usage"]
    assert row["prompt_tokens"] == usage["prompt_tokens"]
    assert row["completion_tokens"] == usage["completion_tokens"]
    assert row["answered"] is True and row["operation"] == "chat" and row["cut"] is False
    assert rows[odd.headers["x-request-id"]]["route"] == "/v1/models/{id}"
    text = path.read_text()
    assert "연차" not in text and "5일" not in text and "nowhere" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_client_that_hangs_up_leaves_a_line_that_says_so():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ConnectionError

    seen = []
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}

    async def send(message): ...

    with pytest.raises(ConnectionError):
        asyncio.run(observed(app, seen.append)(scope, None, send))
    assert line(seen[0])["cut"] is True and seen[0].first_byte is not None


@pytest.mark.parametrize("answered", [True, False])
def test_a_line_says_whether_there_was_an_answer(answered):
    assert line(Observation("", "POST", DOOR, answered=answered))["answered"] is answered


def test_there_are_as_many_routes_as_declarations():
    def of(path: str, **found: str) -> str:
        return declared({"path": path, "endpoint": 1, "path_params": found})

    assert of("/v1/models/models", id="models") == "/v1/models/{id}"
    assert of("/v1/a/1/b/1", x="1", y="1") == "/v1/a/{x}/b/{y}"
    assert declared({"path": "/anything"}) == ""


def test_log_files_turn_over_and_only_so_many_are_kept(tmp_path):
    path = tmp_path / "logs" / "x.jsonl"
    lines = JsonLines(path, largest=2_000, kept=2)
    for n in range(200):
        lines.append(lambda n=n: {"n": n, "fill": "x" * 50})
    lines.close()
    files = sorted(path.parent.iterdir())
    assert [f.name for f in files] == ["x.jsonl", "x.jsonl.1", "x.jsonl.2"]
    assert all(f.stat().st_size <= 2_000 for f in files)
    found = [row["n"] for row in read_lines(path)]
    assert found == list(range(found[0], 200)) and 30 < len(found) < 100


def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path):
    path = tmp_path / "logs" / "x.jsonl"
    lines = JsonLines(path, waiting=4)
    path.mkdir()  # a folder stands where the file should
    lines.append(lambda: {"n": 1})
    lines.append(lambda: {"n": 1 / 0})
    lines.flush()
    assert lines.dropped == 2
    path.rmdir()
    begun, blocked = threading.Event(), threading.Event()
    lines.append(lambda: {"waited": (begun.set(), blocked.wait(60))[1]})
    assert begun.wait(60)
    for n in range(10):
        lines.append(lambda n=n: {"n": n})  # never waits
    assert lines.dropped == 8
    blocked.set()
    lines.close()
    with path.open("a") as f:
        f.write('{"cut sho')
    assert [r.get("n") for r in read_lines(path)] == [None, 0, 1, 2, 3]


def test_a_disk_that_fills_up_leaves_no_half_a_line(tmp_path):
    import resource

    path, limits = tmp_path / "x.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    assert append_whole(path, b'{"n": 1}\n', 1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            append_whole(path, b'{"n": 2}\n', 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert append_whole(path, b'{"n": 3}\n', 1000)
    assert list(read_lines(path)) == [{"n": 1}, {"n": 3}]


def test_what_follows_a_line_cut_short_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    assert append_whole(path, b'{"n": 3}\n', 1000, durable=True)
    assert append_whole(path, b'{"n": 4}\n', 1000)
    assert list(read_lines(path)) == [{"n": 1}, {"n": 3}, {"n": 4}]
    assert path.read_bytes().count(b"\n") == 4


# -- metrics --------------------------------------------------------------------------------------


def families(text: str) -> dict:
    return {f.name: f for f in text_string_to_metric_families(text)}


def test_metrics_need_a_key_and_have_opentelemetrys_names(home, address):
    assert httpx.get(f"{address}/metrics").status_code == 401
    headers = authorised(home)
    before = families(httpx.get(f"{address}/metrics", headers=headers).text)
    httpx.post(address + DOOR, json=body(), headers=headers)
    stream = httpx.post(address + DOOR, json=body(stream=True), headers=headers)
    assert "[DONE]" in stream.text
    nothing = body(messages=[{"role": "user", "content": "zxqv wkjh"}])
    httpx.post(address + DOOR, json=nothing, headers=headers)
    httpx.post(address + DOOR, json=body(n=7), headers=headers)
    text = httpx.get(f"{address}/metrics", headers=headers).text
    found = families(text)
    for name in (
        "gen_ai_server_request_duration_seconds", "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds", "gen_ai_client_token_usage",
        "onsil_requests_in_flight", "onsil_model_info", "onsil_abstention_rate",
    ):  # fmt: skip
        assert found[name].samples, name

    def value(name: str, **labels: str) -> float:
        """What came to it since `before`."""
        then, now = (
            sum(
                s.value
                for s in families_[name.removesuffix("_total").removesuffix("_count")].samples
                if s.name == name and labels.items() <= s.labels.items()
            )
            for families_ in (before, found)
        )
        return now - then

    assert value("gen_ai_server_request_duration_seconds_count", error_type="") == 3
    assert value("onsil_requests_refused_total", http_response_status_code="400") == 1
    assert value("onsil_answers_total", answered="no") == 1
    (rate,) = found["onsil_abstention_rate"].samples
    assert 0 < rate.value <= 1 / 4  # of the whole day, earlier servers' too
    (here,) = found["onsil_requests_in_flight"].samples
    assert here.value == 1  # this one
    (info,) = found["onsil_model_info"].samples
    assert info.labels["version"] == "v1" and len(info.labels["digest"]) == 64
    assert "연차" not in text


def test_labels_stay_few_whatever_is_asked_for():
    metrics = Metrics()
    for n in range(500):
        seen = Observation("", "GET", f"/x{n}", operation="chat", model=f"m{n}@v1", digest="d")
        seen.status, seen.ended = 200, True
        metrics(seen)
    spelled = set(re.findall(r'gen_ai_request_model="([^"]+)"', _text(metrics)))
    assert len(spelled) == MODELS + 1 and "other" in spelled
    assert set(re.findall(r'http_route="([^"]+)"', _text(metrics))) == {"none"}


def _text(metrics: Metrics) -> str:
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry).decode()


def test_only_gauges_on_the_table_are_watched():
    metrics = Metrics()
    metrics.watch("onsil.queue.depth", lambda: 3)
    metrics.watch("onsil.slots", lambda: None)
    assert "onsil_queue_depth 3.0" in _text(metrics) and "onsil_slots" not in _text(metrics)
    with pytest.raises(KeyError):
        metrics.watch("onsil.something", lambda: 1)


# -- traces ---------------------------------------------------------------------------------------


@pytest.fixture
def spans():
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    tracing.start("", kept)

    def finished() -> dict:
        tracing._provider.force_flush()
        return {s.name: s for s in kept.get_finished_spans()}

    yield finished
    tracing.stop()


def run(app, path: str, **headers: str) -> list[dict]:
    sent = []

    async def send(message):
        sent.append(message)

    given = [(k.encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": given}
    asyncio.run(app(scope, None, send))
    return sent


def test_a_request_its_steps_and_its_engine_are_one_trace(spans):
    from onsil.serving.request_log import heard
    from onsil.serving.speaking import Delta, End, Speaker

    async def pieces():
        yield Delta("비밀")
        yield Delta("번호")
        yield End("stop", 5, 2, confidence=0.9)

    carried = []

    async def app(scope, receive, send):
        with tracing.span("step", {"onsil.step": "classify"}):
            carried.append(tracing.traceparent())
        async for _ in heard(scope, "chat", Speaker("desk", "v1", "d" * 64), pieces()):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    sent = run(observed(tracing.traced(app)), DOOR, traceparent=f"00-{trace}-{caller}-01")
    found = spans()
    request, step, engine = found["chat desk@v1"], found["step"], found["engine"]
    assert f"{request.context.trace_id:032x}" == trace
    assert f"{request.parent.span_id:016x}" == caller
    assert step.parent.span_id == engine.parent.span_id == request.context.span_id
    assert carried[0].split("-")[1:3] == [trace, f"{step.context.span_id:016x}"]
    assert request.attributes["gen_ai.operation.name"] == "chat"
    assert request.attributes["gen_ai.usage.output_tokens"] == 2
    assert request.attributes["gen_ai.request.model"] == "desk@v1"
    back = dict(sent[0]["headers"])[b"traceparent"].decode()
    assert back.split("-")[1:3] == [trace, f"{request.context.span_id:016x}"]
    everything = json.dumps([json.loads(s.to_json()) for s in found.values()], ensure_ascii=False)
    assert "비밀" not in everything and "번호" not in everything


def test_what_an_exception_says_is_not_sent_and_a_junk_parent_begins_a_trace(spans):
    async def app(scope, receive, send):
        raise ValueError("주민등록번호 …")

    with pytest.raises(ValueError, match="주민"):
        run(observed(tracing.traced(app)), "/x", traceparent="junk")
    (only,) = spans().values()
    assert only.parent is None and only.status.status_code.name == "ERROR"
    assert "주민" not in json.dumps(json.loads(only.to_json()), ensure_ascii=False)


def test_off_it_is_the_application_itself_and_says_nothing():
    async def app(scope, receive, send): ...

    assert tracing.traced(app) is app and tracing.traceparent() == ""
    with tracing.span("step"):
        tracing.record("engine", "", 0, 1, {})


def test_off_unless_an_endpoint_is_given(monkeypatch):
    monkeypatch.delenv(tracing.VARIABLE, raising=False)
    assert tracing.endpoint() == ""
    monkeypatch.setenv(tracing.VARIABLE, "http://127.0.0.1:4318")
    assert tracing.endpoint() == "http://127.0.0.1:4318"
    monkeypatch.setenv(tracing.VARIABLE, "127.0.0.1")
    with pytest.raises(OnsilError, match="is no address"):
        tracing.endpoint()


def test_spans_arrive_at_an_endpoint():
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra [otel]")
    with listener([]) as (address, heard):
        tracing.start(address.partition("/told")[0] + "/")
        try:
            with tracing.span("step", {"onsil.step": "classify"}):
                pass
        finally:
            tracing.stop()
    ((headers, sent),) = heard
    assert headers["content-type"] == "application/x-protobuf"
    body = gzip.decompress(sent) if headers.get("content-encoding") == "gzip" else sent
    assert b"onsil.step" in body and b"classify" in body and b"service.name" in body


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(OnsilError, match="OpenTelemetry is not installed"):
        tracing.start("http://127.0.0.1:4318")


# -- the mark -------------------------------------------------------------------------------------


def test_the_mark_is_a_switch_with_one_place():
    on, off = AIMark(), AIMark(False)
    assert on.headers() == {"X-AI-Generated": "true"} and off.headers() == {}
    assert on.fields()["generated_by_ai"] is True and "AI" in on.fields()["notice"]
    assert on.fields()["digital_source_type"].endswith("trainedAlgorithmicMedia")
    assert off.fields() == {}


# -- the soak and the page ------------------------------------------------------------------------


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import soak

    return soak


def wandering(growth: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten minutes of a memory that wanders about 400 MB and grows by so many bytes a second."""
    draw, seconds = np.random.default_rng(seed), np.arange(600.0)
    noise = np.zeros(600)
    for n in range(1, 600):
        noise[n] = 0.9 * noise[n - 1] + draw.normal(0, 200_000)
    return seconds, 4e8 + noise + growth * seconds


def test_a_slope_is_seen_and_wandering_is_not_taken_for_one(soak):
    allowed = 0.02 * 4e8
    flat = [soak.slope(*wandering(0, seed)) for seed in range(20)]
    assert not any(s.grows(allowed) for s in flat)
    covered = sum(s.low <= 0 <= s.high for s in flat)
    assert covered >= 15  # of 20; blocks are short, so a little below 95 %
    growing = soak.slope(*wandering(50_000, 1))
    assert growing.grows(allowed) and growing.low < 50_000 * 3600 < growing.high


@pytest.mark.slow
@pytest.mark.parametrize("leak", [False, True])
def test_the_soak_runs_and_a_planted_leak_is_found(soak, tmp_path, monkeypatch, leak):
    """Without what fills its bounded caches for longer than a minute (schemas, shapes of chats)."""
    short = [row for row in soak.TRAFFIC if row[0].__name__ not in ("chat", "schema")]
    monkeypatch.setattr(soak, "TRAFFIC", short)
    found = soak.soak(tmp_path / "ws", 1, leak)
    grown = " ".join(found["against"])
    asked = {answer.split()[0] for answer in found["answers"]}
    assert found["requests"] > 100 and asked >= {"stream", "abandoned", "vectors", "job"}
    assert ("descriptors grow" in grown and "memory grows" in grown) == leak, found
    assert leak or "ended" not in grown


# Switches on these pages that are others': of ray, of benchmarks, of a worker by itself.
OTHERS = {"--head", "--address", "--minutes", "--leak", "--store", "--handlers", "--days"}


@pytest.mark.parametrize("page", ["serving", "operations", "jobs", "patterns"])
def test_a_switch_on_a_page_is_there(page):
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    known, waiting = set(OTHERS), [get_command(cli)]
    while waiting:
        command = waiting.pop()
        known |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        waiting += getattr(command, "commands", {}).values()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def test_the_page_on_operations_names_every_metric():
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    for metric in TABLE:
        assert f"`{metric.name}`" in page and metric.spelled in page, metric
    for name in GAUGES:
        assert f"`{name}`" in page, name
