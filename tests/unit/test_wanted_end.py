"""The end of a VM that is to be stopped is no failure, to whoever tells of it; that of any other is one."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.builders import HOST, NOW_MS, a_vm, seen
from tests.support.figures import Gauged
from tests.support.log_lines import logged
from workers.domain.evidence import Evidence
from workers.domain.vm import Desired, State
from workers.ports import Stored, Telemetry, Work
from workers.telemetry import instruments as m
from workers.telemetry.story import LogTelemetry
from workers.telemetry.tracing import TracingTelemetry

FAILING = (Evidence.PROCESS_ENDED, Evidence.ZOMBIE, Evidence.SOCKET_REFUSED, Evidence.NO_ANSWER)


def look(telemetry: Telemetry, evidence: Evidence, desired: Desired) -> None:
    stored = Stored(a_vm(state=State.HEALTHY, desired=desired), 1, checked_ms=NOW_MS)
    with telemetry.span(Work.HEALTH_CHECK):
        telemetry.looked({"vm-1": stored}, {"vm-1": seen(evidence)}, NOW_MS)


@pytest.mark.parametrize("evidence", FAILING)
@pytest.mark.parametrize(("desired", "fails"), [(Desired.STOPPED, 0), (Desired.RUNNING, 1)])
def test_in_the_log_in_numbers_and_in_spans(evidence: Evidence, desired: Desired, fails: int) -> None:
    gauged, spans = Gauged(), InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with logged() as lines:
        look(LogTelemetry(), evidence, desired)
    look(gauged.telemetry(), evidence, desired)
    look(TracingTelemetry(provider.get_tracer("test"), host=HOST), evidence, desired)

    assert lines.getvalue().count("\n") == lines.getvalue().count('event="vm health check failed"') == fails
    assert gauged.page().total(m.CHECK_FAILURES.name) == fails
    assert gauged.page().total(m.CHECKS.name) == fails
    span = spans.get_finished_spans()[0]
    assert span.attributes is not None
    assert (span.attributes["failing"], len(span.events)) == (fails, fails)


def test_while_it_still_answers_it_is_looked_at_like_any_other() -> None:
    gauged = Gauged()
    look(gauged.telemetry(), Evidence.ANSWERS, Desired.STOPPED)
    assert gauged.page().value(m.CHECKS.name) == 1
