"""Who may come in: one key for programs, a cookie for the page, a one-time link to get it.

The key is made once and kept in the workspace for its owner alone (mode 0600), or taken from
`$ONSIL_KEY`; other people's keys stand beside it (`keys.py`). A sign-in code works once and for ten
minutes; it becomes a session in a cookie that scripts cannot read. Comparisons take the same time
whatever is wrong with what is compared.
"""

import hmac
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from starlette.types import Scope

from onsil.errors import OnsilError, say
from onsil.serving.keys import OWNER, KeyRing

CODE_SECONDS, SESSION_SECONDS = 600, 12 * 3600
SHORTEST_KEY = 16  # characters
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def cookie_of(scope: Scope) -> str:
    """What the session's cookie is called. Browsers keep cookies by host and not by port, so each
    server of a machine has a name of its own."""
    _, port = scope["server"]
    return f"onsil_session_{port}"


def key_of(home: Path, tell: Callable[[str], object]) -> str:
    """The workspace's key; made on first use. A key file that others could read is closed again and
    `tell` is given a word about it. Raises OnsilError for a key that is too short, wherever it
    is kept, and for one that no request can carry."""
    if given := given_key():
        return fit_key(given)
    path = home / "key"
    if not path.exists():
        _make_key(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o600)
        tell(
            say(
                f"{path} could be read by others on this machine; it is yours alone again.\n"
                "If one of them may have read it: delete it and serve again for a new key.",
                f"{path} 파일을 이 컴퓨터의 다른 사용자도 읽을 수 있었습니다. 다시 본인만 읽게"
                " 했습니다.\n누군가 읽었을 수 있으면 파일을 지우고 다시 실행해 새 키를 만드세요.",
            )
        )
    key = path.read_text().strip()
    if len(key) < SHORTEST_KEY:
        raise _damaged_key(path, len(key))
    return key


def given_key() -> str:
    """The key in `$ONSIL_KEY`, without spaces around it, as a header carries it; "" for none."""
    return os.environ.get("ONSIL_KEY", "").strip()


def place_of_key(home: Path) -> str:
    """Where whoever serves finds the key."""
    return "$ONSIL_KEY" if given_key() else str(home / "key")


def fit_key(key: str) -> str:
    """A key chosen by hand. Raises OnsilError for a short one and for one that is not ASCII."""
    if len(key) < SHORTEST_KEY:
        raise OnsilError(
            en=(
                f"$ONSIL_KEY has {len(key)} characters.",
                "A short key can be guessed, and it is all that guards the documents.",
                f"Use at least {SHORTEST_KEY} characters, or unset it and let onsil make one.",
            ),
            ko=(
                f"$ONSIL_KEY가 {len(key)}자입니다.",
                "짧은 키는 알아맞힐 수 있고, 문서를 지키는 것은 이 키뿐입니다.",
                f"{SHORTEST_KEY}자 이상으로 하거나, 지정하지 않고 onsil이 만들게 해 주세요.",
            ),
        )
    odd = next((c for c in key if not "!" <= c <= "~"), None)
    if odd is not None:
        raise OnsilError(
            en=(
                f"$ONSIL_KEY holds {odd!r}.",
                "A request's header carries a key in Latin letters, digits and signs only.",
                "Choose one of those, or unset it and let onsil make one.",
            ),
            ko=(
                f"$ONSIL_KEY에 {odd!r} 글자가 있습니다.",
                "요청 헤더에는 영문자, 숫자, 기호로 된 키만 담을 수 있습니다.",
                "그런 키로 바꾸거나, 지정하지 않고 onsil이 만들게 해 주세요.",
            ),
        )
    return key


def _make_key(path: Path) -> None:
    """A whole key under its name or none: written beside it and linked, first come first served."""
    beside = path.with_name(f".key-{secrets.token_hex(8)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as f:
            f.write(secrets.token_urlsafe(32) + "\n")
            f.flush()
            os.fsync(f.fileno())
        os.link(beside, path)
    except FileExistsError:  # another server was quicker; its key is as good
        return
    finally:
        beside.unlink()


def _damaged_key(path: Path, length: int) -> OnsilError:
    return OnsilError(
        en=(
            f"The key in {path} has {length} characters.",
            "It was cut short or changed, and an empty or short key would let anybody in.",
            "Delete the file and serve again: a new key is made.",
        ),
        ko=(
            f"{path}에 있는 키가 {length}자입니다.",
            "잘렸거나 바뀐 것으로 보이며, 비었거나 짧은 키로는 누구나 들어올 수 있습니다.",
            "파일을 지우고 다시 실행하면 새 키를 만듭니다.",
        ),
    )


def refuse_open_door(host: str) -> None:
    """Only with a key that somebody chose on purpose may other machines reach the server."""
    if host in LOOPBACK or given_key():
        return
    raise OnsilError(
        en=(
            f"--host {host} would let other machines in.",
            "They would need only the key that was made automatically, over a line without TLS.",
            "Set $ONSIL_KEY to a key of your own, or leave --host out to stay on this machine.",
        ),
        ko=(
            f"--host {host}(으)로 열면 다른 컴퓨터에서도 들어올 수 있습니다.",
            "자동으로 만든 키 하나만 알면 되고, 통신도 암호화되지 않습니다.",
            "$ONSIL_KEY에 직접 정한 키를 넣거나, --host를 빼고 이 컴퓨터에서만 쓰세요.",
        ),
    )


class Access:
    """The keys, the codes that are still good, the sessions that are open. `ring` are the keys of
    others, next to the owner's `key`."""

    def __init__(self, key: str, ring: KeyRing | None = None):
        self._key, self._ring = key, ring
        self._codes: dict[str, float] = {}
        self._sessions: dict[str, float] = {}

    def new_code(self) -> str:
        code = secrets.token_urlsafe(24)
        self._codes[code] = time.monotonic() + CODE_SECONDS
        return code

    def redeem(self, code: str) -> str | None:
        """A session for a good code, which is then used up; None for any other."""
        now, good = time.monotonic(), None
        for known, until in list(self._codes.items()):
            if hmac.compare_digest(known.encode(), code.encode()):
                good = until
                del self._codes[known]
        if good is None or good < now:
            return None
        session = secrets.token_urlsafe(32)
        self._sessions = {s: t for s, t in self._sessions.items() if t > now}
        self._sessions[session] = now + SESSION_SECONDS
        return session

    def owner_of(self, key: str) -> str | None:
        """The id of a key's owner; None for a key that is nobody's. Every key there is is compared,
        whichever fits."""
        own = hmac.compare_digest(self._key.encode(), key.encode())
        other = self._ring.find(key) if self._ring else None
        return OWNER if own else other.owner if other else None

    def secret(self, purpose: str) -> str:
        """A secret of its own for each purpose, the same as long as the key is."""
        return hmac.new(self._key.encode(), purpose.encode(), "sha256").hexdigest()

    def session_fits(self, session: str) -> bool:
        now, fits = time.monotonic(), False
        for known, until in self._sessions.items():
            fits |= hmac.compare_digest(known.encode(), session.encode()) and until > now
        return fits
