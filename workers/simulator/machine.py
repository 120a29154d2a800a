"""One simulated host: its VMM processes and files, its way to the server, and the workers that come and go on it."""

from typing import TYPE_CHECKING

from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Scope
from workers.domain.vm import Vantage
from workers.simulator.host import SimHost, SimVmm
from workers.simulator.memory_server import Contents, MemoryData, MemoryModes
from workers.simulator.memory_store import MemoryVmStore
from workers.simulator.ports import SimMemory
from workers.simulator.worker import SimWorker

if TYPE_CHECKING:
    from workers.simulator.world import World


class Machine:
    """One host: its VMM processes and files, which outlive its workers."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.sim = SimHost(
            Vantage(f"boot-{name}-1", f"machine-{name}", 1),
            world,
            boot_s=world.boot_s,
            grace_s=world.settings.recovery.stop_grace.total_seconds(),
            timeout_s=world.settings.health_check.timeout.total_seconds(),
        )
        self.sim.on_death = self._died
        self.memory = SimMemory()
        self.workers: list[SimWorker] = []
        self.is_cut_off = False
        self.trouble: str | None = None
        self._boots = 1

    def check_network(self) -> None:
        if self.is_cut_off:
            raise StoreUnavailable("the network is cut")

    def _died(self, vmm: SimVmm, cause: str | None) -> None:
        for worker in self.workers:
            worker.hear(vmm, cause)

    def start_worker(self) -> "SimWorker":
        worker = SimWorker(self, f"{self.name}#{next(self.world.numbers)}")
        self.workers.append(worker)
        worker.start()
        return worker

    @property
    def worker(self) -> "SimWorker | None":
        return next((worker for worker in self.workers if worker.is_active), None)

    def reboot(self) -> None:
        for worker in list(self.workers):
            worker.kill()
        self._boots += 1
        self.sim.reboot(f"boot-{self.name}-{self._boots}")


class HostStore(MemoryVmStore):
    """A machine's way to the server: the network may be cut."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.world.server, machine.world.limits, machine.memory)
        self._machine = machine

    def _reach(self) -> None:
        self._machine.check_network()
        super()._reach()


class HostModes(MemoryModes):
    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.world.server)
        self._machine = machine

    @property
    def _scopes(self) -> dict[str, Scope]:
        self._machine.check_network()
        return super()._scopes


class HostData(MemoryData):
    def __init__(self, machine: Machine) -> None:
        world = machine.world
        super().__init__(world.server, world.epoch_ids, lease_ms=world.limits.lease_ms)
        self._machine = machine

    @property
    def _data(self) -> Contents:
        self._machine.check_network()
        return super()._data
