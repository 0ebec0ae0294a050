"""How one server is set up: what `onsil serve` was told, checked by nobody yet."""

from dataclasses import dataclass, field

from onsil.serving.access import LOOPBACK
from onsil.serving.ai_mark import AIMark
from onsil.serving.tls import TLSFiles


@dataclass(frozen=True)
class Settings:
    """`hostnames`: names others reach this machine by, beside the address itself; `drain_seconds`:
    how long what runs may go on after SIGTERM; `traces`: an OTLP/HTTP endpoint, "" for none;
    `jobs`: the URL of a job store, "" for the workspace's own; `webhook_hosts`: `host:port` of
    those who may be told when a job is done."""

    host: str = "127.0.0.1"
    port: int = 8000
    hostnames: tuple[str, ...] = ()
    tls: TLSFiles | None = None
    drain_seconds: float = 20.0
    mark: AIMark = field(default_factory=AIMark)
    log_predictions: bool = False
    traces: str = ""
    jobs: str = ""
    webhook_hosts: tuple[str, ...] = ()

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
        """Every value of `Host` that is answered."""
        own = {"localhost", "127.0.0.1", "[::1]", self.shown.lower()}
        names = own | {name.lower() for name in self.hostnames}
        usual = 443 if self.tls else 80
        return frozenset(f"{n}:{port}" for n in names) | (names if port == usual else frozenset())
