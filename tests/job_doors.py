"""A real server of the routes of jobs, files and batches, and clients for it. Not a test itself."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from job_stores import until
from jobs_child import application

from onsil.serving.jobs import JobStore
from onsil.serving.jobs.files import FileStore


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
