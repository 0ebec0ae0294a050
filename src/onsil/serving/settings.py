"""How one server is set up: what `onsil serve` was told, each word looked at by itself.

Whether they are safe together is `checking.py`'s to say.
"""

import re
from dataclasses import dataclass, field

from onsil.errors import OnsilError
from onsil.serving.access import LOOPBACK
from onsil.serving.ai_mark import AIMark
from onsil.serving.jobs.keeping import DAYS, kept
from onsil.serving.tls import TLSFiles

NAMED = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]")
CALLED = re.compile(rf"(?:{NAMED.pattern}):\d{{1,5}}")


@dataclass(frozen=True)
class Settings:
    """`hostnames`: names others reach this machine by, beside the address itself; `drain_seconds`:
    how long what runs may go on after SIGTERM; `jobs`: the URL of a job store, "" for the
    workspace's own; `webhook_hosts`: `host:port` of those who may be told when a job is done;
    `keep_days`: how long jobs stay after their end, and files, 0 for ever. Raises OnsilError for a
    value that cannot be meant."""

    host: str = "127.0.0.1"
    port: int = 8000
    hostnames: tuple[str, ...] = ()
    tls: TLSFiles | None = None
    drain_seconds: float = 20.0
    mark: AIMark = field(default_factory=AIMark)
    log_predictions: bool = False
    jobs: str = ""
    webhook_hosts: tuple[str, ...] = ()
    keep_days: float = DAYS

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise _unfit("--port", self.port, *PORT)
        if not 0 <= self.drain_seconds < float("inf"):
            raise _unfit("--drain-seconds", self.drain_seconds, *DRAIN)
        kept(self.keep_days, "--keep-days")
        for name in self.hostnames:
            if not NAMED.fullmatch(name):
                raise _unfit("--hostname", name, *HOSTNAME)
        for called in self.webhook_hosts:
            if not CALLED.fullmatch(called):
                raise _unfit("--webhook-host", called, *WEBHOOK)

    @property
    def public(self) -> bool:
        """Whether other machines can reach it."""
        return self.host not in LOOPBACK

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def shown(self) -> str:
        """The host as it stands in an address."""
        if self.host in ("0.0.0.0", "::"):
            return self.hostnames[0] if self.hostnames else "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host

    def allowed(self, port: int) -> frozenset[str]:
        """Every value of `Host` that is answered. A name that was given is one without a port, too:
        a proxy before this server has the usual one."""
        given = {name.lower() for name in self.hostnames}
        names = given | {"localhost", "127.0.0.1", "[::1]", self.shown.lower()}
        bare = names if port == (443 if self.tls else 80) else given
        return frozenset(f"{n}:{port}" for n in names) | bare


# Why a value cannot be meant, and what could, in English and Korean.
PORT = (
    ("Ports are numbered from 0 to 65535.", "Choose one, or 0 for any that is free."),
    ("포트는 0부터 65535까지의 번호입니다.", "번호를 고르거나, 빈 포트를 쓰려면 0을 주세요."),
)
DRAIN = (
    ("Whoever stops the server waits that long.", "Give 0 seconds or more, such as 20."),
    ("서버를 끝낼 때 이만큼 기다립니다.", "20처럼 0 이상의 초를 주세요."),
)
HOSTNAME = (
    ("Browsers send a bare name, and every other one is refused.", "Write it so: ask.example.kr"),
    (
        "브라우저는 이름만 보내고, 다른 이름은 모두 거부합니다.",
        "이렇게 적어 주세요: ask.example.kr",
    ),
)
WEBHOOK = (
    ("Nobody else is ever told that a job is done.", "Write it so: 127.0.0.1:9000"),
    ("작업이 끝났다는 알림은 여기 적은 곳에만 보냅니다.", "이렇게 적어 주세요: 127.0.0.1:9000"),
)


def _unfit(option: str, value: object, en: tuple[str, str], ko: tuple[str, str]) -> OnsilError:
    return OnsilError(
        en=(f"{option} {value} cannot be used.", *en),
        ko=(f"{option} {value}은(는) 쓸 수 없습니다.", *ko),
    )
