"""A worker as a process of its own.

    python -m onsil.serving.jobs --store URL --handlers package.module:name

The name is a mapping of kinds to handlers, or a function of the store that makes one.
"""

import argparse
import importlib
import signal
from collections.abc import Mapping
from typing import Any

from onsil.serving.jobs.opening import open_store
from onsil.serving.jobs.store import JobStore
from onsil.serving.jobs.worker import Handler, Worker


def work(store: JobStore, handlers: Mapping[str, Handler], lease: float, threads: int) -> None:
    """A worker in the main thread until SIGTERM or SIGINT; closes the store."""
    worker = Worker(store, handlers, lease, threads)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    try:
        worker.run()
    finally:
        store.close()


def main() -> None:
    reader = argparse.ArgumentParser(description="Work at the jobs of a store.")
    reader.add_argument("--store", required=True, help="sqlite:///path or postgresql://…")
    reader.add_argument("--handlers", required=True, help="package.module:name")
    reader.add_argument("--lease", type=float, default=30.0, help="seconds")
    reader.add_argument("--threads", type=int, default=1)
    given = reader.parse_args()
    module, _, name = given.handlers.partition(":")
    found: Any = getattr(importlib.import_module(module), name)
    store = open_store(given.store)
    work(store, found if isinstance(found, Mapping) else found(store), given.lease, given.threads)


if __name__ == "__main__":
    main()
