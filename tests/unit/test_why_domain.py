"""Why, as values: what the facts of one VM come to, beside the situations that a real server is asked about."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.builders import (
    HOST,
    NOW_MS,
    a_health_policy,
    a_lost_vm,
    a_recovery_policy,
    a_vm,
    an_episode,
)
from workers.domain.answer import Next, Who
from workers.domain.breaker import BreakerState
from workers.domain.chronicle import failures_needed
from workers.domain.hindrances import BreakerAt, Facts, Queue, Rules, WorkerAt
from workers.domain.modes import Flag, Hold, Mode, Modes, Scope, Switch
from workers.domain.vm import Desired, EpisodeEnd, Reason, State, VmRecord
from workers.domain.why import explain

SERVED = WorkerAt(100, "1", NOW_MS, NOW_MS)
MINUTE_MS = 60_000


def rules(**changes: Any) -> Rules:
    return Rules(a_health_policy(), a_recovery_policy(**changes), detection_interval_ms=MINUTE_MS)


def facts(record: VmRecord, **around: Any) -> Facts:
    known: dict[str, Any] = {"rules": rules(), "worker": SERVED, "next_check_ms": NOW_MS + 1000} | around
    return Facts(NOW_MS, record, **known)


def coming(record: VmRecord, **around: Any) -> Next:
    return explain(facts(record, **around)).next_step


def held(mode: Mode, **times: int) -> Modes:
    return Modes({"fleet": Scope((Hold("h", mode, "cli:ann", "x", NOW_MS - 1000, **times),))})


def off(flag: Flag) -> Modes:
    return Modes({f"host:{HOST}": Scope((), (Switch(flag, on=False, actor="cli:ann", why="x", since_ms=NOW_MS),))})


LATER = an_episode(attempt=1, next_attempt_ms=NOW_MS + 5000)
OPEN = (BreakerAt("fleet", BreakerState.OPEN, NOW_MS + 9000, 0),)


@pytest.mark.parametrize(
    ("record", "around", "what", "who", "in_ms"),
    [
        (a_vm(), {}, "check", Who.BEAT, 1000),
        (a_vm(), {"next_check_ms": None}, "check", Who.WORKER, None),
        (a_vm(), {"worker": WorkerAt()}, "nothing", Who.PERSON, None),
        (a_vm(), {"modes": held(Mode.OBSERVE_ONLY)}, "check", Who.BEAT, 1000),
        (a_vm(), {"modes": held(Mode.MAINTENANCE)}, "check", Who.BEAT, 1000),
        (a_vm(), {"modes": held(Mode.PAUSED)}, "nothing", Who.PERSON, None),
        (a_vm(), {"modes": held(Mode.PAUSED, until_ms=NOW_MS + MINUTE_MS)}, "check", Who.BEAT, MINUTE_MS),
        (a_vm(), {"modes": off(Flag.HEALTH_CHECKS)}, "nothing", Who.PERSON, None),
        (a_vm(), {"modes": off(Flag.RECOVERY)}, "check", Who.BEAT, 1000),
        (a_lost_vm(), {"modes": off(Flag.HEALTH_CHECKS)}, "attempt", Who.WORKER, None),
        (a_lost_vm(episode=LATER), {}, "attempt", Who.WORKER, 5000),
        (a_lost_vm(episode=LATER), {"breakers": OPEN}, "attempt", Who.WORKER, 9000),
        (a_lost_vm(), {"queue": Queue("fleet", 1, 1)}, "attempt", Who.WORKER, None),
        (a_lost_vm(episode=an_episode(attempt=3)), {}, "give_up", Who.WORKER, None),
        (a_lost_vm(), {"rules": rules(enabled=False)}, "nothing", Who.PERSON, None),
        (a_lost_vm(episode=an_episode(request_id="r")), {"rules": rules(enabled=False)}, "attempt", Who.WORKER, None),
        (a_vm(desired=Desired.STOPPED), {}, "stop", Who.WORKER, None),
        (a_vm(desired=Desired.STOPPED), {"modes": off(Flag.RECOVERY), "breakers": OPEN}, "stop", Who.WORKER, None),
        (a_vm(desired=Desired.STOPPED), {"modes": held(Mode.PAUSED)}, "nothing", Who.PERSON, None),
        (a_vm(desired=Desired.STOPPED), {"worker": WorkerAt()}, "nothing", Who.PERSON, None),
        (a_vm(state=State.STARTING), {}, "check", Who.BEAT, 1000),
        (a_vm(state=State.UNKNOWN), {}, "check", Who.BEAT, 1000),
    ],
)
def test_what_is_next(record: VmRecord, around: Mapping[str, Any], what: str, who: Who, in_ms: int | None) -> None:
    step = coming(record, **around)

    assert (step.what, step.who, step.at_ms) == (what, who, None if in_ms is None else NOW_MS + in_ms)


def test_a_person_is_told_of_everything_that_has_to_be_done() -> None:
    step = coming(a_lost_vm(), modes=held(Mode.PAUSED), worker=WorkerAt())

    assert step.do == f"start `reliability worker` on host {HOST}; `reliability resume --fleet`"


def test_without_health_checks_a_death_is_still_noticed() -> None:
    step = coming(a_vm(), modes=off(Flag.HEALTH_CHECKS))

    todo = f"`reliability flag clear health_checks --host {HOST}`"
    assert step.words == f"no check, only its death would be noticed, until a person acts: {todo}"


def test_a_breaker_that_a_person_opened_waits_for_one() -> None:
    by_hand = (BreakerAt("image:web", BreakerState.OPEN, None, 2),)

    answer = coming(a_lost_vm(), breakers=by_hand)

    assert answer.who is Who.PERSON
    assert answer.do is not None
    assert "reliability breaker reset image:web" in answer.do


def test_an_open_breaker_says_nothing_about_a_vm_that_is_fine() -> None:
    answer = explain(facts(a_vm(), breakers=OPEN))

    assert answer.next_step.what == "check"
    assert "breaker" in [each.kind for each in answer.findings]


def test_attempts_that_the_stream_has_lost_are_missed() -> None:
    ended = an_episode(attempt=2, end=EpisodeEnd.FAILED, ended_ms=NOW_MS, error="vm vm-1: no disk")
    answer = explain(facts(a_vm(state=State.FAILED, episode=ended)))

    found = {each.kind: each.words for each in answer.findings}
    assert found["trimmed"] == "2 attempts of it are not in the event stream any more; the last error was: no disk"


@pytest.mark.parametrize(
    ("doubt", "needed"), [(None, 3), (Reason.HEALTH_CHECK_FAILED, 3), (Reason.PROCESS_MISMATCH, 2)]
)
def test_somebody_else_behind_the_socket_is_believed_sooner(doubt: Reason | None, needed: int) -> None:
    assert failures_needed(doubt, 3) == needed


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            a_vm(state=State.DEGRADED, fails=1, doubt=Reason.PROCESS_MISMATCH),
            "1 of 2 failures in a row that make it lost (process_mismatch); next look in 1s (at 2027-01-15 08:00:01Z)",
        ),
        (
            a_vm(state=State.DEGRADED, passes=1),
            "1 of 2 passes in a row that make it healthy again; next look in 1s (at 2027-01-15 08:00:01Z)",
        ),
        (
            a_lost_vm(passes=1),
            "1 of 2 passes in a row that make it healthy again; next look in 1s (at 2027-01-15 08:00:01Z)",
        ),
    ],
)
def test_how_far_it_is_from_another_verdict(record: VmRecord, words: str) -> None:
    assert {each.kind: each.words for each in explain(facts(record)).findings}["threshold"] == words
