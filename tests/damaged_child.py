"""A child that opens damaged checkpoints under limits: two seconds of processor time and a gigabyte
beyond what an idle torch holds.

Run as a program it wakes torch once, then forks for every folder it is sent, so that each starts
with a clock and a limit of its own. `Opener` is the other end.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

SECONDS, ROOM = 2, 1 << 30


def attempt(folder: Path) -> dict[str, list[str]]:
    """What inspecting and loading end in: `["ok"]`, or the error's class and both its texts."""
    from onsil.errors import OnsilError
    from onsil.models.checkpoint import load
    from onsil.release.checkpoints import files_of
    from onsil.release.inspection import inspect_folder

    ends = {}
    for name, verb in (("inspect", inspect_folder), ("files", files_of), ("load", load)):
        try:
            verb(folder)
            ends[name] = ["ok"]
        except OnsilError as error:
            ends[name] = ["OnsilError", *error.en, *error.ko]
        except BaseException as error:
            ends[name] = [type(error).__name__, str(error)[:300]]
    return ends


def serve() -> None:
    """A line in (a folder), a line out (how it ended), until the input ends."""
    import torch

    import onsil.models.checkpoint
    import onsil.release.inspection  # noqa: F401
    from onsil.models.shape import decoder_shape
    from onsil.models.transformer import Transformer

    with torch.device("meta"):  # what torch does once, before any clock runs
        Transformer(decoder_shape(8, 8, 1))
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for line in sys.stdin:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.write(writing, json.dumps(attempt(Path(line.rstrip("\n")))).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(said.decode() if status == 0 else json.dumps({"status": status}), flush=True)


class Opener:
    """How inspecting, listing and loading a folder end, in a child with limits."""

    def __init__(self):
        self.child = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.child.stdin is not None and self.child.stdout is not None
        self.to, self.back = self.child.stdin, self.child.stdout

    def __call__(self, folder: Path) -> dict[str, list[str]]:
        self.to.write(f"{folder}\n")
        self.to.flush()
        return json.loads(self.back.readline())

    def close(self) -> None:
        self.to.close()
        self.child.wait()
        self.back.close()


class Sound:
    """A sound checkpoint of a case of family_cases.py, saved once under `home`; "shards": llama in
    several files."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self, name: str) -> Path:
        from family_cases import DECODERS, ENCODERS, make

        folder = self.home / name.replace(" ", "_")
        if not folder.exists():
            cases = DECODERS | ENCODERS | {"shards": DECODERS["llama"]}
            most = "100KB" if name == "shards" else "1GB"
            make(cases[name]).save_pretrained(folder, max_shard_size=most)
        return folder


def refused(ends: dict[str, list[str]], *words: str) -> None:
    """Loading ended in an OnsilError of three full sentences in two languages with these words."""
    assert set(ends) == {"inspect", "files", "load"}, ends
    assert ends["inspect"][0] in ("ok", "OnsilError"), ends
    assert ends["files"][0] in ("ok", "OnsilError"), ends
    kind, *sentences = ends["load"]
    assert kind == "OnsilError" and len(sentences) == 6 and all(sentences), ends
    assert all(any("가" <= c <= "힣" for c in sentence) for sentence in sentences[3:])
    assert not any("가" <= c <= "힣" for sentence in sentences[:3] for c in sentence)
    for word in words:
        assert word in sentences[0], (word, sentences[0])


if __name__ == "__main__":
    serve()
