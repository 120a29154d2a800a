"""The manager's registry against the records of a host: told of, missed, forgotten, and never believed blindly."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.builders import HOST, a_spec
from tests.support.fakes import World
from workers.domain.audit import EventKind
from workers.domain.errors import ReliabilityError
from workers.domain.registry_diff import Notes
from workers.domain.vm import State
from workers.services.ledger import Ledger
from workers.services.registry_sync import RegistrySync, SyncRules


@dataclass
class FakeSource:
    listed: list[object] = field(default_factory=list)
    failure: str = ""
    asked: int = 0

    def entries(self) -> Sequence[object]:
        self.asked += 1
        if self.failure:
            raise ReliabilityError(self.failure)
        return self.listed


class FakeNotes:
    def __init__(self) -> None:
        self.notes = Notes()

    def registry_notes(self, host: str) -> Notes:
        assert host == HOST
        return self.notes

    def put_registry_notes(self, host: str, notes: Notes, *, ttl_ms: int) -> None:
        assert (host, ttl_ms) == (HOST, 900_000)
        self.notes = notes


class Place:
    def __init__(self, *, forget_missing: bool = False) -> None:
        self.world, self.source, self.book = World(), FakeSource(), FakeNotes()
        self.halted = False
        rules = SyncRules(HOST, interval_s=300, ttl_ms=900_000, forget_missing=forget_missing)
        ledger = Ledger(self.world.store, self.world.wakeups, self.world.telemetry)
        self.sync = RegistrySync(
            self.source,
            self.world.store,
            ledger,
            self.book,
            rules=rules,
            clock=self.world.clock,
            is_halted=lambda: self.halted,
        )

    def compare(self, *listed: object) -> Notes:
        """One comparison, after the interval."""
        self.source.listed = list(listed)
        self.world.clock.advance(300_000)
        self.sync.sync_if_due()
        return self.book.notes

    def told(self) -> list[tuple[str, str]]:
        return [(each.vm_id, each.why) for each in self.world.events if each.kind is EventKind.UNLISTED]


def plain(vm_id: str, **fields: object) -> dict[str, object]:
    return {"id": vm_id, "driver": "firecracker", "kernel": "/images/vmlinux", **fields}


def three_vms(place: Place) -> None:
    for vm_id in ("vm-1", "vm-2", "vm-3"):
        place.world.boot(vm_id)


def test_a_vm_that_nobody_told_of_is_registered_and_the_audit_says_by_whom() -> None:
    place = Place()

    notes = place.compare(plain("vm-1", vcpus=2), a_spec("vm-2", desired="stopped"), plain("vm-9", host="host-z"))

    assert notes == Notes(problems=[])
    assert {vm_id: row.record.state for vm_id, row in place.world.rows.items()} == {
        "vm-1": State.STARTING,
        "vm-2": State.STOPPED,
    }
    assert place.world.record("vm-1").host == HOST
    assert [(each.kind, each.actor) for each in place.world.events] == [(EventKind.REGISTERED, "registry")] * 2


def test_what_is_recorded_already_is_left_as_it_is() -> None:
    place = Place()
    place.world.boot("vm-1")
    before = place.world.record()

    place.compare(plain("vm-1", vcpus=4))

    assert place.world.record() == before
    assert place.world.events == []


def test_a_vm_that_is_gone_is_reported_once_and_kept() -> None:
    place = Place()
    three_vms(place)
    two = plain("vm-1"), plain("vm-2")

    assert place.compare(*two).suspects == ("vm-3",)
    assert place.told() == []
    since = place.compare(*two).missing
    assert list(since) == ["vm-3"]
    assert place.compare(*two).missing == since
    assert place.told() == [("vm-3", "the registry lists it no more")]
    assert place.world.state("vm-3") is State.HEALTHY

    assert place.compare(*two, plain("vm-3")) == Notes(problems=[])


def test_a_vm_that_is_gone_is_forgotten_where_that_was_asked_for_and_its_vmm_runs_on() -> None:
    place = Place(forget_missing=True)
    three_vms(place)
    process = place.world.record("vm-3").process
    two = plain("vm-1"), plain("vm-2")

    place.compare(*two)
    assert "vm-3" in place.world.rows, "the first time it may only be late"
    notes = place.compare(*two)

    assert "vm-3" not in place.world.rows
    assert notes.missing == {}
    assert place.world.kinds() == [EventKind.UNLISTED, EventKind.FORGOTTEN]
    running = place.world.host.running("vm-3")
    assert running is not None
    assert running.process == process


def test_a_vm_that_was_forgotten_is_not_brought_back_by_a_registry_that_is_late() -> None:
    place = Place()
    place.world.boot("vm-1")
    place.world.forget("vm-1")

    notes = place.compare(plain("vm-1"))

    assert place.world.rows == {}
    assert notes.problems == ["vm-1: it is listed, and was forgotten here: `reliability apply` takes it back"]


def test_a_registry_that_fails_is_empty_or_lost_half_changes_nothing_and_is_said_once() -> None:
    place = Place(forget_missing=True)
    three_vms(place)
    place.compare(plain("vm-1"), plain("vm-2"))

    place.source.failure = "the registry failed: OSError: gone"
    for _ in range(3):
        assert place.compare().trouble == "the registry failed: OSError: gone"
    place.source.failure = ""
    for _ in range(3):
        assert place.compare().trouble == "the registry lists no VM of this host, which has 3: nothing is done"
    assert "left the registry at once" in place.compare(plain("vm-9")).trouble

    assert len(place.world.rows) == 3
    assert [vm_id for vm_id, _ in place.told()] == ["", "", ""]
    assert place.book.notes.suspects == ("vm-3",), "what was noted before stays"
    assert place.compare(plain("vm-1"), plain("vm-2"), plain("vm-3")) == Notes(problems=[])


def test_an_entry_that_cannot_be_used_is_named_and_keeps_no_other_back() -> None:
    place = Place(forget_missing=True)
    three_vms(place)

    notes = place.compare(plain("vm-1"), plain("vm-2", vcpus="many"), plain("vm-3"), plain("vm-4"), plain("vm-4"))

    assert list(notes.problems) == [
        'entry 1: vcpus: must be a whole number (got "many")',
        "vm-4: it is listed twice; the first one counts",
    ]
    assert notes.suspects == (), "it is listed, however badly"
    assert "vm-4" in place.world.rows


def test_where_an_entry_has_no_id_nobody_is_missed_and_what_was_missed_stays_so() -> None:
    place = Place(forget_missing=True)
    three_vms(place)
    place.compare(plain("vm-1"), plain("vm-2"))

    for _ in range(3):
        notes = place.compare(plain("vm-1"), plain("vm-2"), {"driver": "firecracker"}, 7)

    assert notes.suspects == ("vm-3",)
    assert len(place.world.rows) == 3


def test_it_is_asked_at_most_once_per_interval_and_not_while_the_host_is_halted() -> None:
    place = Place()
    place.compare()
    place.world.clock.advance(200_000)
    place.sync.sync_if_due()
    assert place.source.asked == 1

    place.halted = True
    place.compare()
    assert place.source.asked == 1

    place.halted = False
    place.sync.sync_if_due()
    assert place.source.asked == 2
