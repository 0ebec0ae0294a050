"""The worker's half of a batch: every line answered, each once, whatever happens meanwhile.

One line is one unit, named by its number and the model that answers it; a model is pinned when the
file is checked (`resolve`), so a batch that outlives a change of champion is answered by one model
throughout. A worker that is killed leaves the lines it answered; the next one goes on with the
others.

A line that takes its worker down with it would stop the batch for ever. So an attempt that follows
another first writes down which line it begins with and goes line by line for a while; one that was
begun with `TRIES` times and never ended is answered with an error.

A batch whose owner's budget is used up (`Later`) is given back until it makes sense to ask again,
which counts as no attempt: others are worked at meanwhile.
"""

import asyncio
import inspect
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from onsil.serving.guard import Refused
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.job import Cancelled, DamagedFile, Json, Later, NoRetry, Unknown
from onsil.serving.jobs.lines import (
    PREFIX,
    Line,
    answered,
    checked,
    requests,
    texts,
    write_outputs,
)
from onsil.serving.jobs.store import JobStore
from onsil.serving.jobs.worker import Claimed

MOST_LINES, MOST_ERRORS, TRIES = 50_000, 20, 3
PATIENCE, LONGEST_PAUSE = 600.0, 5.0  # seconds: that a busy server is asked again, between two
BUSY = 503

Answer = Callable[[str, str, dict[str, Any]], tuple[int, Json] | Awaitable[tuple[int, Json]]]
Resolve = Callable[[str], str]


class BatchHandler:
    """The handler of kind `batch`. `answer(owner, endpoint, body)` gives a status and a body (or
    raises Refused; Later and NoRetry for what concerns the whole batch) and may be a coroutine
    function; several threads call it. `resolve` turns a model's reference into one that never means
    another model; `at_once` lines are in the making at any time."""

    def __init__(
        self,
        store: JobStore,
        files: FileStore,
        answer: Answer,
        resolve: Resolve = lambda reference: reference,
        at_once: int = 4,
    ):
        self.store, self.files, self.at_once = store, files, at_once
        self._answer, self._resolve = answer, resolve

    def __call__(self, claimed: Claimed) -> Json:
        """`{"errors": …}` for a file that is not in order, else the files that came out."""
        try:
            path = self.files.path(self.files.get(claimed.owner, claimed.payload["input_file_id"]))
        except Unknown as e:
            raise NoRetry("The input file was deleted before the batch was done.") from e
        except DamagedFile as e:
            raise NoRetry(e.en[0]) from e
        found = self._validated(claimed, path)
        if found["errors"]:
            return {"errors": found["errors"]}
        self._answer_lines(claimed, requests(path, found["models"]))
        claimed.checkpoint("finalizing", None)
        return write_outputs(self.store, self.files, claimed.job)

    def _validated(self, claimed: Claimed, path: Path) -> dict[str, Any]:
        """Number of lines, what is wrong with them, and the pinned name of each model."""
        if found := self.store.checkpoint_of(claimed.id, "validated"):
            return found[0]
        errors: list[dict[str, Any]] = []
        seen: set[str] = set()
        models: dict[str, str] = {}
        total = 0
        for total, text in enumerate(texts(path), 1):
            try:
                self._check(text, claimed.payload["endpoint"], total, seen, models)
            except Refused as e:
                error = {"code": e.code or "invalid_json_line", "message": e.message}
                errors.append({**error, "param": e.param, "line": total})
                if len(errors) == MOST_ERRORS:
                    break
        if not total:
            empty = {"code": "empty_file", "message": "The input file holds no request."}
            errors = [{**empty, "param": None, "line": None}]
        made = {"total": total, "errors": errors, "models": models}
        claimed.checkpoint("validated", made, ok=not errors)
        return made

    def _check(
        self, text: bytes, endpoint: str, number: int, seen: set[str], models: dict[str, str]
    ) -> None:
        """Raises Refused for a line that is not in order; pins its model."""
        if number > MOST_LINES:
            raise Refused(400, f"More than {MOST_LINES:,} lines.", code="too_many_lines")
        request = checked(text, endpoint)
        if request["custom_id"] in seen:
            message = f"{request['custom_id'][:64]!r} is there twice."
            raise Refused(400, message, param="custom_id", code="duplicate_custom_id")
        seen.add(request["custom_id"])
        model = request["body"].get("model")
        if isinstance(model, str) and model not in models:
            try:
                models[model] = self._resolve(model)
            except Refused:  # its lines will be refused in the same words, one by one
                models[model] = model

    def _answer_lines(self, claimed: Claimed, lines: Iterator[Line]) -> None:
        """Raises Cancelled when it should come to an end, Later when it should go on then."""
        done = {unit for unit, _ in self.store.each_checkpoint(claimed.id, PREFIX)}
        left = (line for line in lines if line.unit not in done)
        if claimed.job.attempts > 1:
            left = self._carefully(claimed, left)
        pool = ThreadPoolExecutor(self.at_once, thread_name_prefix="line")
        asked: dict[Future[dict[str, Any]], Line] = {}
        try:
            for line in left:
                asked[pool.submit(self._asked, claimed, line)] = line
                while len(asked) >= self.at_once:
                    self._record_some(claimed, asked)
            while asked:
                self._record_some(claimed, asked)
        except Later:
            for future, line in asked.items():  # what else is being answered is not asked again
                with suppress(Later):
                    self._record(claimed, line, future.result())
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _carefully(self, claimed: Claimed, left: Iterator[Line]) -> Iterator[Line]:
        """What is left behind the lines that the attempt before may have died of."""
        if (first := next(left, None)) is None:
            return left
        begun = [number for _, number in self.store.each_checkpoint(claimed.id, "begun:")]
        if begun.count(first.number) >= TRIES:
            refused = Refused(500, "This request ended its worker.", "server_error", code="crashed")
            self._record(claimed, first, answered(first, 500, json.loads(refused.body())))
        else:
            claimed.checkpoint(f"begun:{claimed.job.attempts:012d}", first.number)
            self._record(claimed, first, self._asked(claimed, first))
        for _ in range(self.at_once):
            if (line := next(left, None)) is not None:
                self._record(claimed, line, self._asked(claimed, line))
        return left

    def _record_some(self, claimed: Claimed, asked: dict[Future[dict[str, Any]], Line]) -> None:
        """Write down what is answered; once a second at least, look whether to stop."""
        ready, _ = wait(asked, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in ready:
            self._record(claimed, asked.pop(future), future.result())
        if claimed.cancelled():
            raise Cancelled

    def _record(self, claimed: Claimed, line: Line, value: dict[str, Any]) -> None:
        claimed.checkpoint(line.unit, value, ok=value["status"] < 400)
        if claimed.cancelled():
            raise Cancelled

    def _asked(self, claimed: Claimed, line: Line) -> dict[str, Any]:
        """One line's answer; a busy server is asked again for a while."""
        until, pause = time.monotonic() + PATIENCE, 0.5
        while True:
            status, body = self._answered(claimed, line.body)
            if status != BUSY or time.monotonic() + pause > until:
                return answered(line, status, body)
            if claimed.cancelled():
                raise Cancelled
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _answered(self, claimed: Claimed, body: dict[str, Any]) -> tuple[int, Json]:
        try:
            found = self._answer(claimed.owner, claimed.payload["endpoint"], body)
            return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
        except Refused as refused:
            return refused.status, json.loads(refused.body())


async def _awaited(answer: Awaitable[tuple[int, Json]]) -> tuple[int, Json]:
    return await answer
