"""Jobs in one SQLite file: what a single machine needs, and nothing to install.

Write-ahead log, `synchronous=FULL`: a commit returns when the log is on the disk, which is what
lets a door answer 202. One connection a process, taken in turns under a lock, because SQLite has
one writer anyway and its own waiting (sleep and try again) is unfair among threads; between
processes it waits up to `BUSY` seconds. Every file of the store is its owner's alone.
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
from onsil.serving.jobs.job import damaged, full, unavailable
from onsil.serving.jobs.schema import Run, migrate

BUSY, GLANCE = 30.0, 0.05  # seconds: to wait for another writer, between looks for new work
WORDS = {"serial": "integer primary key autoincrement", "real": "real", "whole": "integer"}


class SQLite:
    """The database of `path`; made and migrated when needed. Raises StoreError when it is damaged
    or cannot be opened."""

    skip_locked = ""

    def __init__(self, path: Path):
        self.path = path
        self._lock, self._news = threading.Lock(), threading.Event()
        before = os.umask(0o077)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._faults():
                self._connection = sqlite3.connect(
                    path, timeout=BUSY, isolation_level=None, check_same_thread=False
                )
                self._connection.row_factory = _named
                self._connection.create_function("epoch", 0, lambda: time.time())
                self._connection.create_function("steady", 0, lambda: time.monotonic())
                self._open()
        except (OSError, OnsilError):
            self.close()
            raise
        finally:
            os.umask(before)

    def _open(self) -> None:
        found = self._connection.execute("pragma quick_check(1)").fetchone()
        if found["quick_check"] != "ok":
            raise damaged(str(self.path), found["quick_check"])
        self._connection.execute("pragma journal_mode=wal")
        self._connection.execute("pragma synchronous=full")
        with self.transaction() as run:
            migrate(run, WORDS)
        self._seen = self._version()

    def close(self) -> None:
        if connection := self.__dict__.get("_connection"):
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Run]:
        """`run(sql, *values) -> rows`; committed, and on the disk, when the block is left, undone
        when it raises."""
        with self._lock, self._faults():
            self._connection.execute("begin immediate")
            try:
                yield self._run
                self._connection.execute("commit")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise

    @contextmanager
    def reading(self) -> Iterator[Run]:
        """The same for looking only; waits for no writer of another process."""
        with self._lock, self._faults():
            self._connection.execute("begin")
            try:
                yield self._run
            finally:
                self._connection.execute("rollback")

    def _run(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return self._connection.execute(sql, values).fetchall()

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
                raise full(str(e)) from e
            if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise damaged(str(self.path), str(e)) from e
            raise unavailable(f"{e} ({self.path})") from e

    def alone(self, run: Run, name: str) -> None:
        """Nobody else is in a transaction that asked for the same name; here, nobody is in any."""

    def tell(self, run: Run) -> None:
        """Wake who waits in this process; other processes look for themselves."""
        self._news.set()

    def wait(self, seconds: float) -> None:
        """Until something may have changed, at most `seconds`."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._news.wait(min(GLANCE, left)):
                self._news.clear()
                return
            if (version := self._version()) != self._seen:
                self._seen = version
                return

    def _version(self) -> int:
        """Changes when another process has written."""
        with self._lock, self._faults():
            return self._connection.execute("pragma data_version").fetchone()["data_version"]


def _named(cursor: sqlite3.Cursor, row: tuple) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
