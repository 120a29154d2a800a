"""The contract of the VmStore port, for the one in memory and for the real one on Valkey and on Redis."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ServerOf
from tests.support.builders import (
    HOST,
    NOW_MS,
    a_breaker_policy,
    a_lost_vm,
    a_spec,
    a_storm_policy,
    a_vm,
    an_episode,
    some_limits,
)
from tests.support.fakes import FakeMemory
from tests.support.servers import RedisFlavour
from tests.support.stores import LEASE_MS, Subject, memory_subject, redis_subject
from workers.domain.audit import Event, EventKind, event
from workers.domain.breaker import Call, Result, calls_of
from workers.domain.epoch import Known
from workers.domain.errors import UnknownVm
from workers.domain.modes import FLEET, Flag, Hold, Mode, Scope, Switch, host_scope, vm_scope
from workers.domain.storm import Loss
from workers.domain.vm import State, VmRecord
from workers.ports import Called, Change, Halt, Lease, Outcome, Take, VmStore, Written

MODE_TOLD = Event(EventKind.MODE, "", "", "alice", "network work")
HELD = Scope((Hold("h1", Mode.PAUSED, "alice", "network work", NOW_MS),))


@pytest.fixture(params=["memory", *RedisFlavour])
def subject(request: pytest.FixtureRequest, server_of: ServerOf) -> Iterator[Subject]:
    if request.param == "memory":
        yield memory_subject()
        return
    with redis_subject(server_of(RedisFlavour(request.param))) as made:
        yield made


@pytest.fixture
def store(subject: Subject) -> VmStore:
    subject.serve(HOST)
    return subject.make(some_limits(), None)


def put(store: VmStore, *records: VmRecord) -> None:
    changes = [Change(r.vm_id, 0, r, check_in_ms=0, spec=a_spec(r.vm_id)) for r in records]
    assert all(outcome is Outcome.DONE for outcome in store.write(changes).outcomes)


def only(store: VmStore, change: Change) -> Outcome:
    return store.write([change]).outcomes[0]


def a_take(owner: str = "me", *, ttl_ms: int = 60_000, calls: tuple[Call, ...] = ()) -> Take:
    return Take(owner, ttl_ms, calls)


def lease(owner: str = "me", token: int = 7) -> Lease:
    return Lease(owner, token)


def rev(store: VmStore, vm_id: str) -> int:
    return store.read([vm_id]).found[vm_id].rev


def admit(store: VmStore, vm_id: str = "vm-1", **take: Any) -> Outcome:
    """Ask for an attempt on a lost VM."""
    found = store.read([vm_id]).found[vm_id]
    return only(store, Change(vm_id, found.rev, found.record, take=a_take(vm_id, **take)))


def end(store: VmStore, vm_id: str = "vm-1", result: Result | None = Result.SUCCESS) -> Written:
    """End the attempt that `admit` began; a VM that failed is still lost."""
    after = a_lost_vm(vm_id) if result is Result.FAILURE else a_vm(vm_id)
    change = Change(vm_id, rev(store, vm_id), after, held_by=lease(vm_id), release=True, result=result)
    written = store.write([change])
    assert list(written.outcomes) == [Outcome.DONE]
    return written


def lose(store: VmStore, *vm_ids: str, loss: Loss = Loss.CERTAIN, enlist: bool = True) -> Written:
    """Mark healthy VMs as lost, all in one write."""
    changes = [Change(v, rev(store, v), a_lost_vm(v), loss=loss, enlist=enlist) for v in vm_ids]
    written = store.write(changes)
    assert set(written.outcomes) == {Outcome.DONE}
    return written


def called(written: Written) -> list[str]:
    return [each.vm_id for each in written.called]


def waits(store: VmStore, vm_id: str) -> str | None:
    return store.read([vm_id]).found[vm_id].waits_for


def names(count: int) -> list[str]:
    return [f"vm-{number:02}" for number in range(count)]


def test_a_record_comes_back_as_it_was_written(store: VmStore) -> None:
    put(store, a_lost_vm())

    snapshot = store.read(["vm-1", "vm-2"])

    assert list(snapshot.found) == ["vm-1"]
    assert snapshot.found["vm-1"].record == a_lost_vm()
    assert snapshot.found["vm-1"].rev == 1
    assert not snapshot.found["vm-1"].leased
    assert store.spec("vm-1") == a_spec("vm-1")


def test_an_unknown_vm_has_no_spec(store: VmStore) -> None:
    with pytest.raises(UnknownVm):
        store.spec("vm-1")


@pytest.mark.parametrize("rev", [0, 2])
def test_a_write_upon_another_revision_changes_nothing(store: VmStore, rev: int) -> None:
    put(store, a_vm())

    outcome = only(store, Change("vm-1", rev, a_vm(generation=99)))

    assert outcome is Outcome.STALE
    assert store.read(["vm-1"]).found["vm-1"].record.generation == a_vm().generation


def test_each_change_of_a_batch_stands_alone(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    changes = [Change("vm-1", 7, a_vm("vm-1")), Change("vm-2", 1, a_vm("vm-2", generation=8))]

    assert list(store.write(changes).outcomes) == [Outcome.STALE, Outcome.DONE]
    assert store.read(["vm-2"]).found["vm-2"].record.generation == 8


def test_all_or_nothing_is_nothing_when_one_is_refused(store: VmStore) -> None:
    put(store, a_vm("vm-1"))
    changes = [Change("vm-2", 0, a_vm("vm-2")), Change("vm-1", 0, a_vm("vm-1"))]

    written = store.write(changes, all_or_nothing=True)

    assert list(written.outcomes) == [Outcome.NOT_TRIED, Outcome.STALE]
    assert store.ids() == ["vm-1"]


def test_seen_vms_only_get_the_time_of_their_last_check(store: VmStore) -> None:
    put(store, a_vm())
    before = store.read(["vm-1"])
    assert before.found["vm-1"].checked_ms is None

    store.write([], seen=["vm-1", "vm-forgotten"])

    after = store.read(["vm-1", "vm-forgotten"])
    assert list(after.found) == ["vm-1"]
    assert after.found["vm-1"].rev == before.found["vm-1"].rev
    assert (after.found["vm-1"].checked_ms or 0) >= before.now_ms


def test_who_is_as_the_host_knows_gets_the_time_of_its_check_and_the_others_are_told(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    before = store.read(["vm-1"])
    assert only(store, Change("vm-2", 1, a_vm("vm-2", fails=1))) is Outcome.DONE

    confirmed = store.confirm(HOST, {"vm-1": 1, "vm-2": 1, "vm-forgotten": 1})

    after = store.read(["vm-1", "vm-2"])
    assert (set(confirmed.left), confirmed.intact) == ({"vm-2", "vm-forgotten"}, True)
    assert before.now_ms <= (after.found["vm-1"].checked_ms or 0) <= confirmed.now_ms
    assert after.found["vm-1"].rev == 1
    assert after.found["vm-2"].checked_ms is None
    assert store.ids() == ["vm-1", "vm-2"]


def test_a_long_number_of_writes_is_still_compared_exactly(store: VmStore) -> None:
    put(store, a_vm())
    for rev in range(1, 12):
        assert only(store, Change("vm-1", rev, a_vm())) is Outcome.DONE
    assert not store.confirm(HOST, {"vm-1": 12}).left
    assert set(store.confirm(HOST, {"vm-1": 1}).left) == {"vm-1"}


@pytest.mark.parametrize("unknown", [Known("other"), Known("", "9999999999999-0")])
def test_nobody_is_as_known_in_data_that_are_not_those_the_host_knows(subject: Subject, unknown: Known) -> None:
    store, memory = remembering(subject)
    put(store, a_vm())
    assert not store.confirm(HOST, {"vm-1": 1}).left
    assert memory.known is not None
    memory.known = replace(unknown, epoch=unknown.epoch or memory.known.epoch)

    confirmed = store.confirm(HOST, {"vm-1": 1})

    assert (set(confirmed.left), confirmed.intact) == ({"vm-1"}, False)


@pytest.mark.parametrize("scope", [FLEET, host_scope(HOST), vm_scope("vm-1")])
@pytest.mark.parametrize("setting", [HELD, Scope(switches=(Switch(Flag.HEALTH_CHECKS, False, "bob", "", NOW_MS),))])  # noqa: FBT003
def test_who_is_held_or_switched_is_not_confirmed(subject: Subject, scope: str, setting: Scope) -> None:
    store = subject.make(some_limits(), None)
    put(store, a_vm())
    assert not store.confirm(HOST, {"vm-1": 1}).left

    subject.modes.put_scope(scope, Scope(), setting, MODE_TOLD)

    assert set(store.confirm(HOST, {"vm-1": 1}).left) == {"vm-1"}


def test_what_holds_another_vm_or_has_ended_keeps_nobody_from_being_confirmed(subject: Subject) -> None:
    ended = Scope((Hold("h1", Mode.MAINTENANCE, "alice", "disk", NOW_MS, until_ms=NOW_MS + 1000, settle_ms=500),))
    for scope, set_ in ((vm_scope("vm-2"), HELD), (host_scope("host-z"), HELD), (host_scope(HOST), ended)):
        subject.modes.put_scope(scope, Scope(), set_, MODE_TOLD)
    store = subject.make(some_limits(), None)
    put(store, a_vm())

    assert set(store.confirm(HOST, {"vm-1": 1}).left) == {"vm-1"}
    subject.pass_time(1400)
    assert set(store.confirm(HOST, {"vm-1": 1}).left) == {"vm-1"}, "what was in maintenance is only observed at first"
    subject.pass_time(100)
    assert not store.confirm(HOST, {"vm-1": 1}).left


def test_a_deleted_record_is_gone_from_every_index(store: VmStore) -> None:
    put(store, a_vm())
    assert only(store, Change("vm-1", 1, None)) is Outcome.DONE

    assert store.read(["vm-1"]).found == {}
    assert store.ids() == store.ids(host=HOST) == store.ids(state=State.HEALTHY) == []
    assert store.unscheduled(["vm-1"]) == ["vm-1"]


def test_a_record_made_before_its_vm_was_forgotten_is_not_taken(store: VmStore) -> None:
    put(store, a_vm())
    assert only(store, Change("vm-1", rev(store, "vm-1"), None)) is Outcome.DONE

    assert only(store, Change("vm-1", 0, a_vm(created_ms=NOW_MS - 1), spec=a_spec())) is Outcome.STALE
    assert only(store, Change("vm-1", 0, a_vm(created_ms=NOW_MS), spec=a_spec())) is Outcome.DONE


def test_ids_follow_state_and_host(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_lost_vm("vm-2"), a_vm("vm-3", host="host-b"))
    only(store, Change("vm-1", 1, a_lost_vm("vm-1")))

    assert store.ids(state=State.ORPHANED) == ["vm-1", "vm-2"]
    assert store.ids(host="host-b") == ["vm-3"]
    assert store.ids(host=HOST, state=State.HEALTHY) == []


def test_a_taken_lease_keeps_others_out_until_it_ends(store: VmStore, subject: Subject) -> None:
    put(store, a_lost_vm())
    assert only(store, Change("vm-1", 1, a_lost_vm(), take=a_take("me", ttl_ms=150))) is Outcome.DONE
    assert store.read(["vm-1"]).found["vm-1"].lease_owner == "me"
    assert only(store, Change("vm-1", 2, a_lost_vm(), take=a_take("you"))) is Outcome.LEASED

    subject.pass_time(150)

    assert not store.read(["vm-1"]).found["vm-1"].leased
    assert not store.renew("vm-1", lease(), 1000)
    assert only(store, Change("vm-1", 2, a_lost_vm(), take=a_take("you"))) is Outcome.DONE


def test_a_renewed_lease_goes_on(store: VmStore, subject: Subject) -> None:
    put(store, a_lost_vm())
    only(store, Change("vm-1", 1, a_lost_vm(), take=a_take("me", ttl_ms=400)))
    assert store.renew("vm-1", lease(), 60_000)
    assert not store.renew("vm-1", lease("you"), 60_000)
    assert not store.renew("vm-1", lease(token=8), 60_000)
    assert not store.renew("vm-2", lease(), 60_000)

    subject.pass_time(500)

    assert store.read(["vm-1"]).found["vm-1"].lease_owner == "me"


@pytest.mark.parametrize("stale", [lease("you"), lease(token=6), lease(token=8)])
def test_a_write_that_needs_the_lease_is_refused_without_it_or_with_another_token(store: VmStore, stale: Lease) -> None:
    put(store, a_lost_vm())
    assert only(store, Change("vm-1", 1, a_vm(), held_by=lease())) is Outcome.LEASED
    only(store, Change("vm-1", 1, a_lost_vm(), take=a_take()))
    assert only(store, Change("vm-1", 2, a_vm(), held_by=stale)) is Outcome.LEASED
    assert only(store, Change("vm-1", 2, a_vm(), held_by=lease(), release=True)) is Outcome.DONE
    assert not store.read(["vm-1"]).found["vm-1"].leased


def test_a_generation_beyond_what_a_double_holds_still_is_the_token_it_is(store: VmStore) -> None:
    big = 2**60 + 1
    put(store, a_lost_vm(generation=big))
    only(store, Change("vm-1", 1, a_lost_vm(generation=big), take=a_take()))
    assert not store.renew("vm-1", lease(token=big - 1), 1000)
    assert store.renew("vm-1", lease(token=big), 1000)
    assert store.read(["vm-1"]).found["vm-1"].record.generation == big


@pytest.mark.parametrize("caps", [{"per_host": 2}, {"per_fleet": 2}])
def test_slots_are_bounded_and_a_freed_one_is_kept_for_who_waits(subject: Subject, caps: dict[str, int]) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(**caps), None)
    put(store, *map(a_lost_vm, names(4)))
    assert [admit(store, vm_id) for vm_id in names(3)] == [Outcome.DONE, Outcome.DONE, Outcome.WAITING]
    assert waits(store, "vm-02") == (f"host:{HOST}" if "per_host" in caps else "fleet")
    assert admit(store, "vm-02") is Outcome.WAITING, "and stands in line once"

    written = end(store, "vm-00")

    assert list(written.called) == [Called("vm-02", HOST, "vm-1@1", 1)]
    assert store.read(["vm-02"]).found["vm-02"].is_called
    assert waits(store, "vm-02") is None
    assert admit(store, "vm-03") is Outcome.WAITING, "the slot is kept"
    assert admit(store, "vm-02") is Outcome.DONE


def test_a_slot_that_is_kept_in_vain_goes_to_the_next_one(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, *map(a_lost_vm, names(3)))
    assert called(store.write((), enlist=names(3))) == ["vm-00"]

    subject.pass_time(9_999)
    assert called(store.tend(HOST)) == []
    subject.pass_time(1)

    assert called(store.tend(HOST)) == ["vm-01"]
    assert called(store.write((), enlist=["vm-00"])) == [], "it stands behind the others, by its age"
    assert called(store.pass_on("vm-01")) == ["vm-00"]
    assert called(store.pass_on("vm-01")) == [], "which it can do once"


def test_two_slots_that_come_free_call_two(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=2), None)
    put(store, *map(a_lost_vm, names(4)))
    store.write((), enlist=names(4))
    for vm_id in ("vm-00", "vm-01"):
        assert admit(store, vm_id) is Outcome.DONE
    assert called(end(store, "vm-00")) + called(end(store, "vm-01")) == ["vm-02", "vm-03"]


def test_an_attempt_in_flight_passes_no_slot_on(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, *map(a_lost_vm, names(2)))
    store.write((), enlist=names(2))
    admit(store, "vm-00")
    assert called(store.pass_on("vm-00")) == []
    assert admit(store, "vm-01") is Outcome.WAITING


def test_slots_end_with_a_holder_that_went_away(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, a_lost_vm("vm-0"), a_lost_vm("vm-1"))
    assert admit(store, "vm-0", ttl_ms=150) is Outcome.DONE
    store.write((), enlist=["vm-1"])
    subject.pass_time(150)
    assert called(store.tend(HOST)) == ["vm-1"]


def test_a_renewed_lease_keeps_its_slot(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, a_lost_vm("vm-0"), a_lost_vm("vm-1"))
    admit(store, "vm-0", ttl_ms=150)
    assert store.renew("vm-0", lease("vm-0"), 60_000)
    subject.pass_time(1000)
    assert admit(store, "vm-1") is Outcome.WAITING


def test_a_lease_without_calls_takes_no_slot(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, a_lost_vm("vm-0"), a_lost_vm("vm-1"))
    only(store, Change("vm-0", 1, a_lost_vm("vm-0"), take=Take("stopper", 60_000)))
    assert store.renew("vm-0", lease("stopper"), 60_000)
    assert admit(store, "vm-1") is Outcome.DONE


def test_the_line_is_served_by_priority_then_by_how_long_ago_a_vm_was_lost(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    lost_at = {"vm-a": (5, 40), "vm-b": (5, 20), "vm-c": (5, 30), "vm-d": (9, 50), "vm-e": (0, 10)}
    for vm_id, (priority, since) in lost_at.items():
        episode = an_episode(id=f"{vm_id}@1", started_ms=NOW_MS + since)
        put(store, a_lost_vm(vm_id, priority=priority, episode=episode))
    put(store, a_lost_vm("vm-0"))
    admit(store, "vm-0")
    store.write((), enlist=list(lost_at))

    served, holder = [], "vm-0"
    while next_ones := called(end(store, holder)):
        (holder,) = next_ones
        served.append(holder)
        assert admit(store, holder) is Outcome.DONE

    assert served == ["vm-d", "vm-b", "vm-c", "vm-a", "vm-e"]


def test_a_fleet_slot_goes_to_who_waits_longest_on_whichever_host(subject: Subject) -> None:
    for host in ("host-a", "host-b", "host-c"):
        subject.serve(host)
    store = subject.make(some_limits(per_host=1, per_fleet=2), None)
    since = {"vm-a1": 10, "vm-b1": 20, "vm-a2": 30, "vm-c1": 40}
    for vm_id, started in since.items():
        put(store, a_lost_vm(vm_id, host=f"host-{vm_id[3]}", episode=an_episode(started_ms=NOW_MS + started)))
    assert admit(store, "vm-a1") is Outcome.DONE
    assert admit(store, "vm-b1") is Outcome.DONE
    assert [admit(store, v) for v in ("vm-c1", "vm-a2")] == [Outcome.WAITING, Outcome.WAITING]
    assert (waits(store, "vm-c1"), waits(store, "vm-a2")) == ("fleet", "host:host-a")

    change = Change("vm-b1", 2, a_vm("vm-b1", host="host-b"), held_by=lease("vm-b1"), release=True)
    assert called(store.write([change])) == ["vm-c1"]
    change = Change("vm-a1", 2, a_vm("vm-a1"), held_by=lease("vm-a1"), release=True)
    assert called(store.write([change])) == ["vm-a2"]


def test_who_waits_for_the_fleet_on_a_host_that_is_full_or_gone_lets_others_pass(subject: Subject) -> None:
    subject.serve("host-a")
    store = subject.make(some_limits(per_fleet=1), None)
    for number, host in enumerate(["host-a", "host-gone", "host-a"]):
        put(store, a_lost_vm(f"vm-{number}", host=host, episode=an_episode(started_ms=NOW_MS + number)))
    assert admit(store, "vm-0") is Outcome.DONE
    assert [admit(store, v) for v in ("vm-1", "vm-2")] == [Outcome.WAITING] * 2

    assert called(end(store, "vm-0")) == ["vm-2"]
    assert waits(store, "vm-1") == "host:host-gone"


def test_a_vm_that_needs_no_attempt_any_more_waits_for_none(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, *map(a_lost_vm, names(4)))
    store.write((), enlist=names(4))

    healthy = store.write([Change("vm-00", 1, a_vm("vm-00"))])
    assert called(healthy) == ["vm-01"], "the slot that was kept for it goes on"
    assert called(store.write([Change("vm-02", 1, a_vm("vm-02"))])) == []
    assert waits(store, "vm-02") is None
    assert called(store.write([Change("vm-01", 1, None)])) == ["vm-03"], "a forgotten one leaves it, too"


def test_enlisting_is_for_those_without_a_place_and_without_an_attempt(store: VmStore) -> None:
    put(store, *map(a_lost_vm, names(2)))
    admit(store, "vm-00")
    assert called(store.write((), enlist=["vm-00", "vm-01", "vm-unknown"])) == ["vm-01"]
    assert called(store.write((), enlist=["vm-01"])) == []


def test_those_who_have_to_wait_are_told_with_the_reason_once(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    put(store, *map(a_lost_vm, names(3)))
    (first, second) = store.write((), enlist=names(3)).told
    assert {first.vm_id, second.vm_id} == {"vm-01", "vm-02"}
    assert (first.kind, first.why, first.scope) == (
        EventKind.DEFERRED,
        "no free recovery slot of the host (1)",
        f"host:{HOST}",
    )
    assert [admit(store, "vm-01"), admit(store, "vm-01")] == [Outcome.WAITING] * 2
    assert [e.kind for e in subject.events()] == [EventKind.DEFERRED] * 2


def test_a_host_without_a_worker_and_one_that_has_halted_are_not_called(subject: Subject) -> None:
    store = subject.make(some_limits(), None)
    put(store, a_lost_vm("vm-1"))
    assert called(store.write((), enlist=["vm-1"])) == []
    subject.serve(HOST)
    subject.data.halt(HOST, Halt("PAUSE"))
    assert called(store.tend(HOST)) == []
    subject.data.halt(HOST, None)
    assert called(store.tend(HOST)) == ["vm-1"]


# Breakers

BAD = {"host": HOST, "image": "bad.img", "driver": "firecracker@1.0"}


def calls(vm_id: str, **of: str) -> tuple[Call, ...]:
    return calls_of(vm_id, **(BAD | of))


def attempt(store: VmStore, vm_id: str, result: Result | None, **of: str) -> Written:
    assert admit(store, vm_id, calls=calls(vm_id, **of)) is Outcome.DONE
    return end(store, vm_id, result)


def breaker_events(subject: Subject) -> list[tuple[str | None, str]]:
    return [(e.scope, e.why) for e in subject.events() if e.kind is EventKind.BREAKER]


def test_a_bad_image_stops_its_own_vms_and_not_the_host(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_lost_vm, names(8)))
    for vm_id in names(5):
        attempt(store, vm_id, Result.FAILURE)

    assert admit(store, "vm-05", calls=calls("vm-05")) is Outcome.WAITING
    assert waits(store, "vm-05") == f"breaker:image:bad.img@{HOST}"
    assert admit(store, "vm-06", calls=calls("vm-06", image="good.img")) is Outcome.DONE
    scope, why = breaker_events(subject)[0]
    assert scope == f"image:bad.img@{HOST}"
    assert why == "closed -> open: 5 of 5 failed within 120 s; next probe in 30 s"
    assert len(breaker_events(subject)) == 1


def test_one_vm_that_fails_again_and_again_is_no_sick_image(store: VmStore, subject: Subject) -> None:
    put(store, a_lost_vm("vm-1"))
    for _ in range(20):
        attempt(store, "vm-1", Result.FAILURE)
    assert breaker_events(subject) == []


def test_a_host_where_many_images_fail_is_stopped_and_the_fleet_is_not(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_lost_vm, names(6)))
    for number, vm_id in enumerate(names(5)):
        attempt(store, vm_id, Result.FAILURE, image=f"image-{number}")
    assert [scope for scope, _ in breaker_events(subject)] == [f"host:{HOST}"]
    assert admit(store, "vm-05", calls=calls("vm-05", image="other")) is Outcome.WAITING


def test_an_image_that_fails_on_many_hosts_and_a_driver_that_fails_with_all_are_stopped(subject: Subject) -> None:
    store = subject.make(some_limits(breaker=a_breaker_policy(min_calls=2)), None)
    put(store, *map(a_lost_vm, names(4)))
    attempt(store, "vm-00", Result.FAILURE, host="host-a")
    attempt(store, "vm-01", Result.FAILURE, host="host-b")
    assert [scope for scope, _ in breaker_events(subject)] == ["image:bad.img"]
    attempt(store, "vm-02", Result.FAILURE, host="host-b", image="second.img")
    assert {scope for scope, _ in breaker_events(subject)[1:]} == {"driver:firecracker@1.0", "fleet", "host:host-b"}


def test_successes_keep_a_breaker_closed_and_old_results_do_not_count(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_lost_vm, names(20)))
    for vm_id in names(4):
        attempt(store, vm_id, Result.FAILURE)
    subject.pass_time(120_000)
    for vm_id in names(10)[4:]:
        attempt(store, vm_id, Result.SUCCESS)
    for vm_id in names(15)[10:]:
        attempt(store, vm_id, Result.FAILURE)
    assert breaker_events(subject) == [], "5 of 11"
    attempt(store, "vm-15", Result.FAILURE)
    assert len(breaker_events(subject)) == 1


def opened(store: VmStore) -> None:
    put(store, *map(a_lost_vm, names(12)))
    for vm_id in names(5):
        attempt(store, vm_id, Result.FAILURE)


def test_an_open_breaker_lets_one_probe_through_after_its_cool_down_and_closes_after_two(
    store: VmStore, subject: Subject
) -> None:
    opened(store)
    for vm_id in names(9)[5:]:
        assert admit(store, vm_id, calls=calls(vm_id)) is Outcome.WAITING
    subject.pass_time(29_999)
    assert called(store.tend(HOST)) == []
    subject.pass_time(1)

    assert called(store.tend(HOST)) == ["vm-05"]
    assert called(store.tend(HOST)) == [], "the probe is offered"
    assert admit(store, "vm-05", calls=calls("vm-05")) is Outcome.DONE
    assert admit(store, "vm-09", calls=calls("vm-09")) is Outcome.WAITING
    assert called(end(store, "vm-05")) == ["vm-06"]
    admit(store, "vm-06", calls=calls("vm-06"))
    assert called(end(store, "vm-06")) == ["vm-07", "vm-08", "vm-09"], "closed: all go on, as far as slots reach"
    assert [why.partition(":")[0] for _, why in breaker_events(subject)] == [
        "closed -> open",
        "open -> half_open",
        "half_open -> closed",
    ]


def test_a_failed_probe_opens_the_breaker_for_twice_as_long_up_to_the_cap(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(breaker=a_breaker_policy(max_cooldown_ms=100_000)), None)
    opened(store)
    for cooldown in (30_000, 60_000, 100_000, 100_000):
        subject.pass_time(cooldown - 1)
        assert admit(store, "vm-05", calls=calls("vm-05")) is Outcome.WAITING
        subject.pass_time(1)
        attempt(store, "vm-05", Result.FAILURE)


def test_a_probe_whose_holder_went_away_counts_as_a_failure(store: VmStore, subject: Subject) -> None:
    opened(store)
    subject.pass_time(30_000)
    assert admit(store, "vm-05", ttl_ms=1000, calls=calls("vm-05")) is Outcome.DONE
    assert store.renew("vm-05", lease("vm-05"), 2000)
    subject.pass_time(1999)
    assert "went away" not in str(breaker_events(subject))
    subject.pass_time(1)
    assert admit(store, "vm-06", calls=calls("vm-06")) is Outcome.WAITING
    assert breaker_events(subject)[-1][1] == "half_open -> open: the holder of a probe went away; next probe in 60 s"


def test_a_probe_that_says_nothing_is_free_for_another(store: VmStore, subject: Subject) -> None:
    opened(store)
    subject.pass_time(30_000)
    attempt(store, "vm-05", None)
    assert admit(store, "vm-06", calls=calls("vm-06")) is Outcome.DONE


def test_the_result_of_an_older_life_does_not_count(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_lost_vm, names(12)))
    assert admit(store, "vm-11", calls=calls("vm-11")) is Outcome.DONE
    for vm_id in names(5):
        attempt(store, vm_id, Result.FAILURE)
    subject.pass_time(30_000)
    assert admit(store, "vm-05", calls=calls("vm-05")) is Outcome.DONE
    before = breaker_events(subject)
    end(store, "vm-11", Result.FAILURE)
    assert breaker_events(subject) == before, "it was admitted before the breaker opened"
    end(store, "vm-05", Result.SUCCESS)


def test_an_abandoned_attempt_counts_by_the_write_that_ends_it(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_lost_vm, names(5)))
    for vm_id in names(5):
        admit(store, vm_id, ttl_ms=100, calls=calls(vm_id))
        subject.pass_time(100)
        change = Change(vm_id, rev(store, vm_id), a_lost_vm(vm_id), result=Result.FAILURE)
        assert only(store, change) is Outcome.DONE
    assert len(breaker_events(subject)) == 1


def test_all_or_nothing_means_that_a_refused_admission_takes_nothing(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=1), None)
    opened_calls = calls("vm-05")
    opened(store)
    assert admit(store, "vm-05", calls=opened_calls) is Outcome.WAITING
    found = store.read(["vm-05"]).found["vm-05"]
    assert not found.leased
    assert found.rev == 1
    assert admit(store, "vm-06", calls=calls("vm-06", image="good.img")) is Outcome.DONE, "no slot was kept"


# Storms


def storm_events(subject: Subject) -> list[tuple[EventKind, str | None, str]]:
    kinds = (EventKind.STORM_BEGAN, EventKind.STORM_ENDED)
    return [(e.kind, e.scope, e.why) for e in subject.events() if e.kind in kinds]


def test_few_losses_are_no_storm(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_vm, names(60)))
    lose(store, *names(4), loss=Loss.UNCERTAIN)
    subject.pass_time(60_000)
    lose(store, *names(8)[4:], loss=Loss.UNCERTAIN)
    assert storm_events(subject) == []


def test_many_uncertain_losses_start_recovery_at_one_at_a_time_doubling_with_success(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=4, per_fleet=8), None)
    put(store, *map(a_vm, names(20)))

    assert called(lose(store, *names(16), loss=Loss.UNCERTAIN)) == ["vm-00"]

    assert [(kind, scope) for kind, scope, _ in storm_events(subject)] == [
        (EventKind.STORM_BEGAN, f"host:{HOST}"),
        (EventKind.STORM_BEGAN, "fleet"),
    ]
    assert storm_events(subject)[0][2] == ("16 of 20 VMs lost within 60 s, uncertain: recovery starts one at a time")
    running = ["vm-00"]
    widths = []
    while running:
        for vm_id in running:
            assert admit(store, vm_id) is Outcome.DONE
        widths.append(len(running))
        results = [called(end(store, vm_id)) for vm_id in running]
        running = [vm_id for part in results for vm_id in part]
    assert widths[:3] == [1, 2, 4]
    assert sum(widths) == 16
    assert max(widths) <= 4


def test_a_failure_in_a_storm_halves_what_may_run(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=4), None)
    put(store, *map(a_vm, names(20)))
    lose(store, *names(16), loss=Loss.UNCERTAIN)
    admit(store, "vm-00")
    for vm_id in called(end(store, "vm-00")):
        admit(store, vm_id)
    assert called(end(store, "vm-01", Result.FAILURE)) == [], "of two one may run, and it does"
    assert len(called(end(store, "vm-02"))) == 2


def test_certain_deaths_are_limited_by_the_caps_after_one_slot_full_has_come_back(
    store: VmStore, subject: Subject
) -> None:
    put(store, *map(a_vm, names(20)))
    first = called(lose(store, *names(16)))
    assert first == names(4)
    for vm_id in first:
        admit(store, vm_id)

    assert [called(end(store, vm_id)) for vm_id in first[:3]] == [[], [], []]
    assert called(end(store, first[3])) == names(8)[4:]
    for vm_id in names(8)[4:]:
        admit(store, vm_id)
    assert [len(called(end(store, vm_id))) for vm_id in names(8)[4:]] == [1, 1, 1, 1]
    assert "one slot-full comes back before the next" in storm_events(subject)[0][2]


def test_a_canary_that_fails_is_followed_by_another(store: VmStore) -> None:
    put(store, *map(a_vm, names(20)))
    for vm_id in called(lose(store, *names(16))):
        admit(store, vm_id)
    assert called(end(store, "vm-00", Result.FAILURE)) == ["vm-04"]


def test_a_storm_ends_lower_than_it_began_and_only_when_nobody_waits(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_vm, names(20)))
    running = called(lose(store, *names(7)))
    for vm_id in running:
        admit(store, vm_id, ttl_ms=600_000)
    subject.pass_time(60_000)
    store.tend(HOST)
    assert [scope for kind, scope, _ in storm_events(subject) if kind is EventKind.STORM_ENDED] == ["fleet"]
    last = [called_id for vm_id in running for called_id in called(end(store, vm_id))]
    for vm_id in last:
        admit(store, vm_id)
        end(store, vm_id)

    store.tend(HOST)

    ended = [(scope, why) for kind, scope, why in storm_events(subject) if kind is EventKind.STORM_ENDED]
    assert [scope for scope, _ in ended] == ["fleet", f"host:{HOST}"], "where somebody waited, it went on"
    assert ended[1][1] == "7 VMs came back in 60 s, nobody waits"
    store.tend(HOST)
    assert len(storm_events(subject)) == 4


def test_a_storm_goes_on_while_half_of_its_losses_are_recent(subject: Subject) -> None:
    subject.serve(HOST)
    store = subject.make(some_limits(per_host=20, storm=a_storm_policy(fleet_share=1.0)), None)
    put(store, *map(a_vm, names(20)))
    lose(store, *names(4), enlist=False)
    subject.pass_time(30_000)
    lose(store, *names(8)[4:], enlist=False)
    store.tend(HOST)
    assert len(storm_events(subject)) == 1
    subject.pass_time(30_000)
    store.tend(HOST)
    assert len(storm_events(subject)) == 1, "4 are more than half of the 6 it takes"
    subject.pass_time(30_000)
    store.tend(HOST)
    assert len(storm_events(subject)) == 2


def test_a_certain_storm_that_turns_out_uncertain_gets_slower(store: VmStore, subject: Subject) -> None:
    put(store, *map(a_vm, names(20)))
    lose(store, *names(7), enlist=False)
    lose(store, *names(14)[7:], loss=Loss.UNCERTAIN, enlist=False)
    assert [why.split(": ")[1] for _, scope, why in storm_events(subject) if scope == f"host:{HOST}"] == [
        "one slot-full comes back before the next",
        "recovery starts one at a time",
    ]
    assert called(store.write((), enlist=names(14))) == ["vm-00"]


# Restarts, epochs, forgetting


def test_after_a_restart_of_the_server_nobody_is_admitted_for_as_long_as_a_lease_lasts(
    store: VmStore, subject: Subject
) -> None:
    put(store, *map(a_lost_vm, names(3)))
    assert admit(store, "vm-00") is Outcome.DONE
    subject.restart()

    assert admit(store, "vm-01") is Outcome.WAITING
    assert called(store.write((), enlist=["vm-02"])) == []
    subject.pass_time(29_999)
    assert called(store.tend(HOST)) == []
    assert store.renew("vm-00", lease("vm-00"), 60_000), "who was at work goes on"
    subject.pass_time(1)

    assert called(store.tend(HOST)) == ["vm-01", "vm-02"]
    assert admit(store, "vm-01") is Outcome.DONE
    quarantines = [e.why for e in subject.events() if e.kind is EventKind.QUARANTINE]
    assert quarantines == ["redis was started again: no recovery begins for 30 s, as long as a lease may last"]


def test_the_first_life_of_a_server_has_no_quarantine(store: VmStore, subject: Subject) -> None:
    put(store, a_lost_vm())
    assert called(store.write((), enlist=["vm-1"])) == ["vm-1"]
    assert [e for e in subject.events() if e.kind is EventKind.QUARANTINE] == []


def remembering(subject: Subject) -> tuple[VmStore, FakeMemory]:
    subject.serve(HOST)
    found = subject.data.begin(None)
    assert found.epoch is not None
    memory = FakeMemory(Known(found.epoch))
    return subject.make(some_limits(), memory), memory


def test_a_host_remembers_the_newest_event_that_it_has_seen(subject: Subject) -> None:
    store, memory = remembering(subject)
    put(store, a_lost_vm())
    assert memory.known is not None
    before = memory.known.last_event
    store.note([event(EventKind.CHANGED, a_vm(), actor="test", why="because")])
    noted = memory.known
    assert noted is not None
    assert noted.last_event != before
    subject.make(some_limits(), None).note([event(EventKind.CHANGED, a_vm(), actor="somebody else", why="because")])
    assert memory.known == noted
    assert store.tend(HOST).intact
    assert memory.known != noted, "the heartbeat sees what others wrote"


@pytest.mark.parametrize("unknown", [Known("other"), Known("", "9999999999999-0")])
def test_data_that_are_not_those_the_host_knows_admit_nobody_and_call_nobody(subject: Subject, unknown: Known) -> None:
    store, memory = remembering(subject)
    put(store, *map(a_lost_vm, names(2)))
    assert memory.known is not None
    memory.known = replace(unknown, epoch=unknown.epoch or memory.known.epoch)

    assert admit(store, "vm-00") is Outcome.FROZEN
    assert only(store, Change("vm-00", 1, a_lost_vm("vm-00"), take=Take("stopper", 1000))) is Outcome.FROZEN
    written = store.write((), enlist=["vm-01"])
    assert (called(written), written.intact) == ([], False)
    assert not store.tend(HOST).intact
    assert memory.known.last_event == unknown.last_event, "nothing is learned from them"
    assert only(store, Change("vm-00", 1, a_vm("vm-00"))) is Outcome.DONE, "what destroys nothing goes on"


def test_a_confirmed_epoch_follows_the_ones_before(subject: Subject) -> None:
    store, memory = remembering(subject)
    del store
    old = memory.known
    told = event(EventKind.CONFIRMED, a_vm(), actor="alice", why="restored from the backup of Monday")

    confirmed = subject.data.confirm(told)

    assert old is not None
    assert confirmed.epoch not in (None, old.epoch)
    assert subject.data.look(old).follows
    assert not subject.data.look(Known("never heard of")).follows
    assert subject.events()[-1].why == "restored from the backup of Monday"


def test_a_confirmation_takes_in_the_epochs_that_frozen_hosts_know(subject: Subject) -> None:
    subject.data.begin(None)
    subject.data.halt("host-a", Halt("redis holds other data", epoch="long ago"))
    subject.data.confirm(event(EventKind.CONFIRMED, a_vm(), actor="alice", why="yes"))
    assert subject.data.look(Known("long ago")).follows


def test_nobody_is_admitted_after_a_confirmation_before_old_leases_have_ended(store: VmStore, subject: Subject) -> None:
    put(store, a_lost_vm())
    subject.data.confirm(event(EventKind.CONFIRMED, a_vm(), actor="alice", why="yes"))
    assert admit(store) is Outcome.WAITING
    subject.pass_time(LEASE_MS)
    assert called(store.tend(HOST)) == ["vm-1"]


def test_an_epoch_begins_once(subject: Subject) -> None:
    assert subject.data.look(None).epoch is None
    first = subject.data.begin(None).epoch
    assert first is not None
    assert subject.data.begin(None).epoch == first


def test_what_was_forgotten_is_remembered_until_it_is_registered_again(store: VmStore, subject: Subject) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    only(store, Change("vm-1", 1, None))
    assert store.forgotten(["vm-1", "vm-2", "vm-3"]) == {"vm-1": subject.clock.now_ms}
    assert store.forgotten([]) == {}
    put(store, a_vm("vm-1"))
    assert store.forgotten(["vm-1"]) == {}


def test_one_of_many_takers_wins(store: VmStore) -> None:
    put(store, a_lost_vm())
    outcomes: list[Outcome] = []

    def take(owner: str) -> None:
        outcomes.append(only(store, Change("vm-1", 1, a_lost_vm(), take=a_take(owner))))

    threads = [threading.Thread(target=take, args=(f"owner-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == sorted([Outcome.DONE] + [Outcome.STALE] * 7)


def test_what_has_no_next_check_is_told(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    only(store, Change("vm-2", 1, a_vm("vm-2"), check_in_ms=-1))
    assert store.unscheduled(["vm-1", "vm-2"]) == ["vm-2"]
    assert store.unscheduled([]) == []


def test_writing_nothing_is_nothing(store: VmStore) -> None:
    assert list(store.write([]).outcomes) == []


def test_events_are_written_with_their_change_only(store: VmStore, subject: Subject) -> None:
    put(store, a_vm())
    told = event(EventKind.CHANGED, a_vm(), actor="test", why="because")
    refused = replace(told, why="refused")

    only(store, Change("vm-1", 1, a_vm(), (told,)))
    only(store, Change("vm-1", 1, a_vm(), (refused,)))
    store.note([replace(told, why="noted")])

    assert [entry.why for entry in subject.events()] == ["because", "noted"]
