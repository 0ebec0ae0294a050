"""A server's life, its settings and its TLS: against a real process."""

import asyncio
import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served import grow_small, server
from test_operations import DOOR, QUESTION, authorised, body

from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, stage
from onsil.serving.life import DrainingServer, Life
from onsil.serving.models import Models
from onsil.serving.run import listening
from onsil.serving.settings import Settings
from onsil.serving.tls import TLSFiles, tls_files

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("life"))


@pytest.fixture
def own(home, tmp_path) -> Path:
    """A copy to write to."""
    return Path(shutil.copytree(home, tmp_path / "ws"))


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


# Every file that Python opens, written down.
WATCHED = """
import os, sys
seen = os.open(os.path.join(os.environ["ONSIL_HOME"], "opened"), os.O_CREAT | os.O_WRONLY)
def hook(event, values):
    if event == "open":
        os.write(seen, f"{values[0]}\\n".encode())
sys.addaudithook(hook)
"""


def test_a_model_is_hashed_once_before_it_answers(own):
    """Weights are loaded by other means: Python opens them to hash them and for nothing else."""
    weights = {str(p) for p in Workspace(own).resolve("desk")[2].path.rglob("*.safetensors")}
    with process(own, first=WATCHED) as (_, port):
        address = f"http://127.0.0.1:{port}"
        wait_for(address, "/ready", 200)
        for _ in range(2):
            asked = httpx.post(address + DOOR, json=body(), headers=authorised(own), timeout=20)
            assert asked.status_code == 200
    opened = [p for p in (own / "opened").read_text().splitlines() if p in weights]
    assert weights and sorted(opened) == sorted(weights)


# Whom Python calls or looks up, written down.
CALLS = """
import os, sys
seen = os.open(os.path.join(os.environ["ONSIL_HOME"], "called"), os.O_CREAT | os.O_WRONLY)
def hook(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(seen, f"{event} {values}\\n".encode())
sys.addaudithook(hook)
"""


def test_a_server_calls_nobody(own):
    """Neither at the start, nor to answer, to keep a job or to end."""
    with process(own, "--log-predictions", first=CALLS) as (running, port):
        address = f"http://127.0.0.1:{port}"
        wait_for(address, "/ready", 200)
        job = {"kind": "chat.completions", "input": body()}
        with httpx.Client(base_url=address, headers=authorised(own), timeout=60) as client:
            assert client.post(DOOR, json=body()).status_code == 200
            vector = {"model": "desk", "input": QUESTION}
            assert client.post("/v1/embeddings", json=vector).status_code == 200
            place = client.post("/v1/jobs", json=job).headers["location"]
            until = time.monotonic() + 60
            while client.get(place).json()["status"] != "done":
                assert time.monotonic() < until
                time.sleep(0.05)
            for path in ("/metrics", "/about", "/report", "/monitor/data", "/openapi.json"):
                assert client.get(path).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    called = (own / "called").read_text().splitlines()
    assert [call for call in called if "127.0.0.1" not in call] == []


def test_callers_who_come_together_have_a_model_hashed_once(own, monkeypatch):
    models, hashed, looked = Models(Workspace(own), "desk"), list[str](), set[int]()
    plain, used, all_looked = models.ws.whole, models._used, threading.Event()

    def looking(digest: str):
        found = used(digest)
        looked.add(threading.get_ident())
        if len(looked) == 4:
            all_looked.set()
        return found

    def whole(made: Artifact) -> Path:
        hashed.append(made.digest)
        assert all_looked.wait(30)
        return plain(made)

    monkeypatch.setattr(models, "_used", looking)
    monkeypatch.setattr(models.ws, "whole", whole)
    callers = [threading.Thread(target=models.speaker, args=("desk",)) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    models.close()
    assert len(hashed) == 1


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
        ({"keep_days": -1.0}, "--keep-days -1"),
        ({"keep_days": float("nan")}, "--keep-days nan"),
        ({"keep_days": float("inf")}, "--keep-days inf"),
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
