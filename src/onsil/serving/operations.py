"""Everything that stands around the doors of one server, put together in one place.

From outside in: the observation of each request (log, metrics, traces), life's gate, the guard,
whose key it is, its budget, then the doors. `around` wraps a finished guard; the doors know none of
this but `request_log.heard`, through which they pass what a speaker says.
"""

from collections.abc import Callable
from typing import Any

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from onsil.lineage import Workspace
from onsil.serving import tracing
from onsil.serving.access import Access
from onsil.serving.budgets import Budgets
from onsil.serving.guard import PUBLIC, Guard, Refused, _session
from onsil.serving.keys import OWNER, KeyRing
from onsil.serving.life import Life
from onsil.serving.metrics import Metrics
from onsil.serving.monitoring import Monitoring
from onsil.serving.request_log import JsonLines, Observation, line, observed
from onsil.serving.settings import Settings

LOG = "logs/requests.jsonl"  # in the workspace


class Operations:
    """What runs beside the doors: keys, budgets, log, metrics, monitoring, life."""

    def __init__(self, ws: Workspace, name: str, settings: Settings):
        self.ring = KeyRing(ws.root)
        self.life, self.metrics = Life(), Metrics()
        self.budgets = Budgets(ws.root, self.ring)
        self.log = JsonLines(ws.root / LOG)
        self.monitoring = Monitoring(ws, name, self.log, self.metrics, settings.log_predictions)
        self.metrics.watch("onsil.requests.in_flight", lambda: self.life.running)
        self.metrics.watch("onsil.log.dropped", lambda: self.log.dropped)

    def routes(self) -> list[Route]:
        """`/metrics`, `/monitor`, `/v1/feedback` …, for whoever has a key."""
        return [*self.metrics.routes(), *self.monitoring.routes()]

    def around(self, guard: Guard) -> ASGIApp:
        """The whole application: `guard` with everything else outside and inside of it."""
        guard.app = owned(self.budgets.around(beside(self.routes(), guard.app)), guard.access)
        sinks: list[Callable[[Observation], Any]] = [
            self.metrics,
            self._log,
            self.monitoring,
        ]
        return observed(tracing.traced(self.life.around(guard, guard.hosts)), *sinks)

    def _log(self, seen: Observation) -> None:
        row = line(seen)
        self.log.append(lambda: row)

    def close(self) -> None:
        """Write what is not yet written."""
        self.log.close()
        self.monitoring.close()
        self.budgets.counts.close()
        tracing.stop()


def owned(app: ASGIApp, access: Access) -> ASGIApp:
    """`app` told whose request it is, in `scope["state"]["owner"]`: the id of the key; the page's
    visitors come by the owner's link and are the owner. Raises Refused (401) for a key that was
    taken away since the guard let it in."""

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            headers = dict(scope["headers"])
            key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")[2].strip()
            owner = access.owner_of(key)
            if owner is None and access.session_fits(_session(_cookies(headers))):
                owner = OWNER
            if owner is None:
                raise Refused(
                    401, "A key is needed: Authorization: Bearer KEY.", "authentication_error"
                )
            scope["state"]["owner"] = owner
        await app(scope, receive, send)

    return telling


def _cookies(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"cookie", b"").decode("latin-1")


def beside(routes: list[Route], app: ASGIApp) -> ASGIApp:
    """`app` with some routes more, which come first."""

    async def choosing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in routes:
                match, found = route.matches(scope)
                if match is Match.PARTIAL:
                    raise Refused(405, f"{scope['path']} does not take {scope['method']}.")
                if match is Match.FULL:
                    scope.update(found)
                    return await route.handle(scope, receive, send)
        await app(scope, receive, send)

    return choosing
