"""The log lines that operators grep for, as they stand in DESIGN section 10."""

import io
import logging
import re
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
from workers.domain.vm import Reason, State, VmRecord
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


def test_many_vms_that_cannot_be_judged_for_one_reason_are_one_line(lines: io.StringIO) -> None:
    found = {f"vm-{number}": Stored(a_vm(f"vm-{number}"), 1) for number in range(6)}
    looks = {vm_id: seen(Evidence.MONITOR_FAULT, "no file descriptor is free") for vm_id in found}

    LogTelemetry().looked(found, looks, NOW_MS)

    assert lines.getvalue().count("\n") == 1
    assert 'event="many vm health checks inconclusive"' in lines.getvalue()
    assert "vms=6" in lines.getvalue()


def test_a_first_start_is_no_recovery(lines: io.StringIO) -> None:
    story = LogTelemetry()
    policy = a_recovery_policy()
    running, started = admit(a_vm(state=State.STARTING, process=None), WakeUp(), policy, now_us=NOW_MS * 1000)
    story.decided([started], running)
    waiting, failed = fail_attempt(running, "exit 1", policy, now_ms=NOW_MS, jitter=0)
    story.decided([failed], waiting)
    again, started = admit(waiting, WakeUp(), policy, now_us=NOW_MS * 1000)
    story.decided([started], again)
    done, told = succeed(again, a_process(200), why="serves", now_ms=NOW_MS)
    story.decided([told], done)

    assert "vm recovery" not in lines.getvalue()
    assert lines.getvalue().count('event="vm start attempt failed"') == 1
    assert lines.getvalue().count('event="vm started"') == 1


def test_the_last_attempt_has_a_line_of_its_own_beside_that_of_the_episode(lines: io.StringIO) -> None:
    last = a_vm(state=State.RECOVERING, episode=an_episode(attempt=3, running=True))
    after, told = fail_attempt(last, "exit 1", a_recovery_policy(), now_ms=NOW_MS, jitter=0)

    LogTelemetry().decided([told], after)

    failed, given_up = lines.getvalue().splitlines()
    assert 'event="vm recovery attempt failed"' in failed
    assert 'why="exit 1"' in failed
    assert 'event="vm recovery failed completely"' in given_up


def test_a_recovery_from_a_failed_check_does_not_look_like_a_failed_recovery(lines: io.StringIO) -> None:
    """`grep -c "vm recovery.*failed"` counts failures, also where the reason is called health_check_failed."""
    lost = a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True, reason=Reason.HEALTH_CHECK_FAILED))
    after, told = succeed(lost, a_process(200), why="serves", now_ms=NOW_MS)

    LogTelemetry().decided([told], after)

    assert "reason=health_check_failed" in lines.getvalue()
    assert re.search("vm recovery.*successful", lines.getvalue())
    assert not re.search("vm recovery.*failed", lines.getvalue())


def test_records_of_libraries_pass_the_same_pipeline_on_one_line(lines: io.StringIO) -> None:
    logging.getLogger("some.library").warning("first\nsecond %s", "third")
    assert 'event="first | second third"' in lines.getvalue()
    assert "component=some" in lines.getvalue()
