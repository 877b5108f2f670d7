"""Traces: a span for each request by OpenTelemetry, sent over OTLP; https://opentelemetry.io/docs/specs/semconv/gen-ai/"""
from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from .. import __version__
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
            from opentelemetry.trace import SpanKind
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(f"traces need the package {error.name!r}. Install it: pip install 'inferplane[otel]'") from None
        self._provider: Any = TracerProvider(resource=Resource.create({"service.name": "inferplane", "service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer: Any = self._provider.get_tracer("inferplane.serving")
        self._extract: Any = TraceContextTextMapPropagator().extract
        self._kind: Any = SpanKind.SERVER

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
        span.end(end)

    def close(self) -> None:
        """What waits is sent first."""
        self._provider.shutdown()
