"""What a deployment says of itself: OpenAPI with the forms of its graphs, traces of its steps."""

import json
from collections.abc import Iterator
from typing import Any

import deployments
import jsonschema
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from test_graph import running
from test_openapi import FOR_PEOPLE
from test_patterns import GOLDEN, client_of, done

from onsil.graph import cache, canary, model, par, prep, route, shadow, step
from onsil.graph.forms import gives, takes
from onsil.serving import tracing
from onsil.serving.access import Access
from onsil.serving.deployed import doors
from onsil.serving.operations import Operations
from onsil.serving.request_log import observed
from onsil.serving.settings import Settings

home, here, app = deployments.home, deployments.here, deployments.app


@running
async def test_it_has_no_page_and_so_no_words_for_who_is_not_signed_in(app):
    app.serve("/v1/any", step(lambda value: value, name="s"))
    async with client_of(app) as client:
        said = await client.get("/", headers={"Accept": "text/html", "Authorization": "none"})
    assert said.status_code == 401 and "A key is needed" in said.json()["error"]["message"]


@running
async def test_its_openapi_names_every_route_and_the_forms_of_its_answers(app, home):
    app.serve("/v1/ask", model("desk"))
    app.serve("/v1/any", step(lambda value: value, name="s"))
    app.jobs("/v1/later", prep("desk") >> model("desk"))
    async with client_of(app) as client:
        told = (await client.get("/openapi.json")).json()
        answer = (await client.post("/v1/ask", json={"question": GOLDEN[0]})).json()
        refused = (await client.post("/v1/ask", json={})).json()
        operations = Operations(app.ws, "desk", Settings())
        guard = doors(app, Access("k" * 32), frozenset(), operations.routes())
        operations.close()
    there = {
        (route.path, method.lower())
        for route in guard.app.routes
        for method in (route.methods or set()) - {"HEAD"}
        if route.path not in FOR_PEOPLE
    }
    named = {(path, method) for path, methods in told["paths"].items() for method in methods}
    assert named - {("/ready", "get")} == there
    ask = told["paths"]["/v1/ask"]["post"]
    jsonschema.validate(answer, ask["responses"]["200"]["content"]["application/json"]["schema"])
    jsonschema.validate(refused, told["components"]["schemas"]["Error"])
    takes = ask["requestBody"]["content"]["application/json"]["schema"]
    job = told["paths"]["/v1/later"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert job["properties"]["input"] == takes and job["properties"]["kind"]["enum"] == [
        "/v1/later"
    ]
    form = jsonschema.Draft202012Validator(takes)
    assert form.is_valid({"question": GOLDEN[0]}) and form.is_valid({"messages": TURNS})
    for wrong in ({}, {"question": 1}, {"question": " "}, {"messages": []}, {"messages": [1]}):
        assert not form.is_valid(wrong)


TURNS = [{"role": "user", "content": GOLDEN[0]}]


def test_the_forms_of_a_graph_follow_from_its_parts():
    desk, some = model("desk"), step(lambda value: value, name="s")
    asked, answered = takes(desk), gives(desk)
    assert takes(prep("desk") >> some) == takes(cache(par(desk, desk), 1, 1)) == asked
    assert takes(some >> desk) == takes(par(desk, some)) == {"type": "object"}
    assert (
        gives(some >> shadow(desk, some, 0.1)) == gives(route("k", {"a": desk}, desk)) == answered
    )
    assert gives(desk >> some) == gives(canary(desk, some, 0.1)) == {}
    assert gives(route("k", {"a": desk}, prep("desk"))) == {
        "anyOf": [answered, gives(prep("desk"))]
    }
    panel = gives(par(desk, desk, some))["properties"]
    assert panel["answer"]["properties"] == {"desk": answered, "desk #2": answered, "s": {}}
    assert panel["voted"]["items"]["enum"] == ["desk", "desk #2", "s"]
    assert gives(par(desk, join=list))["properties"]["answer"] == {}


@pytest.fixture
def spans() -> Iterator[Any]:
    kept = InMemorySpanExporter()
    tracing.start("", kept)

    def finished() -> list[Any]:
        tracing._provider.force_flush()
        return list(kept.get_finished_spans())

    yield finished
    tracing.stop()


@running
async def test_every_attempt_of_a_step_is_a_span_of_its_request_or_job(app, spans):
    carried: list[str] = []

    def look(value: Any) -> Any:
        carried.append(tracing.traceparent())
        return value

    def flaky(value: Any) -> Any:
        if len(carried) == 1:
            carried.append("")
            raise ValueError("secret words")
        return value

    graph = step(look, on="pool") >> step(flaky, idempotent=True, retries=1) >> model("desk")
    app.serve("/v1/ask", graph)
    app.jobs("/v1/jobs", graph)
    around = lambda guard: observed(tracing.traced(guard))  # noqa: E731
    async with client_of(app, around=around) as client:
        caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        await client.post("/v1/ask", json={"question": GOLDEN[0]}, headers=caller)
        said = await client.post("/v1/jobs", json={"input": {"question": GOLDEN[0]}})
        await done(client, said.headers["Location"])
    found = spans()
    for name, more in (("graph desk@v1", [("step flaky", "failed")]), ("job /v1/jobs", [])):
        (whole,) = [s for s in found if s.name == name]
        steps = [s for s in found if s.parent and s.parent.span_id == whole.context.span_id]
        assert [(s.name, s.attributes["onsil.outcome"]) for s in steps] == [
            ("step look", "ok"),
            *more,
            ("step flaky", "ok"),
            ("step desk", "ok"),
        ]
        assert {s.context.trace_id for s in steps} == {whole.context.trace_id}
        assert carried.pop(-1 if name.startswith("job") else 0).split("-")[2] == (
            f"{steps[0].context.span_id:016x}"
        )
        assert name.startswith("job") or f"{whole.context.trace_id:x}" in caller["traceparent"]
    assert "secret" not in json.dumps([json.loads(s.to_json()) for s in found])
