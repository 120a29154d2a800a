"""The log lines that operators grep for, as they stand in DESIGN section 10."""

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.support.builders import (
    NOW_MS,
    a_health_policy,
    a_lost_vm,
    a_process,
    a_recovery_policy,
    a_vm,
    an_episode,
    seen,
)
from workers.domain.evidence import Evidence, Observation
from workers.domain.health import judge
from workers.domain.recovery import WakeUp, admit, fail_attempt, succeed
from workers.domain.vm import State, VmRecord
from workers.ports import Stored
from workers.telemetry.logging import configure_logging
from workers.telemetry.story import LogTelemetry


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging("info", "logfmt")
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def looks_at(record: VmRecord, look: Observation) -> tuple[dict[str, Stored], dict[str, Observation], int]:
    return {record.vm_id: Stored(record, 1)}, {record.vm_id: look}, NOW_MS


def test_a_lost_and_recovered_vm_tells_its_story_in_greppable_words(lines: io.StringIO) -> None:
    story = LogTelemetry()
    policy = a_recovery_policy()
    looked = seen(Evidence.PROCESS_ENDED, "pid 100")

    story.looked(*looks_at(a_vm("vm-123"), looked))
    lost = judge(a_vm("vm-123"), looked, a_health_policy(), NOW_MS)
    story.decided(lost.events)
    running, started = admit(lost.record, WakeUp(), policy, now_us=NOW_MS * 1000)
    story.decided([started])
    waiting, failed = fail_attempt(running, "exit 1", policy, now_ms=NOW_MS, jitter=0)
    story.decided([failed])
    again, started = admit(waiting, WakeUp(), policy, now_us=NOW_MS * 1000)
    story.decided([started])
    _, done = succeed(again, a_process(200), why="serves", now_ms=NOW_MS)
    story.decided([done])

    told = [line.split('event="')[1].split('"')[0] for line in lines.getvalue().splitlines()]
    assert told == [
        "vm health check failed",
        "orphaned vm detected",
        "starting vm recovery",
        "attempting vm recovery",
        "vm recovery attempt failed",
        "attempting vm recovery",
        "vm recovery successful",
    ]
    assert all("vm_id=vm-123" in line for line in lines.getvalue().splitlines())
    assert "component=health_check" in lines.getvalue()
    assert "component=recovery" in lines.getvalue()


def test_an_unhealthy_vm_and_a_failed_recovery_are_named(lines: io.StringIO) -> None:
    story = LogTelemetry()
    record = a_vm(fails=2, state=State.DEGRADED)
    story.decided(judge(record, seen(Evidence.NO_ANSWER), a_health_policy(), NOW_MS).events)
    last = a_vm(state=State.RECOVERING, episode=an_episode(attempt=3, running=True))
    story.decided([fail_attempt(last, "exit 1", a_recovery_policy(), now_ms=NOW_MS, jitter=0)[1]])

    assert 'event="vm marked as unhealthy"' in lines.getvalue()
    assert 'event="vm recovery failed completely"' in lines.getvalue()


def test_what_is_known_already_is_not_said_at_every_check(lines: io.StringIO) -> None:
    LogTelemetry().looked(*looks_at(a_lost_vm(), seen(Evidence.PROCESS_ENDED)))
    LogTelemetry().looked(*looks_at(a_vm(), seen(Evidence.ANSWERS)))
    assert lines.getvalue() == ""


def test_a_vm_that_answers_but_does_not_run_is_told(lines: io.StringIO) -> None:
    LogTelemetry().looked(*looks_at(a_vm(), seen(Evidence.DRIFT, "state 'Paused', should be running")))
    assert 'event="vm drifts from its desired state"' in lines.getvalue()


def test_records_of_libraries_pass_the_same_pipeline_on_one_line(lines: io.StringIO) -> None:
    logging.getLogger("some.library").warning("first\nsecond %s", "third")
    assert 'event="first | second third"' in lines.getvalue()
    assert "component=some" in lines.getvalue()
