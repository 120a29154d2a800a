"""Spans of a real worker, caught by a collector in this process: one episode is one story, and nothing waits for it."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, cluster, kill
from tests.support.collector import Collector, GotSpan, collector
from tests.support.processes import wait_until
from workers.domain.audit import trace_id_of
from workers.embedded import EmbeddedServer
from workers.queues import CHECK_VMS, RECOVER_VM
from workers.telemetry.tracing import LOST_SPAN

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "300"}


@pytest.fixture
def caught() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer, caught: Collector) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server, TELEMETRY__OTLP_ENDPOINT=caught.url) as made:
        made.start_beat()
        made.start_successor(environ=SOON)
        yield made


def children(of: GotSpan, spans: list[GotSpan]) -> list[str]:
    return [span.name for span in spans if span.parent_id == of.span_id]


def test_one_episode_with_two_failed_attempts_is_one_story(site: Cluster, caught: Collector) -> None:
    before = site.run_vms("vm-1", "vm-2")["vm-1"]
    site.fault("vm-1", '{"refuse_starts": 2}')

    kill(before, signal.SIGKILL)
    after = site.wait_healthy("vm-1", after=before)
    assert after.episode is not None
    story = trace_id_of(after.episode)

    def attempts() -> list[GotSpan] | None:
        found = [span for span in caught.named("recovery_attempt") if span.trace_id == story]
        return found if len(found) == 3 else None

    told = wait_until(attempts, timeout_s=10, what="three attempts in the story")
    assert told is not None
    by_number = sorted(told, key=lambda span: span.attributes["attempt"])
    assert [span.attributes["attempt"] for span in by_number] == [1, 2, 3]
    assert [span.is_error for span in by_number] == [True, True, False]
    assert [children(span, caught.spans) for span in by_number] == [
        ["fence", "start", "verify"],
        ["fence", "start", "verify"],
        ["fence", "start", "verify", "commit"],
    ]

    lost = wait_until(lambda: [each for each in caught.named(LOST_SPAN) if each.trace_id == story], what="its begin")
    assert lost is not None
    assert len(lost) == 1
    assert lost[0].parent_id == ""
    assert (lost[0].attributes["vm_id"], lost[0].attributes["reason"]) == ("vm-1", "process_dead")
    assert {span.parent_id for span in by_number} == {lost[0].span_id}
    # Celery's own spans are linked, and each is a trace of its own: retries do not nest.
    carriers = wait_until(lambda: carriers_of(by_number, caught), timeout_s=10, what="the spans of the Celery tasks")
    assert carriers is not None
    assert {span.name for span in carriers} == {f"run/{RECOVER_VM}"}
    assert len({span.trace_id for span in carriers}) == 3
    assert {span.parent_id for span in carriers} == {""}
    # The first span links to the batch that found the death, and that batch to it.
    seen_in = [span for span in caught.spans if span.span_id in lost[0].links]
    assert [span.name for span in seen_in] in (["vm_deaths"], ["vm_health_check"])
    assert lost[0].span_id in seen_in[0].links

    # The same id leads from a log line, and from the audit, to the story.
    log = (site.folder / "logs").glob("worker-*.log")
    lines = [line for file in log for line in file.read_text().splitlines() if f"trace_id={story}" in line]
    told_lines = [found[1] for line in lines if (found := re.search(r'event="([^"]+)"', line))]
    assert told_lines.count("vm recovery attempt failed") == 2
    assert told_lines.count("vm recovery successful") == 1
    assert "orphaned vm detected" in told_lines
    kinds = [entry.event.kind for entry in site.events("vm-1") if entry.event.trace_id == story]
    assert kinds == ["transition", *["attempt_started", "attempt_failed"] * 2, "attempt_started", "recovered"]
    assert wait_until(lambda: "unkey_metald_vm_recovery_success_total" in caught.metrics, what="metrics by OTLP too")
    assert {span.service for span in caught.spans} == {"metald-reliability-worker"}


def carriers_of(attempts: list[GotSpan], caught: Collector) -> list[GotSpan] | None:
    linked = {link for span in attempts for link in span.links}
    found = [span for span in list(caught.spans) if span.span_id in linked]
    return found if len(found) == len(attempts) else None


def test_a_batch_of_checks_is_one_span_and_names_who_fails(site: Cluster, caught: Collector) -> None:
    before = site.run_vms("vm-1", "vm-2")["vm-1"]

    kill(before, signal.SIGSTOP)
    site.wait_healthy("vm-1", after=before)

    def failing() -> GotSpan | None:
        found = [span for span in caught.named("vm_health_check") if span.attributes.get("failing")]
        return found[0] if found else None

    batch = wait_until(failing, timeout_s=10, what="a batch with a failing VM")
    assert batch is not None
    assert {facts["vm_id"] for name, facts in batch.events if name == "vm health check failed"} == {"vm-1"}
    assert 1 <= batch.attributes["vms"] <= 2
    assert batch.attributes["failing"] == 1
    parents = {span.span_id: span.name for span in caught.spans}
    assert parents[batch.parent_id] == f"run/{CHECK_VMS}"
    assert wait_until(lambda: caught.named("detect_orphans"), timeout_s=10, what="a sweep")


@pytest.mark.full
@pytest.mark.parametrize("collector_is", ["gone", "hung"])
def test_nothing_waits_for_a_collector(
    tmp_path: Path, fresh_server: EmbeddedServer, caught: Collector, collector_is: str
) -> None:
    caught.hangs.set()
    url = caught.url if collector_is == "hung" else "http://127.0.0.1:9"
    with cluster(tmp_path, fresh_server, TELEMETRY__OTLP_ENDPOINT=url) as site:
        site.start_beat()
        worker = site.start_successor(environ=SOON)
        before = site.run_vms("vm-1")["vm-1"]

        kill(before, signal.SIGKILL)
        site.wait_healthy("vm-1", after=before, timeout_s=5)
        worker.popen.send_signal(signal.SIGTERM)

        assert worker.popen.wait(15) == 0
