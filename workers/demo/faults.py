"""How each fault is done to a VM. What it leads to is watched elsewhere."""

import json
import signal
import time
from pathlib import Path

from workers.demo.fleet import DemoFleet
from workers.demo.outside import ask_for_fault, pids
from workers.demo.plan import REFUSED_STARTS, Fault, Step
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.host.identity import read_vantage
from workers.host.pidfd import pidfd_of


class NotInjected(RuntimeError):
    """The VM was not in a state in which this fault can be done to it."""


class Faults:
    def __init__(self, fleet: DemoFleet) -> None:
        self._fleet = fleet
        self._vantage: Vantage = read_vantage(fleet.home.state)

    def inject(self, step: Step, record: VmRecord) -> float:
        """Do it to this VM, and return when. Raises NotInjected, OSError."""
        process = record.process
        ours = pids(self._fleet.home).get(record.vm_id, [])
        if process is None or process.pid not in [vmm.pid for vmm in ours]:
            raise NotInjected("the process of its record is none of this demo's")
        socket = self._fleet.socket_of(record)
        match step.fault:
            case Fault.SIGSTOP:
                return self._signal(process, signal.SIGSTOP)
            case Fault.SOCKET_REMOVED:
                now = time.time()
                socket.unlink()
                return now
            case Fault.OTHER_VM:
                return self._answer_as_another(record.vm_id, socket)
            case Fault.REFUSES_STARTS:
                # Read by the stand-in at each start, which counts it down.
                self._faults_file(record.vm_id).write_text(json.dumps({"refuse_starts": REFUSED_STARTS}))
                return self._signal(process, signal.SIGKILL)
            case _:
                return self._signal(process, signal.SIGKILL)

    def tidy(self, vm_id: str) -> None:
        self._faults_file(vm_id).unlink(missing_ok=True)

    def _faults_file(self, vm_id: str) -> Path:
        return self._fleet.home.faults / f"{vm_id}.json"

    def _signal(self, process: Incarnation, signum: signal.Signals) -> float:
        with pidfd_of(process, self._vantage) as fd:
            if fd is None:
                raise NotInjected(f"pid {process.pid} has ended before the fault")
            now = time.time()
            signal.pidfd_send_signal(fd, signum)
            return now

    def _answer_as_another(self, vm_id: str, socket: Path) -> float:
        other = next((name for name in self._fleet.vm_ids if name != vm_id), "vm-00")
        now = time.time()
        ask_for_fault(socket, json.dumps({"report_id": other}).encode())
        return now
