"""Telling another program that a job is over.

The message is written in the transaction that closes the job (an outbox), so it is never forgotten
and never sent for what did not happen; it is sent until the other side answers 2xx, at most
`MOST_ATTEMPTS` times over about a day, and so may come twice: its id says so. The form is that of
Standard Webhooks (standardwebhooks.com), which OpenAI's client can check: `webhook-id`,
`webhook-timestamp`, and an HMAC-SHA256 over both and the body.

A server that calls addresses given by its callers can be made to call anything inside its network
(SSRF). So a target must be on the operator's list, as host and port, and every address that its
name resolves to must be of this machine or a private network; the connection goes to the address
that was checked, redirects are answers like any other, and proxies of the environment are not used.
"""

import base64
import hashlib
import hmac
import http.client
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from onsil.serving.jobs.job import StoreError
from onsil.serving.jobs.schema import FREE
from onsil.serving.jobs.store import JobStore

MOST_ATTEMPTS, LONGEST_WAIT = 12, 6 * 3600.0
SECONDS, LEASE, LOOK = 10.0, 60.0, 1.0  # for one call, for who sends, between looks
LONGEST_URL = 2_000
NEAR = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7"),
    )
)
log = logging.getLogger("onsil.serving.jobs")


class NotAllowed(ValueError):
    """A webhook's address that will not be called, and why."""


@dataclass(frozen=True)
class Target:
    """Where a message goes: the name for the Host header, the address for the connection."""

    scheme: str
    host: str
    port: int
    address: str
    path: str


def target(url: str, allowed: Collection[str]) -> Target:
    """A URL, checked against the list of `host:port` and resolved. Raises NotAllowed."""
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable():
        raise NotAllowed("it is too long, or holds characters that no URL holds")
    if any(character in url for character in " \\@#"):
        raise NotAllowed("it holds a space, a backslash, a user's name or a fragment")
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as e:
        raise NotAllowed("it is no http or https URL") from e
    host = (parts.hostname or "").lower()
    shown = f"[{host}]" if ":" in host else host
    if f"{shown}:{port}" not in allowed:
        raise NotAllowed(f"{shown}:{port} is not on this server's list of webhook hosts")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, _near(host, port), path)


def _near(host: str, port: int) -> str:
    """The address of a host that is here or in a private network. Raises NotAllowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise NotAllowed(f"{host} has no address") from e
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if not any(address.version == net.version and address in net for net in NEAR):
            raise NotAllowed(f"{host} is at {text}, outside of this machine and its network")
    return addresses[0]


def signed(secret: str, identity: str, body: bytes) -> dict[str, str]:
    """The headers of one message, now."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    stamp = str(int(time.time()))
    mac = hmac.new(key, f"{identity}.{stamp}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(mac.digest()).decode(),
    }


def post(to: Target, headers: dict[str, str], body: bytes) -> int:
    """The status of one POST to a checked address; nothing is followed. Raises OSError."""
    connection = http.client.HTTPConnection(to.host, to.port, timeout=SECONDS)
    plain = socket.create_connection((to.address, to.port), SECONDS)
    try:
        if to.scheme == "https":
            context = ssl.create_default_context()
            plain = context.wrap_socket(plain, server_hostname=to.host)
        connection.sock = plain
        connection.request("POST", to.path, body, headers)
        return connection.getresponse().status
    except http.client.HTTPException as e:
        raise OSError(f"{type(e).__name__}: no answer in HTTP") from e
    finally:
        connection.close()
        plain.close()


class Webhooks:
    """Sends what a store's jobs left to be sent. `allowed`: `host:port` of those who may be called;
    `wait`: seconds before the second attempt, four times as long before each one after."""

    def __init__(self, store: JobStore, secret: str, allowed: Collection[str], wait: float = 2.0):
        self.store, self.secret, self.allowed, self.pause = store, secret, frozenset(allowed), wait
        self._stopped = threading.Event()

    def start(self) -> threading.Thread:
        """`run` in a thread of its own."""
        thread = threading.Thread(target=self.run, name="webhooks", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Send until `stop`."""
        while not self._stopped.is_set():
            try:
                sent = self.deliver()
            except StoreError as e:
                log.warning("%s %s", *e.en[:2])
                sent = False
            if not sent:
                self._stopped.wait(min(LOOK, self.pause))

    def deliver(self) -> bool:
        """Send one message that is due; False when there is none."""
        database = self.store.database
        with database.transaction() as run:
            due = run(
                f"select id from deliveries where state = 'ready' and {FREE} order by seq limit 1"
                f"{database.skip_locked}"
            )
            if not due:
                return False
            row = run(
                "update deliveries set attempts = attempts + 1, fence = fence + 1,"
                " lease_from = steady(), lease_until = steady() + ? where id = ?"
                " returning id, url, body, attempts, fence",
                *(LEASE, due[0]["id"]),
            )[0]
        self._record(row, self._sent(row))
        return True

    def _sent(self, row: dict[str, Any]) -> str | None:
        """What went wrong, None when it arrived."""
        body = row["body"].encode()
        try:
            to = target(row["url"], self.allowed)
            status = post(to, signed(self.secret, row["id"], body), body)
        except NotAllowed as e:
            return f"not called: {e}"
        except OSError as e:
            return f"{type(e).__name__}: {e}"
        return None if 200 <= status < 300 else f"answered {status}"

    def _record(self, row: dict[str, Any], error: str | None) -> None:
        state = "delivered" if error is None else "ready"
        if error is not None and row["attempts"] >= MOST_ATTEMPTS:
            state = "dead"
        wait = min(LONGEST_WAIT, self.pause * 4 ** (row["attempts"] - 1))
        with self.store.database.transaction() as run:
            run(
                "update deliveries set state = ?, error = ?, lease_until = steady() + ?,"
                " finished = case when ? = 'ready' then null else epoch() end"
                " where id = ? and fence = ? returning id",
                *(state, error, wait, state, row["id"], row["fence"]),
            )


def deliveries(store: JobStore, job: str) -> list[dict[str, Any]]:
    """What became of a job's messages, oldest first."""
    with store.database.reading() as run:
        return run(
            "select id, url, state, attempts, error from deliveries where job = ? order by seq", job
        )
