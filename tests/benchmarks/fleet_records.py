"""Records of a whole fleet, written by the product's own store: copies of one that the product made."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.fleet_host import simulated_host, surroundings
from tests.benchmarks.fleet_model import CostModel, Shape, process_of, vantage_of
from workers.bootstrap import Fleet, milliseconds, redis_client
from workers.domain.recovery import WakeUp
from workers.domain.vm import VmRecord
from workers.messages import NoWakeups
from workers.ports import Change, Outcome
from workers.settings import Settings
from workers.specs import VmSpec, spec_from
from workers.store.keys import Keys
from workers.store.schedule import DETECT_ORPHANS, RECONCILE

_CHUNK = 500
_SAMPLED_EVENTS = 2000


def spec_of(vm_id: str, host: str) -> VmSpec:
    """As a manager would declare it: with what config/vms.example.yaml shows of a small VM."""
    images = "/var/lib/metald-reliability/images"
    return spec_from(
        {
            "id": vm_id,
            "host": host,
            "driver": "firecracker",
            "image": "shop/web@2026-11-24",
            "vcpus": 2,
            "memory_mib": 256,
            "kernel": f"{images}/vmlinux",
            "kernel_args": "console=ttyS0 reboot=k panic=1",
            "rootfs": f"{images}/{vm_id}.ext4",
            "network_interfaces": [{"id": "eth0", "tap": f"tap{vm_id[-8:]}"}],
        }
    )


def pattern(settings: Settings, folder: Path) -> VmRecord:
    """Declare one VM, start it on a simulated host and check it: what its record then holds."""
    client = redis_client(settings)
    shape = Shape(1)
    name, vm_id = shape.host(0), shape.vm_ids(0)[0]
    around = surroundings(settings, client, NoWakeups(), CostModel(unanswered=0, deaths=0), folder)
    host, fleet = simulated_host(name, around), Fleet(settings, client)
    host.runtime.lease.acquire()
    host.heartbeat()
    fleet.registry(NoWakeups(), actor="benchmark").apply([spec_of(vm_id, name)])
    host.services.recovery.recover(vm_id, WakeUp())
    for _ in range(3):
        host.services.checks.check([vm_id])
    return fleet.store.read([vm_id]).found[vm_id].record


def bytes_per_event(settings: Settings) -> float:
    """What one entry of the audit takes, from many copies of those that one start made."""
    client, fleet = redis_client(settings), Fleet(settings)
    told = [entry.event for entry in fleet.events.latest(limit=100)]
    before, copies = client.xlen(_stream(settings)), _SAMPLED_EVENTS // len(told)
    for _ in range(copies):
        fleet.store.note(told)
    size: Any = client.memory_usage(_stream(settings), samples=0)
    return float(size) / (before + copies * len(told))


def _stream(settings: Settings) -> str:
    return Keys(settings.redis.prefix).events


def populate(settings: Settings, shape: Shape, like: VmRecord) -> None:
    """Write the records of all VMs, due at some time of the first interval."""
    fleet = Fleet(settings)
    interval_ms = milliseconds(settings.health_check.interval)
    chance = random.Random(shape.vms)  # noqa: S311 - no secret
    now_ms, _ = fleet.hosts.all()
    _schedule_sweeps(settings, shape, chance, now_ms)
    for changes in _chunks(_changes(shape, like, now_ms, interval_ms, chance)):
        outcomes = set(fleet.store.write(changes).outcomes)
        if outcomes != {Outcome.DONE}:
            raise RuntimeError(f"records were not written: {outcomes}")


def _schedule_sweeps(settings: Settings, shape: Shape, chance: random.Random, now_ms: int) -> None:
    """As in a fleet that has run for a while: those of a host come at some time, and not all at once."""
    every_ms = {
        DETECT_ORPHANS: milliseconds(settings.recovery.detection_interval),
        RECONCILE: milliseconds(settings.reconcile_interval),
    }
    due = {
        f"@{kind}:{shape.host(number)}": now_ms + chance.randrange(every)
        for kind, every in every_ms.items()
        for number in range(shape.hosts)
    }
    redis_client(settings).zadd(Keys(settings.redis.prefix).due, due)


def _changes(shape: Shape, like: VmRecord, now_ms: int, interval_ms: int, chance: random.Random) -> Iterator[Change]:
    for host_number in range(shape.hosts):
        host = shape.host(host_number)
        vantage, due_ms = vantage_of(host), chance.randrange(interval_ms)
        for number, vm_id in enumerate(shape.vm_ids(host_number)):
            episode = like.episode and replace(like.episode, id=f"{vm_id}{like.episode.id.removeprefix(like.vm_id)}")
            process = process_of(number, vantage)
            record = replace(like, vm_id=vm_id, host=host, process=process, episode=episode, since_ms=now_ms)
            yield Change(vm_id, 0, record, check_in_ms=due_ms, spec=spec_of(vm_id, host))


def _chunks(changes: Iterator[Change]) -> Iterator[Sequence[Change]]:
    part: list[Change] = []
    for change in changes:
        part.append(change)
        if len(part) == _CHUNK:
            yield part
            part = []
    if part:
        yield part
