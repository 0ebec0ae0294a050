"""Our own OpenAPI: it names every route, and whatever is made up from it does no harm."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from openai_forms import conforms
from served import make_pen, server
from starlette.routing import Route

from onsil.lineage import Workspace
from onsil.serving.access import Access
from onsil.serving.app import build
from onsil.serving.openapi import RESERVED, document
from onsil.serving.operations import Operations
from onsil.serving.settings import Settings

# Not for programs: the page, its files, and the link that lets in.
FOR_PEOPLE = {"/", "/page.css", "/page.js", "/report", "/sign-in", "/monitor", "/monitor.js"}
# What a schema can say of a valid request is not all there is to it (is the tool that is named
# among the tools? does the file exist?), so that this one is looked at by eye, now and then.
LEFT_OUT = "positive_data_acceptance"

# DELETE of a job cancels it, and what became of it stays to be read; a deleted file is gone.
STAYS = """
[[operations]]
include-path-regex = "^/v1/jobs/"
checks.use_after_free.enabled = false
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_pen(tmp_path_factory.mktemp("openapi"), context=40)  # short answers


def test_the_document_names_every_route_and_no_other(home):
    ws = Workspace(home)
    operations = Operations(ws, "pen", Settings())
    guard = build(ws, "pen", Access("k" * 32), frozenset(), routes=operations.routes())
    there = {
        (route.path, method.lower())
        for route in guard.app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
        if route.path not in FOR_PEOPLE
    }
    paths = document(["pen"])["paths"]
    told = {(path, method) for path, methods in paths.items() for method in methods}
    assert told - {("/ready", "get")} == there
    operations.close()


def fuzzed(home: Path, tmp_path: Path, *arguments: str) -> None:
    """Requests made up by schemathesis, valid and not, alone and in a row, to a real server."""
    with server(home, name="pen") as (address, _):
        key = f"Authorization: Bearer {(home / 'key').read_text().strip()}"
        program = str(Path(sys.executable).with_name("schemathesis"))
        command = [program, "run", f"{address}/openapi.json", "-H", key, "--mode", "all"]
        command += ["--exclude-checks", LEFT_OUT, "--seed", "1", "--exclude-path-regex", "events"]
        for path in RESERVED:
            command += ["--exclude-path", path]
        (tmp_path / "schemathesis.toml").write_text(STAYS)
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        asked = {"model": "pen", "prompt": "휴가", "max_tokens": 2}
        headers = dict([key.split(": ")])
        assert httpx.post(f"{address}/v1/completions", json=asked, headers=headers).is_success
        for path in RESERVED:
            response = httpx.post(address + path, json={}, headers=headers)
            assert response.status_code == 501
            conforms(response.json(), "ErrorResponse")


QUICK = (
    "/v1/models/{id}",
    "/v1/embeddings",
    "/v1/jobs",
    "/v1/files",
    "/v1/feedback",
    "/monitor/data",
)


def test_requests_at_the_edges_of_some_schemas(home, tmp_path):
    some = [argument for path in QUICK for argument in ("--include-path", path)]
    fuzzed(home, tmp_path, "--phases", "coverage", *some)


@pytest.mark.slow
def test_requests_at_the_edges_of_every_schema_and_in_a_row(home, tmp_path):
    fuzzed(home, tmp_path, "--phases", "coverage,stateful", "--max-examples", "10")


@pytest.mark.slow
def test_requests_by_the_thousand(home, tmp_path):
    fuzzed(home, tmp_path, "--phases", "fuzzing", "--max-examples", "60")
