"""A PostgreSQL server of the tests' own, on a Unix socket in a folder that goes away again."""

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MISSING = "PostgreSQL's server is not installed"
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def program(name: str) -> str | None:
    """Where a program of PostgreSQL's is: on the path, or in Debian's folder."""
    return shutil.which(name) or next(
        (str(folder / name) for folder in reversed(DEBIAN) if (folder / name).exists()), None
    )


def other_user() -> str | None:
    """Who the server runs as when we are root, which it refuses to be."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


COUNT = itertools.count()


@functools.cache
def shared() -> "Server":
    """One server for all tests of a run; stopped when Python ends. Skips where there is none."""
    life = server()
    atexit.register(life.__exit__, None, None, None)
    return life.__enter__()


class Server:
    """One cluster under `folder`. `url` reaches it; `run` is pg_ctl."""

    def __init__(self, folder: Path):
        self.folder, self.data, self.user = folder, folder / "data", other_user()
        name = self.user or pwd.getpwuid(os.geteuid()).pw_name
        self.url = f"postgresql://{name}@/postgres?host={folder}"
        if self.user:
            shutil.chown(folder, self.user)
        folder.chmod(0o755)
        self._call("initdb", "-D", str(self.data), "-A", "trust", "-N", "-E", "UTF8", "-k")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = ''\nunix_socket_directories = '{folder}'\n"
                "shared_buffers = 16MB\nmax_connections = 60\nlogging_collector = off\n"
                "recovery_init_sync_method = syncfs\n"
            )

    def _call(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path is not None
        subprocess.run(
            [path, *arguments],
            user=self.user,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def start(self) -> None:
        log = str(self.folder / "log")
        self._call("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-l", log, "start")

    def stop(self, mode: str = "immediate") -> None:
        self._call("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def fresh(self) -> str:
        """The URL of a new empty schema, which is made in a moment."""
        return f"{self.url}&options=-csearch_path%3D{self._made('schema')},public"

    def database(self) -> str:
        """The URL of a new database."""
        return self.url.replace("/postgres?", f"/{self._made('database')}?")

    def _made(self, what: str) -> str:
        import psycopg

        name = f"test{next(COUNT)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"create {what} {name}")
        return name


@contextmanager
def server() -> Iterator[Server]:
    """A running server; skips the test where there is none to run."""
    if program("initdb") is None or program("pg_ctl") is None:
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="onsil-pg-", dir="/tmp"))
    try:
        started = Server(folder)
        started.start()
        try:
            yield started
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # a test stopped it already
                started.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
