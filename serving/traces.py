"""Traces: a span for each request by OpenTelemetry, with the engine's phases, sent over OTLP; https://opentelemetry.io/docs/specs/semconv/gen-ai/"""
from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .. import __version__
from ..core.output import RequestMetrics
from ..errors import ConfigError
from .audit import Tally


class Traces:
    """endpoint: of a collector, for instance http://localhost:4318/v1/traces. Spans leave in batches, on a thread of the library's."""

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, set_span_in_context
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(f"traces need the package {error.name!r}. Install it: pip install 'inferplane[otel]'") from None
        self._provider: Any = TracerProvider(resource=Resource.create({"service.name": "inferplane", "service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer: Any = self._provider.get_tracer("inferplane.serving")
        self._extract: Any = TraceContextTextMapPropagator().extract
        self._kind: Any = SpanKind.SERVER
        self._within: Any = set_span_in_context

    def write(self, fields: dict[str, Any], tally: Tally, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A request that has ended. fields: of the journal. headers: they may name the span that the client is in."""
        end = time.time_ns()
        said = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"tracestate")}
        span = self._tracer.start_span(
            f"{fields['method']} {fields['path']}", context=self._extract(said), kind=self._kind,
            start_time=end - int(fields["seconds"] * 1e9), attributes={
                "http.request.method": fields["method"], "url.path": fields["path"], "http.response.status_code": fields["status"],
                "inferplane.request_id": fields["request_id"], "gen_ai.request.model": tally.model,
                "gen_ai.usage.input_tokens": tally.prompt_tokens, "gen_ai.usage.output_tokens": tally.completion_tokens,
            })
        for times in tally.times:
            self._write_phases(span, times, end - time.monotonic_ns())
        span.end(end)

    def _write_phases(self, parent: Any, times: RequestMetrics, zero: int) -> None:
        """What the engine did with one prompt, as far as it came. zero: of its clock, in Unix nanoseconds."""
        phases = (("queue", times.arrival, times.scheduled), ("prefill", times.scheduled, times.first_token),
                  ("decode", times.first_token, times.finished))
        for name, start, end in phases:
            if start is not None and end is not None:
                self._tracer.start_span(name, context=self._within(parent), start_time=zero + int(start * 1e9)).end(zero + int(end * 1e9))

    def close(self) -> None:
        """What waits is sent first."""
        self._provider.shutdown()
