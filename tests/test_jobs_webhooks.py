"""Webhooks: signed, sent until they are heard, and only where the operator allows."""

import base64
import json
import socket

import job_stores
import openai
import pytest
from job_doors import listener
from job_stores import until

from onsil.serving.jobs import JobStore
from onsil.serving.jobs import webhooks as hooks
from onsil.serving.jobs.webhooks import NotAllowed, Webhooks, deliveries, target

url, store = job_stores.url, job_stores.store


def close_one(store: JobStore, url: str) -> str:
    job = store.submit("kim", None, "work", 1, fingerprint="", webhook=url)
    taken = store.claim(["work"], "w", 30)
    assert taken is not None
    store.finish(taken.id, taken.fence, None)
    return job.id


def test_a_webhook_is_signed_and_sent_until_it_is_heard(store):
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    with listener([500, 302]) as (url, heard):
        allowed = {url.split("/")[2]}
        job = close_one(store, url)
        teller = Webhooks(store, secret, allowed, wait=0.05)
        thread = teller.start()
        until(lambda: deliveries(store, job)[0]["state"] == "delivered")
        teller.stop()
        thread.join()
    assert len(heard) == 3 and len({body for _, body in heard}) == 1
    headers, body = heard[-1]
    told = json.loads(body)
    assert told["type"] == "job.done" and told["data"] == {"id": job}
    assert headers["webhook-id"] == told["id"] and headers["host"] in allowed
    with openai.OpenAI(api_key="x", webhook_secret=secret) as client:
        client.webhooks.verify_signature(body, headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body.replace(b"done", b"dead"), headers)


def test_a_webhook_is_not_forgotten_when_its_sender_dies(store):
    with listener([]) as (url, heard):
        job = close_one(store, url)
        with store.database.transaction() as run:  # one who took it and vanished, long ago
            run("update deliveries set attempts = 1, fence = 1, lease_from = 0, lease_until = 1e-9")
        teller = Webhooks(store, "whsec_eA==", {url.split("/")[2]})
        assert teller.deliver() and not teller.deliver()
    assert len(heard) == 1 and deliveries(store, job)[0]["attempts"] == 2


def test_a_webhook_nobody_hears_is_given_up(store, monkeypatch):
    monkeypatch.setattr(hooks, "MOST_ATTEMPTS", 2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    job = close_one(store, f"http://127.0.0.1:{port}/")
    teller = Webhooks(store, "whsec_eA==", {f"127.0.0.1:{port}"}, wait=0.0)
    assert teller.deliver() and teller.deliver() and not teller.deliver()
    found = deliveries(store, job)[0]
    assert found["state"] == "dead" and "ConnectionRefusedError" in found["error"]
    other = close_one(store, "http://127.0.0.1:1/")
    assert teller.deliver()
    assert "not on this server's list" in deliveries(store, other)[0]["error"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://me@localhost:80/",
        "http://localhost:80\\@evil.example/",
        "http://evil.example:80/#localhost:80",
        "ftp://localhost:80/",
        "http://localhost:port/",
        "http://localhost:80/ x",
        "http://localhost:80/" + "x" * 3000,
        "http://ｌocalhost:80/",
        "http://2130706433:80/",
        "file:///etc/passwd",
        "",
    ],
)
def test_addresses_that_are_not_called(url):
    with pytest.raises(NotAllowed):
        target(url, {"localhost:81", "[::1]:80"})


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("::1", True),
        ("fd00::7", True),
        ("::ffff:10.0.0.1", True),
        ("93.184.216.34", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("::ffff:93.184.216.34", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
    ],
)
def test_a_name_counts_by_the_address_it_has_now(monkeypatch, address, near):
    """The resolver is on the other side of a socket: here it says what a test wants."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    answer = [(family, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    if near:
        assert target("http://inside.example/x?y=1", {"inside.example:80"}).address == address
    else:
        with pytest.raises(NotAllowed, match="outside of this machine"):
            target("http://inside.example/", {"inside.example:80"})
