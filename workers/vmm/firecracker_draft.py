"""What a running Firecracker tells of its VM: `GET /` and `GET /vm/config`, and the spec that follows from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.domain.draft import Draft, mapping, mappings, text
from workers.vmm.conversation import Conversation
from workers.vmm.http1 import BrokenAnswer, exchange, request

_OK = 200
_CONFIG = "GET /vm/config"
# What Firecracker has when nothing was said about it.
_NOTHING_SPECIAL = (None, "None", False)


@dataclass(frozen=True, slots=True)
class FirecrackerTold:
    """The bodies of `GET /` and `GET /vm/config`."""

    status: Mapping[str, Any]
    config: Mapping[str, Any]


def firecracker_tells() -> Conversation[FirecrackerTold]:
    """Raises BrokenAnswer."""
    status = yield from _body("/")
    return FirecrackerTold(status, (yield from _body("/vm/config")))


def _body(path: str) -> Conversation[Mapping[str, Any]]:
    response = yield from exchange(request("GET", path))
    try:
        body = json.loads(response.body)
    except ValueError:
        body = None
    if response.status != _OK or not isinstance(body, dict):
        raise BrokenAnswer(f"GET {path}: {response.status} {response.body[:80].decode(errors='replace')}")
    return body


def draft_firecracker(draft: Draft, told: FirecrackerTold, vm_id: str, cwd: str) -> None:
    """Add what the API told."""
    draft.read.append(f"GET / and {_CONFIG}")
    said, state = told.status.get("id"), told.status.get("state")
    if said != vm_id:
        draft.obstacles.append(f"its API says that it is {str(said)[:64]!r}")
    if state != "Running":
        draft.obstacles.append(f"its guest is {str(state)[:64]!r}: a VM is taken over while it runs")
    config = told.config
    _machine(draft, mapping(config.get("machine-config")))
    _boot(draft, mapping(config.get("boot-source")), cwd)
    _drives(draft, mappings(config.get("drives")), cwd)
    _interfaces(draft, mappings(config.get("network-interfaces")))
    _vsock(draft, mapping(config.get("vsock")))
    for section in ("balloon", "cpu-config", "entropy", "memory-hotplug", "mmds-config", "pmem"):
        draft.lose(section, config.get(section) not in (None, []))  # {} is a device with nothing said about it


def _machine(draft: Draft, machine: Mapping[str, Any]) -> None:
    draft.take("vcpus", machine.get("vcpu_count"))
    draft.take("memory_mib", machine.get("mem_size_mib"))
    if machine.get("smt"):
        draft.take("smt", True)  # noqa: FBT003 - the value of the field
    for name in ("cpu_template", "huge_pages", "track_dirty_pages"):
        draft.lose(f"machine-config {name} {machine.get(name)}", machine.get(name) not in _NOTHING_SPECIAL)


def _boot(draft: Draft, boot: Mapping[str, Any], cwd: str) -> None:
    kernel = draft.path("kernel", boot.get("kernel_image_path"), cwd)
    draft.take("kernel", kernel)
    if kernel is None:
        draft.unread.append(f"kernel: {_CONFIG} names none, as after a snapshot was loaded")
    draft.take("initrd", draft.path("initrd", boot.get("initrd_path"), cwd))
    draft.take("kernel_args", boot.get("boot_args"))


def _drives(draft: Draft, drives: list[Mapping[str, Any]], cwd: str) -> None:
    found: list[dict[str, Any]] = []
    for number, drive in enumerate(drives):
        is_root, read_only = bool(drive.get("is_root_device")), bool(drive.get("is_read_only"))
        field = "rootfs" if drive.get("drive_id") == "rootfs" and is_root and not read_only else "drives"
        path = draft.path(field, drive.get("path_on_host"), cwd)
        if path is None:
            draft.obstacles.append(f"drive {drive.get('drive_id')}: it has no file of this host (vhost-user)")
            continue
        _lose_of_drive(draft, drive)
        if field == "rootfs":
            draft.take("rootfs", path)
            continue
        plain = {"id": draft.device_id("drives", drive.get("drive_id"), f"disk{number}"), "path": path}
        found.append(plain | {name: True for name, given in (("read_only", read_only), ("root", is_root)) if given})
    draft.take("drives", found)


def _lose_of_drive(draft: Draft, drive: Mapping[str, Any]) -> None:
    name = f"drive {drive.get('drive_id')}"
    draft.lose(f"{name}: rate_limiter", drive.get("rate_limiter"))
    draft.lose(f"{name}: partuuid", drive.get("partuuid"))
    draft.lose(f"{name}: cache_type {drive.get('cache_type')}", drive.get("cache_type") not in (None, "Unsafe"))
    draft.lose(f"{name}: io_engine {drive.get('io_engine')}", drive.get("io_engine") not in (None, "Sync"))


def _interfaces(draft: Draft, interfaces: list[Mapping[str, Any]]) -> None:
    found = []
    for number, nic in enumerate(interfaces):
        name = draft.device_id("network_interfaces", nic.get("iface_id"), f"eth{number}")
        plain = {"id": name, "tap": nic.get("host_dev_name"), "mac": text(nic, "guest_mac")}
        found.append({key: value for key, value in plain.items() if value})
        draft.lose(f"network interface {name}: rate limiters", nic.get("rx_rate_limiter"), nic.get("tx_rate_limiter"))
        draft.lose(f"network interface {name}: mtu {nic.get('mtu')}", nic.get("mtu"))
    draft.take("network_interfaces", found)


def _vsock(draft: Draft, vsock: Mapping[str, Any]) -> None:
    draft.take("vsock_cid", vsock.get("guest_cid"))
    if vsock:
        draft.lost.append(f"vsock uds_path {vsock.get('uds_path')}: it becomes vsock.sock in the run directory")
