"""The store in memory and the scripts in Redis decide alike: the same random steps on both, compared after each."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import RUN_ALL, ServerOf
from tests.support.builders import a_breaker_policy, a_lost_vm, a_spec, a_storm_policy, a_vm, an_episode, some_limits
from tests.support.fakes import FakeMemory
from tests.support.servers import RedisFlavour
from tests.support.stores import Subject, memory_subject, redis_subject
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import Result, calls_of
from workers.domain.modes import FLEET, Hold, Mode, Scope, host_scope, vm_scope
from workers.domain.storm import Loss
from workers.domain.vm import VmRecord
from workers.embedded import EmbeddedServer
from workers.ports import Change, Halt, Lease, Limits, Take, VmStore, Written

VMS = [f"vm-{number}" for number in range(8)]
HOSTS = ["host-a", "host-b"]
IMAGES = ["x.img", "y.img"]

# Small numbers, so that every limit is met within a few steps.
LIMITS = some_limits(
    per_host=2,
    per_fleet=3,
    lease_ms=4000,
    call_ms=2000,
    breaker=a_breaker_policy(window_ms=9000, min_calls=2, cooldown_ms=3000, max_cooldown_ms=7000),
    storm=a_storm_policy(window_ms=6000, at_least=2, host_share=0.4, fleet_share=0.4),
)


def host_of(vm_id: str) -> str:
    return HOSTS[int(vm_id[3:]) % len(HOSTS)]


def image_of(vm_id: str) -> str:
    return IMAGES[int(vm_id[3:]) // len(HOSTS) % len(IMAGES)]


def a_record(vm_id: str, *, lost: bool) -> VmRecord:
    priority = int(vm_id[3:]) % 3
    if not lost:
        return a_vm(vm_id, host=host_of(vm_id), priority=priority)
    episode = an_episode(id=f"{vm_id}@1", started_ms=1000 + int(vm_id[3:]) * 7 % 5)
    return a_lost_vm(vm_id, host=host_of(vm_id), priority=priority, episode=episode)


@dataclass(frozen=True)
class Step:
    do: str
    vm_ids: tuple[str, ...] = ()
    result: Result | None = None
    loss: Loss = Loss.CERTAIN
    ms: int = 0
    scope: str = FLEET
    mode: Mode = Mode.PAUSED


some_vms = st.lists(st.sampled_from(VMS), min_size=1, max_size=4, unique=True).map(tuple)
one_vm = st.sampled_from(VMS).map(lambda vm_id: (vm_id,))
scopes = st.sampled_from([FLEET, host_scope(HOSTS[0]), vm_scope(VMS[0]), vm_scope(VMS[1])])
steps = st.one_of(
    st.builds(Step, st.just("lose"), some_vms, loss=st.sampled_from(Loss)),
    st.builds(Step, st.just("enlist"), some_vms),
    st.builds(Step, st.just("admit"), one_vm),
    st.builds(Step, st.just("admit"), one_vm),
    st.builds(Step, st.just("end"), one_vm, result=st.sampled_from([*Result, None])),
    st.builds(Step, st.just("end"), one_vm, result=st.sampled_from([*Result, None])),
    st.builds(Step, st.just("abandon"), one_vm, result=st.sampled_from([*Result])),
    st.builds(Step, st.just("renew"), one_vm),
    st.builds(Step, st.just("heal"), one_vm),
    st.builds(Step, st.just("forget"), one_vm),
    st.builds(Step, st.just("pass_on"), one_vm),
    st.builds(Step, st.just("tend"), one_vm),
    st.builds(Step, st.just("halt"), one_vm),
    st.builds(Step, st.just("go_on"), one_vm),
    st.builds(Step, st.just("force"), one_vm),
    st.builds(Step, st.just("hold"), scope=scopes, mode=st.sampled_from(Mode), ms=st.sampled_from([0, 2000])),
    st.builds(Step, st.just("lift"), scope=scopes),
    st.builds(Step, st.just("lift"), scope=scopes),
    st.builds(Step, st.just("restart")),
    st.builds(Step, st.just("wait"), ms=st.integers(1, 4000)),
)


@dataclass
class Player:
    """Plays steps on one store and notes what can be seen from outside."""

    subject: Subject
    limits: Limits = LIMITS
    store: VmStore = field(init=False)

    def __post_init__(self) -> None:
        for host in HOSTS:
            self.subject.serve(host)
        self.store = self.subject.make(self.limits, FakeMemory())
        self.put(VMS)

    def put(self, vm_ids: list[str]) -> None:
        self.store.write([Change(v, 0, a_record(v, lost=False), spec=a_spec(v)) for v in vm_ids])

    def play(self, step: Step) -> Any:
        seen = getattr(self, step.do)(step)
        if isinstance(seen, Written):
            seen = (list(seen.outcomes), list(seen.called), [(e.kind, e.vm_id, e.scope, e.why) for e in seen.told])
        snapshot = self.store.read(VMS)
        rows = {
            vm_id: (stored.rev, stored.lease_owner, stored.waits_for, stored.is_called)
            for vm_id, stored in snapshot.found.items()
        }
        return seen, rows, snapshot.modes

    def rev(self, vm_id: str) -> int:
        found = self.store.read([vm_id]).found
        return found[vm_id].rev if vm_id in found else 0

    def change(self, vm_id: str, *, lost: bool, **fields: Any) -> Change:
        return Change(vm_id, self.rev(vm_id), a_record(vm_id, lost=lost), **fields)

    def lose(self, step: Step) -> Written:
        return self.store.write([self.change(v, lost=True, loss=step.loss, enlist=True) for v in step.vm_ids])

    def enlist(self, step: Step) -> Written:
        return self.store.write((), enlist=step.vm_ids)

    def admit(self, step: Step, *, forced: bool = False) -> Written:
        (vm_id,) = step.vm_ids
        calls = calls_of(vm_id, host=host_of(vm_id), image=image_of(vm_id), driver="d@1")
        take = Take(vm_id, self.limits.lease_ms, calls, forced=forced)
        return self.store.write([self.change(vm_id, lost=True, take=take)])

    def force(self, step: Step) -> Written:
        return self.admit(step, forced=True)

    def hold(self, step: Step) -> bool:
        """For so long, and half of that again in which it is only observed; 0: until it is lifted."""
        now_ms, before = self.subject.clock.now_us // 1000, self._scope(step)
        until_ms = now_ms + step.ms if step.ms else 0
        made = Hold(f"h{len(before.holds)}", step.mode, "alice", "work", now_ms, until_ms, step.ms // 2)
        return self._put_scope(step, Scope((*before.holds, made)))

    def lift(self, step: Step) -> bool:
        return self._put_scope(step, Scope())

    def _scope(self, step: Step) -> Scope:
        return self.subject.modes.modes([step.scope])[1].scopes.get(step.scope, Scope())

    def _put_scope(self, step: Step, after: Scope) -> bool:
        told = Event(EventKind.MODE, "", "", "alice", "work", scope=step.scope)
        return self.subject.modes.put_scope(step.scope, self._scope(step), after, told)

    def end(self, step: Step) -> Written:
        (vm_id,) = step.vm_ids
        lost = step.result is not Result.SUCCESS
        held = Lease(vm_id, a_record(vm_id, lost=True).generation)
        return self.store.write([self.change(vm_id, lost=lost, held_by=held, release=True, result=step.result)])

    def abandon(self, step: Step) -> Written:
        (vm_id,) = step.vm_ids
        return self.store.write([self.change(vm_id, lost=step.result is Result.FAILURE, result=step.result)])

    def renew(self, step: Step) -> bool:
        (vm_id,) = step.vm_ids
        return self.store.renew(vm_id, Lease(vm_id, a_record(vm_id, lost=True).generation), self.limits.lease_ms)

    def heal(self, step: Step) -> Written:
        (vm_id,) = step.vm_ids
        return self.store.write([self.change(vm_id, lost=False)])

    def forget(self, step: Step) -> Written:
        (vm_id,) = step.vm_ids
        if not self.rev(vm_id):
            return Written()
        written = self.store.write([Change(vm_id, self.rev(vm_id), None)])
        self.put([vm_id])
        return written

    def pass_on(self, step: Step) -> Written:
        return self.store.pass_on(step.vm_ids[0])

    def tend(self, step: Step) -> Written:
        return self.store.tend(host_of(step.vm_ids[0]))

    def halt(self, step: Step) -> None:
        self.subject.data.halt(host_of(step.vm_ids[0]), Halt("PAUSE"))

    def go_on(self, step: Step) -> None:
        self.subject.data.halt(host_of(step.vm_ids[0]), None)

    def restart(self, _step: Step) -> None:
        self.subject.restart()

    def wait(self, step: Step) -> None:
        self.subject.pass_time(step.ms)


@pytest.fixture(scope="module")
def server(server_of: ServerOf) -> EmbeddedServer:
    return server_of(RedisFlavour.VALKEY)


@settings(
    max_examples=400 if RUN_ALL else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(plan=st.lists(steps, min_size=5, max_size=60))
def test_memory_and_redis_decide_alike_at_every_step(server: EmbeddedServer, plan: list[Step]) -> None:
    model = Player(memory_subject())
    with redis_subject(server) as subject:
        real = Player(subject)
        for number, step in enumerate(plan):
            assert real.play(step) == model.play(step), f"step {number}: {step}"
