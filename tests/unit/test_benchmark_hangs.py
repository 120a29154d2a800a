"""What the benchmark of hung VMs counts with: the arithmetic of the settings, and moments out of the event stream."""

from pathlib import Path

import pytest

from tests.benchmarks.hangs import DEFAULTS, FAST, Findings, Stopped, arithmetic, cost_of_fast, figures, hang_of
from tests.benchmarks.measures import Window, at_share
from tests.support.builders import a_vm
from workers.domain.audit import EventKind, event
from workers.domain.vm import State
from workers.settings import load
from workers.store.events import Entry

VM = "vm-1"
STOPPED_MS = 1_000_000


def bound_s(profile: str) -> float:
    settings = load({"RELIABILITY_PROFILE": profile, "RELIABILITY_STATE_DIR": "/state"}, Path("/nowhere")).settings
    return arithmetic(settings.health_check).bound_s


def an_entry(after_ms: int, kind: EventKind, *, vm_id: str = VM, after: State | None = None) -> Entry:
    before = State.DEGRADED if after else None
    record = a_vm(vm_id, state=after or State.RECOVERING)
    return Entry(f"{STOPPED_MS + after_ms}-0", event(kind, record, actor="test", why="told", before=before))


def findings(profile: str, *costs: float, known_s: float = 8.0) -> Findings:
    settings = load({"RELIABILITY_PROFILE": profile, "RELIABILITY_STATE_DIR": "/state"}, Path("/nowhere")).settings
    found = Findings(profile, arithmetic(settings.health_check))
    found.cost = [Window(1.0, 0, {"worker": cost}, 0.0) for cost in costs]
    told = [
        an_entry(int(known_s * 1000), EventKind.TRANSITION, after=State.UNHEALTHY),
        an_entry(int(known_s * 1000) + 2000, EventKind.ATTEMPT_STARTED),
        an_entry(int(known_s * 1000) + 2500, EventKind.RECOVERED, after=State.HEALTHY),
    ]
    found.hangs = [hang_of(Stopped(VM, 7, STOPPED_MS, is_worst=False), told)]
    return found


@pytest.mark.parametrize(("profile", "expected_s"), [(DEFAULTS, 49.0), (FAST, 12.0)])
def test_the_bound_is_that_of_the_settings(profile: str, expected_s: float) -> None:
    assert bound_s(profile) == expected_s


def test_a_hang_is_told_by_the_events_of_its_vm_after_the_stop() -> None:
    told = [
        an_entry(4000, EventKind.TRANSITION, vm_id="vm-2", after=State.UNHEALTHY),
        an_entry(9000, EventKind.TRANSITION, after=State.UNHEALTHY),
        an_entry(11_000, EventKind.ATTEMPT_STARTED),
        an_entry(11_250, EventKind.RECOVERED, after=State.HEALTHY),
    ]

    hang = hang_of(Stopped(VM, 7, STOPPED_MS, is_worst=True), told)

    assert (hang.known_s, hang.attempt_s, hang.again_s) == (9.0, 11.0, 11.25)


def test_what_fast_costs_is_compared_with_the_mean_of_the_defaults() -> None:
    found = {FAST: findings(FAST, 0.06, 0.09), DEFAULTS: findings(DEFAULTS, 0.02, 0.04)}

    assert cost_of_fast(found, vms=1000) == pytest.approx([2.0, 3.0])


def test_one_hang_that_is_known_too_late_misses_the_limit() -> None:
    late, in_time = (
        next(iter(figures({FAST: findings(FAST, 0.1, known_s=known_s)}, vms=1000))) for known_s in (12.5, 11.9)
    )

    assert (late.is_kept, in_time.is_kept) == (False, True)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 11), (0.95, 20), (1.0, 20)])
def test_a_share_of_values_is_one_of_them(share: float, expected: int) -> None:
    assert at_share(range(20, 0, -1), share) == expected
