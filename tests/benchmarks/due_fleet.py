"""A fleet for beats alone: records and host leases as the product writes them, and no VM or worker behind them."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from tests.support.builders import a_process, a_spec, a_vm
from workers.bootstrap import Fleet, fleet_schedule, redis_client
from workers.ports import Change
from workers.services.health import chunks
from workers.settings import Settings
from workers.store.hosts import HostWorker
from workers.store.keys import Keys

VMS_PER_HOST = 50
_PER_WRITE = 500
_LEASE_MS = 600_000
_RENEW_S = 60.0
# A host's sweeps stand on the schedule beside its VMs.
_SWEEP = b"@"


class DueFleet:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = redis_client(settings)
        self._fleet = Fleet(settings)
        self._due = Keys(settings.redis.prefix).due
        self._hosts: list[str] = []
        self._vms = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the leases of all hosts, as their workers would."""
        over = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(over,), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()

    def _keep(self, over: threading.Event) -> None:
        while not over.wait(_RENEW_S):
            self._hold(list(self._hosts))

    def _hold(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            self._fleet.hosts.hold(HostWorker(f"of {host}", host, a_process(), 0, "1"), ttl_ms=_LEASE_MS)

    def grow(self, vms: int) -> None:
        """Add VMs, and hosts for them, until there are so many; each is due at once."""
        ids = [f"vm-{number:06d}" for number in range(self._vms, vms)]
        host_of = {vm_id: f"host-{int(vm_id[3:]) // VMS_PER_HOST:04d}" for vm_id in ids}
        new = sorted(set(host_of.values()) - set(self._hosts))
        self._hold(new)
        for part in chunks(ids, _PER_WRITE):
            self._fleet.store.write([_newcomer(vm_id, host_of[vm_id]) for vm_id in part])
        self._hosts += new
        self._vms = vms

    def settle(self) -> list[float]:
        """Claim until nothing is due: each VM has its place then. Returns how long (ms) each full claim took."""
        schedule, limit = fleet_schedule(self._settings), self._settings.beat.claim_limit
        took: list[float] = []
        while True:
            began = time.monotonic()
            due = schedule.claim(limit)
            if due.next_in_ms:
                return took
            took.append((time.monotonic() - began) * 1000)

    def places(self, interval_ms: int) -> dict[str, int]:
        """Return when in the interval each VM is due, in ms; it keeps that place."""
        rows = cast("list[tuple[bytes, float]]", self._client.zrange(self._due, 0, -1, withscores=True))
        return {member.decode(): int(score) % interval_ms for member, score in rows if not member.startswith(_SWEEP)}


def _newcomer(vm_id: str, host: str) -> Change:
    return Change(vm_id, 0, a_vm(vm_id, host=host), check_in_ms=0, spec=a_spec(vm_id, host=host))
