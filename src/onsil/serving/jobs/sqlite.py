"""Jobs in one SQLite file: what a single machine needs, and nothing to install.

Write-ahead log, `synchronous=FULL`: a commit returns when the log is on the disk, which is what
lets a door answer 202. A process has one connection that writes and one that reads, each taken in
turns, because SQLite has one writer anyway and its own waiting (sleep and try again) is unfair
among threads; between processes it waits up to `BUSY` seconds. Every file of the store is its
owner's alone.

The disk is waited for once by all who come together (*group commit*, DeWitt et al. 1984): whoever
is done with its statements while another waits for its turn leaves the commit to that one, and
returns when it has happened. Each has a savepoint of its own, so that what one undoes is undone for
it alone; when the commit itself fails, it fails for all.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onsil.errors import OnsilError
from onsil.serving.jobs.job import Damaged, Full, Unavailable
from onsil.serving.jobs.schema import Run, migrate

BUSY, GLANCE = 30.0, 0.05  # seconds: to wait for another writer, between looks for new work
CACHE = 512  # KiB of pages a connection keeps; the rest are the system's to keep
MOST_TOGETHER, PATIENCE = 32, 1.0  # transactions in one commit; seconds to wait for it to begin
WORDS = {
    "serial": "integer primary key autoincrement",
    "real": "real",
    "whole": "integer",
    "random": "lower(hex(randomblob(16)))",
}


class _Group:
    """The transactions that one commit is for."""

    def __init__(self) -> None:
        self.size, self.over = 0, threading.Event()
        self.error: sqlite3.Error | None = None


class SQLite:
    """The database of `path`; made and migrated when needed. Raises StoreError when it is damaged
    or cannot be opened."""

    skip_locked = ""

    def __init__(self, path: Path):
        self.path, self._open = path, list[sqlite3.Connection]()
        self._writing, self._looking = threading.Lock(), threading.Lock()
        self._counting, self._queued = threading.Lock(), 0
        self._group: _Group | None = None
        self._told, self._news, self._seen = 0, threading.Condition(), threading.local()
        before = os.umask(0o077)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._faults():
                self._writer = self._connected()
                self._prepare()
                self._reader = self._connected()
        except OSError as e:
            raise Unavailable(f"{e.strerror} ({path.parent})") from e
        except OnsilError:
            self.close()
            raise
        finally:
            os.umask(before)

    def _connected(self) -> sqlite3.Connection:
        made = sqlite3.connect(
            self.path, timeout=BUSY, isolation_level=None, check_same_thread=False
        )
        self._open.append(made)
        made.row_factory = _named
        made.execute(f"pragma cache_size = -{CACHE}")
        made.create_function("epoch", 0, lambda: time.time())
        made.create_function("steady", 0, lambda: time.monotonic())
        return made

    def _prepare(self) -> None:
        found = self._writer.execute("pragma quick_check(1)").fetchone()["quick_check"]
        if found != "ok":
            raise Damaged(str(self.path), found)
        self._writer.execute("pragma journal_mode=wal")
        self._writer.execute("pragma synchronous=full")
        with self.transaction() as run:
            migrate(run, WORDS)

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """`run(sql, *values) -> rows`; committed, and on the disk, when the block is left, undone
        when it raises."""
        with self._faults():
            with self._turn():
                if self._group is None:
                    self._run("begin immediate")
                    self._group = _Group()
                group = self._group
                try:
                    self._run("savepoint own")
                    yield self._run
                    self._run("release own")
                    group.size += 1
                except BaseException as e:
                    self._undo(group, e)
                    raise
                finally:
                    if self._queued == 0 or group.size >= MOST_TOGETHER:
                        self._end(group)
            while not group.over.wait(PATIENCE):  # who was to commit was interrupted in the queue
                with self._writing:
                    self._end(group)
            if group.error is not None:
                raise group.error

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Alone among the threads; while somebody waits here, a commit can be left to them."""
        with self._counting:
            self._queued += 1
        try:
            self._writing.acquire()
        finally:
            with self._counting:
                self._queued -= 1
        try:
            yield
        finally:
            self._writing.release()

    def _undo(self, group: _Group, error: BaseException) -> None:
        """Take back one transaction; SQLite may have taken back the whole group by itself, and then
        it is over."""
        if self._writer.in_transaction:
            self._run("rollback to own")
            self._run("release own")
        elif isinstance(error, sqlite3.Error):
            self._group, group.error = None, error
            group.over.set()

    def _end(self, group: _Group) -> None:
        """Commit for all of a group."""
        if group.over.is_set():
            return
        self._group = None
        try:
            if self._writer.in_transaction:
                self._run("commit" if group.size else "rollback")
        except sqlite3.Error as e:
            group.error = e
            if self._writer.in_transaction:
                self._run("rollback")
        finally:
            group.over.set()

    @contextmanager
    def reading(self) -> Iterator[Run]:
        """The same for looking only, at what was committed; waits for no writer."""
        with self._looking, self._faults():
            self._reader.execute("begin")
            try:
                yield lambda sql, *values: self._reader.execute(sql, values).fetchall()
            finally:
                self._reader.execute("rollback")

    def _run(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return self._writer.execute(sql, values).fetchall()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as e:
            name = getattr(e, "sqlite_errorname", "")
            if name == "SQLITE_FULL":
                raise Full(str(e)) from e
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise Damaged(str(self.path), str(e)) from e
            raise Unavailable(f"{e} ({self.path})") from e

    def alone(self, run: Run, name: str) -> None:
        """Nobody else is in a transaction that asked for the same name; here, nobody is in any."""

    def tell(self) -> None:
        """Wake who waits in this process; other processes look for themselves."""
        with self._news:
            self._told += 1
            self._news.notify_all()

    def wait(self, seconds: float) -> None:
        """Until something may have changed since this thread waited last, at most `seconds`."""
        until, seen = time.monotonic() + seconds, getattr(self._seen, "now", None)
        while (now := (self._told, self._version())) == seen and time.monotonic() < until:
            with self._news:
                self._news.wait_for(lambda told=now[0]: self._told != told, GLANCE)
        self._seen.now = now

    def _version(self) -> int:
        """Changes when another process has written."""
        with self._writing, self._faults():
            return self._writer.execute("pragma data_version").fetchone()["data_version"]


def _named(cursor: sqlite3.Cursor, row: tuple) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
