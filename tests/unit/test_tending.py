"""What each heartbeat looks after: whether the data are those we know, the kill switch, and who is called next."""

import pytest

from tests.support.builders import HOST, a_lost_vm
from tests.support.fakes import World
from workers.domain.audit import EventKind
from workers.domain.epoch import Known
from workers.domain.errors import StoreUnavailable


@pytest.fixture
def world() -> World:
    """A host that knows the data of its first heartbeat."""
    made = World()
    made.tending.tend()
    return made


def roll_back(world: World) -> None:
    """What this host has seen to happen is gone."""
    world.boot()
    saved = world.server.save()
    world.host.kill("vm-1")
    world.checks.check(["vm-1"])
    assert world.kinds() == [EventKind.TRANSITION]
    world.server.restart(saved)


def test_the_first_heartbeat_of_a_fleet_gives_the_data_their_epoch_and_keeps_it(world: World) -> None:
    assert world.memory.saved == Known("epoch-0", "0-0")
    assert world.server.contents.epoch == "epoch-0"
    assert world.tending.halted is None
    assert world.kinds() == [], "all is well, and there is nothing to tell"


def test_data_that_are_lost_freeze_the_host_and_are_not_begun_anew(world: World) -> None:
    world.server.lose_data()

    world.tending.tend()

    halt = world.tending.halted
    assert halt is not None
    assert (halt.frozen, halt.epoch) == (True, "epoch-0")
    assert "its data are gone" in halt.why
    assert world.server.contents.epoch is None
    assert world.memory.saved == Known("epoch-0", "0-0")


def test_data_that_were_rolled_back_freeze_the_host(world: World) -> None:
    roll_back(world)

    world.tending.tend()

    assert world.tending.halted is not None
    assert "rolled back" in world.tending.halted.why


def test_a_freeze_is_told_once_and_again_to_the_other_hosts_with_every_heartbeat(world: World) -> None:
    world.server.lose_data()
    for _ in range(3):
        world.tending.tend()
    assert world.kinds() == [EventKind.FROZEN]
    world.server.contents.halted.clear()

    world.tending.tend()

    assert HOST in world.server.contents.halted, "what the others know may have been lost as well"
    assert world.kinds() == [EventKind.FROZEN]


def test_an_operators_word_thaws_the_host_and_its_memory_follows(world: World) -> None:
    world.server.lose_data()
    world.tending.tend()
    world.data.confirm(world.events[0])

    world.tending.tend()

    assert world.tending.halted is None
    assert world.kinds()[-1] is EventKind.THAWED
    assert HOST not in world.server.contents.halted
    assert world.memory.saved is not None
    assert world.memory.saved.epoch == world.server.contents.epoch != "epoch-0"


def test_the_kill_switch_halts_without_a_freeze_and_lets_go_again(world: World) -> None:
    world.host.paused = True
    world.tending.tend()
    halt = world.tending.halted
    assert halt is not None
    assert (halt.frozen, halt.epoch) == (False, "")
    assert "kill switch PAUSE is on" in halt.why
    world.host.paused = False

    world.tending.tend()

    assert world.tending.halted is None
    assert world.kinds() == [EventKind.FROZEN, EventKind.THAWED]


def test_another_reason_to_halt_is_told_as_well(world: World) -> None:
    world.host.paused = True
    world.tending.tend()
    world.server.lose_data()

    world.tending.tend()

    assert world.tending.halted is not None
    assert world.tending.halted.frozen
    assert "its data are gone" in world.events[-1].why


def test_who_waits_is_called_by_a_heartbeat_and_not_while_the_data_are_not_trusted() -> None:
    world = World(limits={"per_host": 1})
    world.tending.tend()
    world.put(a_lost_vm("vm-1"), a_lost_vm("vm-2"))
    world.store.write([], enlist=["vm-1", "vm-2"])
    known = world.memory.known
    world.memory.known = Known("of-another-life", "5-0")
    world.clock.advance(world.limits.call_ms)
    world.tending.tend()
    assert world.wakeups.woken == []
    world.memory.known = known

    world.tending.tend()

    assert world.wakeups.woken == ["vm-2"], "nobody came for the slot that was kept for the first one"


def test_without_redis_a_heartbeat_says_so_and_what_was_known_stays(world: World) -> None:
    world.server.lose_data()
    world.tending.tend()
    halted = world.tending.halted
    world.server.away = True

    with pytest.raises(StoreUnavailable):
        world.tending.tend()

    assert world.tending.halted == halted


def test_a_memory_that_cannot_be_saved_is_told_and_does_not_end_the_heartbeat() -> None:
    world, told = World(), list[OSError]()

    def fail() -> None:
        raise OSError(28, "No space left on device")

    world.memory.save = fail  # type: ignore[method-assign] # the fake's own fault
    world.tending._not_saved = told.append
    world.tending.tend()

    assert [error.strerror for error in told] == ["No space left on device"]
    assert world.tending.halted is None
