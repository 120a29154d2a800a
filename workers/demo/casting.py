"""Who plays the VMs: the built-in stand-in for Firecracker, or real QEMU guests; and which faults each can have."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.demo.home import Home
from workers.demo.plan import Fault, Unavailable
from workers.settings import STANDIN
from workers.vmm.guest_image import KERNEL_ARGS, MACHINE, MEMORY_MIB, Missing, default_cache, find_guest_image

_QEMU = "qemu-system-x86_64"
_QEMU_FAULTS = (Fault.SIGKILL, Fault.SIGSTOP, Fault.SOCKET_REMOVED, Fault.WORKER_KILLED, Fault.REDIS_KILLED)


@dataclass(frozen=True, slots=True)
class Cast:
    """`spec` is all of a VM's spec but its id and host; `seconds_per_start` is generous."""

    driver: str
    label: str
    kinds: tuple[Fault, ...]
    spec: Mapping[str, Any]
    settings: Mapping[str, str]
    image_roots: tuple[Path, ...]
    seconds_per_start: float


def cast(driver: str, home: Home) -> Cast:
    """Raises Unavailable."""
    return _qemu() if driver == "qemu" else _standin(home)


def _standin(home: Home) -> Cast:
    kernel = home.images / "vmlinux"
    kernel.write_bytes(b"no kernel: the stand-in boots nothing\n")
    return Cast(
        driver="firecracker",
        label="stand-in VMMs that speak Firecracker's API (real processes and sockets, no guests)",
        kinds=tuple(Fault),
        spec={"kernel": str(kernel)},
        settings={
            "drivers.firecracker.binary": STANDIN,
            "drivers.firecracker.environment.STANDIN_FAULTS": str(home.faults),
        },
        image_roots=(home.images,),
        seconds_per_start=0.5,
    )


def _qemu() -> Cast:
    if shutil.which(_QEMU) is None:
        raise Unavailable(f"{_QEMU} is not installed: apt-get install qemu-system-x86")
    try:
        image = find_guest_image(default_cache(os.environ))
    except OSError as error:
        raise Unavailable(f"the guest image cannot be made: {error}") from error
    if isinstance(image, Missing):
        raise Unavailable(f"{image.what} is missing: {image.install_hint}")
    return Cast(
        driver="qemu",
        label="QEMU guests (serving: QEMU says that the guest runs; inside, it boots for some seconds more)",
        kinds=_QEMU_FAULTS,
        spec={
            "kernel": str(image.kernel),
            "initrd": str(image.initrd),
            "kernel_args": KERNEL_ARGS,
            "machine": MACHINE,
            "memory_mib": MEMORY_MIB,
        },
        settings={"drivers.qemu.binary": _QEMU},
        image_roots=(image.kernel.parent, image.initrd.parent),
        seconds_per_start=10.0,
    )
