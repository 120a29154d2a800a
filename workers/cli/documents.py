"""The JSON documents of schema version 1: keys here are a promise to programs, new ones may only be added."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from workers.domain.modes import Hold, InForce, Mode, Switch
from workers.domain.registry_diff import Notes
from workers.domain.vm import Episode
from workers.domain.words import iso
from workers.ports import Halt, Stored
from workers.services.operations import Asked
from workers.store.events import Entry
from workers.store.hosts import HostSeen
from workers.store.places import PlaceSeen
from workers.store.weather import BreakerSeen, StormSeen


def vm_document(stored: Stored) -> dict[str, Any]:
    record = stored.record
    return {
        "id": record.vm_id,
        "host": record.host,
        "driver": record.driver,
        "desired": record.desired,
        "state": record.state,
        "since": iso(record.since_ms),
        "generation": record.generation,
        "priority": record.priority,
        "process": asdict(record.process) if record.process else None,
        "socket": record.socket,
        "fails": record.fails,
        "passes": record.passes,
        "doubt": record.doubt,
        "last_exit": record.last_exit,
        "last_check": iso(stored.checked_ms),
        "lease_owner": stored.lease_owner,
        "episode": _episode(record.episode) if record.episode else None,
    }


def _episode(episode: Episode) -> dict[str, Any]:
    return {
        "id": episode.id,
        "reason": episode.reason,
        "started": iso(episode.started_ms),
        "attempt": episode.attempt,
        "running": episode.running,
        "attempt_started": iso(episode.attempt_started_ms),
        "next_attempt": iso(episode.next_attempt_ms),
        "spent_ms": episode.spent_ms,
        "error": episode.error,
        "request_id": episode.request_id,
        "end": episode.end,
        "ended": iso(episode.ended_ms),
    }


def event_document(entry: Entry) -> dict[str, Any]:
    told = entry.event
    return {
        "id": entry.id,
        "at": iso(entry.at_ms),
        "kind": told.kind,
        "vm_id": told.vm_id,
        "host": told.host,
        "actor": told.actor,
        "why": told.why,
        "before": told.before,
        "after": told.after,
        "reason": told.reason,
        "generation": told.generation,
        "attempt": told.attempt,
        "request_id": told.request_id,
        "trace_id": told.trace_id,
        "scope": told.scope,
        "cause": told.cause,
    }


def asked_document(asked: Asked) -> dict[str, object]:
    return {
        "vm_id": asked.vm_id,
        "host": asked.host,
        "requested": asked.sent,
        "request_id": asked.request_id if asked.sent else None,
    }


def hold_document(scope: str, mode: Mode, hold: Hold) -> dict[str, Any]:
    """`mode` is what it is now: a maintenance that is over only observes for a while."""
    return {
        "scope": scope,
        "mode": mode,
        "id": hold.id,
        "actor": hold.actor,
        "why": hold.why,
        "since": iso(hold.since_ms),
        "until": iso(hold.until_ms),
    }


def hold_documents(found: Iterable[InForce]) -> list[dict[str, Any]]:
    return [hold_document(each.scope, each.mode, each.hold) for each in found]


def switch_document(scope: str, switch: Switch) -> dict[str, Any]:
    return {
        "scope": scope,
        "flag": switch.flag,
        "on": switch.on,
        "actor": switch.actor,
        "why": switch.why,
        "since": iso(switch.since_ms),
    }


def breaker_document(breaker: BreakerSeen) -> dict[str, Any]:
    return {
        "scope": breaker.scope,
        "state": breaker.state,
        "next_probe": iso(breaker.next_probe_ms),
        "waiting": breaker.waiting,
    }


def storm_document(storm: StormSeen) -> dict[str, Any]:
    return {
        "place": storm.place,
        "kind": storm.kind,
        "since": iso(storm.since_ms),
        "came_back": storm.came_back,
        "waiting": storm.waiting,
    }


def halt_document(host: str, halt: Halt) -> dict[str, Any]:
    return {"host": host, "why": halt.why, "frozen": halt.frozen}


def place_document(place: PlaceSeen) -> dict[str, Any]:
    return {
        "by_state": {str(state): number for state, number in place.states.items()},
        "slots_used": place.slots_used,
        "waiting": place.waiting,
    }


def host_document(host: HostSeen, vms: int) -> dict[str, Any]:
    worker = host.worker
    return {
        "name": host.name,
        "live": worker is not None,
        "last_seen": iso(host.seen_ms),
        "vms": vms,
        "worker": None
        if worker is None
        else {
            "pid": worker.process.pid,
            "machine_id": worker.process.machine_id,
            "since": iso(worker.since_ms),
            "version": worker.version,
        },
    }


def registry_documents(registries: Mapping[str, Notes]) -> list[dict[str, Any]]:
    """How the manager's registry differs from the records, for each host that has one."""
    return [
        {
            "host": host,
            "missing": {vm_id: iso(since_ms) for vm_id, since_ms in sorted(notes.missing.items())},
            "trouble": notes.trouble or None,
            "problems": list(notes.problems),
        }
        for host, notes in sorted(registries.items())
    ]


def stray_documents(strays: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {
            "host": host,
            "vm_id": stray["vm_id"],
            "driver": stray["driver"],
            "pid": stray["process"]["pid"],
            "guarded": stray["guarded"],
        }
        for host, found in strays.items()
        for stray in found
    ]
