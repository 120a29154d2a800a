"""Hosts: who serves which host name, when each was last seen, and the strays found there."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import redis

from workers.domain.registry_diff import Notes
from workers.domain.vm import Incarnation
from workers.ports import StrayFound
from workers.store.client import script, translated
from workers.store.codec import compact
from workers.store.keys import Keys
from workers.store.schedule import DETECT_ORPHANS, RECONCILE

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class HostWorker:
    """The worker that serves a host: `owner` is unique per process, `process` says whether it still lives."""

    owner: str
    host: str
    process: Incarnation
    since_ms: int
    version: str

    def __str__(self) -> str:
        return f"worker pid {self.process.pid} on machine {self.process.machine_id[:12]}"


@dataclass(frozen=True, slots=True)
class HostSeen:
    name: str
    seen_ms: int
    worker: HostWorker | None


class HostRegistry:
    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client = client
        self._keys = Keys(prefix)
        self._lease = script(client, "host_lease")
        self._budget = script(client, "budget")

    def hold(self, worker: HostWorker, *, ttl_ms: int, instead_of: HostWorker | None = None) -> HostWorker | None:
        """Take or keep the host name. Returns None when it is ours, else who has it. Raises StoreUnavailable.

        `instead_of` may be replaced at once: the caller knows that its process is dead.
        """
        keys = self._keys
        args = [worker.host, worker.owner, _dump(worker), ttl_ms, _dump(instead_of) if instead_of else ""]
        args += [f"@{kind}:{worker.host}" for kind in (DETECT_ORPHANS, RECONCILE)]
        with translated():
            holder = self._lease(keys=[keys.host(worker.host), keys.hosts, keys.due], args=args)
        return _load(holder) if holder else None

    def release(self, worker: HostWorker) -> None:
        """Give the name back, if it is still ours, so that a successor need not wait for the lease to end."""
        key = self._keys.host(worker.host)
        with translated():
            if self._client.get(key) == _dump(worker).encode():
                self._client.delete(key)

    def all(self) -> tuple[int, list[HostSeen]]:
        """Server time in ms and every host that ever had a worker."""
        with translated():
            seconds, micros = self._client.time()
            rows = cast("list[tuple[bytes, float]]", self._client.zrange(self._keys.hosts, 0, -1, withscores=True))
            names = [name.decode() for name, _ in rows]
            values = cast("list[bytes | None]", self._client.mget([self._keys.host(n) for n in names])) if names else []
        seen = [
            HostSeen(name, int(score), _load(value) if value else None)
            for name, (_, score), value in zip(names, rows, values, strict=True)
        ]
        return seconds * 1000 + micros // 1000, seen

    def is_served(self, host: str) -> bool:
        with translated():
            return bool(self._client.exists(self._keys.host(host)))

    def silent(self, *, longer_than_ms: int) -> list[str]:
        """Hosts whose worker has been gone for longer than this. Every host asks, so only those few are sent."""
        with translated():
            seconds, micros = self._client.time()
            seen_before = seconds * 1000 + micros // 1000 - longer_than_ms
            rows = cast("list[bytes]", self._client.zrangebyscore(self._keys.hosts, "-inf", f"({seen_before}"))
            names = [name.decode() for name in rows]
            leases = cast("list[bytes | None]", self._client.mget([self._keys.host(n) for n in names])) if names else []
        return [name for name, lease in zip(names, leases, strict=True) if lease is None]

    def may_destroy(self, host: str, *, per_hour: int) -> bool:
        """Take one destructive action out of this host's budget for the hour, or say that it is spent."""
        with translated():
            return bool(self._budget(keys=[self._keys.budget(host)], args=[per_hour, _HOUR_MS, uuid.uuid4().hex]))

    def put_strays(self, host: str, found: Sequence[StrayFound], *, ttl_ms: int) -> None:
        plain = [asdict(each.running) | {"decision": each.decision, "why": each.why} for each in found]
        with translated():
            self._client.set(self._keys.strays(host), compact(plain), px=ttl_ms)

    def put_unreadable(self, host: str, why_of: Mapping[str, str], *, ttl_ms: int) -> None:
        """Keep which records of this host cannot be read, and why."""
        with translated():
            if why_of:
                self._client.set(self._keys.unreadable(host), compact(dict(why_of)), px=ttl_ms)
            else:
                self._client.delete(self._keys.unreadable(host))

    def unreadable(self, hosts: Sequence[str]) -> dict[str, str]:
        if not hosts:
            return {}
        with translated():
            values = cast("list[bytes | None]", self._client.mget([self._keys.unreadable(host) for host in hosts]))
        return {vm_id: why for value in values if value for vm_id, why in json.loads(value).items()}

    def put_registry_notes(self, host: str, notes: Notes, *, ttl_ms: int) -> None:
        """Keep how the manager's registry differs from the records of this host."""
        plain = {"missing": dict(notes.missing), "trouble": notes.trouble}
        plain |= {"suspects": list(notes.suspects), "problems": list(notes.problems)}
        with translated():
            self._client.set(self._keys.registry(host), compact(plain), px=ttl_ms)

    def registry_notes(self, host: str) -> Notes:
        return self.registries([host]).get(host, Notes())

    def registries(self, hosts: Sequence[str]) -> dict[str, Notes]:
        """Return the notes of those hosts that have a registry."""
        if not hosts:
            return {}
        with translated():
            values = cast("list[bytes | None]", self._client.mget([self._keys.registry(host) for host in hosts]))
        return {host: Notes(**json.loads(value)) for host, value in zip(hosts, values, strict=True) if value}

    def strays(self, hosts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        if not hosts:
            return {}
        with translated():
            values = cast("list[bytes | None]", self._client.mget([self._keys.strays(host) for host in hosts]))
        return {host: json.loads(value) for host, value in zip(hosts, values, strict=True) if value}


def _dump(worker: HostWorker) -> str:
    return compact(asdict(worker))


def _load(value: bytes) -> HostWorker:
    plain = json.loads(value)
    return HostWorker(**plain | {"process": Incarnation(**plain["process"])})
