"""The peers of benchmarks/graph_overhead.py: the same two graphs on Ray Serve and on BentoML.

Run by the Python of a virtual environment that has them; it imports nothing of onsil and prints one
line of JSON. Each is written as its own documentation writes it: Ray Serve's model composition by
deployment handles, BentoML's `bentoml.depends`. Ray Serve is asked by a handle from the driver.
BentoML's services are threads and tasks of one process when they are called directly, and that is
how they are asked; its server puts HTTP between them when it is told to.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "1"}
VALUE = {"text": "x" * 200, "n": 1}


def spent(processes: Callable[[], list]) -> float:
    """Processor seconds of this process and all below it."""
    return sum(t.user + t.system for t in (p.cpu_times() for p in processes()))


async def measured(ask: Callable[[dict], Awaitable], requests: int, checked: dict) -> dict:
    """Processor time and latency a request, one after the other, after a tenth of them to warm."""
    import psutil

    own = psutil.Process()
    everybody = [own, *own.children(recursive=True)]
    for _ in range(max(requests // 10, 3)):
        assert await ask(dict(VALUE)) == checked
    seconds = []
    before = spent(lambda: everybody)
    for _ in range(requests):
        start = time.perf_counter()
        await ask(VALUE)
        seconds.append(time.perf_counter() - start)
    cpu = spent(lambda: everybody) - before
    seconds.sort()
    return {
        "requests": requests,
        "cpu_us": round(cpu / requests * 1e6, 1),
        "p50_us": round(seconds[len(seconds) // 2] * 1e6, 1),
        "p99_us": round(seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1e6, 1),
        "processes": len(everybody),
    }


async def ray_serve(requests: int) -> dict:
    """Four deployments in a row, three side by side, each with a tenth of a CPU."""
    import ray
    from ray import serve

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(proxy_location="Disabled")  # asked by handles, no HTTP
    light = {"ray_actor_options": {"num_cpus": 0.1}}

    @serve.deployment(**light)
    class Step:
        async def __call__(self, value: dict) -> dict:
            return value | {"n": value["n"] + 1}

    @serve.deployment(**light)
    class Chain:
        def __init__(self, *steps):
            self.steps = steps

        async def __call__(self, value: dict) -> dict:
            for step in self.steps:
                value = await step.remote(value)
            return value

    @serve.deployment(**light)
    class Panel:
        def __init__(self, *branches):
            self.branches = branches

        async def __call__(self, value: dict) -> dict:
            votes = await asyncio.gather(*(branch.remote(value) for branch in self.branches))
            return {"n": sum(vote["n"] for vote in votes)}

    def steps(number: int) -> list:
        return [Step.options(name=f"step{n}").bind() for n in range(number)]

    made = {}
    chain = serve.run(Chain.bind(*steps(4)), name="chain", route_prefix="/chain")
    made["serial"] = await measured(lambda v: _awaited(chain, v), requests, VALUE | {"n": 5})
    serve.delete("chain")
    panel = serve.run(Panel.bind(*steps(3)), name="panel", route_prefix="/panel")
    made["parallel"] = await measured(lambda v: _awaited(panel, v), requests, {"n": 6})
    serve.shutdown()
    ray.shutdown()
    return made | {"version": ray.__version__}


async def _awaited(handle, value: dict):
    return await handle.remote(value)


async def bentoml(requests: int) -> dict:
    """Services that depend on four or three others, called in one process."""
    import bentoml as library

    class Work:
        @library.api
        async def work(self, value: dict) -> dict:
            return value | {"n": value["n"] + 1}

    parts = [library.service(type(f"Step{n}", (Work,), {})) for n in range(4)]

    @library.service
    class Chain:
        a, b, c, d = (library.depends(part) for part in parts)

        @library.api
        async def ask(self, value: dict) -> dict:
            for part in (self.a, self.b, self.c, self.d):
                value = await part.work(value)
            return value

    @library.service
    class Panel:
        a, b, c = (library.depends(part) for part in parts[:3])

        @library.api
        async def ask(self, value: dict) -> dict:
            branches = (self.a, self.b, self.c)
            votes = await asyncio.gather(*(branch.work(value) for branch in branches))
            return {"n": sum(vote["n"] for vote in votes)}

    chain, panel = Chain(), Panel()
    return {
        "serial": await measured(chain.ask, requests, VALUE | {"n": 5}),
        "parallel": await measured(panel.ask, requests, {"n": 6}),
        "version": library.__version__,
    }


if __name__ == "__main__":
    peer, requests = sys.argv[1], int(sys.argv[2])
    told = asyncio.run({"ray_serve": ray_serve, "bentoml": bentoml}[peer](requests))
    print(json.dumps(told))
