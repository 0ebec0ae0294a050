"""A deployment: graphs, and how each is delivered.

    app = App()
    app.serve("/v1/ask", prep("desk") >> model("desk"))            now, to whoever waits
    app.jobs("/v1/jobs", model("desk"))                            later, by a job's id
    app.batch("nightly", model("desk"), rows, out, cron="0 2 * * *")   over rows, at given times

`onsil serve FILE.py` runs it: the same guard, life, keys, budgets and log as `onsil serve NAME`.
All graphs stand on one ground, so a model that several of them ask is loaded once. A caller is told
what he can do about a failure (400, 503 with Retry-After, 504) and never what a step's exception
said.

Jobs and batches are worked at in this process, by threads that hold leases on a durable store; the
same file started twice, on one machine or several with PostgreSQL, shares the work.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onsil.errors import OnsilError
from onsil.graph import Answer, BadInput, Busy, Failure, Ground, Node, NotReady, Open, Running
from onsil.graph.forms import gives, takes
from onsil.graph.nodes import references
from onsil.graph.request import Pin
from onsil.graph.running import Placement
from onsil.graph.values import Json
from onsil.lineage import Workspace
from onsil.serving import tracing
from onsil.serving.ai_mark import AIMark
from onsil.serving.guard import JsonAnswer
from onsil.serving.jobs import (
    Cancelled,
    Claimed,
    JobStore,
    NoRetry,
    Worker,
    fingerprint_of,
    open_store,
)
from onsil.serving.jobs.files import FileStore
from onsil.serving.jobs.keeping import DAYS
from onsil.serving.jobs.routes import ATTEMPTS, body_of, job_routes
from onsil.serving.jobs.webhooks import Webhooks
from onsil.serving.keys import REMOVED, KeyRing
from onsil.serving.openapi import COMPARISONS, document, graph_door, job_doors
from onsil.serving.refusals import answered, logged, refusal, refused
from onsil.serving.request_log import observation
from onsil.serving.rows import Scheduled, ScheduledBatch, Sink, Source
from onsil.serving.schedules import Scheduler, cron_times, every_so_often
from onsil.serving.settings import Settings

JOBS = "jobs"  # the folder in the workspace: jobs.db and files
TAKEN = (
    *("/health", "/ready", "/sign-in", "/comparisons", "/openapi.json", "/metrics"),
    *("/monitor", "/monitor.js", "/monitor/data", "/v1/feedback"),
)
THREADS = 4  # that work at the jobs of one path
LEASE = 10.0  # seconds until a batch whose worker was killed is taken up again
ROW_SECONDS = 600.0  # for one row of a batch
LOOK = 0.5  # seconds between looks whether a job was cancelled


@dataclass
class Served:
    """A graph behind a path, answered while the caller waits."""

    path: str
    node: Node
    timeout: float


@dataclass
class Queued:
    """A graph behind a path, answered later. The path is the kind of its jobs too."""

    path: str
    node: Node
    attempts: int
    lease: float
    timeout: float


class App:
    """What is deployed. `ws`: the workspace of its models, by default the one found from here;
    `store`: where jobs are kept (`sqlite:///…`, `postgresql://…`), by default in the workspace."""

    def __init__(self, ws: Workspace | None = None, store: str | None = None):
        self.ws = ws or Workspace.found_or_new()
        self._url = store
        self._served: list[Served] = []
        self._queued: list[Queued] = []
        self._scheduled: list[Scheduled] = []
        self._graphs: dict[Node, Running] = {}
        self._ground: Ground | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: list[Worker] = []
        self._threads: list[Thread] = []
        self._scheduler: Scheduler | None = None
        self._webhooks: Webhooks | None = None
        self._store: JobStore | None = None
        self._days = DAYS
        self.mark = AIMark()

    # ── what is said in the file ────────────────────────────────────────────────────────────────

    def serve(self, path: str, node: Node, *, timeout: float = 60.0) -> None:
        """POST `path`: a JSON object in, the graph's answer out, within `timeout` seconds."""
        self._new(path, path)
        self._served.append(Served(path, node, timeout))

    def jobs(
        self,
        path: str,
        node: Node,
        *,
        attempts: int = ATTEMPTS,
        lease: float = 60.0,
        timeout: float = 600.0,
    ) -> None:
        """POST `path`: 202 and a job that survives restarts (`Idempotency-Key` makes it one job
        however often it is sent); GET `path`/{id} for its result. It is tried at most `attempts`
        times, unless the request says otherwise (`max_attempts`); bad input once. A worker that
        gives no sign for `lease` seconds is taken over from; one attempt has `timeout` seconds.
        Who is told by a webhook stands in `--webhook-host`."""
        self._new(path, path)
        self._queued.append(Queued(path, node, attempts, lease, timeout))

    def batch(
        self,
        name: str,
        node: Node,
        source: Source,
        sink: Sink,
        *,
        every: float | None = None,
        cron: str | None = None,
        at_once: int = 4,
    ) -> None:
        """Every row of `source()` through the graph, at each slot of `every` seconds or of a cron
        line. Rows are kept one by one as they are answered, by the models that were meant when the
        run began; a run that was killed goes on with the others. `sink` is a folder (one
        JSON Lines file for each slot, put there whole) or a function of the slot and the rows,
        which may be called twice when it is interrupted. A row: `row`, `input`, `value`, `error`.
        Raises OnsilError unless there is one of `every`, at least a second, and `cron`."""
        if (every is None) == (cron is None):
            raise OnsilError(
                en=(
                    f"The batch {name!r} has every={every!r} and cron={cron!r}.",
                    "",
                    "Give it one of the two.",
                ),
                ko=(
                    f"배치 {name!r}에 every={every!r}, cron={cron!r}이(가) 지정되었습니다.",
                    "",
                    "둘 가운데 하나만 지정해 주세요.",
                ),
            )
        times = every_so_often(every) if every is not None else cron_times(cron or "")
        self._new(name)
        self._scheduled.append(Scheduled(name, node, source, sink, times, at_once))

    def _new(self, name: str, path: str = "/") -> None:
        """Raises OnsilError for a name that is taken and a path that cannot be served."""
        if not path.startswith("/") or path in TAKEN:
            raise OnsilError(
                en=(
                    f"{path!r} cannot be the path of a graph.",
                    f"A path begins with / and is none of {', '.join(TAKEN)}.",
                    "Choose another one, like /v1/ask.",
                ),
                ko=(
                    f"{path!r}은(는) 그래프의 경로로 쓸 수 없습니다.",
                    f"경로는 /로 시작하고 {', '.join(TAKEN)}이(가) 아니어야 합니다.",
                    "/v1/ask 같은 다른 경로를 쓰세요.",
                ),
            )
        known = [*(s.path for s in self._served), *(q.path for q in self._queued)]
        if name in (*known, *(s.name for s in self._scheduled)):
            raise OnsilError(
                en=(f"{name!r} is there twice.", "One path has one graph.", "Rename one of them."),
                ko=(
                    f"{name!r}이(가) 두 번 나옵니다.",
                    "경로 하나에는 그래프 하나만 둡니다.",
                    "하나의 이름을 바꿔 주세요.",
                ),
            )

    # ── life ────────────────────────────────────────────────────────────────────────────────────

    def open(
        self,
        placement: Placement = "inline",
        store: str = "",
        secret: str = "",
        webhook_hosts: Collection[str] = (),
        keep_days: float = DAYS,
    ) -> None:
        """Lay every graph; `store` is where jobs are kept instead of where the file says,
        `keep_days` how long (as in `Settings`), `secret` signs what is told to `webhook_hosts`.
        Raises OnsilError for a graph that cannot stand there."""
        self._days = keep_days
        self._ground = Ground(placement, self.ws, tracing.span)
        try:
            for entry in (*self._served, *self._queued, *self._scheduled):
                if entry.node not in self._graphs:
                    self._graphs[entry.node] = Running(entry.node, self._ground)
            if self._queued or self._scheduled:
                folder = self.ws.root / JOBS
                folder.mkdir(exist_ok=True)
                self._store = open_store(store or self._url or folder / "jobs.db")
                self._webhooks = Webhooks(self._store, secret, webhook_hosts)
        except OnsilError:
            self.close()
            raise

    async def ready(self) -> None:
        """Load and warm every graph, then begin with jobs and schedules. Raises NotReady."""
        self._loop = asyncio.get_running_loop()
        for graph in self._graphs.values():
            await graph.ready()
        if self._store is not None and self._webhooks is not None:
            self._begin(self._store, self._webhooks)

    def _begin(self, store: JobStore, webhooks: Webhooks) -> None:
        for entry in self._queued:
            handlers = {entry.path: self._job(entry)}
            self._workers.append(Worker(store, handlers, entry.lease, THREADS, days=self._days))
        files = FileStore(store, self.ws.root / JOBS / "files")
        self._scheduler = Scheduler()
        for entry in self._scheduled:
            graph = self._graphs[entry.node]
            handler = ScheduledBatch(store, files, entry, graph, self._asking(entry, graph))
            self._workers.append(Worker(store, {entry.kind: handler}, LEASE, days=self._days))
            self._scheduler.add(entry.times, partial(entry.submit, store), entry.last(store))
        self._threads = [worker.start() for worker in (*self._workers, webhooks)]
        self._scheduler.start()

    def close(self) -> None:
        """Finish or give back what is worked at, then end processes, actors and threads. Not to be
        called on the event loop, which finishes it."""
        if self._scheduler is not None:
            self._scheduler.stop()
        for worker in self._workers:
            worker.stop()
        if self._webhooks is not None:
            self._webhooks.stop()
        for thread in self._threads:
            thread.join()
        self._workers, self._threads, self._scheduler = [], [], None
        if self._ground is not None:
            self._ground.close()
        if self._store is not None:
            self._store.close()
        self._graphs, self._ground, self._store, self._webhooks = {}, None, None, None

    def paths(self) -> list[str]:
        """Every path that is served."""
        return [*(s.path for s in self._served), *(q.path for q in self._queued)]

    def first_model(self) -> str:
        """The model whose use is watched: the first that a graph asks. Raises OnsilError for a
        deployment that asks none."""
        nodes = (entry.node for entry in (*self._served, *self._queued, *self._scheduled))
        for node in nodes:
            for reference in references(node):
                return self.ws.resolve(reference)[0]
        raise OnsilError(
            en=("This deployment asks no model.", "", "Put model('NAME') into one of its graphs."),
            ko=(
                "이 배포에는 모델이 없습니다.",
                "",
                "그래프 가운데 하나에 model('이름')을 넣어 주세요.",
            ),
        )

    def start_batch(self, name: str, slot: float | None = None) -> None:
        """Run a batch for a slot (epoch seconds, by default now) without waiting for its time. One
        that ran is not run again. Raises StoreError, and KeyError for an unknown name."""
        entry = {entry.name: entry for entry in self._scheduled}[name]
        assert self._store is not None
        entry.submit(self._store, time.time() if slot is None else slot)

    def graph(self, node: Node) -> Running:
        """The running graph of a node, once opened: for its `comparisons`, or to ask it here."""
        return self._graphs[node]

    # ── doors ───────────────────────────────────────────────────────────────────────────────────

    def routes(self) -> list[Route]:
        """A route for each path, those of the jobs, GET /comparisons with the counts of every
        shadow and canary, and GET /openapi.json. The app is open."""
        doors = [Route(s.path, self._door(s), methods=["POST"]) for s in self._served]
        for entry in self._queued:
            assert self._store is not None and self._webhooks is not None
            kinds = {entry.path: partial(meant, self._graphs[entry.node])}
            allowed = self._webhooks.allowed
            doors += job_routes(self._store, kinds, allowed, entry.path, entry.attempts)
        return [
            *doors,
            Route("/comparisons", self._comparisons),
            Route("/openapi.json", self._described),
        ]

    def _door(self, entry: Served) -> Callable[[Request], Coroutine]:
        graph = self._graphs[entry.node]

        async def answer(request: Request) -> Response:
            from onsil.serving.app import unless_gone

            value = await body_of(request)
            seen = observation(request)
            seen.operation = "graph"
            deadline = time.monotonic() + entry.timeout
            work = graph(value, deadline=deadline, request_id=seen.request_id or None)
            try:
                made = await unless_gone(request, work)
            except Failure as e:
                if not isinstance(e, BadInput):  # which is the caller's to mend
                    logged(entry.path, e)
                return refusal(e)
            pins = made.context.pins.values()
            seen.model = ", ".join(f"{pin.name}@{pin.version}" for pin in pins)
            seen.digest = ", ".join(pin.digest for pin in pins)
            return answered(made, self.mark)

        return answer

    async def _comparisons(self, request: Request) -> Response:
        told = {}
        for entry in (*self._served, *self._queued):
            if counted := self._graphs[entry.node].comparisons:
                told[entry.path] = [comparison.told() for comparison in counted]
        return JsonAnswer(told)

    async def _described(self, request: Request) -> Response:
        doors = [graph_door(s.path, takes(s.node), gives(s.node)) for s in self._served]
        for entry in self._queued:
            doors += job_doors(entry.path, [entry.path], takes(entry.node))
        return JsonAnswer(document([], [*doors, COMPARISONS]))

    # ── work that outlives its request ──────────────────────────────────────────────────────────

    def _job(self, entry: Queued) -> Callable[[Claimed], Json]:
        graph, ring = self._graphs[entry.node], KeyRing(self.ws.root)

        def attempt(claimed: Claimed) -> Json:
            if not ring.knows(claimed.owner):
                raise NoRetry(REMOVED)
            deadline = time.monotonic() + entry.timeout
            how: dict[str, Any] = {"deadline": deadline, "request_id": claimed.id}
            try:
                how["pins"] = self._pins(graph, claimed)
                while True:
                    try:
                        asked = graph(claimed.payload, **how)
                        return self._waited(f"job {entry.path}", asked, claimed).value
                    except (Busy, Open) as e:  # a full house is no failed attempt
                        until = time.monotonic() + (e.retry_after or 1)
                        if until > deadline:
                            raise
                        while time.monotonic() < until:
                            if claimed.cancelled():
                                raise Cancelled from e
                            time.sleep(LOOK)
            except BadInput as e:
                raise NoRetry(e.message) from e
            except Failure as e:
                logged(entry.path, e)
                raise

        return attempt

    def _pins(self, graph: Running, claimed: Claimed) -> dict[str, Pin]:
        """The models of a job: those of its first attempt."""
        found = claimed.checkpoints()
        if "models" not in found:
            claimed.checkpoint("models", graph.pinned())
            found = claimed.checkpoints()
        return {reference: Pin(*pin) for reference, pin in found["models"].items()}

    def _asking(self, entry: Scheduled, graph: Running) -> Callable[[Json, dict[str, Pin]], Answer]:
        def ask(value: Json, pins: dict[str, Pin]) -> Answer:
            deadline = time.monotonic() + ROW_SECONDS
            return self._waited(f"row {entry.name}", graph(value, pins=pins, deadline=deadline))

        return ask

    def _waited(
        self, name: str, asked: Coroutine[Any, Any, Answer], claimed: Claimed | None = None
    ) -> Answer:
        """The answer of a graph on the server's loop, awaited in a worker's thread, a trace of its
        own. Raises Cancelled when the job is asked to end."""
        assert self._loop is not None
        with tracing.span(name):
            doing: Future[Answer] = asyncio.run_coroutine_threadsafe(asked, self._loop)
            try:
                while True:
                    try:
                        return doing.result(timeout=LOOK)
                    except TimeoutError:
                        if claimed is not None and claimed.cancelled():
                            raise Cancelled from None
            finally:
                doing.cancel()  # nobody waits any more, whatever the reason

    # ── a server of its own ─────────────────────────────────────────────────────────────────────

    def run(
        self,
        placement: Placement = "inline",
        settings: Settings = Settings(),
        tell: Callable[[str], object] = print,
    ) -> None:
        """Serve until told to stop."""
        from onsil.serving.deployed import serve_deployment

        serve_deployment(self, placement, settings, tell)


def meant(graph: Running, value: Json) -> str:
    """What makes two inputs to a graph the same work: the digests of its models now. Raises
    Refused when one of them is not there."""
    try:
        pins = graph.pinned()
    except NotReady as e:
        raise refused(e) from e
    return fingerprint_of([[pin.name, pin.digest] for pin in pins.values()])
