"""Thirty inputs and faults that brought servers down, each by its number in the literature's order.

Each asks for the status, for an error of OpenAI's form, for an answer in time, and that the next
request is answered as if nothing had been. Where a fault belongs to another room, its tests are
there; `FAULTS` says where each of the thirty is tested.
"""

import ast
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest
from openai_forms import conforms
from served import make_pen, server

SOURCE = Path(__file__).parents[1] / "src" / "onsil"
CHAT, WRITE, VECTORS, RESPOND = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)
DOORS = (CHAT, WRITE, VECTORS, RESPOND)
HELLO = [{"role": "user", "content": "휴가"}]
GOOD = {
    CHAT: {"model": "pen", "messages": HELLO, "max_tokens": 4},
    WRITE: {"model": "pen", "prompt": "휴가", "max_tokens": 4},
    VECTORS: {"model": "pen", "input": "휴가"},
    RESPOND: {"model": "pen", "input": "휴가", "max_output_tokens": 4},
}

# Each fault: its tests, as FILE NAME NAME …; those of this file are named by their number.
FAULTS = {
    1: "",
    2: "serving json_nested_too_deep_is_refused_before_it_is_built",
    3: "serving_edges a_body_that_never_ends_is_ended_and_its_connection_too",
    4: "serving too_many_headers",
    5: "serving_edges headers_that_never_end_and_silence_are_ended_and_others_served",
    6: "openai_writing texts_are_read_off_the_event_loop\n"
    "prompts too_much_is_refused_before_it_is_tokenised",
    7: "serving_edges a_body_with_nul_wrong_bytes_or_no_end_is_named",
    8: "",
    9: "",
    10: "",
    11: "openai_writing 11_text_that_looks_like_a_special_token_is_text\n"
    "prompts no_text_of_a_user_becomes_a_special_token",
    12: "openai_writing 12_and_13_what_cannot_be_obeyed_is_refused_at_once\n"
    "engine_grammar a_schema_made_to_hurt_is_refused_and_the_next_one_is_not",
    13: "openai_writing 12_and_13_what_cannot_be_obeyed_is_refused_at_once\n"
    "confined a_schema_that_takes_all_its_time_does_not_hold_up_a_chat",
    14: "engine_grammar thousands_of_schemas_do_not_fill_the_memory",
    15: "engine_grammar patterns_that_backtrack_elsewhere_and_recursion_are_fine\n"
    "prompts a_long_answer_made_to_hurt_is_read_in_linear_time"
    " the_longest_text_that_is_let_in_is_tokenised_in_time",
    16: "",
    17: "prompts a_template_made_to_hurt_hurts_nobody\nchecking a_template_that_leaves_its_sandbox",
    18: "checkpoints refused_with_the_way_out_and_nothing_kept\n"
    "checking a_pickle_whatever_it_is_called",
    19: "checkpoints refused_with_the_way_out_and_nothing_kept\n"
    "checking a_program_and_a_reference_to_one",
    20: "damaged a_damaged_weights_file_is_refused\n"
    "life a_model_that_is_damaged_ends_the_server_with_the_reason\n"
    "serving a_damaged_champion_is_said_and_the_next_one_answers_without_a_restart",
    21: "jobs_http files_of_openais_client",
    22: "sandbox zip_bombs_are_refused_by_their_directory depth_and_entities_end"
    " pdf_objects_that_point_at_one_another_end memory_is_bounded the_clock_is_bounded",
    23: "jobs_webhooks addresses_that_are_not_called a_name_counts_by_the_address_it_has_now",
    24: "page markup_in_a_document_stays_text\n"
    "openai_surface a_grown_model_goes_on_with_texts_and_measures_them_too",
    25: "confined the_child_opens_no_file_and_no_socket",
    26: "serving the_link_works_once_and_sets_the_one_cookie_which_needs_an_origin_to_write",
    27: "budgets every_key_is_compared_whichever_fits\n"
    "engine a_beginning_is_found_again_by_its_caller_alone\n"
    "openai_writing 27_what_was_read_before_is_its_callers_alone",
    28: "serving_edges a_client_that_hangs_up_is_no_longer_worked_for"
    " only_so_many_bodies_are_held_at_once",
    29: "jobs_kill every_job_is_done_once_while_workers_are_killed"
    " what_was_accepted_outlives_its_server\n"
    "jobs_served a_killed_server_goes_on_with_its_batch_where_it_was\n"
    "jobs a_clock_that_jumps_ends_leases_and_waits_but_never_holds_a_job\n"
    "serving_edges a_stream_that_breaks_ends_with_an_error",
    30: "jobs_http a_store_that_cannot_write_is_said_and_loses_nothing\n"
    "jobs_disks a_disk_that_fills_up_and_one_that_may_only_be_read"
    " a_damaged_page_is_found_when_the_store_is_opened\n"
    "checking a_database_that_is_damaged_is_refused_here_and_at_the_start",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_pen(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def address(home):
    with server(home, name="pen") as (address, _):
        yield address


@pytest.fixture(scope="module")
def key(home, address) -> str:
    return (home / "key").read_text().strip()


@pytest.fixture
def client(address, key) -> Iterator[httpx.Client]:
    """After each test the next request is answered."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
        yield client
        assert client.post(CHAT, json=GOOD[CHAT]).status_code == 200


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def refused(response: httpx.Response, status: int, word: str = "") -> None:
    assert response.status_code == status, response.text[:500]
    conforms(response.json(), "ErrorResponse")
    assert word in json.dumps(response.json(), ensure_ascii=False)


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def heard(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def head(address: str, key: str, *lines: str) -> bytes:
    first = (f"POST {CHAT} HTTP/1.1", f"Host: {address[7:]}", f"Authorization: Bearer {key}")
    return "\r\n".join((*first, *lines)).encode() + b"\r\n\r\n"


def named_in(file: str) -> set[str]:
    tree = ast.parse(Path(__file__).with_name(f"test_{file}.py").read_text(encoding="utf-8"))
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_of_the_thirty_is_tested():
    here = {int(n) for name in named_in("thirty_faults") for n in re.findall(r"\d{2}", name)}
    assert list(FAULTS) == [*range(1, 31)] and here <= {*FAULTS}
    for number, told in FAULTS.items():
        assert told or number in here
        for file, *names in map(str.split, told.splitlines()):
            assert names and {f"test_{name}" for name in names} <= named_in(file), (number, file)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("door", DOORS)
def test_01_a_body_that_is_no_object(client, door):
    for content in (b"", b"null", b"[]", b'[{"model": "pen"}]', b"{", b"7", b'"pen"'):
        with within(5):
            refused(client.post(door, content=content), 400)


@pytest.mark.parametrize("door", DOORS)
def test_02_json_a_million_deep(client, door):
    with within(5):
        refused(client.post(door, content=b"[" * 10**6), 400)
        deep = b'{"metadata": ' + b'{"a":' * 150_000 + b"1" + b"}" * 150_001
        refused(client.post(door, content=deep), 400, "nested")


def test_03_a_body_of_150_mb_and_lengths_that_lie(address, client, key):
    def pieces() -> Iterator[bytes]:
        for _ in range(150):
            yield b" " * 1_000_000

    with within(20):
        hung_up = (httpx.WriteError, httpx.RemoteProtocolError)  # on the sender: as good
        with contextlib.suppress(*hung_up):
            refused(client.post(CHAT, content=pieces()), 413)
    for length in ("-1", "1e3", "10, 20", "0x10"):
        with connect(address) as connection, within(5):
            connection.sendall(head(address, key, f"Content-Length: {length}") + b"{}")
            assert heard(connection).startswith(b"HTTP/1.1 400")
    with connect(address) as connection, within(5):
        connection.sendall(head(address, key, "Content-Length: 2", "Connection: close") + b"{}" * 9)
        assert heard(connection).count(b"HTTP/1.1 ") == 1


def test_04_headers_without_end(address, client, key):
    for many in (f"X-Much: {'x' * 1_000_000}", "\r\n".join(f"X-{n}: y" for n in range(100_000))):
        with connect(address) as connection, within(10):
            try:
                connection.sendall(head(address, key, many))
                said = heard(connection)
            except ConnectionError:  # it hung up while we were still sending
                continue
            assert said.startswith(b"HTTP/1.1 431"), said[:100]


def test_05_two_lengths_at_once(address, client, key):
    both = ("Content-Length: 4", "Transfer-Encoding: chunked", "Connection: close")
    with connect(address) as connection, within(5):
        connection.sendall(head(address, key, *both) + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n")
        said = heard(connection)
        assert said.startswith(b"HTTP/1.1 400") and said.count(b"HTTP/1.1 ") == 1


# ── numbers, texts, fields ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["a" * 900_000, "가" * 300_000, "휴가 " * 1_000, "\t" * 400_000])
def test_06_a_prompt_over_the_context(client, text):
    for door, body in (
        (CHAT, GOOD[CHAT] | {"messages": [{"role": "user", "content": text}]}),
        (WRITE, GOOD[WRITE] | {"prompt": text}),
        (VECTORS, GOOD[VECTORS] | {"input": text}),
    ):
        with within(5):
            refused(client.post(door, json=body), 400, "512")


def test_07_bytes_that_are_no_text(client):
    for door in DOORS:
        content = json.dumps(GOOD[door]).encode()
        refused(client.post(door, content=content.replace(b"pen", b"p\xffn")), 400, "UTF-8")
        refused(client.post(door, content=content.replace(b"pen", b"p\\ud800n")), 400)
        refused(client.post(door, content=content.replace(b"pen", b"p\\u0000n")), 400, "NUL")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ["NaN", "1e999", "-1", "2.5", '"1"', "true"]),
        ("top_p", ["NaN", "0", "-0.1", "1.01"]),
        ("max_tokens", ["-5", "0", "1e18", "2.5"]),
        ("presence_penalty", ["-3", "Infinity"]),
        ("seed", ["1e30", "1.5"]),
        ("n", ["100000", "0", "2"]),
        ("stop", ['["a","b","c","d","e"]', '""', "7", json.dumps(["x"] * 10_000)]),
        ("logit_bias", ['{"9": 101}', '{"x": 1}', '{"99999999": 1}', '{"-1": 1}']),
    ],
)
def test_08_and_09_numbers_that_cannot_be_meant(client, field, values):
    for door in (CHAT, WRITE):
        for value in values:
            body = json.dumps(GOOD[door] | {field: 0}).replace(
                f'"{field}": 0', f'"{field}": {value}'
            )
            with within(5):
                answered = client.post(door, content=body)
                refused(answered, 400, "" if value in ("NaN", "1e999", "Infinity") else field)


def test_09_more_alternatives_than_there_are(client):
    body = GOOD[CHAT] | {"logprobs": True}
    for many in (21, 10**9, -1):
        refused(client.post(CHAT, json=body | {"top_logprobs": many}), 400, "top_logprobs")


@pytest.mark.parametrize(
    "field", ["n_discard", "id_slot", "cache_prompt", "grammar", "topP", "top-k", "모델", ""]
)
def test_10_a_field_nobody_knows(client, field):
    for door in DOORS:
        refused(client.post(door, json=GOOD[door] | {field: -1}), 400, f"Unknown field: {field}.")


@pytest.mark.parametrize(
    "field", ["chat_template", "chat_template_kwargs", "add_generation_prompt"]
)
def test_16_a_template_in_the_request(client, field):
    refused(client.post(CHAT, json=GOOD[CHAT] | {field: "{{ 1 }}"}), 400, "Unknown field")


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "pen@../v1",
        "pen@v1/../..",
        "..",
        ".",
        "pen@v1\n",
        "%2e%2e",
    ],
)
def test_21_a_name_that_walks_out_of_the_house(client, name):
    for door in DOORS:
        refused(client.post(door, json=GOOD[door] | {"model": name}), 404, "no model")
    refused(client.get(f"/v1/models/x{quote(name, safe='')}"), 404)


def test_23_an_address_to_fetch_from(client):
    for url in (
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "http://127.0.0.1\\@evil.example/",
    ):
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        body = GOOD[CHAT] | {"messages": [{"role": "user", "content": parts}]}
        refused(client.post(CHAT, json=body), 400, "messages")


def test_25_nothing_is_unpickled():
    """Between processes and from disk: plain values and tensors without code."""
    risky = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", "") or ""}
                assert not {n.partition(".")[0] for n in names} & risky, path


def test_26_a_page_elsewhere(client):
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for path in ("/v1/models", CHAT, "/v1/files", "/v1/jobs"):
            far = {"Origin": "http://evil.example"}
            refused(client.request(method, path, headers=far), 403)
            refused(client.request(method, path, headers={"Host": "evil.example"}), 421)
            keyless = client.request(method, path, headers={"Authorization": ""})
            refused(keyless, 401)
            assert "access-control-allow-origin" not in keyless.headers


# ── callers ─────────────────────────────────────────────────────────────────────────────────────


def test_28_callers_who_vanish_and_callers_by_the_hundred(address, client, key):
    """A hundred streams at once: each is answered or told to come back; those who hang up free
    their slot at once."""
    body = GOOD[WRITE] | {"max_tokens": 500, "stream": True, "logit_bias": {"1": -100}}
    content = json.dumps(body).encode()
    asked = head(address, key, f"Content-Length: {len(content)}").replace(
        CHAT.encode(), WRITE.encode()
    )
    statuses: list[int] = []

    def hang_up() -> None:
        with connect(address) as connection:
            connection.settimeout(60)
            connection.sendall(asked + content)
            said = connection.recv(65536)
            statuses.append(int(said.split()[1]))
            assert statuses[-1] == 200 or b"retry-after" in said

    callers = [threading.Thread(target=hang_up) for _ in range(100)]
    for caller in callers:
        caller.start()
    slowest = 0.0
    while any(caller.is_alive() for caller in callers):
        began = time.monotonic()
        assert client.get("/health").status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 8 and len(statuses) == 100
    with within(10):
        assert client.post(CHAT, json=GOOD[CHAT]).status_code == 200
    assert slowest < 5


def test_nothing_is_left_open(address, client):
    """After all of the above the server holds no more than a handful of descriptors."""
    port = int(address.rpartition(":")[2])
    process = next(
        p
        for p in psutil.Process().children(recursive=True)
        if any(c.laddr and c.laddr.port == port for c in p.net_connections("inet"))
    )
    time.sleep(0.5)
    assert process.num_fds() < 60
