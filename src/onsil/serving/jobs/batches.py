"""OpenAI's batches: a file of requests in, a file of answers out, within a day.

A batch is a job of kind `batch` and nothing else: its status, its times and its counts are read off
the job and its checkpoints, so there is no second record that could disagree. `answering.py` is the
worker's half.
"""

import re
from typing import Any

from onsil.serving.guard import Refused
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.job import (
    CANCELLED,
    DEAD,
    DONE,
    EXPIRED,
    Job,
    Unknown,
    fingerprint_of,
)
from onsil.serving.jobs.lines import write_outputs
from onsil.serving.jobs.store import JobStore

KIND = "batch"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW = 24 * 3600.0  # seconds
ATTEMPTS = 1_000_000  # a batch is given up line by line, not as a whole
ID = re.compile(r"batch_[0-9a-f]{24}")
FIELDS = {"input_file_id", "endpoint", "completion_window", "metadata"}


class Batches:
    """The batches of one store, as its callers see them."""

    def __init__(self, store: JobStore, files: FileStore):
        self.store, self.files = store, files

    def create(self, owner: str, key: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """A new batch, accepted for good. Raises Refused, Unknown for the file, Conflict."""
        for name in {*body} - FIELDS:
            raise Refused(400, f"{name[:64]!r} is not known here.", param=name[:64])
        if body.get("endpoint") not in ENDPOINTS:
            message = f"endpoint must be one of {', '.join(ENDPOINTS)}."
            raise Refused(400, message, param="endpoint")
        if body.get("completion_window") != "24h":
            raise Refused(400, "completion_window must be 24h.", param="completion_window")
        if not isinstance(name := body.get("input_file_id"), str):
            raise Refused(400, "input_file_id must name a file.", param="input_file_id")
        metadata = _metadata(body.get("metadata"))
        file = self.files.get(owner, name)
        if file.purpose != "batch":
            message = f"{name} was not uploaded for batches (purpose {file.purpose})."
            raise Refused(400, message, param="input_file_id")
        payload = {
            "input_file_id": name,
            "endpoint": body["endpoint"],
            "completion_window": "24h",
            "metadata": metadata,
        }
        job = self.store.submit(
            *(owner, key, KIND, payload),
            fingerprint=fingerprint_of(payload, file.sha256),
            max_attempts=ATTEMPTS,
            expires=WINDOW,
        )
        return self.view(job)

    def get(self, owner: str, batch: str) -> dict[str, Any]:
        """Raises Unknown."""
        return self.view(self._job(owner, batch))

    def cancel(self, owner: str, batch: str) -> dict[str, Any]:
        """Raises Unknown."""
        return self.view(self.store.cancel(owner, self._job(owner, batch).id))

    def listed(self, owner: str, limit: int, after: str | None) -> list[dict[str, Any]]:
        """The newest first. Raises Unknown for an `after` that is not there."""
        last = None if after is None else self._job(owner, after).id
        return [self.view(job) for job in self.store.listed(owner, [KIND], limit, last)]

    def _job(self, owner: str, batch: str) -> Job:
        if not ID.fullmatch(batch):
            raise Unknown("batch", batch)
        try:
            job = self.store.get(owner, f"job_{batch.removeprefix('batch_')}")
        except Unknown as e:
            raise Unknown("batch", batch) from e
        if job.kind != KIND:
            raise Unknown("batch", batch)
        return job

    def view(self, job: Job) -> dict[str, Any]:
        """The batch object. One that ended without its worker gets its files now."""
        if job.state in (CANCELLED, EXPIRED, DEAD) and job.result is None:
            self.store.conclude(job.id, write_outputs(self.store, self.files, job))
            job = self.store.get(job.owner, job.id)
        validated = self.store.checkpoint_of(job.id, "validated")
        finalizing = self.store.checkpoint_of(job.id, "finalizing")
        well, badly = self.store.checkpoint_counts(job.id)
        found, began = validated or ({"total": 0, "errors": []}, None)
        result, errors = job.result or {}, found["errors"]
        if job.state == DEAD and job.error is not None:
            message = job.error["message"]
            errors = [{"code": "failed", "message": message, "param": None, "line": None}]
        status = _status(job, bool(validated), bool(errors), bool(finalizing))
        over = None if job.finished is None else int(job.finished)
        names = ("completed", "failed", "expired", "cancelled")
        ended: dict[str, int | None] = dict.fromkeys(names)
        if status in ended:
            ended[status] = over
        return {
            "id": f"batch_{job.id.removeprefix('job_')}",
            "object": "batch",
            "endpoint": job.payload["endpoint"],
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": job.payload["input_file_id"],
            "completion_window": job.payload["completion_window"],
            "status": status,
            "output_file_id": result.get("output_file_id"),
            "error_file_id": result.get("error_file_id"),
            "created_at": int(job.created),
            "in_progress_at": None if began is None or errors else int(began),
            "expires_at": None if job.expires is None else int(job.expires),
            "finalizing_at": None if finalizing is None else int(finalizing[1]),
            **{f"{name}_at": at for name, at in ended.items()},
            "cancelling_at": None if job.cancelling is None else int(job.cancelling),
            "request_counts": {
                "total": 0 if found["errors"] else found["total"],
                "completed": well,
                "failed": badly,
            },
            "metadata": job.payload["metadata"],
        }


def _status(job: Job, validated: bool, errors: bool, finalizing: bool) -> str:
    if job.state == DONE:
        return "failed" if errors else "completed"
    if job.state == DEAD:
        return "failed"
    if job.closed:
        return job.state
    if job.cancelling is not None:
        return "cancelling"
    if finalizing:
        return "finalizing"
    return "in_progress" if validated else "validating"


def _metadata(given: Any) -> dict[str, str] | None:
    """Raises Refused for what OpenAI's metadata cannot be."""
    if given is None:
        return None
    texts = isinstance(given, dict) and all(isinstance(v, str) for v in given.values())
    if not texts or len(given) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in given.items()):
        message = "metadata: at most 16 texts, names of at most 64 characters, values of 512."
        raise Refused(400, message, param="metadata")
    return given
