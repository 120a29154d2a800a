"""How a host and the fleet stand, as one script reads it on real servers: the figures behind gauges and alerts."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import redis

from tests.conftest import ServerOf
from tests.support.builders import (
    HOST,
    NOW_MS,
    a_breaker_policy,
    a_lost_vm,
    a_process,
    a_spec,
    a_vm,
    an_episode,
    some_limits,
)
from tests.support.servers import RedisFlavour
from tests.support.stores import _TEST_TIME, PREFIX, Subject, redis_subject
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import Result, calls_of
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import FLEET, Hold, Mode, Scope, host_scope, vm_scope
from workers.domain.storm import Loss
from workers.domain.vm import Desired, EpisodeEnd, Reason, State, VmRecord
from workers.ports import Change, Halt, Lease, Limits, Outcome, Take, VmStore
from workers.store.client import connect
from workers.store.hosts import HostRegistry, HostWorker
from workers.store.keys import Keys
from workers.store.survey import FleetSurvey, HostAge, HostSurvey, InFlight, Surveys

ELSEWHERE = "host-b"
KEYS = Keys(PREFIX)
NONE = dict.fromkeys((str(state) for state in State), 0)


class Place:
    """A real store with time in the test's hands, and the surveys of it."""

    def __init__(self, subject: Subject, client: redis.Redis) -> None:
        self.subject, self.client = subject, client
        self.limits_are()

    def limits_are(self, **changes: Any) -> None:
        limits: Limits = some_limits(**changes)
        self.store: VmStore = self.subject.make(limits, None)
        self.surveys = Surveys(self.client, prefix=PREFIX, limits=limits, time=_TEST_TIME)
        # In real time: those keys that are written by scripts with a clock of their own.
        self.real = Surveys(self.client, prefix=PREFIX, limits=limits)

    @property
    def host(self) -> HostSurvey:
        return self.surveys.host(HOST)

    @property
    def fleet(self) -> FleetSurvey:
        return self.surveys.fleet()

    def put(self, *records: VmRecord) -> None:
        changes = [Change(r.vm_id, 0, r, check_in_ms=0, spec=a_spec(r.vm_id)) for r in records]
        assert set(self.store.write(changes).outcomes) == {Outcome.DONE}

    def write(self, vm_id: str, after: VmRecord, **change: Any) -> Outcome:
        rev = self.store.read([vm_id]).found[vm_id].rev
        return self.store.write([Change(vm_id, rev, after, **change)]).outcomes[0]

    def attempt(self, vm_id: str, **take: Any) -> Outcome:
        """Begin an attempt on a lost VM."""
        record = self.store.read([vm_id]).found[vm_id].record
        assert record.episode is not None
        begun = replace(record.episode, attempt=1, running=True, attempt_started_ms=self.subject.clock.now_ms)
        after = replace(record, state=State.RECOVERING, episode=begun)
        return self.write(vm_id, after, take=Take(vm_id, take.pop("ttl_ms", 60_000), take.pop("calls", ())))

    def end(self, vm_id: str, result: Result) -> None:
        after = a_vm(vm_id) if result is Result.SUCCESS else a_lost_vm(vm_id)
        assert self.write(vm_id, after, held_by=Lease(vm_id, 7), release=True, result=result) is Outcome.DONE

    def lose(self, *vm_ids: str, loss: Loss = Loss.CERTAIN) -> None:
        rows = self.store.read(vm_ids).found
        self.store.write([Change(v, rows[v].rev, a_lost_vm(v), loss=loss) for v in vm_ids])

    def pass_time(self, ms: int) -> None:
        self.subject.pass_time(ms)


@pytest.fixture(params=list(RedisFlavour))
def place(request: pytest.FixtureRequest, server_of: ServerOf) -> Iterator[Place]:
    server = server_of(RedisFlavour(request.param))
    with redis_subject(server) as subject:
        client = connect(server.url(0), timeout_s=5, connect_timeout_s=5)
        subject.serve(HOST)
        try:
            yield Place(subject, client)
        finally:
            client.close()


def names(count: int) -> list[str]:
    return [f"vm-{number:02}" for number in range(count)]


# A host


def test_an_empty_host_has_nothing_of_anything(place: Place) -> None:
    seen = place.host
    assert seen == HostSurvey(NOW_MS, NONE, {}, 0, 0, 0, [], 0, 4, storm=False, destroyed=0)
    assert seen.should_run == 0


def test_every_state_is_counted_and_other_hosts_are_not(place: Place) -> None:
    for number, state in enumerate(State):
        place.put(*[a_vm(f"vm-{state}-{n}", state=state) for n in range(number + 1)])
    place.put(a_vm("vm-elsewhere", host=ELSEWHERE))

    expected = {str(state): number + 1 for number, state in enumerate(State)}
    assert place.host.states == expected
    assert place.host.should_run == sum(expected.values()) - expected["stopped"]
    assert place.fleet.states == expected | {"healthy": expected["healthy"] + 1}
    assert place.surveys.host(ELSEWHERE).states == NONE | {"healthy": 1}


def test_orphans_are_told_by_reason_and_the_oldest_by_its_loss(place: Place) -> None:
    place.put(
        a_lost_vm("vm-1", episode=an_episode(started_ms=NOW_MS - 5000)),
        a_lost_vm("vm-2", episode=an_episode(started_ms=NOW_MS - 90_000)),
        a_lost_vm("vm-3", episode=an_episode(reason=Reason.SOCKET_UNREACHABLE)),
        # Not orphaned, however long it has been lost.
        a_lost_vm("vm-4", state=State.UNHEALTHY, episode=an_episode(started_ms=NOW_MS - 900_000)),
        a_lost_vm("vm-5", host=ELSEWHERE, episode=an_episode(started_ms=NOW_MS - 900_000)),
    )
    seen = place.host
    assert seen.orphans == {"process_dead": 2, "socket_unreachable": 1}
    assert seen.oldest_orphan_ms == 90_000
    place.pass_time(1500)
    assert place.host.oldest_orphan_ms == 91_500


def test_an_orphan_without_an_open_episode_is_as_old_as_its_state(place: Place) -> None:
    ended = an_episode(end=EpisodeEnd.RECOVERED, started_ms=NOW_MS - 900_000, ended_ms=NOW_MS - 800_000)
    since_ms = NOW_MS - 7000
    place.put(
        a_lost_vm("vm-1", episode=ended, since_ms=since_ms, doubt=Reason.HEALTH_CHECK_FAILED),
        a_lost_vm("vm-2", episode=None, since_ms=since_ms),
    )
    seen = place.host
    assert seen.orphans == {"health_check_failed": 1, "none": 1}
    assert seen.oldest_orphan_ms == 7000


def test_who_is_due_and_has_no_attempt_waits(place: Place) -> None:
    place.put(
        a_lost_vm("vm-due", episode=an_episode(started_ms=NOW_MS - 4000)),
        a_lost_vm(
            "vm-due-since", episode=an_episode(attempt=1, next_attempt_ms=NOW_MS - 9000, started_ms=NOW_MS - 60_000)
        ),
        a_lost_vm("vm-hung", state=State.UNHEALTHY, episode=an_episode(started_ms=NOW_MS - 2000)),
        a_vm("vm-new", state=State.STARTING, process=None, since_ms=NOW_MS - 3000),
        # Those wait for nobody.
        a_lost_vm("vm-later", episode=an_episode(attempt=1, next_attempt_ms=NOW_MS + 30_000)),
        a_lost_vm("vm-unwanted", desired=Desired.STOPPED),
        a_vm("vm-failed", state=State.FAILED, episode=an_episode(end=EpisodeEnd.FAILED, started_ms=NOW_MS - 900_000)),
        a_vm("vm-fine"),
    )
    seen = place.host
    assert seen.waiting == 4
    assert seen.longest_wait_ms == 9000
    assert seen.in_flight == []

    place.pass_time(30_000)
    assert place.host.waiting == 5
    assert place.host.longest_wait_ms == 39_000


def test_an_attempt_in_flight_is_named_and_takes_a_slot_here_and_of_the_fleet(place: Place) -> None:
    place.put(a_lost_vm("vm-1"), a_lost_vm("vm-2"))
    assert place.attempt("vm-1") is Outcome.DONE

    seen = place.host
    assert list(seen.in_flight) == [InFlight("vm-1", 1, "process_dead")]
    assert (seen.waiting, seen.states["recovering"], seen.states["orphaned"]) == (1, 1, 1)
    assert (seen.slots_used, seen.slots_limit) == (1, 4)
    assert (place.fleet.slots_used, place.fleet.slots_limit) == (1, 64)

    place.end("vm-1", Result.SUCCESS)
    assert (place.host.in_flight, place.host.slots_used, place.fleet.slots_used) == ([], 0, 0)


def test_an_attempt_whose_lease_has_run_out_is_not_in_flight_any_more(place: Place) -> None:
    place.put(a_lost_vm("vm-1"))
    place.attempt("vm-1", ttl_ms=30_000)
    place.pass_time(30_001)

    seen = place.host
    assert (seen.in_flight, seen.slots_used) == ([], 0)
    assert seen.states["recovering"] == 1
    assert seen.waiting == 1, "somebody has to see to it"


def test_a_first_start_in_flight_is_one_too(place: Place) -> None:
    episode = an_episode(reason=Reason.NOT_STARTED)
    place.put(a_vm("vm-1", state=State.STARTING, process=None, episode=episode))
    begun = replace(episode, attempt=1, running=True)
    after = a_vm("vm-1", state=State.STARTING, process=None, episode=begun)
    assert place.write("vm-1", after, take=Take("me", 60_000, ())) is Outcome.DONE
    assert list(place.host.in_flight) == [InFlight("vm-1", 1, "not_started")]
    assert place.host.waiting == 0


def test_a_slot_that_is_kept_for_somebody_is_used(place: Place) -> None:
    place.limits_are(per_host=1)
    place.put(a_lost_vm("vm-1"), a_lost_vm("vm-2"))
    place.attempt("vm-1")
    place.store.write([], enlist=["vm-2"])
    place.end("vm-1", Result.SUCCESS)

    assert place.store.read(["vm-2"]).found["vm-2"].is_called
    assert (place.host.slots_used, place.host.slots_limit) == (1, 1)
    assert place.host.in_flight == []
    assert place.host.waiting == 1


def test_in_a_storm_fewer_slots_may_be_taken_and_that_is_told(place: Place) -> None:
    place.put(*map(a_vm, names(20)))
    assert not place.host.storm
    place.lose(*names(7), loss=Loss.UNCERTAIN)

    assert (place.host.storm, place.host.slots_limit) == (True, 1)
    assert (place.fleet.storm, place.fleet.slots_limit) == (True, 1)
    place.attempt("vm-00")
    place.end("vm-00", Result.SUCCESS)
    assert place.host.slots_limit == 2
    assert not place.surveys.host(ELSEWHERE).storm
    assert place.surveys.host(ELSEWHERE).slots_limit == 4


def test_a_storm_of_deaths_begins_with_all_the_slots(place: Place) -> None:
    place.put(*map(a_vm, names(20)))
    place.lose(*names(7), loss=Loss.CERTAIN)
    assert (place.host.storm, place.host.slots_limit) == (True, 4)


def test_a_survey_changes_nothing(place: Place) -> None:
    place.put(*map(a_vm, names(20)))
    place.lose(*names(7), loss=Loss.UNCERTAIN)
    place.attempt("vm-00")
    before = changes_of(place.client)
    _ = place.host, place.fleet
    assert changes_of(place.client) == before


def changes_of(client: redis.Redis) -> int:
    """How many writes the server has seen."""
    return int(cast("dict[str, int]", client.info("persistence"))["rdb_changes_since_last_save"])


def test_what_was_ended_within_the_hour_counts_against_the_budget(place: Place) -> None:
    hosts = HostRegistry(place.client, prefix=PREFIX)
    for host in (HOST, HOST, ELSEWHERE):
        assert hosts.may_destroy(host, per_hour=10)
    assert place.real.host(HOST).destroyed == 2

    place.client.zadd(KEYS.budget(HOST), {"old": place.real.host(HOST).now_ms - 3_600_001})
    assert place.real.host(HOST).destroyed == 2


def test_reasons_and_ages_of_very_many_lost_vms_are_those_of_a_part(place: Place) -> None:
    """So that a survey stays short where Redis has the most to do; the states are those of all."""
    place.put(*[a_lost_vm(f"vm-{number:04}") for number in range(600)])
    seen = place.host
    assert seen.states["orphaned"] == 600
    assert seen.orphans == {"process_dead": 500}


def test_a_record_that_is_gone_or_of_a_later_version_spoils_nothing(place: Place) -> None:
    place.put(a_lost_vm("vm-1"), a_lost_vm("vm-2"), a_lost_vm("vm-3"))
    place.client.delete(KEYS.vm("vm-2"))
    place.client.hset(KEYS.vm("vm-3"), "doc", '{"of": "another version"}')
    seen = place.host
    assert seen.states["orphaned"] == 3
    assert seen.orphans == {"process_dead": 1, "none": 1}


# The fleet


def test_an_empty_fleet_has_nothing_of_anything(place: Place) -> None:
    place.client.delete(KEYS.hosts)
    assert place.fleet == FleetSurvey(
        NOW_MS, NONE, {}, {"frozen": 0, "paused": 0}, [], 0, 64, storm=False, refused_writes=0, held={}
    )


def test_a_host_is_as_old_as_its_workers_last_heartbeat(place: Place) -> None:
    registry = HostRegistry(place.client, prefix=PREFIX)
    registry.hold(HostWorker("me", "host-c", a_process(), 0, "1"), ttl_ms=60_000)
    age = {each.host: each.heartbeat_ms for each in place.real.fleet().hosts}
    assert 0 <= age["host-c"] < 10_000


def test_a_silent_host_is_told_as_long_as_it_has_vms(place: Place) -> None:
    day_ms = 86_400_000
    place.client.delete(KEYS.hosts)
    place.client.zadd(
        KEYS.hosts,
        {
            "host-now": NOW_MS,
            "host-silent": NOW_MS - 2 * day_ms,
            "host-empty": NOW_MS - day_ms + 1000,
            "host-gone": NOW_MS - day_ms - 1000,
            "host-ahead": NOW_MS + 5000,
        },
    )
    place.put(a_vm("vm-1", host="host-silent"), a_vm("vm-2", host="host-silent"), a_vm("vm-3", host="host-now"))

    assert sorted(place.fleet.hosts, key=lambda each: each.host) == [
        HostAge("host-ahead", 0, 0),
        HostAge("host-empty", day_ms - 1000, 0),
        HostAge("host-now", 0, 1),
        HostAge("host-silent", 2 * day_ms, 2),
    ]


def test_hosts_that_recover_nothing_are_counted_by_why(place: Place) -> None:
    data = place.subject.data
    data.halt("host-a", Halt("rolled back", "epoch-1", frozen=True))
    data.halt("host-b", Halt("PAUSE"))
    data.halt("host-c", Halt("PAUSE"))
    assert place.fleet.halted == {"frozen": 1, "paused": 2}
    data.halt("host-a", None)
    data.halt("host-b", None)
    assert place.fleet.halted == {"frozen": 0, "paused": 1}


def test_modes_of_the_fleet_and_of_hosts_are_counted_while_they_are_in_force(place: Place) -> None:
    now_ms = place.subject.clock.now_us // 1000
    holds = {
        FLEET: [Hold("h1", Mode.OBSERVE_ONLY, "alice", "roll-out", now_ms)],
        host_scope(HOST): [
            Hold("h2", Mode.MAINTENANCE, "alice", "disks", now_ms, until_ms=now_ms + 1000, settle_ms=1000),
            Hold("h3", Mode.OBSERVE_ONLY, "alice", "roll-out", now_ms, until_ms=now_ms + 1500),
        ],
        vm_scope("vm-1"): [Hold("h4", Mode.PAUSED, "alice", "its owner asked", now_ms)],
    }
    for scope, each in holds.items():
        told = Event(EventKind.MODE, "", "", "alice", "work", scope=scope)
        place.subject.modes.put_scope(scope, Scope(), Scope(tuple(each)), told)

    assert place.fleet.held == {("fleet", "observe-only"): 1, ("host", "maintenance"): 1}
    place.subject.pass_time(1000)
    assert place.fleet.held == {("fleet", "observe-only"): 1, ("host", "observe-only"): 1}
    place.subject.pass_time(1000)
    assert place.fleet.held == {("fleet", "observe-only"): 1}


def fail_all(place: Place, vm_ids: list[str]) -> None:
    for vm_id in vm_ids:
        assert place.attempt(vm_id, calls=calls_of(vm_id, host=HOST, image="bad.img", driver="fc@1")) is Outcome.DONE
        place.end(vm_id, Result.FAILURE)


def test_a_breaker_is_told_by_its_kind_and_by_what_time_has_made_of_it(place: Place) -> None:
    place.limits_are(breaker=a_breaker_policy(min_calls=2, cooldown_ms=30_000))
    place.put(*map(a_lost_vm, names(3)))
    assert place.fleet.breakers == {}

    fail_all(place, names(2))
    assert place.fleet.breakers == {("image", "open"): 1}

    # Written down only when somebody asks the breaker; it may be probed all the same.
    place.pass_time(30_000)
    assert place.fleet.breakers == {("image", "half_open"): 1}
    assert place.client.hget(KEYS.breaker(f"image:bad.img@{HOST}"), "state") == b"open"

    assert place.attempt("vm-02", calls=calls_of("vm-02", host=HOST, image="bad.img", driver="fc@1")) is Outcome.DONE
    assert place.fleet.breakers == {("image", "half_open"): 1}
    place.end("vm-02", Result.FAILURE)
    assert place.fleet.breakers == {("image", "open"): 1}


def test_writes_that_were_refused_are_counted(place: Place) -> None:
    place.put(a_lost_vm("vm-1"))
    place.attempt("vm-1")
    assert place.write("vm-1", a_vm("vm-1"), held_by=Lease("another", 7), release=True) is Outcome.LEASED
    assert place.fleet.refused_writes == 1


# Without Redis


def test_without_redis_there_is_no_survey(server_of: ServerOf) -> None:
    server = server_of(RedisFlavour.VALKEY)
    client = connect(server.url(0).replace(f":{server.port}/", ":9/"), timeout_s=1, connect_timeout_s=1)
    surveys = Surveys(client, prefix=PREFIX, limits=some_limits())
    for survey in (lambda: surveys.host(HOST), surveys.fleet):
        with pytest.raises(StoreUnavailable):
            survey()
    client.close()
