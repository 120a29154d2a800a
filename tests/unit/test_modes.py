"""Operator modes as values: which is in force, for whom, and until when."""

import pytest

from tests.support.builders import NOW_MS, a_vm
from workers.domain.modes import FLEET, Flag, Hold, Mode, Modes, Scope, Switch, host_scope, vm_scope

HOST = a_vm().host


def a_hold(mode: Mode = Mode.PAUSED, *, until_ms: int = 0, settle_ms: int = 0, hold_id: str = "h1") -> Hold:
    return Hold(hold_id, mode, "alice", "disk work", NOW_MS - 1, until_ms, settle_ms)


def modes(**holds: Hold) -> Modes:
    names = {"fleet": FLEET, "host": host_scope(HOST), "vm": vm_scope("vm-1"), "other": vm_scope("vm-2")}
    return Modes({names[where]: Scope((hold,)) for where, hold in holds.items()})


@pytest.mark.parametrize("where", ["fleet", "host", "vm"])
def test_a_hold_on_any_scope_of_a_vm_is_in_force(where: str) -> None:
    found = modes(**{where: a_hold()}).in_force(a_vm(), NOW_MS)

    assert found is not None
    assert found.mode is Mode.PAUSED


def test_a_hold_on_another_vm_is_not() -> None:
    assert modes(other=a_hold()).in_force(a_vm(), NOW_MS) is None


def test_the_strongest_mode_is_in_force() -> None:
    held = modes(fleet=a_hold(Mode.OBSERVE_ONLY), host=a_hold(Mode.MAINTENANCE), vm=a_hold(Mode.PAUSED))

    assert [each.mode for each in held.holds_on("vm-1", HOST, NOW_MS)] == [
        Mode.PAUSED,
        Mode.MAINTENANCE,
        Mode.OBSERVE_ONLY,
    ]


@pytest.mark.parametrize(
    ("after_ms", "expected"),
    [(-1, Mode.MAINTENANCE), (0, Mode.OBSERVE_ONLY), (29_999, Mode.OBSERVE_ONLY), (30_000, None)],
)
def test_a_maintenance_ends_by_itself_and_one_interval_of_observing_comes(after_ms: int, expected: Mode | None) -> None:
    hold = a_hold(Mode.MAINTENANCE, until_ms=NOW_MS, settle_ms=30_000)

    assert hold.mode_at(NOW_MS + after_ms) is expected


def test_a_pause_lasts_while_one_of_its_reasons_does() -> None:
    two = Modes({vm_scope("vm-1"): Scope((a_hold(), a_hold(hold_id="h2", until_ms=NOW_MS)))})

    assert [each.hold.id for each in two.holds_on("vm-1", HOST, NOW_MS)] == ["h1"]


def test_only_a_pause_keeps_looks_from_counting() -> None:
    assert not modes(vm=a_hold(Mode.PAUSED)).judges(a_vm(), NOW_MS)
    assert modes(vm=a_hold(Mode.MAINTENANCE)).judges(a_vm(), NOW_MS)


def test_the_most_specific_switch_decides() -> None:
    def switched(*, on: bool) -> Scope:
        return Scope(switches=(Switch(Flag.RECOVERY, on, "alice", "roll-out", NOW_MS),))

    off = Modes({FLEET: switched(on=False)})
    but_here = Modes({FLEET: switched(on=False), host_scope(HOST): switched(on=True)})

    assert not off.has_on(Flag.RECOVERY, a_vm())
    assert off.has_on(Flag.HEALTH_CHECKS, a_vm())
    assert but_here.has_on(Flag.RECOVERY, a_vm())
    assert not but_here.is_on(Flag.RECOVERY, host="host-z")
