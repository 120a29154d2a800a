"""The numbers behind the metrics: each under its name, with its labels, for as long as somebody keeps it."""

import threading

import pytest

from tests.support.builders import HOST
from tests.support.figures import Gauged, Page, labelled
from workers.telemetry import instruments as m
from workers.telemetry.export import exports
from workers.telemetry.instruments import METRICS, Kind, Metric
from workers.telemetry.series import Series, Several

PARTS = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
HISTOGRAMS = [metric for metric in METRICS if metric.kind is Kind.HISTOGRAM]


def put(series: Series, metric: Metric, value: float = 1) -> None:
    """Give the metric one series, whatever its kind."""
    labels = metric.labels[1:] if series.host is not None else metric.labels
    match metric.kind:
        case Kind.COUNTER:
            series.count(metric, *labels, by=value)
        case Kind.GAUGE:
            series.gauge(metric, {tuple(labels): value})
        case Kind.HISTOGRAM:
            series.record(metric, value, *labels)


@pytest.fixture(scope="module")
def full() -> Page:
    """A page of a worker, and below it one of a beat, on which every metric has a series."""
    worker, beat = Gauged(m.OF_WORKER), Gauged(m.OF_BEAT, host=None)
    for side in (worker, beat):
        for metric in side.metrics:
            put(side.series, metric)
    return Page(worker.page().text + beat.page().text)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_comes_out_under_exactly_its_name_with_its_kind_help_and_labels(full: Page, metric: Metric) -> None:
    assert full.types[metric.name] == metric.kind
    assert full.helps[metric.name] == metric.help
    for part in PARTS[metric.kind]:
        assert full.labels(metric.name + part) - {"le"} == set(metric.labels)


def test_nothing_comes_out_that_is_not_declared(full: Page) -> None:
    declared = {metric.name for metric in METRICS}
    assert full.types.keys() == declared
    assert full.samples.keys() == {metric.name + part for metric in METRICS for part in PARTS[metric.kind]}
    assert not [name for name in full.samples if name.endswith(("_total_total", "_seconds_seconds"))]


def test_every_metric_of_a_worker_names_its_host_and_none_of_a_beat_is_of_one(full: Page) -> None:
    assert all(metric.labels[0] == m.HOST for metric in m.OF_WORKER)
    assert {metric.name for metric in m.OF_BEAT if m.HOST in metric.labels} == {m.HOST_AGE.name, m.HOST_VMS.name}
    assert all(full.value(metric.name, host=HOST) == 1 for metric in m.OF_WORKER if metric.kind is not Kind.HISTOGRAM)
    assert set(m.OF_WORKER) | set(m.OF_BEAT) == set(METRICS)


def test_names_are_unique_and_carry_their_unit() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.name.endswith("_total") for metric in METRICS if metric.kind is Kind.COUNTER)
    assert all(metric.name.endswith("_seconds") for metric in HISTOGRAMS)
    assert all(metric.name.startswith((m.VM, m.RELIABILITY)) for metric in METRICS)


def test_no_metric_is_declared_with_a_label_of_which_there_are_many() -> None:
    many = {"vm_id", "pid", "generation", "attempt", "episode", "trace_id", "owner", "le", "instance", "job"}
    assert not [metric.name for metric in METRICS if many & set(metric.labels)]


@pytest.mark.parametrize("metric", HISTOGRAMS, ids=lambda metric: metric.name)
def test_the_buckets_of_a_histogram_are_those_declared(full: Page, metric: Metric) -> None:
    assert [*full.buckets(metric.name)] == [*metric.buckets, float("inf")]


def test_durations_are_told_apart_from_a_millisecond_to_ten_minutes() -> None:
    assert (m.SECONDS[0], m.SECONDS[-1]) == (0.001, 600)
    assert list(m.SECONDS) == sorted(set(m.SECONDS))
    assert list(m.QUICK_SECONDS) == sorted(set(m.QUICK_SECONDS))
    for metric in (m.DETECTION_SECONDS, m.ATTEMPT_SECONDS, m.RECOVERY_SECONDS):
        assert metric.buckets == m.SECONDS


def test_many_measurements_at_once_are_the_same_as_one_at_a_time() -> None:
    # Also those on a boundary, which belong below it, below the first one and beyond the last one.
    seconds = [0.0, 0.0001, 0.0005, 0.00051, 0.001, 0.0049, 0.005, 0.2, 0.25, 3.0, 10.0, 10.1, 99.0]
    at_once, one_by_one = Gauged([m.CHECK_SECONDS]), Gauged([m.CHECK_SECONDS])

    at_once.series.record(m.CHECK_SECONDS, seconds[:5], "firecracker")
    at_once.series.record(m.CHECK_SECONDS, seconds[5], "firecracker")
    at_once.series.record(m.CHECK_SECONDS, seconds[6:], "firecracker")
    for each in seconds:
        one_by_one.series.record(m.CHECK_SECONDS, each, "firecracker")

    left, right = at_once.page(), one_by_one.page()
    name = m.CHECK_SECONDS.name
    assert left.buckets(name) == right.buckets(name)
    assert left.value(f"{name}_count") == right.value(f"{name}_count") == len(seconds)
    assert left.value(f"{name}_sum") == pytest.approx(right.value(f"{name}_sum"))
    assert left.value(f"{name}_sum") == pytest.approx(sum(seconds))
    assert left.buckets(name)[0.005] == 7


def test_several_are_their_sum_to_whoever_does_not_know_better() -> None:
    assert float(Several([0.5, 0.25])) == 0.75
    assert float(Several([])) == 0


def test_no_measurement_at_all_begins_a_histogram_at_zero() -> None:
    gauged = Gauged([m.DETECTION_SECONDS])
    gauged.series.record(m.DETECTION_SECONDS, (), "firecracker", "process_dead")

    page = gauged.page()
    assert page.value(f"{m.DETECTION_SECONDS.name}_count", reason="process_dead") == 0
    assert set(page.buckets(m.DETECTION_SECONDS.name).values()) == {0}


def test_a_time_that_ran_backwards_is_no_measurement_below_zero() -> None:
    gauged = Gauged([m.ATTEMPT_SECONDS])
    gauged.series.record(m.ATTEMPT_SECONDS, -3.5, "firecracker", "success")
    assert gauged.page().value(f"{m.ATTEMPT_SECONDS.name}_sum") == 0


def test_counts_add_up_and_each_set_of_labels_is_a_series() -> None:
    gauged = Gauged([m.CHECKS])
    gauged.series.count(m.CHECKS, "firecracker", by=3)
    gauged.series.count_all({(m.CHECKS, ("firecracker",)): 2, (m.CHECKS, ("qemu",)): 1})

    page = gauged.page()
    assert page.value(m.CHECKS.name, driver="firecracker") == 5
    assert page.value(m.CHECKS.name, driver="qemu") == 1


def test_a_series_that_nobody_counts_any_more_stays_where_it_was() -> None:
    gauged = Gauged([m.CHECKS])
    gauged.series.count(m.CHECKS, "firecracker", by=3)
    gauged.page()
    gauged.clock.advance(86_400_000)
    assert gauged.page().value(m.CHECKS.name) == 3


def test_a_counter_that_is_kept_elsewhere_is_shown_as_it_stands_there() -> None:
    gauged = Gauged([m.REFUSED_WRITES], host=None)
    for value in (5, 7):
        gauged.series.total(m.REFUSED_WRITES, (), value)
    assert gauged.page().samples[m.REFUSED_WRITES.name] == {labelled(): 7}


def test_a_series_is_gone_with_its_vm() -> None:
    gauged = Gauged([m.LOST])
    for vm_id in ("vm-1", "vm-2"):
        gauged.series.count(m.LOST, "firecracker", "process_dead", vm_id)
    assert gauged.page().value(m.LOST.name, vm_id="vm-1") == 1

    gauged.series.forget(m.LOST, lambda labels: labels[-1] == "vm-1")

    page = gauged.page()
    assert page.value(m.LOST.name, vm_id="vm-1") is None
    assert page.value(m.LOST.name, vm_id="vm-2", host=HOST, reason="process_dead") == 1


def test_however_many_series_there_are_each_has_its_own_figure() -> None:
    """OpenTelemetry puts those beyond the first 2,000 into one, unless it is told not to."""
    fleet, vms = Gauged([m.HOST_AGE], host=None), Gauged([m.LOST])
    fleet.series.gauge(m.HOST_AGE, {(f"host-{number}",): number for number in range(2100)})
    for number in range(2100):
        vms.series.count(m.LOST, "firecracker", "process_dead", f"vm-{number}")

    assert fleet.page().value(m.HOST_AGE.name, host="host-2099") == 2099
    assert vms.page().value(m.LOST.name, vm_id="vm-2099") == 1
    for page, metric, labels in ((fleet.page(), m.HOST_AGE, {"host"}), (vms.page(), m.LOST, {*m.LOST.labels, "vm_id"})):
        assert len(page.samples[metric.name]) == 2100
        assert page.labels(metric.name) == labels


def test_a_gauge_is_what_it_was_set_to_last_and_its_other_series_are_gone() -> None:
    gauged = Gauged([m.VMS])
    gauged.series.gauge(m.VMS, {("healthy",): 4, ("failed",): 1})
    gauged.series.gauge(m.VMS, {("healthy",): 5})
    assert gauged.page().samples[m.VMS.name] == {labelled(host=HOST, state="healthy"): 5}


def test_a_stale_gauge_vanishes_and_comes_back_with_its_next_figure() -> None:
    gauged = Gauged([m.ORPHANED_AGE, m.CHECKS], stale_s=60)
    gauged.series.gauge(m.ORPHANED_AGE, 7.5)
    gauged.series.count(m.CHECKS, "firecracker")

    gauged.clock.advance(60_000)
    assert gauged.page().value(m.ORPHANED_AGE.name) == 7.5
    gauged.clock.advance(1)
    assert gauged.page().value(m.ORPHANED_AGE.name) is None
    assert gauged.page().value(m.CHECKS.name) == 1

    gauged.series.gauge(m.ORPHANED_AGE, 0)
    assert gauged.page().value(m.ORPHANED_AGE.name) == 0


def test_no_count_is_lost_between_threads_and_scrapes() -> None:
    gauged = Gauged([m.CHECKS])

    def count() -> None:
        for _ in range(1000):
            gauged.series.count(m.CHECKS, "firecracker")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gauged.page()
    for thread in threads:
        thread.join()
    assert gauged.page().value(m.CHECKS.name) == 4000


def test_the_page_of_a_process_has_also_what_it_uses_itself() -> None:
    shown = exports("test", "1.2.3", endpoint=None, environ={})
    series = Series(shown.meter_provider.get_meter("test"), [m.CHECKS], HOST)
    series.count(m.CHECKS, "firecracker")

    reply = shown.page()
    page = Page(reply.body.decode())

    assert reply.is_good
    assert reply.content_type.startswith("text/plain; version=0.0.4")
    assert page.value(m.CHECKS.name) == 1
    assert page.types.keys() == {m.CHECKS.name, *(name for name in page.types if name.startswith("process_"))}
    assert (page.value("process_resident_memory_bytes") or 0) > 0
    assert shown.tracer_provider is None
    shown.close()


@pytest.mark.parametrize(
    ("environ", "endpoint", "pushes"),
    [
        ({}, None, False),
        ({}, "http://127.0.0.1:9", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, None, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, None, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"}, None, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, "http://127.0.0.1:9", False),
        ({"OTEL_SDK_DISABLED": "true"}, "http://127.0.0.1:9", False),
    ],
)
def test_spans_are_made_only_where_a_collector_is_named(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], endpoint: str | None, *, pushes: bool
) -> None:
    # The metrics' own exporter would push at the end; the spans' has nothing to send.
    quiet = {"OTEL_METRICS_EXPORTER": "none"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    shown = exports("test", "1.2.3", endpoint=endpoint, environ=quiet | environ)
    assert (shown.tracer_provider is not None) is pushes
    shown.close()
