"""The lines of a batch: requests in, answers out, both JSON Lines in OpenAI's form."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from onsil.serving.guard import LARGEST_BODY, Refused, parse
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.job import DamagedFile, Job, Json, Unknown, spell
from onsil.serving.jobs.schema import PREFIX
from onsil.serving.jobs.store import JobStore

FIELDS = {"custom_id", "method", "url", "body"}
LONGEST_ID = 512
UNFINISHED = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed because its batch was cancelled.",
    "dead": "This request was not executed because its batch failed.",
}


@dataclass(frozen=True)
class Line:
    """One request of a batch, `number` from 1; `unit` names its checkpoint."""

    number: int
    custom_id: str
    body: dict[str, Any]
    unit: str


def texts(path: Path) -> Iterator[bytes]:
    """The lines of a file but the empty ones; one that is too long comes cut off."""
    with path.open("rb") as file:
        while text := file.readline(LARGEST_BODY + 1):
            if text.strip():
                yield text
            while len(text) > LARGEST_BODY and not text.endswith(b"\n"):
                text = file.readline(LARGEST_BODY + 1)


def checked(text: bytes, endpoint: str) -> dict[str, Any]:
    """The request of a line. Raises Refused, with the field and OpenAI's code for what is wrong."""
    if len(text) > LARGEST_BODY:
        raise Refused(400, f"The line is longer than {LARGEST_BODY:,} bytes.", code="too_long")
    found = parse(text)
    for name in FIELDS - {*found}:
        raise Refused(400, f"{name} is missing.", param=name, code="missing_required_parameter")
    for name in {*found} - FIELDS:
        raise Refused(400, f"{name[:64]!r} is not known.", param=name[:64], code="unknown_field")
    identity, method, url, body = (found[k] for k in ("custom_id", "method", "url", "body"))
    if not isinstance(identity, str) or not 1 <= len(identity) <= LONGEST_ID:
        raise Refused(400, "custom_id must be a short string.", param="custom_id", code="invalid")
    if method != "POST":
        raise Refused(400, "method must be POST.", param="method", code="invalid_method")
    if url != endpoint:
        raise Refused(400, f"url must be {endpoint}.", param="url", code="mismatched_url")
    if not isinstance(body, dict):
        raise Refused(400, "body must be an object.", param="body", code="invalid")
    if body.get("stream"):
        raise Refused(400, "A batch cannot stream.", param="body.stream", code="invalid")
    return found


def requests(path: Path, models: Mapping[str, str]) -> Iterator[Line]:
    """The lines of a checked file, their models by the pinned names of `models`."""
    for number, text in enumerate(texts(path), 1):
        request = json.loads(text)
        body = request["body"]
        model = body.get("model")
        if isinstance(model, str):
            body["model"] = model = models[model]
        by = hashlib.sha256(str(model).encode()).hexdigest()[:16]
        yield Line(number, request["custom_id"], body, f"{PREFIX}{number:06d}:{by}")


def answered(line: Line, status: int, body: Json) -> dict[str, Any]:
    """A line's answer as it is checkpointed."""
    return {"custom_id": line.custom_id, "status": status, "body": body}


def write_outputs(store: JobStore, files: FileStore, job: Job) -> dict[str, str | None]:
    """The output and the error file of a batch, made of its checkpoints; the same ones each time.
    Of a batch that ended early the error file names the lines that were not answered."""
    identity = job.id.removeprefix("job_")
    rest = _unanswered(store, files, job) if job.state in UNFINISHED else iter(())
    streams: dict[str, Iterator[bytes]] = {"output": _written(store, job, True)}
    streams["error"] = chain(_written(store, job, False), rest)
    made: dict[str, str | None] = {}
    for kind, lines in streams.items():
        made[f"{kind}_file_id"] = None
        if (first := next(lines, None)) is not None:
            name = f"file-{identity}{kind[0]}"
            whole = chain([first], lines)
            files.write(job.owner, whole, f"batch_{identity}_{kind}.jsonl", "batch_output", name)
            made[f"{kind}_file_id"] = name
    return made


def _written(store: JobStore, job: Job, well: bool) -> Iterator[bytes]:
    for unit, value in store.each_checkpoint(job.id, PREFIX):
        if (value["status"] < 400) == well:
            identity = _request_id(job, unit)
            response = {
                "status_code": value["status"],
                "request_id": identity,
                "body": value["body"],
            }
            yield _jsonl(identity, value["custom_id"], response, None)


def _unanswered(store: JobStore, files: FileStore, job: Job) -> Iterator[bytes]:
    found = store.checkpoint_of(job.id, "validated")
    if found is None or found[0]["errors"]:
        return
    try:
        path = files.path(files.get(job.owner, job.payload["input_file_id"]))
    except (Unknown, DamagedFile):
        return  # nobody can be told what is missing from a file that is not there
    done = {unit for unit, _ in store.each_checkpoint(job.id, PREFIX)}
    for line in requests(path, found[0]["models"]):
        if line.unit not in done:
            error = {"code": f"batch_{job.state}", "message": UNFINISHED[job.state]}
            yield _jsonl(_request_id(job, line.unit), line.custom_id, None, error)


def _request_id(job: Job, unit: str) -> str:
    return f"batch_req_{hashlib.sha256(f'{job.id} {unit}'.encode()).hexdigest()[:24]}"


def _jsonl(identity: str, custom_id: str, response: Json, error: Json) -> bytes:
    row = {"id": identity, "custom_id": custom_id, "response": response, "error": error}
    return (spell(row) + "\n").encode()
