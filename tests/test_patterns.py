"""The seven patterns: each example runs, and all give the same bytes to the same questions."""

import asyncio
import contextlib
import json
import re
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import deployments
import httpx
import pytest

from onsil.graph.failures import KINDS
from onsil.lineage import Workspace
from onsil.serving.access import Access
from onsil.serving.deployed import doors, read_deployment
from onsil.serving.deployment import App

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


home, here = deployments.home, deployments.here


@contextlib.asynccontextmanager
async def client_of(
    app: App, placement: Any = "inline", around: Any = lambda guard: guard, **how: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a deployment, opened and warm, with its key."""
    app.open(placement, **how)
    try:
        guard = around(doors(app, Access(KEY), frozenset({HOST})))
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
