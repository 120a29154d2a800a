"""The Telemetry port: whatever is told, in whatever order, no adapter raises, and spans let through what is raised."""

from collections.abc import Callable

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from tests.support.builders import HOST, NOW_MS, a_vm, an_episode
from tests.support.fakes import RecordingTelemetry
from workers.domain.audit import Deferral, Event, EventKind
from workers.domain.evidence import Evidence, Observation
from workers.domain.vm import Episode, Reason, State, VmRecord
from workers.ports import Ignorance, Stored, Telemetry, Work
from workers.simulator.ports import SimTelemetry
from workers.telemetry import instruments
from workers.telemetry.metrics import MetricsTelemetry
from workers.telemetry.series import Series, views
from workers.telemetry.story import LogTelemetry, NoTelemetry
from workers.telemetry.together import Together
from workers.telemetry.tracing import EpisodeIds, TracingTelemetry


def metrics(*, per_vm: bool = False) -> Telemetry:
    meter = MeterProvider(views=views(), shutdown_on_exit=False).get_meter("test")
    return MetricsTelemetry(Series(meter, instruments.OF_WORKER, HOST), per_vm=per_vm)


def tracing() -> Telemetry:
    provider = TracerProvider(id_generator=EpisodeIds(), shutdown_on_exit=False)
    return TracingTelemetry(provider.get_tracer("test"), host=HOST)


ADAPTERS: dict[str, Callable[[], Telemetry]] = {
    "logs": LogTelemetry,
    "none": NoTelemetry,
    "metrics": metrics,
    "metrics by vm": lambda: metrics(per_vm=True),
    "spans": tracing,
    "several": lambda: Together(LogTelemetry(), metrics(), tracing()),
    "recording": RecordingTelemetry,
    "simulated": SimTelemetry,
}
EPISODES = (
    None,
    an_episode(),
    an_episode(attempt=1, running=True),
    *(an_episode(attempt=3, reason=reason) for reason in Reason),
)


@pytest.fixture(params=ADAPTERS)
def telemetry(request: pytest.FixtureRequest) -> Telemetry:
    return ADAPTERS[request.param]()


def an_event(kind: EventKind, record: VmRecord, episode: Episode | None, after: State | None) -> Event:
    return Event(
        kind,
        record.vm_id,
        record.host,
        "recovery",
        "because",
        before=State.HEALTHY if after else None,
        after=after,
        reason=episode.reason if episode else None,
        attempt=episode.attempt or None if episode else None,
        cause=Deferral.SLOT if kind is EventKind.DEFERRED else None,
    )


@pytest.mark.parametrize("kind", EventKind)
def test_every_decision_can_be_told(telemetry: Telemetry, kind: EventKind) -> None:
    for episode in EPISODES:
        for after in (None, *State):
            record = a_vm(state=after or State.HEALTHY, episode=episode)
            event = an_event(kind, record, episode, after)
            telemetry.decided([event], record)
            telemetry.decided([event])
    telemetry.decided([Event(kind, "", "", "worker", "of no VM")])


def test_every_finding_can_be_told(telemetry: Telemetry) -> None:
    for state in State:
        found = {f"vm-{evidence}": Stored(a_vm(f"vm-{evidence}", state=state), 1) for evidence in Evidence}
        looks = {f"vm-{evidence}": Observation(evidence, "detail", took_ms=1.5) for evidence in Evidence}
        with telemetry.span(Work.HEALTH_CHECK):
            telemetry.looked(found, looks, NOW_MS)
    telemetry.looked({}, {}, NOW_MS)


def test_every_message_that_changed_nothing_can_be_told(telemetry: Telemetry) -> None:
    for cause in Ignorance:
        telemetry.ignored("vm-1", "late", cause)
    telemetry.checks_came(0)
    telemetry.checks_came(-5)


@pytest.mark.parametrize("work", Work)
def test_work_raises_what_it_raises(telemetry: Telemetry, work: Work) -> None:
    def fails(record: VmRecord | None) -> None:
        with telemetry.span(work, record):
            raise KeyError(work)

    for record in (None, a_vm(), a_vm(episode=an_episode(attempt=1, running=True))):
        with pytest.raises(KeyError):
            fails(record)
        with telemetry.span(work, record), telemetry.span(Work.FENCE, record):
            telemetry.checks_came(1)
