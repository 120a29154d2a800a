"""The values behind the metrics of `instruments`, kept here and read by OpenTelemetry when somebody collects.

Counters and gauges are plain numbers until then, so counting a thousand checks costs next to nothing, and a series is
gone as soon as nobody keeps its number any more.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics._internal.aggregation import _ExplicitBucketHistogramAggregation
from opentelemetry.sdk.metrics._internal.measurement import Measurement
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from workers.telemetry.instruments import METRICS, Kind, Metric

Labels = tuple[str, ...]

# Of one metric. Beyond 2,000, its default, OpenTelemetry puts all others into one: hosts, or VMs where they are labels.
_MOST_SERIES = 1_000_000


class Several(float):
    """Many measurements handed over at once, or none: their sum, to whoever does not know better."""

    values: Sequence[float]

    def __new__(cls, values: Sequence[float]) -> Self:
        made = super().__new__(cls, sum(values))
        made.values = values
        return made


class _SeveralBuckets(_ExplicitBucketHistogramAggregation):
    """OpenTelemetry takes one measurement at a time, 6.5 µs each: too much for each of a thousand checks."""

    def aggregate(self, measurement: Measurement, should_sample_exemplar: bool = True) -> None:  # noqa: FBT001, FBT002 - OpenTelemetry's signature
        value = measurement.value
        if not isinstance(value, Several):
            super().aggregate(measurement, should_sample_exemplar)
            return
        # By name: the class says nothing of their types, which change with the first measurement.
        mine = vars(self)
        with self._lock:
            buckets = mine["_value"] = mine["_value"] or self._get_empty_bucket_counts()
            for each in value.values:
                buckets[bisect_left(self._boundaries, each)] += 1
            mine["_sum"] += value
            self._min = min(self._min, *value.values, self._min)
            self._max = max(self._max, *value.values, self._max)


class _SeveralAggregation(ExplicitBucketHistogramAggregation):
    def _create_aggregation(self, *args: Any) -> Any:
        made = super()._create_aggregation(*args)
        # The same object in every way but how it takes many at once.
        made.__class__ = _SeveralBuckets
        return made


def views() -> list[View]:
    """Return what a MeterProvider needs to know of our metrics."""
    return [
        View(
            instrument_name=metric.name,
            aggregation=_SeveralAggregation(boundaries=metric.buckets) if metric.buckets else None,
            aggregation_cardinality_limit=_MOST_SERIES,
        )
        for metric in METRICS
    ]


@dataclass(slots=True)
class _Gauge:
    values: Mapping[Labels, float]
    until: float


@dataclass
class Series:
    """`host` is put before the labels of every metric that has it. Gauges are shown until they are `stale_s` old."""

    meter: Meter
    metrics: Iterable[Metric]
    host: str | None = None
    stale_s: float = 60.0
    monotonic: Callable[[], float] = time.monotonic
    _counts: dict[str, dict[Labels, float]] = field(default_factory=dict)
    _gauges: dict[str, _Gauge] = field(default_factory=dict)
    _histograms: dict[str, Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for metric in self.metrics:
            self._declare(metric)

    def _declare(self, metric: Metric) -> None:
        name, text = metric.name, metric.help
        match metric.kind:
            case Kind.COUNTER:
                self._counts[name] = {}
                self.meter.create_observable_counter(name, [self._counted(metric)], description=text)
            case Kind.GAUGE:
                self.meter.create_observable_gauge(name, [self._gauged(metric)], description=text)
            case Kind.HISTOGRAM:
                self._histograms[name] = self.meter.create_histogram(name, unit="s", description=text)

    def _counted(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                counts = list(self._counts[metric.name].items())
            return [Observation(value, self._attributes(metric, labels)) for labels, value in counts]

        return observe

    def _gauged(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            gauge = self._gauges.get(metric.name)
            if gauge is None or self.monotonic() > gauge.until:
                return []
            return [Observation(value, self._attributes(metric, labels)) for labels, value in gauge.values.items()]

        return observe

    def _attributes(self, metric: Metric, labels: Labels) -> dict[str, str]:
        values = labels if self.host is None else (self.host, *labels)
        names = metric.labels if len(values) == len(metric.labels) else (*metric.labels, "vm_id")
        # Plain text: OpenTelemetry takes a member of a StrEnum for another value than its text, and makes two series.
        return {name: str(value) for name, value in zip(names, values, strict=True)}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        self.count_all({(metric, labels): by})

    def count_all(self, counts: Mapping[tuple[Metric, Labels], float]) -> None:
        with self._lock:
            for (metric, labels), by in counts.items():
                series = self._counts[metric.name]
                series[labels] = series.get(labels, 0) + by

    def total(self, metric: Metric, labels: Labels, value: float) -> None:
        """Set a counter that is kept elsewhere."""
        with self._lock:
            self._counts[metric.name][labels] = value

    def forget(self, metric: Metric, is_gone: Callable[[Labels], bool]) -> None:
        with self._lock:
            series = self._counts[metric.name]
            self._counts[metric.name] = {labels: value for labels, value in series.items() if not is_gone(labels)}

    def gauge(self, metric: Metric, values: Mapping[Labels, float] | float, *, every_s: float = 0.0) -> None:
        """Set it; `every_s`: how long it may be until it is set again, where that is longer than for the others."""
        plain: Mapping[Labels, float] = values if isinstance(values, Mapping) else {(): float(values)}
        self._gauges[metric.name] = _Gauge(plain, self.monotonic() + max(self.stale_s, 2 * every_s))

    def record(self, metric: Metric, seconds: float | Sequence[float], *labels: str) -> None:
        amount = Several(seconds) if isinstance(seconds, Sequence) else max(0.0, seconds)
        self._histograms[metric.name].record(amount, self._attributes(metric, labels))
