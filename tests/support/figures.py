"""A page of metrics as Prometheus reads it, and what makes one in a test's own registry."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.builders import HOST
from tests.support.fakes import FakeClock
from workers.telemetry.instruments import OF_WORKER, Metric
from workers.telemetry.metrics import MetricsTelemetry
from workers.telemetry.series import Series, views

Labels = frozenset[tuple[str, str]]


def labelled(**labels: object) -> Labels:
    return frozenset((name, str(value)) for name, value in labels.items())


class Page:
    """`types` and `helps` are those of the lines # TYPE and # HELP; `samples` go by full name, then by labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        self.helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
        self.samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series = self.samples.setdefault(sample.name, {})
                labels = labelled(**sample.labels)
                assert labels not in series, f"{sample.name} twice with {dict(labels)}"
                series[labels] = sample.value

    def value(self, name: str, **labels: object) -> float | None:
        """Return the value of the only series with these labels; None where there is none."""
        wanted = labelled(**labels)
        found = [value for known, value in self.samples.get(name, {}).items() if wanted <= known]
        assert len(found) <= 1, f"{name}: {len(found)} series with {labels}"
        return found[0] if found else None

    def total(self, name: str) -> float:
        return sum(self.samples.get(name, {}).values())

    def labels(self, name: str) -> set[str]:
        """Return the names of the labels that series of this name have."""
        return {label for known in self.samples.get(name, {}) for label, _ in known}

    def above_zero(self, name: str) -> dict[Labels, float]:
        """Return the series that have counted something, without their host."""
        return {
            frozenset(label for label in known if label[0] != "host"): value
            for known, value in self.samples.get(name, {}).items()
            if value
        }

    def buckets(self, name: str, **labels: object) -> dict[float, float]:
        """Return how many measurements each bucket has, with all below it, by its upper bound."""
        wanted = labelled(**labels)
        return {
            float(dict(known)["le"]): value
            for known, value in self.samples.get(f"{name}_bucket", {}).items()
            if wanted <= known
        }


@dataclass
class Gauged:
    """Series on a real meter, read through a real exporter, with a clock that is told to move."""

    metrics: Iterable[Metric] = OF_WORKER
    host: str | None = HOST
    stale_s: float = 60.0
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        provider = MeterProvider([reader], views=views(), shutdown_on_exit=False)
        meter = provider.get_meter("test")
        self.series = Series(meter, self.metrics, self.host, self.stale_s, monotonic=self.clock.monotonic)

    def telemetry(self, *, per_vm: bool = False) -> MetricsTelemetry:
        return MetricsTelemetry(self.series, per_vm=per_vm, monotonic=self.clock.monotonic)

    def page(self) -> Page:
        return Page(generate_latest(self._registry).decode())
