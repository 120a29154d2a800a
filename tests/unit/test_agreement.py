"""What observe-only would have done, compared with what became of the VMs: events in, cases out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.builders import HOST, NOW_MS
from workers.domain.agreement import Agreement, Fate, agreement
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Reason, State

DAY_MS = 86_400_000
WOULD = "would have recovered it: host:host-a is observe-only: first week"


@dataclass(frozen=True, slots=True)
class Told:
    at_ms: int
    event: Event


def told(at_s: int, kind: EventKind, why: str = "", *, vm_id: str = "vm-1", host: str = HOST, **fields: Any) -> Told:
    return Told(NOW_MS - DAY_MS + at_s * 1000, Event(kind, vm_id, host, "cli:ann", why, **fields))


def lost(at_s: int = 10, reason: Reason = Reason.PROCESS_DEAD, **about: Any) -> Told:
    to = State.UNHEALTHY if reason is Reason.HEALTH_CHECK_FAILED else State.ORPHANED
    return told(at_s, EventKind.TRANSITION, before=State.HEALTHY, after=to, reason=reason, trace_id="t", **about)


def would(at_s: int = 11, reason: Reason = Reason.PROCESS_DEAD, why: str = WOULD, **about: Any) -> Told:
    return told(at_s, EventKind.WOULD_HAVE, why, reason=reason, scope="host:host-a", trace_id="t", **about)


def became(state: State, at_s: int = 70, why: str = "2 consecutive checks passed") -> Told:
    return told(at_s, EventKind.TRANSITION, why, before=State.ORPHANED, after=state)


def read(events: Sequence[Told], host: str | None = None) -> Agreement:
    return agreement(events, since_ms=NOW_MS - DAY_MS, now_ms=NOW_MS, host=host)


TAKEN_OVER = told(70, EventKind.ADOPTED, "pid 7 runs and serves this vm: taken over", after=State.HEALTHY)
SAME_AGAIN = told(70, EventKind.ADOPTED, "healthy again at a fresh look", after=State.HEALTHY)


@pytest.mark.parametrize(
    ("what_came", "fate", "words"),
    [
        ((), Fate.STILL_LOST, "is still lost"),
        ((became(State.HEALTHY),), Fate.CAME_BACK, "came back by itself after 60s"),
        ((SAME_AGAIN,), Fate.CAME_BACK, "came back by itself after 60s"),
        ((TAKEN_OVER,), Fate.RESTARTED, "was restarted after 60s"),
        ((told(70, EventKind.CHANGED, "applied, stopped"),), Fate.STOPPED, "was stopped by cli:ann after 60s"),
        ((became(State.STOPPED),), Fate.STOPPED, "was stopped after 60s"),
        ((told(70, EventKind.FORGOTTEN),), Fate.FORGOTTEN, "was forgotten by cli:ann after 60s"),
        ((became(State.FAILED),), Fate.FAILED, "was given up after 60s"),
        ((told(70, EventKind.ATTEMPT_STARTED),), Fate.RECOVERED, "was recovered by us after 60s"),
        ((told(70, EventKind.DEFERRED, "no slot"),), Fate.STILL_LOST, "is still lost"),
    ],
)
def test_each_loss_has_its_fate(what_came: Sequence[Told], fate: Fate, words: str) -> None:
    (case,) = read([lost(), would(), *what_came]).cases

    assert (case.fate, case.words, case.is_wrong_kill) == (fate, words, False)


@pytest.mark.parametrize(
    ("reason", "came", "is_wrong"),
    [
        (Reason.PROCESS_DEAD, became(State.HEALTHY), False),
        (Reason.HEALTH_CHECK_FAILED, became(State.HEALTHY), True),
        (Reason.SOCKET_UNREACHABLE, became(State.HEALTHY), True),
        (Reason.PROCESS_MISMATCH, SAME_AGAIN, True),
        (Reason.HEALTH_CHECK_FAILED, TAKEN_OVER, False),
        (Reason.HEALTH_CHECK_FAILED, told(70, EventKind.FORGOTTEN), False),
    ],
)
def test_only_a_process_that_served_again_would_have_been_killed_wrongly(
    reason: Reason,
    came: Told,
    is_wrong: bool,  # noqa: FBT001 - a column of the table
) -> None:
    (case,) = read([lost(reason=reason), would(reason=reason), came]).cases

    assert case.is_wrong_kill is is_wrong


def test_what_came_back_before_it_was_decided_is_a_loss_and_no_kill() -> None:
    sick = Reason.HEALTH_CHECK_FAILED
    found = read([lost(reason=sick), became(State.HEALTHY)])

    assert found.words() == [
        "last 24h: 1 loss, would have recovered 0, 0 wrong kills",
        "1 came back by itself",
        "1 not decided: back, or held by something else, before it came to that",
    ]


def test_the_report_in_one_line() -> None:
    events = [
        each
        for number in range(7)
        for each in (lost(number, vm_id=f"vm-{number}"), would(number + 1, vm_id=f"vm-{number}"))
    ]
    found = read(events)

    assert found.words()[0] == "last 24h: 7 losses, would have recovered 7, 0 wrong kills"
    assert (found.document()["losses"], found.document()["fates"]["still_lost"]) == (7, 7)


def test_a_vm_that_is_lost_again_later_is_another_loss() -> None:
    found = read([lost(), would(), TAKEN_OVER, lost(100), would(101)])

    assert [case.fate for case in found.cases] == [Fate.RESTARTED, Fate.STILL_LOST]


def test_an_orphan_that_was_unhealthy_before_is_the_same_loss() -> None:
    sick = Reason.HEALTH_CHECK_FAILED
    found = read([lost(reason=sick), would(reason=sick), would(20, reason=sick), lost(60, Reason.HEALTH_CHECK_FAILED)])

    assert (len(found.cases), found.recovered) == (1, 1)


def test_a_loss_from_before_is_known_by_what_would_have_been_done() -> None:
    (case,) = read([would(5)]).cases

    assert (case.lost_ms, case.would_ms) == (NOW_MS - DAY_MS + 5000, NOW_MS - DAY_MS + 5000)


def test_what_was_recovered_at_once_is_no_case() -> None:
    assert read([lost(), told(11, EventKind.ATTEMPT_STARTED), told(12, EventKind.RECOVERED)]).cases == []


def test_other_hosts_are_left_out() -> None:
    elsewhere: dict[str, Any] = {"vm_id": "vm-2", "host": "host-b"}
    found = read([lost(), would(), lost(**elsewhere), would(**elsewhere)], host="host-b")

    assert [case.vm_id for case in found.cases] == ["vm-2"]


@pytest.mark.parametrize(
    ("why", "reason", "done"),
    [
        ("would have stopped it: fleet is observe-only: x", None, "stopped"),
        ("would have reaped pid 7: fleet is observe-only: x", None, "reaped"),
        ("would have adopted pid 7: fleet is observe-only: x", None, "adopted"),
        (WOULD, Reason.NOT_STARTED, "started"),
        (WOULD, Reason.MANUAL, "started"),
    ],
)
def test_what_is_no_recovery_of_a_loss_is_told_apart(why: str, reason: Reason | None, done: str) -> None:
    found = read([told(10, EventKind.WOULD_HAVE, why, reason=reason)])

    assert (found.cases, [each.done for each in found.others]) == ([], [done])
    assert found.words()[-1] == f"would have {done} 1 more"


def test_what_is_trimmed_is_said() -> None:
    found = agreement([], since_ms=NOW_MS - DAY_MS, now_ms=NOW_MS, told_since_ms=NOW_MS - 1000)

    assert found.words() == [
        "last 24h: 0 losses, would have recovered 0, 0 wrong kills",
        "events from before 2027-01-15T07:59:59.000Z are not kept any more",
    ]
