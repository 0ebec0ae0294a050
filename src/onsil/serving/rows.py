"""A graph over rows, at given times: a batch whose file is written by a function.

A slot is a job under the slot's key, so it runs once. The first thing that job does is to read the
source and put the rows into a file, the very kind that `/v1/batches` takes; from there on the code
is that of a batch: each row is one unit, named by its number and the models that answer it (pinned
when the run begins), written down once, and a worker that is killed leaves what it did to the next.
At the end the rows go to the sink.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onsil.graph import Answer, Failure, Node, Running
from onsil.graph.request import Pin
from onsil.graph.values import Json, canonical, plain
from onsil.lineage.spelling import write_atomically
from onsil.serving.guard import LARGEST_BODY
from onsil.serving.jobs import Claimed, JobStore, NoRetry, fingerprint_of
from onsil.serving.jobs.answering import BatchHandler
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.lines import PREFIX, texts
from onsil.serving.keys import OWNER
from onsil.serving.refusals import refused
from onsil.serving.schedules import Times, spelled

ATTEMPTS = 1_000_000  # a batch is given up row by row, not as a whole
Source = Callable[[], Iterable[Json]]
Sink = Path | Callable[[str, Iterator[dict[str, Json]]], None]
Ask = Callable[[Json, dict[str, Pin]], Answer]


@dataclass(frozen=True)
class Scheduled:
    """A graph, the rows that go through it, where they go, and when."""

    name: str
    node: Node
    source: Source
    sink: Sink
    times: Times
    at_once: int

    @property
    def kind(self) -> str:
        return f"batch.{self.name}"

    def submit(self, store: JobStore, slot: float) -> None:
        """The job of a slot; the one from before when there is one. Raises StoreError."""
        at = spelled(slot)
        store.submit(
            *(OWNER, f"{self.kind}@{at}", self.kind, {"slot": at, "at": slot}),
            fingerprint=fingerprint_of(self.kind, at),
            max_attempts=ATTEMPTS,
        )

    def last(self, store: JobStore) -> float | None:
        """The last slot that was submitted."""
        found = store.listed(OWNER, [self.kind], 1, None)
        return found[0].payload["at"] if found else None


class ScheduledBatch:
    """The handler of one scheduled batch; `ask` puts a row through the graph."""

    def __init__(
        self, store: JobStore, files: FileStore, entry: Scheduled, graph: Running, ask: Ask
    ):
        self.store, self.files, self.entry = store, files, entry
        self.graph, self.ask = graph, ask
        self.batch = BatchHandler(store, files, self._answer, self._resolve, entry.at_once)

    def __call__(self, claimed: Claimed) -> Json:
        """How many rows went well, and how many did not."""
        slot = claimed.payload["slot"]
        source = self._source(claimed)
        if source["rows"]:
            payload = {"input_file_id": source["file"], "endpoint": self.entry.kind}
            claimed.job = replace(claimed.job, payload=claimed.payload | payload)
            if errors := self.batch(claimed).get("errors"):
                raise NoRetry(f"Row {errors[0]['line']}: {errors[0]['message']}")
        self._sink(slot, self._rows(claimed, source))
        well, badly = self.store.checkpoint_counts(claimed.id)
        return {"slot": slot, "rows": source["rows"], "completed": well, "failed": badly}

    def _source(self, claimed: Claimed) -> dict[str, Any]:
        """The file with the rows, read from the source once for each slot."""
        if found := self.store.checkpoint_of(claimed.id, "source"):
            return found[0]
        rows = 0

        def lines() -> Iterator[bytes]:
            nonlocal rows
            for row in self.entry.source():
                rows += 1
                yield self._line(rows, row)

        name = f"file-{claimed.id.removeprefix('job_')}i{claimed.fence}"
        called = f"{self.entry.name}-{claimed.payload['slot']}.jsonl"
        file = self.files.write(claimed.job.owner, lines(), called, "batch", name)
        told = {"file": file.id, "rows": rows}
        claimed.checkpoint("source", told)
        return told

    def _line(self, number: int, row: Json) -> bytes:
        body = {"model": "graph", "input": plain(row)}
        line = {"custom_id": str(number), "method": "POST", "url": self.entry.kind, "body": body}
        text = json.dumps(line).encode() + b"\n"
        if len(text) > LARGEST_BODY:
            raise NoRetry(f"Row {number} has more than {LARGEST_BODY:,} bytes.")
        return text

    def _resolve(self, reference: str) -> str:
        """What the graph's references mean when the run begins, as text."""
        return canonical(self.graph.pinned())

    def _answer(self, owner: str, endpoint: str, body: dict[str, Any]) -> tuple[int, Json]:
        pins = {reference: Pin(*pin) for reference, pin in json.loads(body["model"]).items()}
        try:
            return 200, self.ask(body["input"], pins).value
        except Failure as e:
            raise refused(e) from e

    def _rows(self, claimed: Claimed, source: dict[str, Any]) -> Iterator[dict[str, Json]]:
        """Every row with its answer, in the order of the source."""
        if not source["rows"]:
            return
        path = self.files.path(self.files.get(claimed.job.owner, source["file"]))
        done = self.store.each_checkpoint(claimed.id, PREFIX)
        for text, (_, made) in zip(texts(path), done, strict=True):
            asked = json.loads(text)
            well = made["status"] < 400
            yield {
                "row": int(asked["custom_id"]),
                "input": asked["body"]["input"],
                "value": made["body"] if well else None,
                "error": None if well else made["body"]["error"],
            }

    def _sink(self, slot: str, rows: Iterator[dict[str, Json]]) -> None:
        if not isinstance(self.entry.sink, Path):
            return self.entry.sink(slot, rows)
        self.entry.sink.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.entry.sink / f"{self.entry.name}-{slot}.jsonl", text)
