"""The VmStore port on Redis."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast

import redis

from workers.domain.audit import Event
from workers.domain.errors import UnknownVm, UnreadableRecord
from workers.domain.vm import State
from workers.ports import Change, Outcome, Snapshot, Stored, Written
from workers.specs import VmSpec, dump_spec, parse_spec
from workers.store.client import script, translated
from workers.store.codec import compact, dump_event, dump_record, load_record
from workers.store.keys import SCHEMA_VERSION, Keys


class RedisVmStore:
    """Each call is one round trip. Raises StoreUnavailable when Redis did not answer in time."""

    def __init__(self, client: redis.Redis, *, prefix: str, events_kept: int) -> None:
        self._client = client
        self._keys = Keys(prefix)
        self._events_kept = events_kept
        self._read = script(client, "read")
        self._write = script(client, "write")
        self._renew = script(client, "renew")

    def read(self, vm_ids: Collection[str]) -> Snapshot:
        with translated():
            reply = self._read(keys=[self._keys.vm(vm_id) for vm_id in vm_ids])
        now_us = int(reply[0]) * 1_000_000 + int(reply[1])
        found: dict[str, Stored] = {}
        unreadable: dict[str, str] = {}
        for vm_id, row in zip(vm_ids, reply[2:], strict=True):
            if row[0] is None and row[1] is None:
                continue
            try:
                found[vm_id] = _stored(row, now_us // 1000)
            except ValueError as error:
                unreadable[vm_id] = str(error)
        return Snapshot(now_us, found, unreadable)

    def write(self, changes: Sequence[Change], *, seen: Collection[str] = (), all_or_nothing: bool = False) -> Written:
        if not changes and not seen:
            return Written(())
        reply = self._run_write([_wire(change) for change in changes], seen, all_or_nothing=all_or_nothing)
        outcomes = [Outcome(text.decode()) for text in reply[0]]
        return Written(outcomes, [(vm_id.decode(), host.decode()) for vm_id, host in reply[1:]])

    def note(self, events: Sequence[Event]) -> None:
        if events:
            self._run_write([], (), notes=events)

    def _run_write(
        self,
        changes: Sequence[dict[str, Any]],
        seen: Collection[str],
        *,
        all_or_nothing: bool = False,
        notes: Sequence[Event] = (),
    ) -> list[Any]:
        keys = self._keys
        args = [
            keys.prefix,
            SCHEMA_VERSION,
            self._events_kept,
            compact(changes),
            compact(list(seen)),
            "all" if all_or_nothing else "each",
            compact([dump_event(event) for event in notes]),
        ]
        with translated():
            return cast(
                "list[Any]", self._write(keys=[keys.due, keys.slots, keys.line, keys.events, keys.vms], args=args)
            )

    def spec(self, vm_id: str) -> VmSpec:
        with translated():
            row = cast("list[bytes | None]", self._client.hmget(self._keys.vm(vm_id), ["v", "spec"]))
        if row[1] is None:
            raise UnknownVm(vm_id)
        try:
            _check_version(row[0])
            return parse_spec(row[1].decode())
        except ValueError as error:
            raise UnreadableRecord(vm_id, str(error)) from error

    def specs(self, vm_ids: Collection[str]) -> dict[str, VmSpec]:
        """Return the specs that can be read, for lists."""
        with translated():
            reply = self._read(keys=[self._keys.vm(vm_id) for vm_id in vm_ids], args=["spec"])
        found: dict[str, VmSpec] = {}
        for vm_id, row in zip(vm_ids, reply[2:], strict=True):
            with suppress(ValueError):
                _check_version(row[0])
                found[vm_id] = parse_spec(row[6] or b"")
        return found

    def unscheduled(self, vm_ids: Sequence[str]) -> list[str]:
        if not vm_ids:
            return []
        with translated():
            scores = self._client.zmscore(self._keys.due, list(vm_ids))
        return [vm_id for vm_id, score in zip(vm_ids, scores, strict=True) if score is None]

    def ids(self, *, host: str | None = None, state: State | None = None) -> list[str]:
        keys = self._keys
        wanted = [keys.of_host(host)] if host else []
        wanted += [keys.in_state(state)] if state else []
        with translated():
            members = cast("Iterable[bytes]", self._client.sinter(wanted or [keys.vms]))
        return sorted(member.decode() for member in members)

    def counts(self) -> dict[State, int]:
        """VMs by state, states without any left out."""
        with translated():
            pipe = self._client.pipeline(transaction=False)
            for state in State:
                pipe.scard(self._keys.in_state(state))
            sizes = cast("list[int]", pipe.execute())
        return {state: size for state, size in zip(State, sizes, strict=True) if size}

    def host_sizes(self, hosts: Sequence[str]) -> dict[str, int]:
        """How many VMs each of these hosts has."""
        with translated():
            pipe = self._client.pipeline(transaction=False)
            for host in hosts:
                pipe.scard(self._keys.of_host(host))
            sizes = cast("list[int]", pipe.execute())
        return dict(zip(hosts, sizes, strict=True))

    def renew(self, vm_id: str, owner: str, ttl_ms: int) -> bool:
        keys = self._keys
        with translated():
            return bool(self._renew(keys=[keys.vm(vm_id), keys.slots], args=[vm_id, owner, ttl_ms]))


def _stored(row: Sequence[bytes | None], now_ms: int) -> Stored:
    version, rev, doc, owner, lease_end, checked = row[:6]
    _check_version(version)
    if rev is None or doc is None:
        raise ValueError("field doc: missing")
    live = owner is not None and lease_end is not None and int(lease_end) > now_ms
    return Stored(
        record=load_record(doc),
        rev=int(rev),
        lease_owner=owner.decode() if live and owner else None,
        checked_ms=int(checked) if checked else None,
    )


def _check_version(version: bytes | None) -> None:
    if version != str(SCHEMA_VERSION).encode():
        shown = version.decode(errors="replace") if version else "none"
        raise ValueError(f"field v: schema version {shown}, this program reads {SCHEMA_VERSION}")


def _wire(change: Change) -> dict[str, Any]:
    """The change as write.lua takes it."""
    after = change.after
    wire: dict[str, Any] = {"id": change.vm_id, "rev": change.rev, "events": [dump_event(e) for e in change.events]}
    if after is not None:
        wire |= {"doc": dump_record(after), "state": after.state, "host": after.host, "priority": after.priority}
    if change.spec is not None:
        wire["spec"] = dump_spec(change.spec)
    if change.take is not None:
        wire["take"] = {name: value for name, value in asdict(change.take).items() if value is not None}
    optional = {"check_in_ms": change.check_in_ms, "held_by": change.held_by, "release": change.release or None}
    return wire | {name: value for name, value in optional.items() if value is not None}
