"""A server's life, its keys to TLS, its log, metrics and traces: against a real process."""

import asyncio
import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import grow_small, server

from onsil.errors import OnsilError
from onsil.lineage import Run, Workspace, stage
from onsil.serving import tracing
from onsil.serving.ai_mark import AIMark
from onsil.serving.life import DrainingServer, Life
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
from onsil.serving.run import listening
from onsil.serving.settings import Settings
from onsil.serving.tls import TLSFiles, tls_files

OPENSSL = shutil.which("openssl")
QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"
DOOR = "/v1/chat/completions"


def body(**changed) -> dict:
    return {"model": "desk", "messages": [{"role": "user", "content": QUESTION}]} | changed


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("operations"))


@pytest.fixture
def own(home, tmp_path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(home, tmp_path / "ws"))


@pytest.fixture(scope="module")
def address(home) -> Iterator[str]:
    """A server for the tests that only ask."""
    with server(home) as (address, _):
        yield address


def authorised(home: Path, **more) -> dict[str, str]:
    return {"Authorization": f"Bearer {(home / 'key').read_text().strip()}", **more}


# -- life -----------------------------------------------------------------------------------------

# What is asked «천천히» begins (a file says so) and waits for another file.
SLEEPY = """
import os, pathlib, time
from onsil.retrieval.answering import Answerer
plain, home = Answerer.ask, pathlib.Path(os.environ["ONSIL_HOME"])
def ask(self, question):
    if "천천히" in question:
        (home / "begun").touch()
        while not (home / "go").exists():
            time.sleep(0.01)
    return plain(self, question)
Answerer.ask = ask
"""


@contextmanager
def process(home: Path, *arguments: str, first: str = "") -> Iterator[tuple[subprocess.Popen, int]]:
    """`onsil serve desk`, not waited for: (the process, its port)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = f"{first}\nfrom onsil.cli import main\nmain()"
    command = [sys.executable, "-c", program, "serve", "desk", "--port", str(port), *arguments]
    environment = os.environ | {"ONSIL_HOME": str(home), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with running:
        try:
            yield running, port
        finally:
            running.kill()


def wait_for(address: str, path: str, status: int) -> httpx.Response:
    until = time.monotonic() + 60
    while True:
        try:
            response = httpx.get(address + path)
            if response.status_code == status:
                return response
        except httpx.TransportError:
            pass
        assert time.monotonic() < until, f"{path} never said {status}"
        time.sleep(0.02)


def test_alive_before_it_is_ready_and_ready_only_after_a_warm_answer(own):
    """And idle, it ends at once, though it might drain for ten minutes."""
    slow = SLEEPY.replace('"천천히" in question', "True")
    with process(own, "--drain-seconds", "600", first=slow) as (running, port):
        address = f"http://127.0.0.1:{port}"
        assert wait_for(address, "/health", 200).json() == {"status": "ok"}
        early = httpx.get(f"{address}/ready")
        assert early.status_code == 503 and early.json() == {"status": "starting"}
        turned = httpx.post(address + DOOR, json=body(), headers=authorised(own))
        assert turned.status_code == 503 and turned.headers["retry-after"]
        assert turned.json()["error"]["code"] == "server_starting"
        (own / "go").touch()
        assert wait_for(address, "/ready", 200).json() == {"status": "ready"}
        answered = httpx.post(address + DOOR, json=body(), headers=authorised(own), timeout=20)
        assert answered.status_code == 200
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0


def test_it_drains_what_runs_is_finished_and_new_work_is_told_to_come_back(own):
    with process(own, "--drain-seconds", "600", first=SLEEPY) as (running, port):
        address = f"http://127.0.0.1:{port}"
        wait_for(address, "/ready", 200)
        headers = authorised(own)
        slow = body(messages=[{"role": "user", "content": "천천히 " + QUESTION}])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            under_way = pool.submit(
                httpx.post, address + DOOR, json=slow, headers=headers, timeout=60
            )
            while not (own / "begun").exists():
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)
            draining = wait_for(address, "/ready", 503)
            assert draining.json() == {"status": "draining"}
            assert httpx.get(f"{address}/health").status_code == 200
            turned = httpx.post(address + DOOR, json=body(), headers=headers)
            assert turned.status_code == 503 and turned.headers["retry-after"] == "2"
            assert turned.json()["error"]["code"] == "server_draining"
            (own / "go").touch()
            assert under_way.result().status_code == 200
        assert running.wait(60) == 0


def test_a_drain_ends_after_its_seconds_whoever_still_runs():
    import uvicorn

    async def app(scope, receive, send):
        assert scope["type"] == "lifespan"

    life = Life()
    life.warm, life.running = True, 1

    async def warm() -> None: ...

    held = DrainingServer(uvicorn.Config(app), life, 0.2, warm)
    held.handle_exit(signal.SIGTERM, None)
    assert life.state == "draining"
    assert not asyncio.run(held.on_tick(1))
    time.sleep(0.25)
    assert asyncio.run(held.on_tick(1))


def test_a_model_that_is_damaged_ends_the_server_with_the_reason(own):
    digest = Workspace(own).resolve("desk")[2].path
    victim = next(p for p in sorted(digest.rglob("*.safetensors")))
    victim.chmod(0o600)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with process(own) as (running, _):
        assert running.wait(60) == 1
        assert "damaged" in running.stderr.read()


def test_another_host_name_is_refused_by_the_probes_too():
    async def nobody(scope, receive, send):
        raise AssertionError

    sent = []

    async def send(message):
        sent.append(message)

    gate = Life().around(nobody, frozenset({"here:1"}))
    for path in ("/health", "/ready"):
        named = [(b"host", b"evil.example")]
        scope = {"type": "http", "method": "GET", "path": path, "headers": named}
        asyncio.run(gate(scope, None, send))
    assert [m["status"] for m in sent if "status" in m] == [421, 421]


# -- hot swap -------------------------------------------------------------------------------------


@stage(version=1)
def renewed(*, model, out: Path, run: Run) -> dict:
    """The same model with other bytes."""
    shutil.copytree(model.path, out, dirs_exist_ok=True)
    settings = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(settings | {"renewed": 1}))
    return {}


def test_a_new_champion_takes_over_without_one_failed_request(own):
    ws = Workspace(own)
    first = ws.resolve("desk@v1")[2]
    made = renewed(ws, model=first)
    with server(own) as (address, _):
        headers, done, said = authorised(own), threading.Event(), []

        def ask() -> None:
            with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
                while not done.is_set():
                    began = time.monotonic()
                    answer = client.post(DOOR, json=body())
                    said.append((answer.status_code, answer.json(), began))

        def wait_for_more(many: int) -> None:
            enough, until = len(said) + many, time.monotonic() + 60
            while len(said) < enough:
                assert time.monotonic() < until, said[-1:]
                time.sleep(0.01)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        [t.start() for t in threads]
        try:
            wait_for_more(12)
            version = ws.register("desk", made)
            ws.set_alias("desk", "champion", version)
            swapped = time.monotonic()
            wait_for_more(24)
        finally:
            done.set()
            [t.join() for t in threads]
    assert {status for status, *_ in said} == {200}
    digests = [answer["system_fingerprint"] for _, answer, _ in said]
    assert set(digests) == {first.digest, made.digest}
    late = [a["system_fingerprint"] for _, a, began in said if began > swapped]
    assert set(late) == {made.digest}  # from the next question on
    assert len(late) > 4


# -- TLS ------------------------------------------------------------------------------------------

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="needs openssl on the PATH")


def certificate(folder: Path) -> TLSFiles:
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return TLSFiles(cert, key)


@needs_openssl
def test_with_its_certificate_the_server_speaks_tls(home, tmp_path):
    """And a caller who begins a handshake and says no more is not waited for."""
    import ssl

    files = certificate(tmp_path)
    short = "from onsil.serving import life; life.HANDSHAKE = 0.5"
    pair = ("--tls-cert", str(files.cert), "--tls-key", str(files.key))
    with server(home, *pair, first=short) as (address, _):
        host, port = address.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as half_open:
            half_open.sendall(b"\x16\x03\x01")  # a record begins; asyncio's own limit is 60 s
            trusting = ssl.create_default_context(cafile=files.cert)
            with httpx.Client(verify=trusting, headers=authorised(home)) as client:
                assert client.post(address + DOOR, json=body()).status_code == 200
            with pytest.raises(httpx.TransportError):
                httpx.get(address.replace("https", "http") + "/health")
            assert half_open.recv(1) == b""  # closed


@needs_openssl
def test_a_certificate_that_cannot_work_is_refused_before_anybody_connects(tmp_path):
    good = certificate(tmp_path)
    assert 86_400 < good.checked() < 3 * 86_400
    good.key.chmod(0o644)
    with pytest.raises(OnsilError, match="read by others"):
        good.checked()
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other")
    with pytest.raises(OnsilError, match="KEY_VALUES_MISMATCH"):
        TLSFiles(good.cert, other.key).checked()
    with pytest.raises(OnsilError, match="no such file"):
        TLSFiles(tmp_path / "none.pem", other.key).checked()
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(OnsilError, match="no PEM file"):
        TLSFiles(tmp_path / "junk.pem", other.key).checked()
    old, request = tmp_path / "old.pem", tmp_path / "request.pem"
    asked = ["req", "-new", "-key", str(other.key), "-subj", "/CN=x", "-out", str(request)]
    signed = ["x509", "-req", "-in", str(request), "-signkey", str(other.key), "-days", "0"]
    for command in (asked, [*signed, "-out", str(old)]):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    time.sleep(1.1)  # good for no time at all
    with pytest.raises(OnsilError, match="expired"):
        TLSFiles(old, other.key).checked()


def test_one_tls_file_alone_is_refused(tmp_path):
    assert tls_files(None, None) is None
    with pytest.raises(OnsilError, match="Only one of"):
        tls_files(tmp_path / "cert.pem", None)


@pytest.mark.parametrize(
    ("said", "option"),
    [
        ({"port": 99_999}, "--port 99999"),
        ({"drain_seconds": -1.0}, "--drain-seconds -1"),
        ({"drain_seconds": float("nan")}, "--drain-seconds nan"),
        ({"hostnames": ("https://ask.example.kr",)}, "--hostname https"),
        ({"webhook_hosts": ("127.0.0.1",)}, "--webhook-host 127"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(said, option):
    with pytest.raises(OnsilError, match=option):
        Settings(**said)
    Settings(port=0, drain_seconds=0, hostnames=("a-1.kr",), webhook_hosts=("[::1]:80", "a.b:9"))


def test_an_address_that_cannot_be_had_is_explained():
    with listening("127.0.0.1", 0) as taken:
        with pytest.raises(OnsilError) as said:
            listening("127.0.0.1", taken.getsockname()[1])
        assert "Another program" in str(said.value)
    for host in ("192.0.2.1", "a..b"):  # of nobody (RFC 5737); no name
        with pytest.raises(OnsilError) as said:
            listening(host, 0)
        assert "its own machine" in str(said.value)


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


def test_the_page_on_operations_names_every_metric():
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()
    for metric in TABLE:
        assert f"`{metric.name}`" in page and metric.spelled in page, metric
    for name in GAUGES:
        assert f"`{name}`" in page, name
