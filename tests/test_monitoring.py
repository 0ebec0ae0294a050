"""Quality in use: what is kept, drift beside its noise, and the page about it."""

import asyncio
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import grow_small, server
from test_operations import authorised, families
from test_page import CONTRAST, SCROLLS_SIDEWAYS
from typer.testing import CliRunner

from onsil.cli import app as cli
from onsil.errors import OnsilError
from onsil.lineage import Workspace
from onsil.serving.access import Access
from onsil.serving.app import build
from onsil.serving.drift import FEWEST, distance, drift, spelled, unknown_share, wilson
from onsil.serving.feedback import keep, read_feedback
from onsil.serving.keys import add_key
from onsil.serving.monitoring import PREDICTIONS, logged, masked, question_of, replay
from onsil.serving.request_log import read_lines

CHROMIUM = shutil.which("chromium")
DOOR = "/v1/chat/completions"
QUESTION = "쓰지 않은 연차는 며칠까지 이월되나요?"
PRIVATE = "제 주민등록번호는 900101-1234568이고 번호는 010-1234-5678인데 연차는 며칠 이월되나요?"


def body(question: str = QUESTION, **changed) -> dict:
    return {"model": "desk", "messages": [{"role": "user", "content": question}]} | changed


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("monitoring"))


@pytest.fixture
def ws(home, tmp_path) -> Workspace:
    """A workspace of its own to write to."""
    shutil.copytree(home, tmp_path / "ws")
    return Workspace(tmp_path / "ws")


def doors(ws: Workspace):
    return build(ws, "desk", Access("k" * 32), frozenset({"localhost"})).app


@pytest.fixture(scope="module")
def plain(home) -> Iterator[tuple[str, str]]:
    """A server as it is by default: its address, and its link, good for one page."""
    with server(home) as found:
        yield found


@pytest.fixture(scope="module")
def keeping(home, tmp_path_factory) -> Iterator[tuple[Workspace, str, str]]:
    """A server that keeps what it is asked, after a month of use: workspace, address, link."""
    ws = Workspace(shutil.copytree(home, tmp_path_factory.mktemp("keeping") / "ws"))
    many(ws)
    with server(ws.root, "--log-predictions") as (address, link):
        yield ws, address, link


# -- the prediction log ---------------------------------------------------------------------------


def test_by_default_not_a_word_is_kept(home, plain):
    sent = httpx.post(plain[0] + DOOR, json=body(), headers=authorised(home))
    assert sent.status_code == 200
    assert rows_of(home / "logs/requests.jsonl", sent.headers["x-request-id"])
    assert not (home / PREDICTIONS).exists()
    for path in home.glob("logs/*"):
        assert "연차" not in path.read_text()


def rows_of(path: Path, *ids: str) -> dict[str, dict]:
    """The log's rows of these requests, once they are written."""
    until = time.monotonic() + 60
    while True:
        rows = {row["id"]: row for row in read_lines(path) if row.get("id") in ids}
        if len(rows) == len(ids):
            return rows
        assert time.monotonic() < until, rows
        time.sleep(0.01)


def test_asked_to_it_keeps_questions_masked_and_replays_them_byte_for_byte(keeping):
    ws, address, _ = keeping
    key = authorised(ws.root)
    for name, question in (("plain", QUESTION), ("private", PRIVATE)):
        headers = key | {"x-request-id": name}
        assert httpx.post(address + DOOR, json=body(question), headers=headers).is_success
    headers = key | {"x-request-id": "streamed"}
    assert httpx.post(address + DOOR, json=body(stream=True), headers=headers).is_success
    long = body()
    long["messages"].insert(0, {"role": "system", "content": "나" * 30_000})
    headers = key | {"x-request-id": "long"}
    assert httpx.post(address + DOOR, json=long, headers=headers).is_success
    path = ws.root / PREDICTIONS
    rows = rows_of(path, "plain", "private", "streamed", "long")
    text = path.read_text()
    assert "1234568" not in text and "1234-5678" not in text and "나나" not in text
    assert rows["private"]["masked"] == 2 and "sha256" not in rows["private"]
    assert rows["plain"]["cited"] == [["휴가규정.md", "제3조(연차의 이월)"]]
    for name in ("plain", "streamed"):
        again = asyncio.run(replay(ws, logged(ws, name), doors(ws)))
        assert again.same and again.model == "desk@v1" and "5일" in again.now
        assert again.digest == rows[name]["digest"]
    with pytest.raises(OnsilError, match="no longer kept"):
        asyncio.run(replay(ws, logged(ws, "long"), doors(ws)))
    with pytest.raises(OnsilError, match="2 identifiers in it were masked"):
        asyncio.run(replay(ws, logged(ws, "private"), doors(ws)))
    with pytest.raises(OnsilError, match="not in the prediction log"):
        logged(ws, "nobody")


def test_what_was_drawn_is_drawn_again(keeping, monkeypatch):
    """Without a seed of the caller's own; and at the terminal, where the exit code says it too."""
    ws, address, _ = keeping
    asked = {"model": "desk", "prompt": "연차는", "max_tokens": 12, "logit_bias": {"0": -100}}
    said = []
    for name in ("drawn", "drawn-too"):
        headers = authorised(ws.root, **{"x-request-id": name})
        made = httpx.post(f"{address}/v1/completions", json=asked, headers=headers, timeout=60)
        said.append(made.json()["choices"][0]["text"])
    assert said[0] != said[1]
    rows = rows_of(ws.root / PREDICTIONS, "drawn", "drawn-too")
    assert rows["drawn"]["seed"] != rows["drawn-too"]["seed"]
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    typed = CliRunner().invoke(cli, ["replay", "drawn"])
    assert typed.exit_code == 0 and "The same bytes from desk@v1" in typed.output, typed.output
    again = asyncio.run(replay(ws, rows["drawn"] | {"seed": rows["drawn-too"]["seed"]}, doors(ws)))
    assert not again.same and again.now == said[1]


def test_a_replay_says_when_the_bytes_are_others(ws, monkeypatch):
    row = {
        "id": "x", "model": "desk@v1", "path": DOOR, "request": body(), "masked": 0,
        "digest": ws.resolve("desk")[2].digest, "answer": "6일까지", "sha256": "0" * 64,
    }  # fmt: skip
    odd = row | {"id": "z", "answer": "6일\x1b]0;owned\x07\nreq-1 good"}
    path = ws.root / PREDICTIONS
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in (row, odd, row | {"id": "y", "digest": "d"}))
    )
    again = asyncio.run(replay(ws, logged(ws, "x"), doors(ws)))
    assert not again.same and again.before == "6일까지" != again.now
    with pytest.raises(OnsilError, match="no longer kept"):
        asyncio.run(replay(ws, logged(ws, "y"), doors(ws)))
    monkeypatch.setenv("ONSIL_HOME", str(ws.root))
    typed = CliRunner().invoke(cli, ["replay", "z"])
    _, before, now = typed.output.splitlines()
    assert typed.exit_code == 1 and typed.output.replace("\n", "").isprintable()
    assert before.startswith("- 6일") and now.startswith("+ ")


def test_masking_reaches_every_text_and_key():
    value, found = masked({"010-1234-5678": [{"a": ["hong@example.com", 3, None]}]})
    assert found == 2 and "1234" not in json.dumps(value) and "hong" not in json.dumps(value)


@pytest.mark.parametrize(
    ("request_", "question"),
    [
        (body(), QUESTION),
        ({"input": QUESTION}, QUESTION),
        ({"prompt": "계속"}, "계속"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "가"}]}]}, "가"),
        ({"messages": [{"role": "system", "content": "짧게"}]}, ""),
        ({"prompt": [1, 2]}, ""),
        ({}, ""),
    ],
)
def test_the_question_of_a_request(request_, question):
    assert question_of(request_) == question


# -- drift ----------------------------------------------------------------------------------------

LEAVE = ["연차", "병가", "휴가", "이월", "출산휴가", "반차", "휴직", "결근"]
TRAVEL = ["출장비", "숙박비", "교통비", "항공권", "여비", "정산", "영수증", "일비"]
ASKS = [
    "{}는 며칠까지인가요?",
    "{} 신청은 어떻게 하나요?",
    "{} 한도가 얼마예요?",
    "{} 기준 알려 주세요",
]


def questions(words: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        draw.choice(ASKS).format(f"{draw.choice(words)} {draw.choice(words)}") for _ in range(count)
    ]


def test_drift_is_seen_when_it_is_there_and_named_by_the_unknown_words():
    known = {t for q in questions(LEAVE, 400, 0) for t in spelled(q)}
    found = drift(questions(LEAVE, 200, 1), questions(TRAVEL, 100, 2), known.__contains__)
    assert found and found.words.drifted and found.concepts.drifted
    assert found.words.psi > 10 * found.words.floor
    assert found.unknown.low > found.unknown_before.high


def test_without_drift_it_is_called_about_one_time_in_twenty():
    draw = np.random.default_rng(0)
    called = 0
    for seed in range(60):
        before, now = questions(LEAVE, 150, seed), questions(LEAVE, 80, 1000 + seed)
        called += distance(before, now, spelled, draw).drifted
    assert 1 <= called <= 9  # of 60; 5 % would be 3, and P(more than 9) is under 0.2 %


def test_a_tenth_of_new_subjects_is_more_than_noise():
    before = questions(LEAVE, 400, 5)
    now = questions(LEAVE, 180, 6) + questions(TRAVEL, 40, 7)
    assert distance(before, now, spelled, np.random.default_rng(0)).drifted


def test_too_few_questions_say_nothing():
    few = questions(LEAVE, FEWEST - 1, 0)
    assert drift(few, questions(LEAVE, 100, 1), lambda t: True) is None
    assert drift(questions(LEAVE, 100, 1), few, lambda t: True) is None


def test_the_unknown_share_and_its_interval():
    draw = np.random.default_rng(0)
    asked = ["가나 다라", "가나 마바"] * 40
    share = unknown_share(asked, lambda t: t != "마바", draw)
    assert share.value == 0.25 and 0.15 < share.low < 0.25 < share.high < 0.35
    assert unknown_share(["?"] * 60, lambda t: False, draw).value == 0


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_wilsons_interval(hits, of, low, high):
    """Against Newcombe's tabulated values (Statistics in Medicine 17, 1998)."""
    share = wilson(hits, of)
    assert share.low == pytest.approx(low, abs=1e-4)
    assert share.high == pytest.approx(high, abs=1e-4)


# -- the routes and the page ----------------------------------------------------------------------


def test_feedback_comes_in_by_the_door_and_the_page_is_the_owners(home, plain):
    address, own = plain[0], authorised(home)
    other = {"Authorization": f"Bearer {add_key(home, 'kim')}"}
    assert httpx.post(f"{address}/v1/feedback", json=said()).status_code == 401
    kept = httpx.post(f"{address}/v1/feedback", json=said(), headers=other)
    assert kept.status_code == 201 and kept.json()["id"].startswith("feedback-")
    wrong = httpx.post(f"{address}/v1/feedback", json=said(verdict="x"), headers=other)
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "verdict"
    assert httpx.get(f"{address}/v1/feedback", headers=own).status_code == 405
    assert httpx.get(f"{address}/monitor/data", headers=other).status_code == 403
    assert httpx.get(f"{address}/monitor", headers=other).status_code == 403
    told = httpx.get(f"{address}/monitor/data", headers=own).json()
    counted = families(httpx.get(f"{address}/metrics", headers=other).text)
    assert told["feedback"] == {"bad": 1} and told["drift"] is None
    assert [s.value for s in counted["onsil_feedback"].samples if s.name.endswith("total")] == [1]
    (row,) = read_feedback(home, "desk")
    assert row["owner"].startswith("kim-")


def said(**changed) -> dict:
    return {"request_id": "r1", "verdict": "bad", "question": QUESTION} | changed


def many(ws: Workspace) -> None:
    """A month of use and a window of other questions."""
    logs = ws.root / "logs"
    logs.mkdir(exist_ok=True)
    draw = random.Random(0)
    with (logs / "requests.jsonl").open("w") as f:
        for day in range(12):
            for _ in range(draw.randrange(20, 60)):
                at = 1_795_000_000.0 - 86_400.0 * day
                f.write(json.dumps({"time": at, "answered": draw.random() > 0.2}) + "\n")
    asked = questions(LEAVE, 150, 1) + questions(TRAVEL, 150, 2)
    with (logs / "predictions.jsonl").open("w") as f:
        for question in asked:
            f.write(json.dumps({"request": body(question)}) + "\n")
    keep(ws.root, "desk", "owner", said(correct="5일까지", answer="<b>6일</b>까지"))


def test_drift_and_abstention_stand_in_the_metrics(keeping):
    ws, address, _ = keeping
    own = authorised(ws.root)
    assert httpx.post(address + DOOR, json=body(), headers=own).is_success
    told = httpx.get(f"{address}/monitor/data", headers=own, timeout=60).json()
    found = families(httpx.get(f"{address}/metrics", headers=own).text)
    gauge = {name: family.samples[0].value for name, family in found.items() if family.samples}
    assert gauge["onsil_drift_psi"] == told["drift"]["words"]["psi"]
    assert gauge["onsil_drift_psi"] > gauge["onsil_drift_noise_floor"] > 0
    assert 0 < gauge["onsil_drift_unknown_words"] <= 1
    assert told["drifted"]["words"] is True and len(told["days"]) >= 12
    assert "onsil_abstention_rate" in gauge


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_the_page_shows_it_in_both_languages_light_and_dark_and_asks_nobody_else(keeping, browser):
    ws, address, link = keeping
    context = browser.new_context(locale="ko-KR")
    page = context.new_page()
    asked, told = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(link)
    page.goto(f"{address}/monitor")
    page.wait_for_selector("#drift table")
    assert page.query_selector_all("#abstention svg .bar") and "달라짐" in page.inner_text("#drift")
    assert "<b>6일</b>까지" in page.inner_text("#feedback")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (360, 1100):
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=str(ws.root / f"{scheme}-{width}.png"), full_page=True)
            assert [t for ratio, t in page.evaluate(CONTRAST, False) if ratio < 4.5] == []
        page.set_viewport_size({"width": 360, "height": 800})
        sideways = page.evaluate(SCROLLS_SIDEWAYS)
        assert all(name.startswith("DIV#") for name in sideways), sideways
    page.click("#language")
    assert "changed" in page.inner_text("#drift") and page.title() == "desk · In use"
    assert told == [] and all(url.startswith((address, "data:")) for url in asked)
    context.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_below_an_answer_people_say_what_they_think_of_it(home, plain, browser):
    context = browser.new_context(locale="ko-KR")
    page = context.new_page()
    page.goto(plain[1])
    page.wait_for_selector("#summary:not(:empty)")
    for number in (1, 2):
        page.fill("#question", QUESTION)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"article:nth-of-type({number}) .opinion")
    page.click("article:nth-of-type(1) .good")
    page.wait_for_selector("article:nth-of-type(1) .opinion p")
    assert "고맙습니다" in page.inner_text("article:nth-of-type(1) .opinion")
    page.click("article:nth-of-type(2) .bad")
    page.fill("article:nth-of-type(2) textarea", "5일")
    page.click("article:nth-of-type(2) .tell")
    page.wait_for_selector("article:nth-of-type(2) .opinion p")
    context.close()
    good, bad = (row for row in read_feedback(home, "desk") if row["owner"] == "owner")
    assert (good["verdict"], bad["verdict"], bad["correct"]) == ("good", "bad", "5일")
    assert good["question"] == QUESTION and good["heading"] == "제3조(연차의 이월)"
    assert "5일까지" in good["answer"]
