"""What a job is, the states it passes through, and everything that can be wrong with one.

    ready ──► running ──► done
      ▲          │
      │          ├──► failed ──► running …      an attempt failed; waits, then is tried again
      │          └──► dead                      no attempts left: kept whole, can be retried
      └───────────────┘
    ready, running ──► cancelled, expired

An attempt is counted when it is claimed, not when it ends: work that takes its worker down with it
would otherwise never be counted and would be tried for ever. The *fence* rises with every claim,
and only who holds the newest may write (Kleppmann, "How to do distributed locking", 2016). Payload,
result and error are JSON, so a dead job can be read, and run again, years later; nothing here is
ever unpickled.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from onsil.errors import OnsilError

Json = Any  # None, bool, int, float, str, list and dict with string keys, of these

READY, RUNNING, DONE, FAILED, DEAD = "ready", "running", "done", "failed", "dead"
CANCELLED, EXPIRED = "cancelled", "expired"
CLOSED = (DONE, DEAD, CANCELLED, EXPIRED)
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of jobs and files; anything else is unknown here


@dataclass(frozen=True)
class Job:
    """One job as it stood when it was read. Times are epoch seconds; `lease_until` is in the
    store's own clock and only says something beside others; `progress` counts checkpoints;
    `cancelling` is when somebody asked for its end."""

    id: str
    owner: str
    key: str
    kind: str
    state: str
    fingerprint: str
    payload: Json
    attempts: int
    max_attempts: int
    fence: int
    lease_until: float
    progress: int
    result: Json
    error: dict[str, Any] | None
    cancelling: float | None
    webhook: str | None
    created: float
    started: float | None
    finished: float | None
    expires: float | None
    worker: str | None

    @property
    def closed(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.state in CLOSED


@dataclass(frozen=True)
class Event:
    """One step of a job's history: the state it entered, by which attempt and fence, and the error
    (`kind`, `message`, `trace`) that an attempt ended with."""

    seq: int
    at: float
    state: str
    attempt: int
    fence: int
    error: dict[str, Any] | None


class StoreError(OnsilError):
    """What the store cannot do; `status` is how a door says it. The first sentence is for callers;
    the second may name hosts and paths, and is for the operator."""

    status = 503


class Unavailable(StoreError):
    """The store cannot be reached or written now; nothing was accepted."""

    def __init__(self, reason: str):
        super().__init__(
            en=(
                "The job store cannot be used now; nothing was accepted.",
                f"{reason}. What was accepted before is still there.",
                "Try again in a moment; if it stays so, look at the disk or the database server.",
            ),
            ko=(
                "작업 저장소를 지금 쓸 수 없어 이번 요청은 접수되지 않았습니다.",
                f"{reason}. 앞서 접수된 작업은 그대로 있습니다.",
                "잠시 뒤 다시 해 보고, 계속되면 디스크나 데이터베이스 서버를 살펴보세요.",
            ),
        )


class Full(StoreError):
    """No room left to accept anything; what was accepted before is safe."""

    status = 507

    def __init__(self, reason: str):
        super().__init__(
            en=(
                "The job store has no room left; nothing was accepted.",
                f"{reason}. What was accepted before is still there.",
                "Free some space on its disk and send the request again.",
            ),
            ko=(
                "작업 저장소에 자리가 없어 이번 요청은 접수되지 않았습니다.",
                f"{reason}. 앞서 접수된 작업은 그대로 있습니다.",
                "디스크에 자리를 만든 다음 다시 보내 주세요.",
            ),
        )


class Damaged(StoreError):
    """The store does not read as it was written."""

    def __init__(self, place: str, reason: str):
        super().__init__(
            en=(
                "The job store is damaged.",
                f"{place}: {reason}. Writing to it could destroy jobs that can still be read.",
                "Stop the workers, copy it, and put back a backup or what `.recover` finds.",
            ),
            ko=(
                "작업 저장소가 손상되었습니다.",
                f"{place}: {reason}. 이대로 쓰면 아직 읽을 수 있는 작업까지 잃을 수 있습니다.",
                "작업자를 멈추고 복사해 둔 뒤, 백업이나 `.recover` 결과로 되돌려 주세요.",
            ),
        )


class DamagedFile(StoreError):
    """An uploaded file's bytes are gone, or others than came."""

    status = 500

    def __init__(self, identity: str):
        super().__init__(
            en=(
                f"The file {identity} is damaged: its bytes are not those that were uploaded.",
                "Work done with it would be wrong without anybody noticing.",
                "Upload it again.",
            ),
            ko=(
                f"파일 {identity}의 내용이 올렸을 때와 다릅니다.",
                "이대로 쓰면 아무도 모르게 틀린 결과가 나옵니다.",
                "파일을 다시 올려 주세요.",
            ),
        )


class Unknown(StoreError):
    """No such job, file or batch of this owner."""

    status = 404

    def __init__(self, what: str, name: str):
        korean = {"job": "작업이", "file": "파일이", "batch": "배치가"}[what]
        super().__init__(
            en=(
                f"There is no {what} {name!r} here.",
                "It may be another key's, deleted, or too old to be kept.",
                "Look at the list of yours.",
            ),
            ko=(
                f"{name!r}라는 {korean} 없습니다.",
                "다른 키의 것이거나, 지워졌거나, 보관 기간이 지났을 수 있습니다.",
                "내 목록을 확인해 주세요.",
            ),
        )


class Conflict(StoreError):
    """The key was used for other work, or the job is in no state for this."""

    status = 409


class Lost(Exception):
    """Another worker holds the job now (its fence is newer), or nobody does; stop working."""


class Cancelled(Exception):
    """Raised by a handler that stops because `claimed.cancelled()`: `result` is kept."""

    def __init__(self, result: Json = None):
        super().__init__("cancelled")
        self.result = result


class NoRetry(Exception):
    """Raised by a handler for work that will never succeed: dead at once, attempts left or not."""


class Later(Exception):
    """Raised by a handler that was turned away for now: a full house is no failed attempt. The job
    is given back, to be claimed again after `seconds`."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


def spell(value: Json) -> str:
    """JSON in ASCII, which every database stores as it is. Raises ValueError for NaN, TypeError for
    what is not JSON."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def fingerprint_of(*parts: Json) -> str:
    """SHA-256 of what makes two pieces of work the same: input, model digest, parameters."""
    text = json.dumps(parts, ensure_ascii=True, allow_nan=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
