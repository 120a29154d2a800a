"""The Schedule port and the hosts' names on the memory server, as claim.lua and host_lease.lua have them."""

from collections.abc import Mapping
from dataclasses import dataclass

from workers.domain.errors import StoreUnavailable
from workers.ports import DueChecks
from workers.simulator.memory_server import MemoryServer


@dataclass(frozen=True, slots=True)
class MemorySchedule:
    """`sweeps` maps a kind of sweep to its interval in ms."""

    server: MemoryServer
    interval_ms: int
    sweeps: Mapping[str, int]

    def claim(self, limit: int) -> DueChecks:
        if self.server.away:
            raise StoreUnavailable("the server is away")
        data, now = self.server.contents, self.server.now_ms
        due = [row for row in data.rows.values() if row.due_ms is not None and row.due_ms <= now][:limit]
        batches: dict[str, list[str]] = {}
        for row in due:
            row.due_ms = now + self.interval_ms
            batches.setdefault(row.record.host, []).append(row.record.vm_id)
        sweeps = [key for key, due_ms in data.sweeps.items() if due_ms <= now]
        for key in sweeps:
            data.sweeps[key] = now + self.sweeps[key[0]]
        times = [row.due_ms for row in data.rows.values() if row.due_ms is not None] + list(data.sweeps.values())
        return DueChecks(
            now,
            [(host, vm_ids) for host, vm_ids in batches.items() if self._lives(host)],
            [key for key in sweeps if self._lives(key[1])],
            max(0, min(times) - now) if times else None,
        )

    def _lives(self, host: str) -> bool:
        return self.server.contents.host_leases.get(host, 0) > self.server.now_ms


def hold_host(server: MemoryServer, host: str, owner: str, ttl_ms: int, kinds: Mapping[str, int]) -> str | None:
    """Take or keep the host name for this worker. Returns None when it is ours, else who has it."""
    if server.away:
        raise StoreUnavailable("the server is away")
    data = server.contents
    holder = data.host_owners.get(host) if data.host_leases.get(host, 0) > server.now_ms else None
    if holder not in (None, owner):
        return holder
    data.host_owners[host] = owner
    server.serve(host, ttl_ms)
    for kind in kinds:
        data.sweeps.setdefault((kind, host), server.now_ms)
    return None
