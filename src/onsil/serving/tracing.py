"""Traces: where the time of one request went, as spans that any OpenTelemetry backend draws.

Off, and without any cost but one comparison, until an OTLP endpoint is given. Then every request is
a span, below it what the graph's steps and the engine say of themselves; a caller's `traceparent`
(W3C Trace Context) makes them part of the caller's trace, and `traceparent()` carries the trace on
to whatever is called from here. Attributes have OpenTelemetry's names for generative AI. No span
holds a question or an answer. Sending happens in a thread of its own; what cannot be sent is lost.

    with tracing.span("graph step", {"onsil.step": "classify"}):
        ...
"""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsil.errors import OnsilError
from onsil.serving.metrics import MODEL, OPERATION, PROVIDER, STATUS
from onsil.serving.request_log import declared, observation

Attributes = Mapping[str, str | int | float | bool]
VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_tracer: Any = None  # opentelemetry.trace.Tracer while tracing is on
_provider: Any = None
_nothing = nullcontext()
# What an exception says may quote what was asked.
QUIET: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


def start(endpoint: str, exporter: Any = None) -> None:
    """Send spans to an OTLP/HTTP endpoint (`http://127.0.0.1:4318`), or to an `exporter` of one's
    own. Raises OnsilError without the extra `otel`."""
    global _tracer, _provider
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # pyright: ignore[reportMissingImports]

            exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    except ImportError as e:
        raise OnsilError(
            en=(
                f"Traces were asked for ({endpoint}), and OpenTelemetry is not installed.",
                "Without it nothing would arrive there.",
                "pip install 'onsil[otel]'",
            ),
            ko=(
                f"추적({endpoint})을 켰지만 OpenTelemetry가 설치되어 있지 않습니다.",
                "설치하지 않으면 아무것도 전송되지 않습니다.",
                "pip install 'onsil[otel]'",
            ),
        ) from e
    _provider = TracerProvider(resource=Resource.create({"service.name": "onsil"}))
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer("onsil")


def stop() -> None:
    """Send what is left and be off again."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def span(name: str, attributes: Attributes | None = None) -> Any:
    """A context in which a step runs, below whichever span is current; does nothing while tracing
    is off."""
    if _tracer is None:
        return _nothing
    return _tracer.start_as_current_span(name, attributes=attributes, **QUIET)


def record(name: str, parent: str, began: float, ended: float, attributes: Attributes) -> None:
    """A span of the past, for work that another thread did: `parent` is what `traceparent()` said
    when it was asked for, the times are seconds since the epoch."""
    if _tracer is None:
        return
    made = _tracer.start_span(
        name, _context(parent), start_time=int(began * 1e9), attributes=attributes
    )
    made.end(int(ended * 1e9))


def traceparent() -> str:
    """The current span as W3C's header, for a call to somebody else; empty while tracing is off."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


def _context(parent: str) -> Any:
    """The trace a header names; a new one for a header that names none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())


def traced(app: ASGIApp) -> ASGIApp:
    """`app` with a span around each request; `app` itself while tracing is off."""
    if _tracer is None:
        return app
    from opentelemetry.trace import SpanKind

    async def spanned(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        parent = dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1")
        method = scope["method"]
        about = {"http.request.method": method}
        begun = _tracer.start_as_current_span(
            method, _context(parent), SpanKind.SERVER, about, **QUIET
        )
        with begun as made:

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = [*message["headers"], (b"traceparent", traceparent().encode())]
                    message = {**message, "headers": headers}
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                _finish(made, scope)

    return spanned


def _finish(made: Any, scope: Scope) -> None:
    seen = observation(scope)
    known = {
        "http.route": declared(scope),
        STATUS: seen.status,
        OPERATION: seen.operation,
        MODEL: seen.model,
        PROVIDER: "onsil" if seen.operation else "",
        "onsil.model.digest": seen.digest,
        "onsil.request.id": seen.request_id,
        "gen_ai.usage.input_tokens": seen.prompt_tokens,
        "gen_ai.usage.output_tokens": seen.completion_tokens,
        "gen_ai.response.finish_reasons": (seen.finish,) if seen.finish else (),
    }
    if seen.status >= 500 or not seen.status:
        from opentelemetry.trace import StatusCode

        made.set_status(StatusCode.ERROR)
    made.set_attributes({name: value for name, value in known.items() if value})
    if seen.operation:
        made.update_name(f"{seen.operation} {seen.model}".strip())
    elif known["http.route"]:
        made.update_name(f"{scope['method']} {known['http.route']}")


def endpoint() -> str:
    """Where spans go, by OpenTelemetry's own variable; empty for nowhere. Raises OnsilError for
    what is no address."""
    found = os.environ.get(VARIABLE, "")
    if found and not found.startswith(("http://", "https://")):
        raise OnsilError(
            en=(
                f"${VARIABLE} is {found}, which is no address.",
                "Traces would be made and never arrive.",
                "Set it so: http://127.0.0.1:4318, or unset it.",
            ),
            ko=(
                f"${VARIABLE}의 값 {found}은(는) 주소가 아닙니다.",
                "이대로면 추적 기록이 만들어져도 도착하지 않습니다.",
                "http://127.0.0.1:4318처럼 적거나 지워 주세요.",
            ),
        )
    return found
