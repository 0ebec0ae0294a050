"""A worker as a process of its own.

    python -m onsil.serving.jobs --store URL --handlers package.module:name

The name is a mapping of kinds to handlers, or a function of the store that makes one.
"""

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from onsil.errors import OnsilError
from onsil.serving.jobs.keeping import DAYS, kept
from onsil.serving.jobs.opening import open_store
from onsil.serving.jobs.store import JobStore
from onsil.serving.jobs.worker import Handler, Worker


def work(worker: Worker) -> None:
    """A worker in the main thread until SIGTERM or SIGINT; closes its store."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # not in the handler itself: what it interrupts may hold the lock that `stop` needs
        signal.signal(number, lambda *_: threading.Thread(target=worker.stop).start())
    try:
        worker.run()
    finally:
        worker.store.close()


def handlers_of(place: str, store: JobStore) -> Mapping[str, Handler]:
    """What `package.module:name` is. Raises OnsilError when it is nothing of the kind."""
    module, _, name = place.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise OnsilError(
            en=(
                f"--handlers {place}: {e}.",
                "A worker needs a mapping of kinds to handlers, or a function that makes one.",
                "Write package.module:name, as you would import it in this folder.",
            ),
            ko=(
                f"--handlers {place}: {e}.",
                "작업자에는 작업 종류별 처리 함수를 담은 사전이나 그것을 만드는 함수가 필요합니다.",
                "이 폴더에서 import할 때처럼 package.module:name으로 적어 주세요.",
            ),
        ) from e
    return found if isinstance(found, Mapping) else found(store)


def main() -> None:
    reader = argparse.ArgumentParser(description="Work at the jobs of a store.")
    reader.add_argument("--store", required=True, help="sqlite:///path or postgresql://…")
    reader.add_argument("--handlers", required=True, help="package.module:name")
    reader.add_argument("--lease", type=float, default=30.0, help="seconds")
    reader.add_argument("--threads", type=int, default=1)
    reader.add_argument("--days", type=float, default=DAYS, help="that what is over is kept, or 0")
    given = reader.parse_args()
    try:
        kept(given.days, "--days")
        store = open_store(given.store)
        handlers = handlers_of(given.handlers, store)
    except OnsilError as e:
        sys.exit(str(e))
    worker = Worker(store, handlers, given.lease, given.threads, days=given.days)
    work(worker)


if __name__ == "__main__":
    main()
