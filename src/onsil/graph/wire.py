"""Messages between processes: four bytes of length, then JSON. Nothing is ever unpickled.

A pickle from a socket is a program from a socket (ShadowMQ, 2025; CVE-2026-3059 in SGLang).
JSON is data; it costs some microseconds more and ends that class of faults.
"""

import json
import socket
import struct
from typing import Any

HEAD = struct.Struct(">I")
LONGEST = 64 * 2**20  # bytes


def packed(message: Any) -> bytes:
    """A message as it travels. Raises ValueError for one of more than 64 MiB."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > LONGEST:
        raise ValueError(f"a message of {len(body):,} bytes; at most {LONGEST:,} are sent")
    return HEAD.pack(len(body)) + body


def receive(line: socket.socket) -> Any:
    """The next message. Raises EOFError when the other side has gone."""
    (length,) = HEAD.unpack(_exactly(line, HEAD.size))
    if length > LONGEST:
        raise EOFError(f"the other side announced {length:,} bytes")
    return json.loads(_exactly(line, length))


def _exactly(line: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = line.recv(min(size, 2**20))
        if not part:
            raise EOFError("the other side has gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
