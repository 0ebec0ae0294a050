"""Everything that stands around the doors of one server, put together in one place.

From outside in: the observation of each request (log, metrics, traces), life's gate, the guard, the
budget of its key, then the doors. `around` wraps a finished guard; the doors know none of
this but `request_log.heard`, through which they pass what a speaker says.
"""

from collections.abc import Collection

from starlette.routing import Route
from starlette.types import ASGIApp

from onsil.lineage import Workspace
from onsil.serving import tracing
from onsil.serving.budgets import Budgets
from onsil.serving.guard import Guard
from onsil.serving.keys import KeyRing
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
        self.metrics.watch("onsil.log.dropped", lambda: self.log.dropped + self.monitoring.dropped)

    def routes(self) -> list[Route]:
        """`/metrics`, `/monitor`, `/v1/feedback` …, for whoever has a key."""
        return [*self.metrics.routes(), *self.monitoring.routes()]

    def around(self, guard: Guard, uncounted: Collection[str] = ()) -> ASGIApp:
        """The whole application: `guard` with everything else outside and inside of it; no tokens
        are counted at the paths `uncounted`."""
        guard.app = self.budgets.around(guard.app, uncounted)
        inner = tracing.traced(self.life.around(guard, guard.hosts))
        return observed(inner, self.metrics, self._log, self.monitoring)

    def _log(self, seen: Observation) -> None:
        row = line(seen)
        self.log.append(lambda: row)

    def close(self) -> None:
        """Write what is not yet written."""
        self.log.close()
        self.monitoring.close()
        self.budgets.counts.close()
        tracing.stop()
