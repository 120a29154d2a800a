"""The VmStore port in memory, decided by the same models as the scripts in Redis.

The contract suite of the store holds it to what Redis does.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workers.domain import breaker as breakers
from workers.domain import storm as storms
from workers.domain.audit import Deferral, Event, EventKind
from workers.domain.breaker import FLEET, Breaker, BreakerState, Call, Result
from workers.domain.epoch import Known
from workers.domain.errors import StoreUnavailable, UnknownVm
from workers.domain.modes import Modes, scopes_of_all
from workers.domain.recovery import needs_attempt
from workers.domain.storm import Loss
from workers.domain.vm import State, VmRecord
from workers.ports import (
    Called,
    Change,
    Confirmed,
    Lease,
    Limits,
    Memory,
    Outcome,
    Snapshot,
    Stored,
    Take,
    Written,
)
from workers.simulator.memory_server import Contents, MemoryServer, Row, remembers
from workers.specs import VmSpec

_MOST_RANKED = 9
_RANK = 10**13


@dataclass
class _Act:
    """One call of the store: what it wrote down, whom it called, whom it made wait."""

    intact: bool
    told: list[Event] = field(default_factory=list)
    called: list[Called] = field(default_factory=list)
    waits: list[tuple[str, str]] = field(default_factory=list)
    to_call: dict[str, None] = field(default_factory=dict)
    lost_on: dict[str, None] = field(default_factory=dict)
    last_event: str | None = None


class MemoryVmStore:
    """One client. `before_write` runs before each write, as other clients may come in between."""

    def __init__(self, server: MemoryServer, limits: Limits, memory: Memory | None = None) -> None:
        self.server, self._limits, self._memory = server, limits, memory
        self.before_write: Callable[[Sequence[Change]], None] = lambda _changes: None

    @property
    def _now(self) -> int:
        return self.server.now_ms

    @property
    def _data(self) -> Contents:
        return self.server.contents

    def _reach(self) -> None:
        if self.server.away:
            raise StoreUnavailable("the server is away")

    # Reading

    def read(self, vm_ids: Collection[str], *, with_specs: bool = False) -> Snapshot:
        self._reach()
        rows = self._data.rows
        found = {vm_id: self._stored(rows[vm_id], with_spec=with_specs) for vm_id in vm_ids if vm_id in rows}
        names = scopes_of_all((vm_id, stored.record.host) for vm_id, stored in found.items())
        held = {name: self._data.modes[name] for name in names if name in self._data.modes}
        return Snapshot(self.server.now_us, found, modes=Modes(held))

    def _stored(self, row: Row, *, with_spec: bool) -> Stored:
        return Stored(
            row.record,
            row.rev,
            self._holder(row),
            row.checked_ms,
            row.line,
            is_called=row.called_until_ms > self._now,
            spec=row.spec if with_spec else None,
        )

    def _holder(self, row: Row) -> str | None:
        return row.owner if row.lease_end_ms > self._now else None

    def spec(self, vm_id: str) -> VmSpec:
        self._reach()
        row = self._data.rows.get(vm_id)
        if row is None or row.spec is None:
            raise UnknownVm(vm_id)
        return row.spec

    def ids(self, *, host: str | None = None, state: State | None = None) -> list[str]:
        self._reach()
        records = [row.record for row in self._data.rows.values()]
        return sorted(r.vm_id for r in records if host in (None, r.host) and state in (None, r.state))

    def unscheduled(self, vm_ids: Sequence[str]) -> list[str]:
        self._reach()
        rows = self._data.rows
        return [vm_id for vm_id in vm_ids if vm_id not in rows or rows[vm_id].due_ms is None]

    def forgotten(self, vm_ids: Sequence[str]) -> dict[str, int]:
        self._reach()
        return {vm_id: self._data.forgotten[vm_id] for vm_id in vm_ids if vm_id in self._data.forgotten}

    # Writing

    def write(
        self,
        changes: Sequence[Change],
        *,
        seen: Collection[str] = (),
        enlist: Collection[str] = (),
        all_or_nothing: bool = False,
    ) -> Written:
        self.before_write(changes)
        self._reach()
        act = self._begin()
        outcomes = self._apply_all(changes, act, all_or_nothing=all_or_nothing)
        for place in [*(f"host:{host}" for host in act.lost_on), *([FLEET] if act.lost_on else [])]:
            self._look_for_storm(place, act)
        for vm_id in seen:
            if vm_id in self._data.rows:
                self._data.rows[vm_id].checked_ms = self._now
        for vm_id in enlist:
            self._enlist(vm_id, act)
        return self._end(act, outcomes)

    def confirm(self, host: str, known: Mapping[str, int]) -> Confirmed:
        self._reach()
        is_intact = self._begin().intact
        same = {vm_id for vm_id, rev in known.items() if is_intact and self._is_as_known(vm_id, host, rev)}
        for vm_id in same:
            self._data.rows[vm_id].checked_ms = self._now
        return Confirmed(self.server.now_us, known.keys() - same, intact=is_intact)

    def _is_as_known(self, vm_id: str, host: str, rev: int) -> bool:
        row, modes = self._data.rows.get(vm_id), Modes(self._data.modes)
        return row is not None and row.rev == rev and modes.say_nothing_of(replace(row.record, host=host), self._now)

    def _apply_all(self, changes: Sequence[Change], act: _Act, *, all_or_nothing: bool) -> list[Outcome]:
        if all_or_nothing:
            refusals = [self._refusal(change, act) or Outcome.NOT_TRIED for change in changes]
            if any(refusal is not Outcome.NOT_TRIED for refusal in refusals):
                return refusals
        outcomes = []
        for change in changes:
            outcomes.append(self._refusal(change, act) or Outcome.DONE)
            if outcomes[-1] is Outcome.DONE:
                self._apply(change, act)
        return outcomes

    def pass_on(self, vm_id: str) -> Written:
        self._reach()
        act = self._begin()
        row = self._data.rows.get(vm_id)
        if row is not None and row.called_until_ms and self._holder(row) is None:
            self._give_back_slots(row)
            act.to_call[row.record.host] = None
        return self._end(act)

    def tend(self, host: str) -> Written:
        self._reach()
        act = self._begin()
        for place in (f"host:{host}", FLEET):
            self._end_storm(place, act)
        for scope in sorted(self._data.breakers):
            if self._data.breakers[scope].state is not BreakerState.CLOSED:
                self._tend_breaker(scope, act)
        act.to_call[host] = None
        written = self._end(act)
        if self._memory is not None and act.intact and self._data.events:
            self._memory.saw(self._data.events[-1][0])
        return written

    def note(self, events: Sequence[Event]) -> None:
        self._reach()
        act = self._begin()
        for event in events:
            act.last_event = self.server.append(event)
        self._end(act)

    def count(self, what: str) -> None:
        self._reach()
        self._data.counts[what] = self._data.counts.get(what, 0) + 1

    def renew(self, vm_id: str, lease: Lease, ttl_ms: int) -> bool:
        self._reach()
        row = self._data.rows.get(vm_id)
        if row is None or self._holder(row) != lease.owner or row.token != lease.token:
            return False
        row.lease_end_ms = ends = self._now + ttl_ms
        for place in self._places(row.record.host):
            if vm_id in self._slots(place):
                self._slots(place)[vm_id] = ends
        for call, _ in row.admissions or ():
            self._data.breakers[call.scope] = breakers.renew(self._breaker(call.scope), vm_id, ends)
        return True

    def _begin(self) -> _Act:
        known = self._memory.known if self._memory else None
        return _Act(intact=known is None or self._is_intact(known))

    def _is_intact(self, known: Known) -> bool:
        return self._data.epoch == known.epoch and remembers(self._data, known.last_event)

    def _tell(
        self,
        act: _Act,
        kind: EventKind,
        actor: str,
        why: str,
        *,
        about: Mapping[str, str],
        cause: Deferral | None = None,
    ) -> None:
        vm_id, host, scope = about.get("vm_id", ""), about.get("host", ""), about.get("scope")
        event = Event(kind, vm_id, host, actor, why, scope=scope, cause=cause)
        act.last_event = self.server.append(event)
        act.told.append(event)

    def _end(self, act: _Act, outcomes: Sequence[Outcome] = ()) -> Written:
        if act.intact and self._quarantine(act) == 0:
            for host in list(act.to_call):
                self._call_line(host, act)
        for vm_id, place in act.waits:
            row = self._data.rows.get(vm_id)
            if row is not None and row.line == place:
                why, cause = self._why_waits(place, act)
                about = {"vm_id": vm_id, "host": row.record.host, "scope": place}
                self._tell(act, EventKind.DEFERRED, "recovery", why, cause=cause, about=about)
        if self._memory is not None and act.intact and act.last_event:
            self._memory.saw(act.last_event)
        return Written(outcomes, act.called, act.told, act.intact)

    # One change

    def _refusal(self, change: Change, act: _Act) -> Outcome | None:  # noqa: PLR0911 - one early return per refusal
        row = self._data.rows.get(change.vm_id)
        if row is None and (change.rev > 0 or self._was_forgotten_since(change)):
            return Outcome.STALE
        holder = self._holder(row) if row else None
        held = change.held_by
        if held is not None and (row is None or holder != held.owner or row.token != held.token):
            self.count("refused_writes")
            return Outcome.LEASED
        if (row.rev if row else 0) != change.rev:
            return Outcome.STALE
        if change.take is None:
            return None
        if holder not in (None, change.take.owner):
            return Outcome.LEASED
        if not act.intact:
            return Outcome.FROZEN
        if row is not None and not change.take.forced and self._is_held(row.record):
            self._let_others_go_first(row, act)
            return Outcome.HELD
        return self._wait_for(row, change.take, act) if row is not None and change.take.calls is not None else None

    def _was_forgotten_since(self, change: Change) -> bool:
        created_ms = change.after.created_ms if change.after else 0
        return 0 < created_ms < self._data.forgotten.get(change.vm_id, 0)

    def _is_held(self, record: VmRecord) -> bool:
        return Modes(self._data.modes).in_force(record, self._now) is not None

    def _let_others_go_first(self, row: Row, act: _Act) -> None:
        if self._is_kept_for(row):
            act.to_call[row.record.host] = None
        self._give_back_slots(row)
        self._leave_line(row)

    def _wait_for(self, row: Row, take: Take, act: _Act) -> Outcome | None:
        place = self._blocker(row, take, act)
        if place is None:
            return None
        if self._is_kept_for(row):
            act.to_call[row.record.host] = None
        self._give_back_slots(row)
        self._stand(row, place, act)
        return Outcome.WAITING

    def _blocker(self, row: Row, take: Take, act: _Act) -> str | None:
        here = f"host:{row.record.host}"
        if self._quarantine(act) > 0:
            return here
        if take.forced:
            return None
        for call in take.calls or ():
            if not breakers.admits(self._breaker_now(call.scope, act), self._limits.breaker):
                return f"breaker:{call.scope}"
        if self._is_kept_for(row):
            return None
        return next((place for place in (here, FLEET) if self._room(place) < 1), None)

    def _apply(self, change: Change, act: _Act) -> None:
        if change.after is None:
            self._delete(change, act)
        else:
            self._put(change, change.after, act)
        for event in change.events:
            act.last_event = self.server.append(event)
        if change.enlist:
            self._enlist(change.vm_id, act)

    def _put(self, change: Change, after: VmRecord, act: _Act) -> None:
        if change.rev == 0:
            self._data.forgotten.pop(change.vm_id, None)
        row = self._data.rows.setdefault(change.vm_id, Row(after))
        was_leased = self._holder(row) is not None
        row.record, row.rev = after, change.rev + 1
        row.spec = change.spec or row.spec
        if change.take is not None:
            self._take(row, change.take)
        if change.result is not None or change.release:
            self._end_attempt(row, change.result, act)
        if change.release:
            self._give_back(row, act)
        if not (needs_attempt(after) or change.take or was_leased):
            self._settle(row, act)
        if change.check_in_ms is not None:
            row.due_ms = None if change.check_in_ms < 0 else self._now + change.check_in_ms
        if change.loss is not None:
            self._count_loss(after, change.loss)
            act.lost_on[after.host] = None

    def _take(self, row: Row, take: Take) -> None:
        ends = self._now + take.ttl_ms
        row.owner, row.lease_end_ms, row.token = take.owner, ends, row.record.generation
        if take.calls is None:
            return
        admissions = []
        for call in take.calls:
            found = self._breaker(call.scope)
            admissions.append((call, found.generation))
            if found.state is BreakerState.HALF_OPEN:
                self._data.breakers[call.scope] = breakers.take(found, row.record.vm_id, ends)
                self._data.offered.pop(call.scope, None)
        row.admissions, row.called_until_ms = tuple(admissions), 0
        for place in self._places(row.record.host):
            self._slots(place)[row.record.vm_id] = ends
        self._leave_line(row)

    def _settle(self, row: Row, act: _Act) -> None:
        self._leave_line(row)
        if row.called_until_ms:
            self._give_back_slots(row)
            act.to_call[row.record.host] = None

    def _delete(self, change: Change, act: _Act) -> None:
        row = self._data.rows[change.vm_id]
        self._end_attempt(row, None, act)
        self._give_back(row, act)
        self._leave_line(row)
        del self._data.rows[change.vm_id]
        self._data.forgotten[change.vm_id] = self._now

    def _end_attempt(self, row: Row, result: Result | None, act: _Act) -> None:
        admissions, row.admissions = row.admissions, None
        if admissions is None:
            return
        for call, generation in admissions:
            self._leave_breaker(call, generation, row.record.vm_id, result, act)
            self._tend_breaker(call.scope, act)
        if result is not None:
            for place in self._places(row.record.host):
                if (storm := self._data.storms.get(place)) is not None:
                    self._data.storms[place] = storms.after_result(storm, result, self._most(place))

    def _give_back(self, row: Row, act: _Act) -> None:
        row.owner, row.lease_end_ms, row.token = None, 0, 0
        self._give_back_slots(row)
        act.to_call[row.record.host] = None

    # Slots and lines

    @staticmethod
    def _places(host: str) -> tuple[str, str]:
        return FLEET, f"host:{host}"

    def _slots(self, place: str) -> dict[str, int]:
        return self._data.slots.setdefault(place, {})

    def _line(self, place: str) -> dict[str, int]:
        return self._data.lines.setdefault(place, {})

    def _most(self, place: str) -> int:
        return self._limits.per_fleet if place == FLEET else self._limits.per_host

    def _cap(self, place: str) -> int:
        return storms.cap(self._data.storms.get(place), self._most(place))

    def _room(self, place: str) -> int:
        slots = self._slots(place)
        for vm_id in [vm_id for vm_id, ends in slots.items() if ends <= self._now]:
            del slots[vm_id]
        return self._cap(place) - len(slots)

    def _is_kept_for(self, row: Row) -> bool:
        vm_id = row.record.vm_id
        return all(self._slots(place).get(vm_id, 0) > self._now for place in self._places(row.record.host))

    def _give_back_slots(self, row: Row) -> None:
        row.called_until_ms = 0
        for place in self._places(row.record.host):
            self._slots(place).pop(row.record.vm_id, None)

    def _leave_line(self, row: Row) -> None:
        if row.line is not None:
            self._line(row.line).pop(row.record.vm_id, None)
            row.line = None

    def _stand(self, row: Row, place: str, act: _Act) -> None:
        if row.line == place:
            return
        self._leave_line(row)
        self._line(place)[row.record.vm_id] = _rank(row.record, self._now)
        row.line = place
        act.waits.append((row.record.vm_id, place))

    def _enlist(self, vm_id: str, act: _Act) -> None:
        row = self._data.rows.get(vm_id)
        if row is None or self._holder(row) or row.line or row.called_until_ms > self._now:
            return
        if self._is_held(row.record):
            self._ask(row, act)  # its host says what is not done
            return
        self._stand(row, f"host:{row.record.host}", act)
        act.to_call[row.record.host] = None

    def _quarantine(self, act: _Act) -> int:
        data = self._data
        if data.server_run != self.server.run:
            known, data.server_run = data.server_run, self.server.run
            if known is not None:
                data.quarantine_until_ms = self._now + self._limits.lease_ms
                seconds = self._limits.lease_ms // 1000
                why = f"redis was started again: no recovery begins for {seconds} s, as long as a lease may last"
                self._tell(act, EventKind.QUARANTINE, "recovery", why, about={"scope": FLEET})
        return max(0, data.quarantine_until_ms - self._now)

    def _is_served(self, host: str) -> bool:
        return self._data.host_leases.get(host, 0) > self._now and host not in self._data.halted

    def _call_line(self, host: str, act: _Act) -> None:
        """Hand the free slots of this host, and of the fleet, to those who wait longest for them."""
        here = f"host:{host}"
        while self._room(FLEET) > 0:
            mine = self._head(here) if self._is_served(host) and self._room(here) > 0 else None
            other = self._head(FLEET)
            first = mine if mine and (other is None or mine[0] <= other[0]) else other
            if first is None:
                return
            row = self._data.rows[first[1]]
            of = row.record.host
            self._leave_line(row)
            if first is not mine and (not self._is_served(of) or self._room(f"host:{of}") < 1):
                self._stand(row, f"host:{of}", act)
            else:
                self._call(row, act)

    def _head(self, place: str) -> tuple[int, str] | None:
        return min(((rank, vm_id) for vm_id, rank in self._line(place).items()), default=None)

    def _call(self, row: Row, act: _Act) -> None:
        record, until = row.record, self._now + self._limits.call_ms
        for place in self._places(record.host):
            self._slots(place)[record.vm_id] = until
        row.called_until_ms = until
        self._ask(row, act)

    def _ask(self, row: Row, act: _Act) -> None:
        record = row.record
        episode = record.open_episode
        attempt = None if episode is None else episode.attempt + (0 if episode.running else 1)
        act.called.append(Called(record.vm_id, record.host, episode.id if episode else None, attempt))

    def _why_waits(self, place: str, act: _Act) -> tuple[str, Deferral]:
        if place.startswith("breaker:"):
            scope = place.removeprefix("breaker:")
            return f"breaker {scope} is {self._breaker(scope).state.replace('_', '-')}", Deferral.BREAKER
        if self._quarantine(act) > 0:
            return "redis was started again, leases may have been lost", Deferral.QUARANTINE
        if place.startswith("host:") and not self._is_served(place.removeprefix("host:")):
            return "nothing is recovered on its host now: no worker serves it, or it is halted", Deferral.HALTED
        is_storm = place in self._data.storms
        why = f"no free recovery slot of the {place.partition(':')[0]} ({self._cap(place)}{', storm guard' * is_storm})"
        return why, Deferral.STORM if is_storm else Deferral.SLOT

    # Breakers

    def _breaker(self, scope: str) -> Breaker:
        return self._data.breakers.get(scope, Breaker())

    def _put_breaker(self, scope: str, before: Breaker, after: Breaker, why: str, act: _Act) -> Breaker:
        self._data.breakers[scope] = after
        if after.generation != before.generation:
            self._data.offered.pop(scope, None)
            if after.state is BreakerState.OPEN:
                why += f"; next probe in {math.ceil(after.cooldown_ms / 1000)} s"
            self._tell(
                act, EventKind.BREAKER, "breaker", f"{before.state} -> {after.state}: {why}", about={"scope": scope}
            )
        return after

    def _breaker_now(self, scope: str, act: _Act) -> Breaker:
        before = self._breaker(scope)
        after = breakers.at(before, self._limits.breaker, self._now)
        opened = after.state is BreakerState.OPEN
        why = "the holder of a probe went away" if opened else "its cool-down is over"
        return self._put_breaker(scope, before, after, why, act)

    def _leave_breaker(self, call: Call, generation: int, vm_id: str, result: Result | None, act: _Act) -> None:
        before = self._breaker_now(call.scope, act)
        if generation != before.generation:
            return
        if result is None:
            self._data.breakers[call.scope] = breakers.give_back(before, vm_id)
            return
        after = breakers.record(
            before, vm_id, call.children, result, generation=generation, policy=self._limits.breaker, now_ms=self._now
        )
        self._put_breaker(call.scope, before, after, self._why_changed(before, call, vm_id, result), act)

    def _why_changed(self, before: Breaker, call: Call, vm_id: str, result: Result) -> str:
        if before.state is BreakerState.HALF_OPEN:
            return f"the probe of {vm_id} failed" if result is Result.FAILURE else "its probes succeeded"
        words, since_ms = [], self._now - self._limits.breaker.window_ms
        ways = before.results or tuple({} for _ in call.children)
        for way, child in zip(ways, call.children, strict=True):
            recent = {name: failed for name, (when, failed) in way.items() if when > since_ms}
            recent[child] = result is Result.FAILURE
            words.append(f"{sum(recent.values())} of {len(recent)}")
        return f"{' and '.join(words)} failed within {self._limits.breaker.window_ms // 1000} s"

    def _tend_breaker(self, scope: str, act: _Act) -> None:
        found = self._breaker_now(scope, act)
        if found.state is BreakerState.CLOSED:
            self._move_on(scope, None, act)
        elif found.state is BreakerState.HALF_OPEN:
            free = self._limits.breaker.probes - len(found.probes)
            if free > 0 and self._data.offered.get(scope, 0) <= self._now:
                self._data.offered[scope] = self._now + self._limits.call_ms
                self._move_on(scope, free, act)

    def _move_on(self, scope: str, number: int | None, act: _Act) -> None:
        waiting = sorted((rank, vm_id) for vm_id, rank in self._line(f"breaker:{scope}").items())
        for _, vm_id in waiting[:number]:
            row = self._data.rows[vm_id]
            self._stand(row, f"host:{row.record.host}", act)
            act.to_call[row.record.host] = None

    # Storms

    def _count_loss(self, record: VmRecord, loss: Loss) -> None:
        other = Loss.UNCERTAIN if loss is Loss.CERTAIN else Loss.CERTAIN
        for place in self._places(record.host):
            self._data.losses.setdefault((other, place), {}).pop(record.vm_id, None)
            self._data.losses.setdefault((loss, place), {})[record.vm_id] = self._now

    def _losses(self, kind: Loss, place: str) -> int:
        since = self._now - self._limits.storm.window_ms
        return sum(when > since for when in self._data.losses.get((kind, place), {}).values())

    def _size(self, place: str) -> int:
        host = place.removeprefix("host:")
        return sum(place == FLEET or row.record.host == host for row in self._data.rows.values())

    def _share(self, place: str) -> float:
        return self._limits.storm.fleet_share if place == FLEET else self._limits.storm.host_share

    def _look_for_storm(self, place: str, act: _Act) -> None:
        certain, uncertain = self._losses(Loss.CERTAIN, place), self._losses(Loss.UNCERTAIN, place)
        vms, policy = self._size(place), self._limits.storm
        kind = storms.kind_of(certain, uncertain, vms=vms, share=self._share(place), policy=policy)
        before = self._data.storms.get(place)
        if kind is None or (after := storms.begin(before, kind, self._now)) == before:
            return
        self._data.storms[place] = after
        slowly = (
            "recovery starts one at a time" if kind is Loss.UNCERTAIN else "one slot-full comes back before the next"
        )
        lost = f"{certain + uncertain} of {vms} VMs lost within {policy.window_ms // 1000} s"
        self._tell(act, EventKind.STORM_BEGAN, "storm_guard", f"{lost}, {kind}: {slowly}", about=_about(place))

    def _end_storm(self, place: str, act: _Act) -> None:
        storm = self._data.storms.get(place)
        if storm is None:
            return
        losses = self._losses(Loss.CERTAIN, place) + self._losses(Loss.UNCERTAIN, place)
        waiting, share = len(self._line(place)), self._share(place)
        if not storms.is_over(losses, waiting, vms=self._size(place), share=share, policy=self._limits.storm):
            return
        del self._data.storms[place]
        lasted = (self._now - storm.since_ms) // 1000
        why = f"{storm.came_back} VMs came back in {lasted} s, nobody waits"
        self._tell(act, EventKind.STORM_ENDED, "storm_guard", why, about=_about(place))


def _rank(record: VmRecord, now_ms: int) -> int:
    episode = record.open_episode
    since = episode.started_ms if episode else record.since_ms or now_ms
    return (_MOST_RANKED - record.priority) * _RANK + since


def _about(place: str) -> dict[str, str]:
    return {"scope": place, "host": "" if place == FLEET else place.removeprefix("host:")}
