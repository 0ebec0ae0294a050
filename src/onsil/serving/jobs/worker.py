"""Who does the work: claims jobs, keeps their leases, writes what came of them.

    handlers = {"double": lambda claimed: claimed.payload * 2}
    Worker(store, handlers).run()

One thread claims, `threads` threads work, one renews the leases of all that run, one closes what
expired and forgets what is old. A handler is an
ordinary function of the `Claimed` job; it returns plain JSON, raises NoRetry for what can never
succeed, Later for what was turned away for now, Cancelled when it ends because it was asked to, and
anything else for "try again". What it
checkpoints is done for good, so a handler that was killed begins with `claimed.checkpoints()` and
goes on behind them. A worker that lost its lease (it slept, or the machine did) is told so at its
next checkpoint and writes nothing.

On `stop` nothing new is claimed, and what runs may finish for `grace` seconds; then it is given
back without counting the attempt.
"""

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping

from onsil.serving.jobs.job import Cancelled, Job, Json, Later, Lost, NoRetry, StoreError
from onsil.serving.jobs.keeping import DAYS, kept
from onsil.serving.jobs.store import JobStore

LOOK = 1.0  # seconds between looks at the store when nobody calls
PRUNE, BREATH = 3600.0, 0.05  # seconds between looks for what is old, and between two parts of it
log = logging.getLogger("onsil.serving.jobs")


class Stopping(Exception):
    """The worker shuts down: raised by the next `checkpoint` (which is written) or `cancelled`; the
    job is given back."""


class Claimed:
    """A job as its handler sees it."""

    def __init__(self, store: JobStore, job: Job, lease: float):
        self.job, self.lease, self._store = job, lease, store
        self._ending = self._stopping = False
        self._beaten = time.monotonic()

    @property
    def owner(self) -> str:
        return self.job.owner

    @property
    def id(self) -> str:
        return self.job.id

    @property
    def payload(self) -> Json:
        return self.job.payload

    @property
    def fence(self) -> int:
        return self.job.fence

    def checkpoints(self) -> dict[str, Json]:
        """Unit → value, of what this job got done so far, by whichever attempt."""
        return self._store.checkpoints(self.id)

    def checkpoint(self, unit: str, value: Json, ok: bool = True) -> None:
        """Record one unit's value, once and for all; `ok` False counts it among the failed ones.
        Raises Lost when the job is another worker's now."""
        self._store.checkpoint(self.id, self.fence, unit, value, ok)
        if self._stopping:
            raise Stopping

    def cancelled(self) -> bool:
        """Whether the handler should stop: somebody asked, or the job's time is over. As it was at
        most a second ago. Raises Lost."""
        if self._stopping:
            raise Stopping
        if time.monotonic() - self._beaten > LOOK:
            self.beat()
        return self._ending

    def beat(self) -> None:
        """Renew the lease. Raises Lost."""
        self._ending = self._store.beat(self.id, self.fence, self.lease)
        self._beaten = time.monotonic()

    def ask_to_stop(self) -> None:
        """Raise Stopping in the handler when it next speaks to us."""
        self._stopping = True


Handler = Callable[[Claimed], Json]


class Worker:
    """Works at jobs of the kinds that `handlers` names. `lease`: seconds without a sign of life
    after which others may take over; `wait`: seconds before a failed job's second attempt; `days`:
    how long a job is kept after its end, 0 for ever. Raises OnsilError for other than days."""

    def __init__(
        self,
        store: JobStore,
        handlers: Mapping[str, Handler],
        lease: float = 30.0,
        threads: int = 1,
        grace: float = 20.0,
        wait: float = 1.0,
        days: float = DAYS,
    ):
        self.store, self.handlers = store, dict(handlers)
        self.lease, self.grace, self.pause, self.days = lease, grace, wait, kept(days)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._running: set[Claimed] = set()
        self._lock, self._places = threading.Lock(), threading.Semaphore(threads)
        self._stopped, self._ended = threading.Event(), threading.Event()

    def start(self) -> threading.Thread:
        """`run` in a thread of its own."""
        thread = threading.Thread(target=self.run, name="jobs", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Claim nothing more; `run` returns when what runs is finished or given back."""
        self._stopped.set()
        self._places.release()  # `run` waits for a place
        self.store.database.tell()  # or for work

    def run(self) -> None:
        """Work until `stop`."""
        beside = [
            threading.Thread(target=call, name=call.__name__, daemon=True)
            for call in (self._keep_leases, self._keep_house)
        ]
        for thread in beside:
            thread.start()
        try:
            while not self._stopped.is_set():
                self._step()
            self._drain()
        finally:
            self._ended.set()
            for thread in beside:
                thread.join()

    def _step(self) -> None:
        """One job handed to a thread, or one wait for there to be any."""
        self._places.acquire()
        if self._stopped.is_set():
            return
        job = None
        try:
            job = self.store.claim(tuple(self.handlers), self.name, self.lease)
            if job is None:
                self.store.wait(min(LOOK, self.lease / 2, self.pause))
        except StoreError as e:
            log.warning("%s %s", *e.en[:2])
            self._stopped.wait(LOOK)
        finally:
            if job is None:
                self._places.release()
        if job is not None:
            claimed = Claimed(self.store, job, self.lease)
            with self._lock:
                self._running.add(claimed)
            threading.Thread(target=self._work, args=(claimed,), name=job.id, daemon=True).start()

    def _work(self, claimed: Claimed) -> None:
        try:
            self._attempt(claimed)
        except Lost:
            log.info("%s is another worker's now", claimed.id)
        except StoreError as e:  # its lease runs out, and it is tried again from its checkpoints
            log.warning("%s could not be written. %s %s", claimed.id, *e.en[:2])
        finally:
            with self._lock:
                self._running.discard(claimed)
            self._places.release()

    def _attempt(self, claimed: Claimed) -> None:
        """Run the handler and write down how it ended. Raises Lost and StoreError."""
        store, job, fence = self.store, claimed.id, claimed.fence
        try:
            result = self.handlers[claimed.job.kind](claimed)
            store.finish(job, fence, result)
        except (Lost, StoreError):
            raise
        except Stopping:
            store.release(job, fence)
        except Later as e:
            store.release(job, fence, e.seconds)
            log.info("%s waits for %.0f s: %s", job, e.seconds, e)
        except Cancelled as e:
            store.stop(job, fence, e.result)
        except Exception as e:
            retry = not isinstance(e, NoRetry)
            state = store.fail(job, fence, described(e), retry, self.pause)
            log.info("%s: attempt %d ended in %s", job, claimed.job.attempts, state)

    def _keep_leases(self) -> None:
        """Renew what runs, three times a lease."""
        while not self._ended.wait(min(LOOK, self.lease / 3)):
            with self._lock:
                running = list(self._running)
            try:
                for claimed in running:
                    try:
                        claimed.beat()
                    except Lost:
                        log.info("%s was lost while it ran", claimed.id)
            except StoreError as e:
                log.warning("%s %s", *e.en[:2])

    def _keep_house(self) -> None:
        """Close what expired while it waited; forget what is old, a little at a time."""
        due = pause = 0.0
        while not self._ended.wait(pause):
            pause = LOOK
            try:
                self.store.sweep()
                if time.monotonic() >= due:
                    if self.store.prune(self.days):
                        pause = BREATH
                    else:
                        due = time.monotonic() + PRUNE
            except StoreError as e:
                log.warning("%s %s", *e.en[:2])

    def _drain(self) -> None:
        """Wait for what runs; ask it to stop, and give it back when it does not."""
        with self._lock:
            running = list(self._running)
        for claimed in running:
            claimed.ask_to_stop()
        until = time.monotonic() + self.grace
        while self._running and time.monotonic() < until:
            time.sleep(0.02)
        with self._lock:
            left = list(self._running)
        for claimed in left:
            try:
                self.store.release(claimed.id, claimed.fence)
            except (Lost, StoreError) as e:
                log.info("%s could not be given back: %s", claimed.id, type(e).__name__)


def described(error: BaseException) -> dict[str, str]:
    """An error as it is kept: what kind, what it said, and where (no values of variables)."""
    return {
        "kind": type(error).__name__,
        "message": str(error),
        "trace": "".join(traceback.format_tb(error.__traceback__)[-8:]),
    }
