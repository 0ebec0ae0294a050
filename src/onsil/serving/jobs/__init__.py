"""Work that outlives the request that asked for it: a durable store, workers, files and batches."""

from onsil.serving.jobs.job import (
    Cancelled,
    Conflict,
    Damaged,
    Event,
    Full,
    Job,
    Later,
    Lost,
    NoRetry,
    StoreError,
    Unavailable,
    Unknown,
    fingerprint_of,
)
from onsil.serving.jobs.opening import open_store
from onsil.serving.jobs.store import JobStore
from onsil.serving.jobs.worker import Claimed, Worker

__all__ = [
    "Cancelled",
    "Claimed",
    "Conflict",
    "Damaged",
    "Event",
    "Full",
    "Job",
    "JobStore",
    "Later",
    "Lost",
    "NoRetry",
    "StoreError",
    "Unavailable",
    "Unknown",
    "Worker",
    "fingerprint_of",
    "open_store",
]
