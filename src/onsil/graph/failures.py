"""How a graph says no: one class for each thing a caller can do about it.

Come back later (`Busy`, `Open`), ask for less (`Late`), ask differently (`BadInput`), tell the
owner (`Failed`, `Died`, `NotReady`). A failure knows its step and, at the end of a run, its trace;
it can be written as JSON and read again, so that it is the same failure whether the step ran here,
in another process or on another machine. What a step's own exception said stays in `detail`, for
the log of the owner: it may quote what was asked.
"""

from typing import Any, ClassVar


class Failure(Exception):
    """A run that gave no answer. `kind` is the word for it in traces and between processes."""

    kind: ClassVar[str] = "failed"
    again: ClassVar[bool] = False  # whether an idempotent step may be asked once more

    def __init__(
        self,
        message: str,
        step: str | None = None,
        retry_after: float | None = None,
        detail: str = "",
        errors: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__(message)
        self.message, self.step, self.retry_after = message, step, retry_after
        self.detail = detail
        self.errors = errors or {}  # of a par: branch → failure as JSON
        self.trace: list[dict[str, Any]] = []

    def told(self) -> dict[str, Any]:
        """This failure as plain JSON, for another process of ours."""
        found = {
            "kind": self.kind,
            "message": self.message,
            "step": self.step,
            "retry_after": self.retry_after,
            "detail": self.detail,
            "errors": self.errors,
        }
        return {key: value for key, value in found.items() if value}

    def shown(self) -> dict[str, Any]:
        """The same as a caller may see it: without `detail`."""
        return {key: value for key, value in self.told().items() if key != "detail"}


class BadInput(Failure):
    """The value cannot be worked on; the message says what to change. A step raises it too."""

    kind = "bad_input"


class Busy(Failure):
    """As many calls as allowed are under way; come back in `retry_after` seconds."""

    kind = "busy"


class Late(Failure):
    """The time that the request, or this step, had is over."""

    kind, again = "late", True


class Open(Failure):
    """A breaker keeps callers away for `retry_after` seconds, because what it guards is broken."""

    kind = "open"


class Failed(Failure):
    """A step raised an exception, or gave something that is not plain JSON."""

    kind, again = "failed", True


class Died(Failure):
    """The process or actor of a step ended while it worked."""

    kind, again = "died", True


class NoQuorum(Failure):
    """Too few branches of a par answered; `errors` says of each what happened."""

    kind = "no_quorum"


class NotReady(Failure):
    """A step could not be loaded, or was made for another model than the one it serves."""

    kind = "not_ready"


KINDS = {c.kind: c for c in (BadInput, Busy, Late, Open, Failed, Died, NoQuorum, NotReady)}


def read_failure(told: dict[str, Any]) -> Failure:
    """The failure that was written with `told`."""
    return KINDS[told["kind"]](
        told["message"],
        told.get("step"),
        told.get("retry_after"),
        told.get("detail", ""),
        told.get("errors"),
    )
