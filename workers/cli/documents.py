"""The JSON documents of schema version 1: keys here are a promise to programs, new ones may only be added."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from workers.cli.output import iso
from workers.domain.vm import Episode
from workers.ports import Stored
from workers.store.events import Entry
from workers.store.hosts import HostSeen


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
