"""The same graph on a Ray cluster: every leaf an actor, and rows in bulk with Ray Data.

Ray (Moritz et al. 2018) moves the call, restarts an actor that died and knows which machine has
room. What is said between here and an actor is JSON text, as with a process. Each actor takes a
tenth of a CPU in Ray's books, and what does not fit is refused at once: Ray's own default is a
whole CPU for each, and it waits in silence for one that never comes. Actors are spread over the
machines.

`$RAY_ADDRESS` names a cluster; without it one is started on this machine, for this process, without
its dashboard and without its usage reports. On every machine the same code must be installed, and
the workspace lie under the same path (a shared folder, or a copy).

Ray Core and Data alone; Ray Serve adds a server of its own, and onsil has one. Left out: an end for
a blocking function that overruns (its actor goes on with it; a process would be killed). Ray moves
the code of a batch with cloudpickle, inside its cluster; nothing of ours reads a pickle.
"""

import asyncio
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from onsil.errors import OnsilError, language
from onsil.graph.failures import Died, Failure, NotReady, read_failure
from onsil.graph.nodes import Node, references
from onsil.graph.request import NEVER, Pin, step_deadline
from onsil.graph.values import Json, plain
from onsil.graph.works import failure_of, work_of
from onsil.lineage import Workspace

SHARE = 0.1  # of a CPU, for one actor
START = 600.0  # seconds for an actor to come up and its model to be loaded and warm
ROWS = 16  # in one batch of a batch


def ray_cluster() -> Any:
    """Ray, connected to a cluster. Raises OnsilError without the extra [ray] and when it does not
    start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore
    except ImportError as e:
        raise OnsilError(
            en=(
                "Ray is not installed.",
                "The placement 'ray' runs steps on a Ray cluster.",
                "Install it: pip install 'onsil[ray]', or choose the placement 'process'.",
            ),
            ko=(
                "Ray가 설치되어 있지 않습니다.",
                "'ray' 배치는 단계를 Ray 클러스터에서 실행합니다.",
                "pip install 'onsil[ray]'로 설치하거나 'process' 배치를 쓰세요.",
            ),
        ) from e
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            ray.init(log_to_driver=False, include_dashboard=None if address else False)
        except Exception as e:  # Ray says Exception of its own time-out
            ray.shutdown()
            raise OnsilError(
                en=(
                    f"Ray does not start (RAY_ADDRESS={address!r}): {e}",
                    "The placement 'ray' runs steps on a Ray cluster.",
                    "Look at `ray status`, or unset RAY_ADDRESS to have one on this machine alone.",
                ),
                ko=(
                    f"Ray를 시작하지 못했습니다(RAY_ADDRESS={address!r}): {e}",
                    "'ray' 배치는 단계를 Ray 클러스터에서 실행합니다.",
                    "`ray status`를 살펴보거나, RAY_ADDRESS를 비워 이 컴퓨터에서만 실행해 주세요.",
                ),
            ) from e
    return ray


def lay(works: list[dict[str, Json]]) -> "list[OnRay]":
    """An actor for each description of a work. Raises OnsilError when the cluster has no room."""
    ray = ray_cluster()
    free, wanted = ray.available_resources().get("CPU", 0.0), SHARE * len(works)
    if wanted > free + 1e-6:
        raise OnsilError(
            en=(
                f"The Ray cluster has {free:.1f} CPUs free and this graph takes {wanted:.1f}.",
                "Ray would wait for them without a word.",
                "Add a machine (ray start --address=…), end what runs there, or shorten the graph.",
            ),
            ko=(
                f"Ray 클러스터에 남은 CPU는 {free:.1f}개인데 {wanted:.1f}개가 필요합니다.",
                "그대로 두면 Ray가 아무 말 없이 기다립니다.",
                "컴퓨터를 더하거나(ray start --address=…), 실행 중인 것을 끝내거나, 그래프를 줄여 "
                "주세요.",
            ),
        )
    return [OnRay(ray, work) for work in works]


def _environment() -> dict[str, Any]:
    """What an answer may depend on beside its input: the language of its sentences, and the number
    of threads, which decides in what order a sum is added up."""
    kept = {"ONSIL_LANG": language()}
    if threads := os.environ.get("OMP_NUM_THREADS"):
        kept["OMP_NUM_THREADS"] = threads
    return {"env_vars": kept}


class Actor:
    """The far side: one work, and calls in JSON. What cannot be made says so when it is called."""

    def __init__(self, told: str):
        self.failure: Failure | None = None
        try:
            self.work = work_of(json.loads(told))
        except OnsilError as e:
            self.failure = NotReady(e.en[0])

    async def call(self, told: str) -> str:
        """A message as a worker gets it, and the answer as it gives it."""
        message = json.loads(told)
        pin = Pin(*message["pin"]) if message["pin"] else None
        left = message["seconds"]
        step_deadline.set(NEVER if left is None else time.monotonic() + left)
        try:
            if self.failure is not None:
                raise self.failure
            if message.get("load"):
                return json.dumps({"value": await self.work.load(pin)})
            return json.dumps({"value": plain(await self.work.call(message["value"], pin))})
        except Exception as e:  # told to the caller, who raises it
            return json.dumps({"failure": failure_of(e).told()})

    async def pid(self) -> int:
        return os.getpid()


class OnRay:
    """A work in an actor: see `works.Work`. Ray restarts one that died."""

    def __init__(self, ray: Any, work: dict[str, Json]):
        self.running, self.ray, self.lost = 0, ray, False
        options = {
            "num_cpus": SHARE,
            "max_restarts": -1,
            "max_concurrency": work["most"] + 1,  # and a call to load
            "scheduling_strategy": "SPREAD",
            "runtime_env": _environment(),
        }
        self.actor = ray.remote(Actor).options(**options).remote(json.dumps(work))

    async def call(self, value: Json, pin: Pin | None) -> Json:
        return await self._asked({"value": value, "pin": pin})

    async def load(self, pin: Pin | None) -> str | None:
        try:
            async with asyncio.timeout(START):
                return await self._asked({"load": True, "pin": pin})
        except TimeoutError as e:
            raise NotReady(f"Its actor was not ready in {START:.0f} seconds.") from e

    async def _asked(self, message: dict[str, Any]) -> Json:
        while self.lost:
            await self._look()
        deadline = step_deadline.get()
        seconds = None if deadline == NEVER else deadline - time.monotonic()
        said = self.actor.call.remote(json.dumps(message | {"seconds": seconds}))
        self.running += 1
        try:
            told = json.loads(await said)
        except asyncio.CancelledError:
            self.ray.cancel(said)
            raise
        except self.ray.exceptions.RayActorError as e:
            self.lost = True
            raise Died("Its actor ended while it worked.") from e
        finally:
            self.running -= 1
        if "failure" in told:
            raise read_failure(told["failure"])
        return told["value"]

    async def _look(self) -> None:
        """Whether an actor that was lost is back; Ray refuses calls until it is."""
        try:
            await self.actor.pid.remote()
            self.lost = False
        except self.ray.exceptions.ActorUnavailableError:
            await asyncio.sleep(0.1)
        except self.ray.exceptions.RayActorError as e:
            raise NotReady("Its actor could not be started again.") from e

    def close(self) -> None:
        self.ray.kill(self.actor)


# ── in bulk ─────────────────────────────────────────────────────────────────────────────────────


class Rows:
    """Rows through a graph, as Ray Data calls it: a batch of columns in, the same with answers.

    For a data set of your own: `dataset.map_batches(Rows, fn_constructor_args=[node, home], …)`
    with JSON text in the column `input`."""

    def __init__(self, node: Node, home: str | None):
        from onsil.graph.running import compile

        self.run = compile(node, ws=Workspace(home) if home else None)
        self.loop = asyncio.new_event_loop()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        told = [self.loop.run_until_complete(self._row(str(text))) for text in batch["input"]]
        return {"n": batch["n"], "told": told}

    async def _row(self, text: str) -> str:
        value = json.loads(text)
        try:
            answer = await self.run(value)
        except Failure as e:
            return json.dumps({"input": value, "value": None, "error": e.told(), "models": {}})
        done = {"input": value, "value": answer.value, "error": None, "models": answer.models}
        return json.dumps(done)


def batch_on_ray(
    rows: Iterable[Json], node: Node, ws: Workspace | None = None, workers: int = 1
) -> Iterator[dict[str, Json]]:
    """Every row with its answer, in the order of the rows: `input`, `value`, `error` (of a row that
    failed; the others go on) and `models`. `workers` actors share the rows."""
    ray_cluster()
    import ray.data as data  # pyright: ignore

    data.DataContext.get_current().enable_progress_bars = False
    home = str((ws or Workspace.find()).root.resolve()) if references(node) else None
    written = [{"n": n, "input": json.dumps(plain(row))} for n, row in enumerate(rows)]
    if not written:
        return
    done = data.from_items(written, override_num_blocks=max(1, len(written) // ROWS)).map_batches(
        Rows,
        fn_constructor_args=[node, home],
        concurrency=workers,
        batch_size=ROWS,
        num_cpus=SHARE,
        runtime_env=_environment(),
    )
    for row in sorted(done.take_all(), key=lambda row: row["n"]):
        yield json.loads(row["told"])
