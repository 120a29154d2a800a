"""Where numbers and spans leave this process: served for Prometheus always, pushed by OTLP where that is asked for.

The SDK's own variables (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER,
OTEL_METRIC_EXPORT_INTERVAL, OTEL_BSP_*) mean what they always do. Exporters have threads and deadlines of their own.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from workers.telemetry.endpoints import Reply
from workers.telemetry.series import views

# What is still to be sent at the end gets so long; a collector that is away must not keep a process from ending.
_FAREWELL_S = 2.0
_METRICS, _TRACES = "METRICS", "TRACES"


@dataclass(frozen=True, slots=True)
class Exports:
    """`tracer_provider` is None where no spans are wanted."""

    meter_provider: MeterProvider
    tracer_provider: TracerProvider | None
    registry: CollectorRegistry

    def page(self) -> Reply:
        return Reply(generate_latest(self.registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def close(self) -> None:
        """Send what is left, for a short while."""
        for provider in (self.tracer_provider, self.meter_provider):
            if provider is not None:
                farewell = threading.Thread(target=provider.shutdown, daemon=True)
                farewell.start()
                farewell.join(_FAREWELL_S)


def exports(name: str, version: str, *, endpoint: str | None, environ: Mapping[str, str] = os.environ) -> Exports:
    """`name` is the service's unless OTEL_SERVICE_NAME says otherwise; `endpoint` the collector's URL, if set."""
    resource = Resource.create({SERVICE_NAME: environ.get("OTEL_SERVICE_NAME") or name, SERVICE_VERSION: version})
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    readers: list[MetricReader] = [
        PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=registry)
    ]
    if _is_wanted(_METRICS, endpoint, environ):
        readers.append(_pushing_reader(endpoint))
    # Celery's own histogram has a label per worker, and says nothing that our metrics do not.
    celerys = View(instrument_name="flower.task.runtime.seconds", aggregation=DropAggregation())
    meter_provider = MeterProvider(readers, resource, views=[*views(), celerys], shutdown_on_exit=False)
    tracer_provider = _tracer_provider(resource, endpoint) if _is_wanted(_TRACES, endpoint, environ) else None
    return Exports(meter_provider, tracer_provider, registry)


def _is_wanted(signal: str, endpoint: str | None, environ: Mapping[str, str]) -> bool:
    """As the SDK's specification has it, but that nothing is pushed anywhere unless a collector is named."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get(f"OTEL_{signal}_EXPORTER") == "none":
        return False
    return bool(
        endpoint or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    )


def _pushing_reader(endpoint: str | None) -> MetricReader:
    # Loaded only where something is pushed: 5 MiB.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: PLC0415

    return PeriodicExportingMetricReader(OTLPMetricExporter(**_at(endpoint, "metrics")))


def _tracer_provider(resource: Resource, endpoint: str | None) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from workers.telemetry.tracing import EpisodeIds  # noqa: PLC0415

    provider = TracerProvider(resource=resource, id_generator=EpisodeIds(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**_at(endpoint, "traces"))))
    return provider


def _at(endpoint: str | None, signal: str) -> dict[str, Any]:
    return {"endpoint": f"{endpoint.rstrip('/')}/v1/{signal}"} if endpoint else {}
