"""Why a VM is as it is: gathers what the stores know around one id, for `workers.domain.why` to say. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from workers.bootstrap import Fleet, health_policy, milliseconds, recovery_policy
from workers.domain.answer import Answer
from workers.domain.audit import EventKind
from workers.domain.breaker import calls_of
from workers.domain.hindrances import BreakerAt, Facts, HaltAt, Queue, Rules, StormAt, StrayAt, WorkerAt
from workers.domain.hindsight import Then, recall
from workers.domain.modes import scopes_of
from workers.domain.vm import VmRecord
from workers.domain.why import Damaged, Nobody, explain
from workers.ports import Snapshot, Stored
from workers.settings import Settings
from workers.specs import VmSpec, check_vm_id, image_of
from workers.store.closeup import Past
from workers.store.hosts import HostSeen

_CLOSE = 3
_SUGGEST_AMONG = 5000  # ids: looking further would take longer than reading the list


def why(fleet: Fleet, vm_id: str, *, at_ms: int | None = None) -> Answer:
    """Say what is known of this id now, or was at server time `at_ms`.

    Raises StoreUnavailable; ValueError where this is no id, or the time is still to come.
    """
    check_vm_id(vm_id)
    snapshot = fleet.store.read([vm_id], with_specs=True)
    if at_ms is not None:
        return recall(_then(fleet, vm_id, snapshot, at_ms))
    if vm_id in snapshot.unreadable:
        host = fleet.closeup.host_of(vm_id)
        return explain(Damaged(vm_id, snapshot.now_ms, snapshot.unreadable[vm_id], host))
    stored = snapshot.found.get(vm_id)
    if stored is None:
        return explain(_nobody(fleet, vm_id, snapshot.now_ms))
    return explain(_facts(fleet, stored, snapshot.now_ms))


def _facts(fleet: Fleet, stored: Stored, now_ms: int) -> Facts:
    record = stored.record
    around = fleet.closeup.around(record.vm_id, stored.waits_for)
    past = fleet.closeup.past(record.vm_id, since_ms=_began_ms(record))
    _, modes = fleet.modes.modes(scopes_of(record.vm_id, record.host))
    halt = fleet.data.halted().get(record.host)
    return Facts(
        now_ms,
        record,
        _rules(fleet.settings),
        worker=_worker(fleet.hosts.all(), record.host, now_ms),
        modes=modes,
        lease_owner=stored.lease_owner,
        lease_until_ms=around.lease_until_ms,
        checked_ms=stored.checked_ms,
        next_check_ms=around.next_check_ms or None,
        queue=Queue(stored.waits_for, around.position, around.in_line) if stored.waits_for else None,
        is_called=stored.is_called,
        breakers=_breakers(fleet, record, stored.spec),
        storms=[
            StormAt(each.place, each.kind, each.since_ms, each.came_back, each.waiting)
            for each in fleet.weather.storms([record.host])
        ],
        halt=HaltAt(halt.why, halt.frozen) if halt else None,
        quarantine_until_ms=around.quarantine_until_ms,
        strays=_strays(fleet, record.vm_id, [record.host]),
        events=past.entries,
        told_since_ms=past.complete_since_ms,
    )


def _began_ms(record: VmRecord) -> int:
    """From when on its events matter. An episode that goes on after another loss has its first beginning in its id."""
    if record.episode is None:
        return record.since_ms
    first = record.episode.id.rpartition("@")[2]
    return min(record.since_ms, record.episode.started_ms, int(first) if first.isdecimal() else record.since_ms)


def _rules(settings: Settings) -> Rules:
    return Rules(
        health_policy(settings),
        recovery_policy(settings),
        detection_interval_ms=milliseconds(settings.recovery.detection_interval),
        checks=settings.enabled and settings.health_check.enabled,
    )


def _worker(hosts: tuple[int, Sequence[HostSeen]], name: str, now_ms: int) -> WorkerAt:
    clock_ms, known = hosts
    seen = next((each for each in known if each.name == name), None)
    if seen is None:
        return WorkerAt()
    if seen.worker is None:
        # Both times are the server's, read one after the other.
        return WorkerAt(seen_ms=seen.seen_ms + now_ms - clock_ms)
    return WorkerAt(seen.worker.process.pid, seen.worker.version, seen.worker.since_ms, seen.seen_ms)


def _breakers(fleet: Fleet, record: VmRecord, spec: VmSpec | None) -> list[BreakerAt]:
    """Those that count an attempt on this VM. The version of its driver is known on its host only."""
    image = image_of(spec) if spec is not None else ""
    scopes = {call.scope for call in calls_of(record.vm_id, host=record.host, image=image, driver=record.driver)}
    return [
        BreakerAt(each.scope, each.state, each.next_probe_ms, each.waiting)
        for each in fleet.weather.breakers()
        if each.scope in scopes or each.scope.startswith(f"driver:{record.driver}@")
    ]


def _strays(fleet: Fleet, vm_id: str, hosts: Sequence[str]) -> list[StrayAt]:
    return [
        _stray(host, each)
        for host, found in sorted(fleet.hosts.strays(hosts).items())
        for each in found
        if each["vm_id"] == vm_id
    ]


def _stray(host: str, each: Mapping[str, Any]) -> StrayAt:
    return StrayAt(host, int(each["process"]["pid"]), float(each["age_s"]), str(each["why"]))


def _nobody(fleet: Fleet, vm_id: str, now_ms: int) -> Nobody:
    forgotten_ms = fleet.store.forgotten([vm_id]).get(vm_id, 0)
    past = fleet.closeup.past(vm_id)
    told = [each for each in past.entries if each.event.kind is EventKind.FORGOTTEN]
    _, hosts = fleet.hosts.all()
    ids = fleet.store.ids()
    return Nobody(
        vm_id,
        now_ms,
        forgotten_ms=forgotten_ms,
        forgotten_by=told[-1].event.actor if told else None,
        strays=_strays(fleet, vm_id, [each.name for each in hosts]),
        close=get_close_matches(vm_id, ids, n=_CLOSE) if len(ids) <= _SUGGEST_AMONG else (),
        last=past.entries[-1] if past.entries else None,
    )


def _then(fleet: Fleet, vm_id: str, snapshot: Snapshot, at_ms: int) -> Then:
    if at_ms > snapshot.now_ms:
        raise ValueError("the time is still to come: ask for one that is past")
    past: Past = fleet.closeup.past(vm_id, until_ms=at_ms, modes=True)
    stored = snapshot.found.get(vm_id)
    told = Then(
        vm_id,
        at_ms,
        snapshot.now_ms,
        events=past.entries,
        told_since_ms=past.complete_since_ms,
        record=stored.record if stored else None,
    )
    _, modes = fleet.modes.modes(scopes_of(vm_id, told.host or ""))
    return replace(told, modes=modes)
