"""Keys and budgets: who may ask, how much, and what a refusal says."""

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest
from served import grow_small, server
from starlette.types import Message, Receive, Scope, Send

from onsil.errors import OnsilError
from onsil.serving import keys
from onsil.serving.access import Access
from onsil.serving.budgets import DAY, RECORD, Budgets, spell
from onsil.serving.keys import KeyRing, add_key, list_keys, remove_key
from onsil.serving.request_log import observation

NOON = 20_000 * DAY + DAY / 2
ASKED = {"model": "desk", "messages": [{"role": "user", "content": "연차는 며칠까지 이월되나요?"}]}


@pytest.fixture
def ws(tmp_path) -> Path:
    (tmp_path / "locks").mkdir()
    return tmp_path


def budgets(ws: Path, now: list[float]) -> Budgets:
    return Budgets(ws, KeyRing(ws), lambda: now[0])


def owner(ws: Path, name: str = "kim") -> str:
    return next(k.owner for k in list_keys(ws) if k.name == name)


# -- keys -----------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_kept_as_its_digest(ws):
    key = add_key(ws, "kim", 60, 1000)
    kept = (ws / keys.FILE).read_text()
    assert len(key) > 40 and key not in kept and key.removeprefix("onsil-") not in kept
    assert stat.S_IMODE((ws / keys.FILE).stat().st_mode) == 0o600
    (found,) = list_keys(ws)
    assert (found.name, found.requests_per_minute, found.tokens_per_day) == ("kim", 60, 1000)


def test_a_running_server_learns_of_keys_and_forgets_them(ws):
    door = Access("o" * 32, KeyRing(ws))
    assert door.owner_of("o" * 32) == "owner"
    key = add_key(ws, "kim")
    assert door.owner_of(key) == owner(ws)
    remove_key(ws, "kim")
    assert door.owner_of(key) is None
    assert door.owner_of("") is None and door.owner_of("열쇠") is None


def test_a_name_given_again_is_another_owner(ws):
    add_key(ws, "kim")
    first = owner(ws)
    remove_key(ws, "kim")
    add_key(ws, "kim")
    assert owner(ws) != first and owner(ws).startswith("kim-")


@pytest.mark.parametrize("name", ["", "Kim", "../x", "a b", "k" * 65, "김"])
def test_a_name_that_cannot_be_one(ws, name):
    with pytest.raises(OnsilError, match="cannot be the name"):
        add_key(ws, name)


def test_two_of_one_name_none_to_remove_and_a_limit_of_nothing(ws):
    add_key(ws, "kim")
    with pytest.raises(OnsilError, match="already a key"):
        add_key(ws, "kim")
    with pytest.raises(OnsilError, match="No key is called 'lee'"):
        remove_key(ws, "lee")
    with pytest.raises(OnsilError, match="limit of 0"):
        add_key(ws, "lee", 0)


def test_a_damaged_list_is_said_at_the_start_and_survived_afterwards(ws):
    key = add_key(ws, "kim")
    ring = KeyRing(ws)
    (ws / keys.FILE).write_text("{")
    assert ring.find(key) is not None  # as it was read before
    with pytest.raises(OnsilError, match="not a list of keys"):
        KeyRing(ws)


def test_every_key_is_compared_whichever_fits(ws, monkeypatch):
    added = [add_key(ws, name) for name in ("a", "b", "c")]
    compared = []
    real = keys.hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    ring = KeyRing(ws)
    for key in [*added, "nobody's"]:
        compared.clear()
        ring.find(key)
        assert len(compared) == 3


# -- budgets --------------------------------------------------------------------------------------


def test_a_bucket_empties_and_fills_again(ws):
    add_key(ws, "kim", requests_per_minute=6)
    now = [NOON]
    b, kim = budgets(ws, now), owner(ws)
    assert [b.admit(kim).requests[1] for _ in range(6)] == [5, 4, 3, 2, 1, 0]
    refused = b.admit(kim)
    assert refused.refused == "requests" and refused.wait == pytest.approx(10)
    now[0] += 9.9
    assert b.admit(kim).refused == "requests"
    now[0] += 0.2
    assert not b.admit(kim).refused
    now[0] += 3600  # never more than the bucket holds
    assert sum(not b.admit(kim).refused for _ in range(10)) == 6


def test_tokens_of_a_day_end_and_begin_again_with_the_next(ws):
    add_key(ws, "kim", tokens_per_day=100)
    now = [NOON]
    b, kim = budgets(ws, now), owner(ws)
    assert b.admit(kim).tokens[:2] == (100, 100)
    b.charge(kim, 70)
    assert b.admit(kim).tokens[1] == 30
    b.charge(kim, 70)  # what was under way is still given
    refused = b.admit(kim)
    assert refused.refused == "tokens" and refused.wait == DAY / 2 and refused.tokens[1] == 0
    now[0] += DAY / 2
    assert not b.admit(kim).refused


def test_a_clock_set_back_gives_nothing_and_takes_a_minute_at_most(ws):
    add_key(ws, "kim", requests_per_minute=2, tokens_per_day=100)
    now = [NOON]
    b, kim = budgets(ws, now), owner(ws)
    b.charge(kim, 100)
    now[0] -= 2 * DAY
    assert b.admit(kim).refused == "tokens"
    now[0] += 3 * DAY
    b.admit(kim), b.admit(kim)
    now[0] -= 1000
    assert b.admit(kim).refused == "requests"
    now[0] += 61
    assert not b.admit(kim).refused


def test_counts_survive_a_killed_process_and_are_shared_by_two(ws):
    add_key(ws, "kim", tokens_per_day=10_000)
    add_key(ws, "lee", tokens_per_day=10_000)
    program = (
        "import os, sys, pathlib\n"
        "from onsil.serving.budgets import Budgets\n"
        "from onsil.serving.keys import KeyRing\n"
        "home = pathlib.Path(sys.argv[1])\n"
        f"b = Budgets(home, KeyRing(home), lambda: {NOON})\n"
        "for _ in range(200):\n"
        "    for owner in sys.argv[2:]: b.charge(owner, 3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    who = [owner(ws, "kim"), owner(ws, "lee")]
    command = [sys.executable, "-c", program, str(ws), *who]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [p.wait(60) for p in both] == [-9, -9]
    b = budgets(ws, [NOON])
    assert [b.admit(o).tokens[1] for o in who] == [8_800, 8_800]
    assert (ws / "budgets").stat().st_size == 2 * RECORD.size
    assert stat.S_IMODE((ws / "budgets").stat().st_mode) == 0o600


def test_threads_do_not_lose_counts(ws):
    add_key(ws, "kim", tokens_per_day=100_000)
    b, kim = budgets(ws, [NOON]), owner(ws)

    def charge():
        for _ in range(500):
            b.charge(kim, 1)

    threads = [threading.Thread(target=charge) for _ in range(4)]
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        [t.start() for t in threads], [t.join() for t in threads]
    finally:
        sys.setswitchinterval(often)
    assert b.admit(kim).tokens[1] == 98_000


def test_a_damaged_count_starts_again(ws):
    add_key(ws, "kim", tokens_per_day=100)
    b, kim = budgets(ws, [NOON]), owner(ws)
    b.charge(kim, 100)
    with (ws / "budgets").open("r+b") as f:
        f.seek(36)
        f.write(b"\xff\xff")
    assert b.admit(kim).tokens[1] == 100


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (7.5, "7.5s"), (360, "6m0s"), (10_812, "3h0m12s")],
)
def test_durations_are_spelled_as_openai_spells_them(seconds, said):
    assert spell(seconds) == said


# -- at the door ----------------------------------------------------------------------------------


def asked(b: Budgets, owner: str, method: str, path: str, doors: tuple[str, ...] = ()) -> int:
    """The status of a request that the guard let through, whose answer takes ten tokens."""
    said = []

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        observation(scope).prompt_tokens = 10
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        said.append(message.get("status"))

    scope = {"type": "http", "method": method, "path": path, "state": {"owner": owner}}
    observation(scope)
    asyncio.run(b.around(door, doors)(scope, asyncio.Queue[Message]().get, send))
    return said[0]


def test_whatever_is_asked_is_limited_and_looking_and_ending_are_not(ws):
    add_key(ws, "kim", requests_per_minute=1)
    b, kim = budgets(ws, [NOON]), owner(ws)
    doors = ("/ask", "/v1/orders/cancel")
    assert asked(b, kim, "POST", "/ask", doors) == 200
    limited = [("POST", "/ask"), ("POST", "/v1/orders/cancel"), ("GET", "/v1/models")]
    assert [asked(b, kim, *each, doors) for each in limited] == [429] * 3
    free = [("GET", "/"), ("GET", "/metrics"), ("GET", "/health"), ("DELETE", "/v1/jobs/job_1")]
    free += [("POST", "/v1/batches/batch_1/cancel"), ("POST", "/jobs/job_1/cancel")]
    assert [asked(b, kim, *each, doors) for each in free] == [200] * len(free)


def test_a_key_whose_tokens_are_limited_is_refused_where_none_are_counted(ws):
    add_key(ws, "kim", tokens_per_day=10)
    b, kim = budgets(ws, [NOON]), owner(ws)
    assert asked(b, kim, "POST", "/ask", ("/ask",)) == 403
    assert asked(b, kim, "POST", "/v1/completions", ("/ask",)) == 200
    assert asked(b, kim, "POST", "/v1/completions", ("/ask",)) == 429


def test_nothing_is_asked_on_a_key_that_was_removed(ws):
    add_key(ws, "kim")
    b, kim = budgets(ws, [NOON]), owner(ws)
    assert asked(b, kim, "POST", "/v1/completions") == 200
    remove_key(ws, "kim")
    assert asked(b, kim, "POST", "/v1/completions") == 401
    assert asked(b, keys.OWNER, "POST", "/v1/completions") == 200


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return grow_small(tmp_path_factory.mktemp("budgets"))


def test_the_door_counts_refuses_and_remembers(home):
    key = add_key(home, "kim", requests_per_minute=4, tokens_per_day=10_000)
    with server(home) as (address, _):
        with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
            answer = client.chat.completions.with_raw_response.create(**ASKED)
            assert answer.headers["x-ratelimit-limit-requests"] == "4"
            assert answer.headers["x-ratelimit-remaining-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-tokens"] == "10000"
            used = answer.parse().usage.total_tokens
            again = client.models.with_raw_response.list()
            left = int(again.headers["x-ratelimit-remaining-tokens"])
            assert left == 10_000 - used
            client.models.list(), client.models.list()
            with pytest.raises(openai.RateLimitError) as refused:
                client.models.list()
        told = refused.value
        assert told.code == "rate_limit_exceeded" and told.type == "requests"
        assert 1 <= int(told.response.headers["retry-after"]) <= 15
        own = {"Authorization": f"Bearer {(home / 'key').read_text().strip()}"}
        for _ in range(6):  # the owner has no limit
            free = httpx.get(f"{address}/v1/models", headers=own)
            assert free.status_code == 200 and "x-ratelimit-limit-requests" not in free.headers
        remove_key(home, "kim")
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
    lines = [json.loads(t) for t in (home / "logs/requests.jsonl").read_text().splitlines()]
    assert any(row["status"] == 429 and row["owner"].startswith("kim-") for row in lines)
    assert os.stat(home / "logs/requests.jsonl").st_mode & 0o077 == 0
