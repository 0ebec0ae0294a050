"""Steps in a row or side by side, laid on threads, processes or machines.

Read `nodes.py` (the words), `running.py` (what they do), then who does the work: `works.py` here,
`workers.py` in processes, `on_ray.py` on a cluster. `policies.py` is what stands around a node:
cache, breaker, shadow, canary.
"""

from onsil.graph.failures import (
    BadInput,
    Busy,
    Died,
    Failed,
    Failure,
    Late,
    NoQuorum,
    NotReady,
    Open,
)
from onsil.graph.nodes import (
    Node,
    breaker,
    cache,
    canary,
    model,
    par,
    prep,
    route,
    shadow,
    step,
)
from onsil.graph.request import Answer, remaining
from onsil.graph.running import Ground, Running, compile

__all__ = [
    "Answer",
    "BadInput",
    "Busy",
    "Died",
    "Failed",
    "Failure",
    "Ground",
    "Late",
    "NoQuorum",
    "Node",
    "NotReady",
    "Open",
    "Running",
    "breaker",
    "cache",
    "canary",
    "compile",
    "model",
    "par",
    "prep",
    "remaining",
    "route",
    "shadow",
    "step",
]
