"""The VmHost and Prober ports on a table of processes: VMMs that fail, hang, lie or cannot be killed as they are told.

What the kernel would guarantee holds here too: a lock belongs to the process that holds it, a signal goes to exactly
one incarnation, and what a worker started lives on when the worker is killed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workers.domain.errors import GuardBusy, Paused, StartFailed, StopFailed, Unkillable
from workers.domain.evidence import Evidence, Observation, Sockets
from workers.domain.guard import check_generation
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.ports import Clock, Kept, Renew, Running
from workers.specs import VmSpec

_SLICE_S = 0.5
_FIRST_PID = 1000


@dataclass(slots=True)
class SimVmm:
    """One VMM process. `half`: it answers, and runs no guest."""

    vm_id: str
    process: Incarnation
    generation: int
    guarded: bool = True
    hung: bool = False
    half: bool = False
    unkillable: bool = False
    ignores_sigterm: bool = False
    socket_gone: bool = False
    answers_as: str | None = None
    began_s: float = 0.0

    @property
    def serves(self) -> bool:
        return not (self.hung or self.half or self.socket_gone or self.answers_as)


@dataclass(slots=True)
class Faults:
    """What the next VMMs of a VM will do wrong."""

    refuse_starts: int = 0
    exit_cause: str = "exit 1"
    boot_s: float | None = None
    comes_up: dict[str, Any] = field(default_factory=dict)


class SimHost:
    """One machine, which outlives its workers. Durations in seconds; with all of them 0, nothing takes any time."""

    def __init__(
        self,
        vantage: Vantage,
        clock: Clock,
        *,
        boot_s: float = 0.0,
        grace_s: float = 0.0,
        timeout_s: float = 0.0,
    ) -> None:
        self.vantage, self._clock = vantage, clock
        self._boot_s, self._grace_s, self._timeout_s = boot_s, grace_s, timeout_s
        self.alive: dict[int, SimVmm] = {}
        self.faults: dict[str, Faults] = {}
        self.evidence: dict[str, Evidence] = {}
        self.paused = False
        self.versions: dict[str, str] = {}
        self.started: list[tuple[str, int]] = []
        self.doubled: list[str] = []
        self.run_dirs: dict[str, Kept] = {}
        self.during_start: Callable[[str], None] = lambda _vm_id: None
        self.during_fence: Callable[[str], None] = lambda _vm_id: None
        self.on_death: Callable[[SimVmm, str | None], None] = lambda _vmm, _cause: None
        self.before_exec: Callable[[str, int], None] = lambda _vm_id, _generation: None
        self.before_signal: Callable[[SimVmm], None] = lambda _vmm: None
        self.check_generation: Callable[[str, int, int], None] = check_generation
        self._starting: set[str] = set()
        self._probed: set[str] = set()
        self._next_pid = _FIRST_PID

    # What bad luck, people and the VM manager do

    def boot(self, vm_id: str, generation: int = 7, **traits: Any) -> SimVmm:
        """A VMM comes to life, whoever started it."""
        self._next_pid += 1
        vantage = self.vantage
        process = Incarnation(self._next_pid, self._next_pid, vantage.boot_id, vantage.machine_id, vantage.pid_ns)
        vmm = SimVmm(vm_id, process, generation, began_s=self._clock.monotonic(), **traits)
        if any(other.vm_id == vm_id for other in self.alive.values()):
            self.doubled.append(vm_id)
        self.alive[vmm.process.pid] = vmm
        return vmm

    def of(self, vm_id: str) -> SimVmm | None:
        return next((vmm for vmm in self.alive.values() if vmm.vm_id == vm_id), None)

    def sockets(self) -> Sockets:
        forced = [vm_id for vm_id, evidence in self.evidence.items() if evidence is Evidence.SOCKET_MISSING]
        gone = [vmm for vmm in self.alive.values() if vmm.socket_gone or vmm.vm_id in forced]
        return Sockets(len(gone), len(self.alive))

    def kill(self, vm_id: str, cause: str | None = "signal 9") -> None:
        for vmm in [vmm for vmm in self.alive.values() if vmm.vm_id == vm_id]:
            self._end(vmm, cause)

    def reboot(self, boot_id: str) -> None:
        """All processes are gone, and nobody is told."""
        self.alive.clear()
        self._starting.clear()
        self._probed.clear()
        self.vantage = replace(self.vantage, boot_id=boot_id)

    def _end(self, vmm: SimVmm, cause: str | None) -> None:
        if self.alive.pop(vmm.process.pid, None) is not None:
            self.on_death(vmm, cause)

    # VmHost

    def check_kill_switch(self) -> None:
        if self.paused:
            raise Paused("PAUSE")

    def running(self, vm_id: str) -> Running | None:
        if vm_id in self._starting:
            raise GuardBusy(vm_id)
        vmm = self.of(vm_id)
        return self._running(vmm) if vmm is not None else None

    def _running(self, vmm: SimVmm) -> Running:
        age_s = self._clock.monotonic() - vmm.began_s
        return Running(vmm.vm_id, "firecracker", vmm.process, "api.sock", vmm.guarded, vmm.generation, age_s)

    def inventory(self) -> list[Running]:
        return [self._running(vmm) for vmm in self.alive.values()]

    def driver_version(self, driver: str) -> str:
        return f"{driver}@{self.versions.get(driver, '1.0')}"

    def kept(self, vm_id: str) -> Kept:
        return self.run_dirs.get(vm_id, Kept(vm_id))

    def all_kept(self) -> list[str]:
        return sorted(self.run_dirs)

    def note_stopped(self, vm_id: str, at_ms: int) -> None:
        if vm_id in self.run_dirs:
            self.run_dirs[vm_id] = replace(self.run_dirs[vm_id], stopped_ms=at_ms)

    def note_forgotten(self, vm_id: str, at_ms: int) -> None:
        if vm_id in self.run_dirs:
            self.run_dirs[vm_id] = replace(self.run_dirs[vm_id], forgotten_ms=at_ms)

    def tidy(self, vm_id: str) -> bool:
        vmm = self.of(vm_id)
        return vm_id not in self._starting and (vmm is None or not vmm.guarded)

    def fence(self, vm_id: str, process: Incarnation, *, before_signal: Renew) -> str:
        vmm = self.alive.get(process.pid)
        if vmm is None or vmm.process != process:
            return "gone already"
        if vmm.vm_id != vm_id:
            raise StopFailed(vm_id, f"pid {process.pid} is no VMM of this vm; nothing was signalled")
        self.during_fence(vm_id)
        self._signal(vmm, before_signal)
        if not (vmm.hung or vmm.ignores_sigterm or vmm.unkillable):
            self._end(vmm, "signal 15")
            return "signal 15"
        self._wait(self._grace_s, before_signal)
        self._signal(vmm, before_signal)
        if vmm.unkillable:
            raise Unkillable(vm_id, f"pid {process.pid}: alive after SIGKILL, in state D")
        self._end(vmm, "signal 9")
        return "signal 9"

    def _signal(self, vmm: SimVmm, before_signal: Renew) -> None:
        before_signal()
        self.check_kill_switch()
        self.before_signal(vmm)

    def _wait(self, seconds: float, between: Renew) -> None:
        while seconds > 0:
            self._clock.sleep(min(_SLICE_S, seconds))
            seconds -= _SLICE_S
            between()

    def start(self, spec: VmSpec, generation: int, *, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        vmm = self._exec(spec, generation, before_exec)
        faults = self.faults.get(spec.id, Faults())
        if faults.refuse_starts:
            faults.refuse_starts -= 1
            self._end(vmm, faults.exit_cause)
            raise StartFailed(spec.id, f"ended before it served: {faults.exit_cause}", faults.exit_cause)
        self.during_start(spec.id)
        self._wait(self._boot_s if faults.boot_s is None else faults.boot_s, while_waiting)
        while_waiting()
        vmm.half = False
        if vmm.process.pid not in self.alive:
            raise StartFailed(spec.id, "ended before it served: cause unknown")
        if vmm.hung:
            self.fence(spec.id, vmm.process, before_signal=while_waiting)
            raise StartFailed(spec.id, "not serving in time")
        self.run_dirs[spec.id] = replace(self.run_dirs[spec.id], served=True)
        return vmm.process

    def _exec(self, spec: VmSpec, generation: int, before_exec: Renew) -> SimVmm:
        """Under the VM's lock, which then belongs to the new process."""
        vm_id, other = spec.id, self.of(spec.id)
        if vm_id in self._starting or (other is not None and other.guarded):
            raise GuardBusy(vm_id)
        if other is not None:
            raise StartFailed(vm_id, f"pid {other.process.pid} already runs this vm without holding its lock")
        self._starting.add(vm_id)
        try:
            self.check_generation(vm_id, generation, self.kept(vm_id).generation)
            self.run_dirs[vm_id] = Kept(vm_id, generation, spec.driver, spec)
            before_exec()
            self.check_kill_switch()
            self.before_exec(vm_id, generation)
            self.started.append((vm_id, generation))
            vmm = self.boot(vm_id, generation, half=True, **self.faults.get(vm_id, Faults()).comes_up)
            self.run_dirs[vm_id] = replace(self.run_dirs[vm_id], process=vmm.process)
        finally:
            self._starting.discard(vm_id)
        return vmm

    # Prober

    def probe(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        mine = [record for record in records if record.vm_id not in self._probed]
        self._probed.update(record.vm_id for record in mine)
        try:
            at_once = {record.vm_id: Observation(self._look(record)) for record in mine if not self._is_silent(record)}
            if at_once:
                yield at_once
            silent = [record for record in mine if record.vm_id not in at_once]
            if silent:
                if self._timeout_s:
                    self._clock.sleep(self._timeout_s)
                yield {record.vm_id: Observation(self._look(record)) for record in silent}
        finally:
            self._probed.difference_update(record.vm_id for record in mine)

    def _is_silent(self, record: VmRecord) -> bool:
        return self._look(record) is Evidence.NO_ANSWER

    def look_at_process(self, record: VmRecord) -> Observation | None:
        process = record.process
        if process is None:
            return Observation(Evidence.NOT_STARTED)
        if not self.vantage.shares_place(process):
            return Observation(Evidence.FOREIGN_PLACE)
        if process.boot_id != self.vantage.boot_id:
            return Observation(Evidence.BOOTED_ANEW)
        vmm = self.alive.get(process.pid)
        return None if vmm and vmm.process == process else Observation(Evidence.PROCESS_ENDED)

    def _look(self, record: VmRecord) -> Evidence:
        if record.vm_id in self.evidence:
            return self.evidence[record.vm_id]
        dead = self.look_at_process(record)
        if dead is not None or record.process is None:
            return dead.evidence if dead else Evidence.NOT_STARTED
        vmm = self.alive[record.process.pid]
        if vmm.socket_gone:
            return Evidence.SOCKET_MISSING
        if vmm.hung:
            return Evidence.NO_ANSWER
        if vmm.answers_as is not None:
            return Evidence.OTHER_VM
        return Evidence.DRIFT if vmm.half else Evidence.ANSWERS
