"""The driver for QEMU, over a QMP socket that is ours alone (QEMU serves one client per monitor)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.domain.exits import ExitTable
from workers.host.rundir import CONSOLE, SOCKET_NAME
from workers.specs import QemuSpec, VmSpec
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Claim, Finding, Launch, Program
from workers.vmm.qemu_draft import options, qmp_sockets
from workers.vmm.qmp import QmpError, QmpStatus, status_conversation

# RunState of the QAPI schema (qapi/run-state.json), by what it means for us.
_GUEST_FAILED = frozenset({"internal-error", "guest-panicked", "watchdog", "shutdown"})
_ALIVE_BUT_NOT_RUNNING = frozenset(
    {
        "paused",
        "suspended",
        "prelaunch",
        "postmigrate",
        "save-vm",
        "restore-vm",
        "inmigrate",
        "finish-migrate",
        "io-error",
        "debug",
        "colo",
    }
)
_KVM_DEVICE = "/dev/kvm"
_CPU_INFO = Path("/proc/cpuinfo")


class QemuDriver:
    name = "qemu"
    stateless_probe = True

    def __init__(
        self, binary: str, accel: str, environment: Mapping[str, str], exits: ExitTable = MappingProxyType({})
    ) -> None:
        self._program = Program(self.name, (binary,))
        self._accelerator = _usable_accelerator() if accel == "auto" else accel
        self._environment = environment
        # QEMU reboots guests itself, and its exit codes do not tell a bad command line from other errors.
        self.exits = exits

    def version(self) -> str:
        return self._program.version()

    def launch(self, spec: VmSpec) -> Launch:
        if not isinstance(spec, QemuSpec):
            raise StartFailed(spec.id, f"spec is for driver {spec.driver}")
        return Launch([*self._program.resolve(), *arguments(spec, self._accelerator)], self._environment)

    def configure(self, spec: VmSpec) -> Conversation[None]:
        """Nothing to say: everything stood on the command line, and the guest runs as soon as the VMM does."""
        del spec
        yield from ()

    def probe(self, vm_id: str) -> Conversation[Finding]:
        try:
            status = yield from status_conversation()
        except QmpError as error:
            return Evidence.BROKEN_ANSWER, str(error)
        return _judge_status(vm_id, status)

    def identify(self, argv: Sequence[str], exe: str) -> Claim | None:
        if not self._program.is_run_by(argv, exe):
            return None
        names = [option.parts.get("guest") or option.first for option in options(argv) if option.flag == "name"]
        return Claim(names[-1] if names else "", _our_socket(argv))


def _usable_accelerator() -> str:
    """KVM where the processor can and we may; never both, since QEMU falls back only if /dev/kvm does not open.

    Inside some machines /dev/kvm opens although guests never get anywhere: there the processor's flag is missing.
    """
    flags = set(_CPU_INFO.read_text(encoding="ascii", errors="replace").split())
    return "kvm" if flags & {"vmx", "svm"} and os.access(_KVM_DEVICE, os.R_OK | os.W_OK) else "tcg"


def arguments(spec: QemuSpec, accelerator: str) -> Iterator[str]:
    """The command line of this VM, without the program. Relative paths mean the run directory."""
    yield from ("-name", spec.id, "-nodefaults", "-no-user-config", "-display", "none")
    yield from ("-machine", spec.machine, "-smp", str(spec.vcpus), "-m", str(spec.memory_mib))
    yield from ("-accel", accelerator)
    yield from ("-chardev", f"socket,id=qmp,path={SOCKET_NAME},server=on,wait=off", "-mon", "chardev=qmp,mode=control")
    yield from ("-chardev", f"file,id=console,path={CONSOLE},append=on", "-serial", "chardev:console")
    yield from ("-kernel", str(spec.kernel))
    if spec.initrd:
        yield from ("-initrd", str(spec.initrd))
    if spec.kernel_args:
        yield from ("-append", spec.kernel_args)
    yield from _devices(spec)


def _devices(spec: QemuSpec) -> Iterator[str]:
    bus = "device" if spec.machine == "microvm" else "pci"
    root = [("rootfs", str(spec.rootfs), "raw", "off")] if spec.rootfs else []
    drives = [(drive.id, str(drive.path), drive.format, "on" if drive.read_only else "off") for drive in spec.drives]
    for drive_id, path, form, read_only in root + drives:
        yield from ("-drive", f"id={drive_id},file={_escaped(path)},format={form},read-only={read_only},if=none")
        yield from ("-device", f"virtio-blk-{bus},drive={drive_id}")
    for nic in spec.network_interfaces:
        yield from ("-netdev", f"tap,id={nic.id},ifname={nic.tap},script=no,downscript=no")
        yield from ("-device", f"virtio-net-{bus},netdev={nic.id}" + (f",mac={nic.mac}" if nic.mac else ""))


def _escaped(path: str) -> str:
    """In a QEMU option list a comma is written twice."""
    return path.replace(",", ",,")


def _our_socket(argv: Sequence[str]) -> str | None:
    """The QMP socket that is ours alone, else the first one there is: of a VMM that somebody else started."""
    sockets = list(qmp_sockets(argv))
    ours = [path for path in sockets if Path(path).name == SOCKET_NAME]
    return next(iter(ours or sockets), None)


def _judge_status(vm_id: str, status: QmpStatus) -> Finding:
    if status.name != vm_id:
        return Evidence.OTHER_VM, f"QMP answers as {str(status.name)[:64]!r}"
    if status.status == "running":
        return Evidence.ANSWERS, ""
    if status.status in _GUEST_FAILED:
        return Evidence.GUEST_FAILED, f"run state {status.status}"
    if status.status in _ALIVE_BUT_NOT_RUNNING:
        return Evidence.DRIFT, f"run state {status.status}, should be running"
    return Evidence.UNKNOWN_STATE, f"run state {status.status[:64]!r}"
