"""The VmStore port on Redis."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast

import redis

from workers.domain.audit import Event
from workers.domain.errors import UnknownVm, UnreadableRecord
from workers.domain.modes import NO_MODES
from workers.domain.vm import State
from workers.ports import Change, Confirmed, Lease, Limits, Memory, Snapshot, Stored, Written
from workers.specs import VmSpec, parse_spec
from workers.store.client import SERVER_TIME, script, translated
from workers.store.codec import NEWEST_VERSION, READABLE_VERSIONS, compact, dump_event, load_record, version_of
from workers.store.keys import Keys
from workers.store.modes import modes_of
from workers.store.wire import change_to_wire, limits_text, written_of


class RedisVmStore:
    """Each call is one round trip. Raises StoreUnavailable when Redis did not answer in time.

    Without `memory` (a command, a beat) nothing is remembered, and nothing may be admitted but by who has one.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str,
        limits: Limits,
        memory: Memory | None = None,
        version: int = NEWEST_VERSION,
        time: str = SERVER_TIME,
    ) -> None:
        self._client, self._memory, self._version = client, memory, version
        self._keys = Keys(prefix)
        self._limits = limits_text(limits)
        self._versions = compact([version, *READABLE_VERSIONS])
        self._read, self._write, self._confirm, self._tend, self._renew = (
            script(client, name, time=time) for name in ("read", "write", "confirm", "tend", "renew")
        )

    def read(self, vm_ids: Collection[str], *, with_specs: bool = False) -> Snapshot:
        with translated():
            reply = self._read_rows(vm_ids, with_specs=with_specs)
        now_us = int(reply[0]) * 1_000_000 + int(reply[1])
        found: dict[str, Stored] = {}
        unreadable: dict[str, str] = {}
        for vm_id, row in zip(vm_ids, reply[3:], strict=True):
            if row[0] is None and row[1] is None:
                continue
            try:
                found[vm_id] = _stored(row, now_us // 1000)
            except ValueError as error:
                unreadable[vm_id] = str(error)
        scopes = {name.decode(): text for name, text in zip(reply[2][::2], reply[2][1::2], strict=True)}
        return Snapshot(now_us, found, unreadable, modes_of(scopes) if scopes else NO_MODES)

    def _read_rows(self, vm_ids: Collection[str], *, with_specs: bool) -> list[Any]:
        keys = self._keys
        args = ["spec" if with_specs else "", keys.modes, keys.vm("")]
        return cast("list[Any]", self._read(keys=[keys.vm(vm_id) for vm_id in vm_ids], args=args))

    def write(
        self,
        changes: Sequence[Change],
        *,
        seen: Collection[str] = (),
        enlist: Collection[str] = (),
        all_or_nothing: bool = False,
    ) -> Written:
        if not (changes or seen or enlist):
            return Written()
        return self._run_write(changes, seen=seen, enlist=enlist, all_or_nothing=all_or_nothing)

    def confirm(self, host: str, known: Mapping[str, int]) -> Confirmed:
        pairs = [part for pair in known.items() for part in pair]
        with translated():
            seconds, micros, intact, left = self._confirm(args=[*self._common(), host, *pairs])
        now_us = int(seconds) * 1_000_000 + int(micros)
        return Confirmed(now_us, {vm_id.decode() for vm_id in left}, intact=bool(intact))

    def pass_on(self, vm_id: str) -> Written:
        return self._run_write((), passing=[vm_id])

    def note(self, events: Sequence[Event]) -> None:
        if events:
            self._run_write((), notes=events)

    def _run_write(
        self,
        changes: Sequence[Change],
        *,
        seen: Collection[str] = (),
        all_or_nothing: bool = False,
        notes: Sequence[Event] = (),
        enlist: Collection[str] = (),
        passing: Collection[str] = (),
    ) -> Written:
        arguments = [
            compact([change_to_wire(change, self._version) for change in changes]),
            compact(list(seen)),
            "all" if all_or_nothing else "each",
            compact([dump_event(event) for event in notes]),
            compact(list(enlist)),
            compact(list(passing)),
            self._versions,
        ]
        with translated():
            outcomes, *rest = self._write(args=[*self._common(), *arguments])
        return self._written(outcomes, *rest)

    def tend(self, host: str) -> Written:
        with translated():
            reply = self._tend(args=[*self._common(), host])
        return self._written((), *reply)

    def _common(self) -> list[str]:
        known = self._memory.known if self._memory else None
        return [self._keys.prefix, self._limits, compact(asdict(known)) if known else ""]

    def _written(
        self, outcomes: Sequence[bytes], called: Sequence[Any], told: Sequence[bytes], last_event: bytes, intact: int
    ) -> Written:
        if self._memory is not None and last_event and intact:
            self._memory.saw(last_event.decode())
        return written_of(outcomes, called, told, intact=bool(intact))

    def spec(self, vm_id: str) -> VmSpec:
        with translated():
            row = cast("list[bytes | None]", self._client.hmget(self._keys.vm(vm_id), ["v", "spec"]))
        if row[1] is None:
            raise UnknownVm(vm_id)
        try:
            version_of(row[0])
            return parse_spec(row[1].decode())
        except ValueError as error:
            raise UnreadableRecord(vm_id, str(error)) from error

    def specs(self, vm_ids: Collection[str]) -> dict[str, VmSpec]:
        """Return the specs that can be read, for lists."""
        with translated():
            reply = self._read_rows(vm_ids, with_specs=True)
        found: dict[str, VmSpec] = {}
        for vm_id, row in zip(vm_ids, reply[3:], strict=True):
            with suppress(ValueError):
                version_of(row[0])
                found[vm_id] = parse_spec(row[-1] or b"")
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

    def forgotten(self, vm_ids: Sequence[str]) -> dict[str, int]:
        if not vm_ids:
            return {}
        with translated():
            scores = self._client.zmscore(self._keys.forgotten, list(vm_ids))
        return {vm_id: int(score) for vm_id, score in zip(vm_ids, scores, strict=True) if score is not None}

    def renew(self, vm_id: str, lease: Lease, ttl_ms: int) -> bool:
        with translated():
            return bool(self._renew(args=[self._keys.prefix, vm_id, lease.owner, lease.token, ttl_ms]))

    def count(self, what: str) -> None:
        with translated():
            self._client.hincrby(self._keys.counts, what, 1)


def _stored(row: Sequence[bytes | None], now_ms: int) -> Stored:
    version, rev, doc, owner, lease_end, checked, waits_for, kept_until = row[:8]
    number = version_of(version)
    if rev is None or doc is None:
        raise ValueError("field doc: missing")
    live = owner is not None and lease_end is not None and int(lease_end) > now_ms
    spec = row[9] if len(row) > 9 else None  # noqa: PLR2004 - asked for
    return Stored(
        record=load_record(doc),
        rev=int(rev),
        lease_owner=owner.decode() if live and owner else None,
        checked_ms=int(checked) if checked else None,
        waits_for=waits_for.decode() if waits_for else None,
        is_called=kept_until is not None and int(kept_until) > now_ms,
        version=number,
        spec=_spec_or_none(spec),
    )


def _spec_or_none(text: bytes | None) -> VmSpec | None:
    """Whoever needs a spec that cannot be read asks for it alone, and hears why."""
    try:
        return parse_spec(text) if text else None
    except ValueError:
        return None
