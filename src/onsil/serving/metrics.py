"""Metrics: what a dashboard needs of a server, under the names that dashboards know.

The names are those of OpenTelemetry's semantic conventions for generative AI, which are still in
development; this table is the only place that spells them. Prometheus writes a dot as an underscore
and appends the unit, as OpenTelemetry's own translation does. What the conventions have no word for
is called `onsil.…`. Labels take few values: operations and routes are closed sets, statuses are a
few dozen, of models the first `MODELS` have their own and the rest share `other`; owners, prompts
and paths never become labels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onsil.serving.request_log import Observation

MODELS = 16  # names@versions with a label of their own
OPERATION, MODEL, ERROR = "gen_ai.operation.name", "gen_ai.request.model", "error.type"
TOKENS, PROVIDER, STATUS = "gen_ai.token.type", "gen_ai.provider.name", "http.response.status_code"


@dataclass(frozen=True)
class Named:
    """One metric: its OpenTelemetry name, Prometheus's unit ("" for counts of things), help, label
    names, and the bucket bounds of a histogram, as the conventions advise."""

    name: str
    unit: str
    says: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def spelled(self) -> str:
        return flat(self.name) + (f"_{self.unit}" if self.unit else "")


def flat(name: str) -> str:
    return name.replace(".", "_")


DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
POWERS = tuple(4.0**n for n in range(14))
ASKED = (OPERATION, MODEL)

DURATION = Named(
    "gen_ai.server.request.duration", "seconds", "To the last byte.", (*ASKED, ERROR), DURATIONS
)
TO_FIRST = Named(
    "gen_ai.server.time_to_first_token", "seconds", "To the first token.", ASKED, FIRST
)
PER_TOKEN = Named(
    "gen_ai.server.time_per_output_token", "seconds", "Each token after the first.", ASKED, EACH
)
USAGE = Named("gen_ai.client.token.usage", "", "Tokens of a request.", (*ASKED, TOKENS), POWERS)
REFUSED = Named("onsil.requests.refused", "total", "Answers of 400 and above.", (STATUS,))
REQUESTS = Named("onsil.requests", "total", "Requests by route.", ("http.route", STATUS))
ANSWERS = Named("onsil.answers", "total", "Questions by whether they got an answer.", ("answered",))
CUT = Named("onsil.responses.cut", "total", "Answers that did not leave whole.")
FEEDBACK = Named("onsil.feedback", "total", "What people said of answers.", ("verdict",))
SERVED = Named("onsil.model", "info", "A model that answered.", ("name", "version", "digest"))
TABLE = (
    DURATION, TO_FIRST, PER_TOKEN, USAGE, REFUSED, REQUESTS, ANSWERS, CUT, FEEDBACK, SERVED,
)  # fmt: skip
GAUGES = {
    "onsil.requests.in_flight": "Requests under way.",
    "onsil.queue.depth": "Requests waiting for a slot.",
    "onsil.slots": "Places for texts in the making.",
    "onsil.abstention.rate": "Share of today's questions the documents do not answer.",
    "onsil.drift.psi": "Population stability index of questions against the reference.",
    "onsil.drift.noise_floor": "What that index reaches by chance in 1 of 20 windows.",
    "onsil.drift.unknown_words": "Share of the questions' words that no document has.",
    "onsil.log.dropped": "Log lines that could not be written.",
}


class Metrics:
    """The metrics of one server: a sink for observations and the route `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._made = {m.name: self._make(m) for m in TABLE}
        self._models: set[str] = set()
        self._gauges: dict[str, Callable[[], float | None]] = {}
        self.registry.register(self)

    def _make(self, metric: Named) -> Histogram | Counter | Gauge:
        labels = tuple(flat(label) for label in metric.labels)
        if metric.buckets:
            return Histogram(
                metric.spelled, metric.says, labels, buckets=metric.buckets, registry=self.registry
            )
        kind = Gauge if metric.unit == "info" else Counter
        return kind(metric.spelled, metric.says, labels, registry=self.registry)

    def watch(self, name: str, value: Callable[[], float | None]) -> None:
        """Read a gauge of `GAUGES` with every scrape; None leaves it out."""
        if name not in GAUGES:
            raise KeyError(name)
        self._gauges[name] = value

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Prometheus asks for what is watched."""
        for name, value in self._gauges.items():
            found = value()
            if found is not None:
                yield GaugeMetricFamily(flat(name), GAUGES[name], value=found)

    def count(self, metric: Named, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        found = self._made[metric.name]
        assert isinstance(found, Counter)
        (found.labels(**labels) if labels else found).inc(amount)

    def _model(self, reference: str) -> str:
        if reference in self._models or len(self._models) < MODELS:
            self._models.add(reference)
            return reference
        return "other"

    def _record(self, metric: Named, value: float, *labels: str) -> None:
        found = self._made[metric.name]
        assert isinstance(found, Histogram)
        found.labels(*labels).observe(value)

    def __call__(self, seen: Observation) -> None:
        """Count one request that is over."""
        self.count(REQUESTS, http_route=seen.route or "none", http_response_status_code=_code(seen))
        if seen.status >= 400:
            self.count(REFUSED, http_response_status_code=_code(seen))
        if seen.status and not seen.ended:
            self.count(CUT)
        if not seen.operation:
            return
        asked = seen.operation, self._model(seen.model) if seen.model else "none"
        self._record(DURATION, seen.seconds, *asked, _code(seen) if seen.status >= 400 else "")
        if seen.digest and asked[1] != "other":
            name, _, version = seen.model.partition("@")
            found = self._made[SERVED.name]
            assert isinstance(found, Gauge)
            found.labels(name, version, seen.digest).set(1)
        if seen.answered is not None:
            self.count(ANSWERS, answered="yes" if seen.answered else "no")
        for kind, tokens in (("input", seen.prompt_tokens), ("output", seen.completion_tokens)):
            if tokens:
                self._record(USAGE, tokens, *asked, kind)
        if seen.first_token is not None and seen.status < 400:
            self._record(TO_FIRST, seen.first_token, *asked)
            if seen.completion_tokens > 1:
                rest = (seen.seconds - seen.first_token) / (seen.completion_tokens - 1)
                self._record(PER_TOKEN, rest, *asked)

    async def _page(self, request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def routes(self) -> list[Route]:
        return [Route("/metrics", self._page)]


def _code(seen: Observation) -> str:
    return str(seen.status) if 100 <= seen.status < 600 else "none"
