"""Die at every point where a crash could tear a workspace, run again, compare. Not a test itself.

    python crash_points.py FOLDER MUTATION     →  {"points": n, "torn": [point, …]}

A child process makes three stages, a name and an alias, and is killed at its n-th point: when a
file has just been opened for writing (and is empty), before a rename, and after one. The last is
a power cut: what was renamed without having been synced loses its bytes, as file systems that
order metadata before data may do. Then the same work runs undisturbed and must give the digest of
a run that never died, and a workspace that verifies.

MUTATION plants a fault, to see that it would be noticed: `none`, `no_file_sync`, `in_place` (files
written where they will stay), `no_folder_sync`, `copied` (an artefact copied to its address). The
last two alone are survived, because a finished artefact is hashed before it is used again; they are
planted together with the loss of that check.
"""

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from onsil.errors import OnsilError
from onsil.lineage import Artifact, Run, Workspace, spelling, stage, workspace
from onsil.lineage.history import verify

REAL = {"open": io.open, "replace": os.replace, "rename": os.rename, "fsync": os.fsync}


@stage(version=1)
def sow(*, seed: int, out: Path, run: Run) -> dict:
    for n in range(2):
        (out / f"{n}.txt").write_text(f"seed {seed} {n}\n" * 50)
    return {"files": 2}


@stage(version=1)
def water(*, bed: Artifact, times: int, out: Path, run: Run) -> dict:
    (out / "0.txt").write_text((bed / "0.txt").read_text() + f"watered {times}\n")
    return {}


def work(root: Path) -> str:
    ws = Workspace(root)
    made = water(ws, bed=water(ws, bed=sow(ws, seed=1), times=1), times=2)
    ws.set_alias("desk", "champion", ws.register("desk", made))
    return made.digest


class Dying:
    """Counts points; at the chosen one the process is killed as by `kill -9`."""

    def __init__(self, at: int):
        self.at, self.seen, self.synced = at, 0, set()

    def point(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.at

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def open(self, file, mode="r", *rest, **named):
        handle = REAL["open"](file, mode, *rest, **named)
        if set(mode) & set("wax+") and self.point():
            self.die()
        return handle

    def fsync(self, handle) -> None:
        REAL["fsync"](handle)
        self.synced.add(os.fstat(handle).st_ino)

    def moved(self, kind: str, source, target) -> None:
        if self.point():
            self.die()
        REAL[kind](source, target)
        if self.point():
            target = Path(target)
            for file in [target] if target.is_file() else target.rglob("*"):
                if file.is_file() and file.stat().st_ino not in self.synced:
                    os.truncate(file, 0)
            self.die()

    def install(self) -> None:
        io.open = self.open
        os.fsync = self.fsync
        os.replace = lambda a, b: self.moved("replace", a, b)
        os.rename = lambda a, b: self.moved("rename", a, b)


def plant(mutation: str) -> None:
    if mutation == "no_folder_sync":
        workspace.sync_folder = lambda folder: None
    elif mutation == "no_file_sync":
        spelling.os = _without_sync()
    elif mutation == "in_place":
        workspace.write_atomically = lambda path, text: path.write_text(text)
    elif mutation == "copied":
        workspace.os = _copying()
    elif mutation != "none":
        raise SystemExit(f"unknown mutation {mutation!r}")


class _Os:
    def __getattr__(self, name):
        return getattr(os, name)


def _without_sync() -> _Os:
    fake = _Os()
    fake.fsync = lambda handle: None
    return fake


def _copying() -> _Os:
    def copied(source, target):
        Path(target).mkdir()
        for file in sorted(Path(source).iterdir()):
            with Path(target, file.name).open("wb") as f:
                f.write(file.read_bytes())

    fake = _Os()
    fake.rename = copied
    return fake


def child(root: Path, at: int, mutation: str) -> int | None:
    """Points passed by a child that lived to the end, None for one that was killed."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        plant(mutation)
        dying = Dying(at)
        dying.install()
        work(root)
        os.write(write, str(dying.seen).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    said = os.read(read, 20)
    os.close(read)
    return None if os.WIFSIGNALED(status) else int(said)


def whole(root: Path, expected: str) -> bool:
    """Whether the same work, done again, ends as if nothing had happened."""
    try:
        if work(root) != expected:
            return False
        ws = Workspace(root)
        _, _, model = ws.resolve("desk@champion")
        return model.digest == expected and all(row["ok"] for row in verify(ws, model.key))
    except (OnsilError, ValueError, OSError, KeyError):
        return False


def main(folder: Path, mutation: str) -> None:
    if mutation in ("no_folder_sync", "copied"):
        Workspace.is_whole = lambda self, made: made.path.exists()
    expected, torn = work(folder / "never"), []
    total = child(folder / "counted", -1, mutation)
    assert total is not None
    for at in range(total):
        root = folder / f"at-{at}"
        assert child(root, at, mutation) is None
        if not whole(root, expected):
            torn.append(at)
        shutil.rmtree(root)
    print(json.dumps({"points": total, "torn": torn}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
