"""Keys for programs: who may ask, and how much.

The workspace's own key is its owner's and has no limits. Everybody else gets a key of their own,
shown once when it is made and kept only as its SHA-256: 256 random bits need no slow hash, and
whoever reads `keys.json` can use none of them. Each key has an owner's id that is never given
again, also when a name is: what `kim` left behind is not the next `kim`'s. A running server reads
the file again when it changes, so that a removed key is shut out with the next request.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from onsil.errors import OnsilError
from onsil.lineage.spelling import write_atomically

FILE = "keys.json"
NAME = re.compile(r"[a-z0-9._-]{1,64}")
OWNER = "owner"  # of the workspace's own key
REMOVED = "The key this came with was removed."
log = logging.getLogger("onsil.serving")


@dataclass(frozen=True)
class Key:
    """One key: `sha256` of it in hex, limits (None: none), when it was made (epoch seconds)."""

    name: str
    owner: str
    sha256: str
    requests_per_minute: int | None
    tokens_per_day: int | None
    made: float


def add_key(
    home: Path,
    name: str,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
) -> str:
    """A new key, which nobody can be shown again. Raises OnsilError for a name that is taken or
    cannot be one, and for limits below 1."""
    if not NAME.fullmatch(name):
        raise OnsilError(
            en=(
                f"{name!r} cannot be the name of a key.",
                "It stands in logs and in file names.",
                "Use small letters, digits, - _ . and at most 64 characters.",
            ),
            ko=(
                f"{name!r}는 키 이름으로 쓸 수 없습니다.",
                "이름은 기록과 파일 이름에 들어갑니다.",
                "영문 소문자, 숫자, - _ . 만 써서 64자 안으로 지어 주세요.",
            ),
        )
    for limit in (requests_per_minute, tokens_per_day):
        if limit is not None and limit < 1:
            raise OnsilError(
                en=(
                    f"A limit of {limit} lets nothing through.",
                    "The key would be good for nothing.",
                    "Give at least 1, or leave the limit out.",
                ),
                ko=(
                    f"한도가 {limit}이면 아무것도 쓸 수 없습니다.",
                    "만들어도 쓸모없는 키가 됩니다.",
                    "1 이상으로 하거나 한도를 빼 주세요.",
                ),
            )
    key = f"onsil-{secrets.token_urlsafe(32)}"
    with _changing(home) as keys:
        if any(known.name == name for known in keys):
            raise OnsilError(
                en=(
                    f"There is already a key called {name!r}.",
                    "Two keys of one name could not be told apart in the logs.",
                    f"Take it away first (onsil keys remove {name}) or choose another name.",
                ),
                ko=(
                    f"{name!r}라는 키가 이미 있습니다.",
                    "이름이 같으면 기록에서 구별할 수 없습니다.",
                    f"먼저 지우거나(onsil keys remove {name}) 다른 이름을 쓰세요.",
                ),
            )
        owner = f"{name}-{secrets.token_hex(4)}"
        limits = requests_per_minute, tokens_per_day
        keys.append(Key(name, owner, _digest(key), *limits, round(time.time(), 3)))
    return key


def remove_key(home: Path, name: str) -> None:
    """Shut a key out, from the next request on. Raises OnsilError when there is none."""
    with _changing(home) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            known = ", ".join(key.name for key in keys)
            raise OnsilError(
                en=(
                    f"No key is called {name!r}.",
                    "Nothing was taken away.",
                    f"There are: {known or 'none'}.",
                ),
                ko=(
                    f"{name!r}라는 키가 없습니다.",
                    "아무것도 지우지 않았습니다.",
                    f"있는 키: {known or '없음'}.",
                ),
            )
        keys[:] = left


def list_keys(home: Path) -> list[Key]:
    """Every key but the owner's, oldest first. Raises OnsilError when the file is damaged."""
    path = home / FILE
    if not path.exists():
        return []
    try:
        return [Key(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as e:
        raise OnsilError(
            en=(
                f"{path} is not a list of keys: {e}.",
                "Nobody can be let in by a list that cannot be read.",
                "Put back a copy, or delete it and make the keys anew (onsil keys add).",
            ),
            ko=(
                f"{path}은(는) 키 목록이 아닙니다: {e}.",
                "읽을 수 없는 목록으로는 아무도 들여보낼 수 없습니다.",
                "사본으로 되돌리거나, 지우고 키를 다시 만들어 주세요(onsil keys add).",
            ),
        ) from e


@contextmanager
def _changing(home: Path) -> Iterator[list[Key]]:
    """The list, alone; what it is at the end is kept."""
    with (home / "locks" / "keys").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = list_keys(home)
        yield keys
        text = json.dumps([asdict(key) for key in keys], ensure_ascii=False, indent=1)
        before = os.umask(0o077)
        try:
            write_atomically(home / FILE, text + "\n")
        finally:
            os.umask(before)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys of one workspace as a running server sees them."""

    def __init__(self, home: Path):
        self.home = home
        self._seen = self._stamp()
        self._keys = list_keys(home)

    def _stamp(self) -> tuple[int, int]:
        try:
            found = (self.home / FILE).stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def keys(self) -> list[Key]:
        """The list as it is now; read again only when the file is another one. One that cannot be
        read leaves the last good list in force, and the log says so."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._keys = list_keys(self.home)
            except OnsilError as e:
                log.error("%s The keys read before stay in force.", e.en[0])
        return self._keys

    def find(self, key: str) -> Key | None:
        """Whose key this is, after a comparison with every one that takes the same time."""
        given, found = _digest(key), None
        for known in self.keys():
            if hmac.compare_digest(known.sha256, given):
                found = known
        return found

    def of(self, owner: str) -> Key | None:
        """The key of an owner's id; None for the workspace's owner and for nobody."""
        return next((key for key in self.keys() if key.owner == owner), None)

    def knows(self, owner: str) -> bool:
        """Whether an owner may still ask: not when the key was removed."""
        return owner == OWNER or self.of(owner) is not None
