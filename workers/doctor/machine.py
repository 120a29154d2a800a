"""Checks of the machine: kernel, limits, KVM, control groups, and the packages we run on."""

import os
import platform
import resource
import shutil
import socket
import struct
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from workers.doctor.finding import Finding, fine, listed, problem, warning
from workers.doctor.fleet import DISTRIBUTION
from workers.doctor.place import Place
from workers.settings import STANDIN, Settings

_FDS_BESIDE, _FDS_PER_VM = 256, 2  # a pidfd, and a socket while it is looked at
_TASKS_PER_VM = 8
_BUSY = 0.9
_KVM = Path("/dev/kvm")
_CGROUP_OF_PROCESSES = "cgroup.procs"


def kernel(_place: Place) -> Iterator[Finding]:
    yield judge_kernel(platform.release(), has_pidfd=_has_pidfd(), knows_peers=_knows_peers())


def judge_kernel(release: str, *, has_pidfd: bool, knows_peers: bool) -> Finding:
    if not has_pidfd:
        says = f"Linux {release} gives no pidfds here: no VMM can be watched or ended safely"
        return problem("kernel", says, "use Linux 5.3 or later, and a container runtime that allows pidfd_open")
    if not knows_peers:
        says = "SO_PEERCRED tells nothing here: a socket's owner cannot be known"
        return problem("kernel", says, "run the worker outside of this sandbox")
    return fine("kernel", f"Linux {release}, with pidfds and SO_PEERCRED")


def _has_pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


def _knows_peers() -> bool:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        try:
            told = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return False
    return bool(struct.unpack("3i", told)[0] == os.getpid())


def descriptors(place: Place) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge_descriptors(soft, hard, _vms_here(place))


def judge_descriptors(soft: int, hard: int, vms: int) -> Finding:
    """A worker raises its soft limit to the hard one by itself."""
    needed = _FDS_BESIDE + _FDS_PER_VM * vms
    says = f"file descriptors: {soft}, up to {hard} for a worker; {vms} VMs here need {needed}"
    if hard != resource.RLIM_INFINITY and hard < needed:
        return problem("limits", says, "raise LimitNOFILE of the worker's unit, or `ulimit -Hn`")
    return fine("limits", says)


def _vms_here(place: Place) -> int:
    with suppress(FileNotFoundError):
        return len(place.files.all_kept())
    return 0


def tasks(place: Place) -> Iterator[Finding]:
    running = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
    limits = {name: _number(Path("/proc/sys/kernel", name)) for name in ("pid_max", "threads-max")}
    yield judge_tasks(running, limits, _vms_here(place))


def judge_tasks(running: int, limits: Mapping[str, int], vms: int) -> Finding:
    """A recovery needs room for one more VMM, with all its threads; a host full of VMs for all of them."""
    name, most = min(limits.items(), key=lambda limit: limit[1])
    needed = max(running, _TASKS_PER_VM * vms)
    says = f"processes and threads: {running} of {most} ({name})"
    if needed > _BUSY * most:
        return problem("tasks", f"{says}; {vms} VMs here need about {needed}", f"sysctl kernel.{name}={4 * most}")
    return fine("tasks", says)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


@dataclass(frozen=True, slots=True)
class Kvm:
    """`can`: the processor can, as far as it tells."""

    there: bool
    allowed: bool
    can: bool


def kvm(place: Place) -> Iterator[Finding]:
    seen = Kvm(_KVM.exists(), os.access(_KVM, os.R_OK | os.W_OK), _can_virtualize())
    drivers = place.settings.drivers
    installed = {binary for binary in (drivers.firecracker.binary, drivers.qemu.binary) if shutil.which(binary)}
    yield judge_kvm(seen, place.settings, installed)


def judge_kvm(seen: Kvm, settings: Settings, installed: Collection[str]) -> Finding:
    """`installed` are the binaries of drivers that can be run: what is not there needs nothing."""
    if seen.there and seen.allowed and seen.can:
        return fine("kvm", f"{_KVM} can be used")
    why, does = _why_not(seen)
    stopped, is_slow = _without_kvm(settings, installed)
    if stopped:
        return problem("kvm", f"{_KVM} {why}: {' and '.join(stopped)} cannot start a VM", does)
    if is_slow:
        return warning("kvm", f"{_KVM} {why}: guests of QEMU are emulated (tcg), which is slow", does)
    return fine("kvm", f"{_KVM} {why}, and no driver here needs it")


def _why_not(seen: Kvm) -> tuple[str, str]:
    switch_on = "load kvm_intel or kvm_amd, or switch on (nested) virtualization of this machine"
    if not seen.there:
        return "is not there", switch_on
    if not seen.can:
        return "opens, but the processor shows no vmx or svm", switch_on
    return "may not be opened by this user", "add the worker's user to the group kvm"


def _without_kvm(settings: Settings, installed: Collection[str]) -> tuple[list[str], bool]:
    """Which drivers start nothing, and whether another one is slow."""
    firecracker, qemu = settings.drivers.firecracker, settings.drivers.qemu
    stopped = ["Firecracker"] if firecracker.binary in installed and firecracker.binary != STANDIN else []
    stopped += ["QEMU (accel kvm)"] if qemu.binary in installed and qemu.accel == "kvm" else []
    return stopped, qemu.binary in installed and qemu.accel == "auto"


def _can_virtualize() -> bool:
    """Only x86 tells by a flag."""
    if platform.machine() not in ("x86_64", "i686"):
        return True
    words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    return bool(words & {"vmx", "svm"})


def cgroup(place: Place) -> Iterator[Finding]:
    yield judge_cgroup(place.settings.vm_cgroup)


def judge_cgroup(folder: Path | None) -> Finding:
    if folder is None:
        return fine("cgroup", "VMMs stay in the worker's: its unit needs KillMode=process")
    members = folder / _CGROUP_OF_PROCESSES
    if not members.exists():
        return problem(
            "cgroup", f"{folder} is no cgroup v2 folder", "make it before the worker starts, or unset vm_cgroup"
        )
    if not os.access(members, os.W_OK):
        return problem("cgroup", f"{members} is not ours to write to", "delegate it to the worker's user")
    return fine("cgroup", f"VMMs are moved to {folder}")


def packages(_place: Place) -> Iterator[Finding]:
    wanted = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    named = {each.name: each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})}
    yield judge_packages(named, {name: installed_version(name) for name in named})


def judge_packages(wanted: Mapping[str, Requirement], installed: Mapping[str, str | None]) -> Finding:
    def is_wrong(name: str) -> bool:
        found = installed[name]
        return found is None or not wanted[name].specifier.contains(found, prereleases=True)

    wrong = [
        f"{name} {installed[name] or 'missing'} (wants {wanted[name].specifier})" for name in wanted if is_wrong(name)
    ]
    if wrong:
        return problem("packages", listed(wrong), "install metald-reliability anew: its tests know these versions only")
    shown = ", ".join(f"{name} {installed[name]}" for name in ("celery", "kombu", "redis") if name in installed)
    return fine("packages", f"Python {sys.version.split()[0]}, {shown}")


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
