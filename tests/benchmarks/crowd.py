"""A crowd of VMs that live and are on record without a worker having started each: ten thousand in half a minute.

They are what a worker would have left behind: lock held, run directory, identity, record. One that starts finds them.
"""

import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.stage import HOST, Stage
from tests.support.processes import wait_until
from workers.bootstrap import Fleet
from workers.domain.vm import Incarnation, State, Vantage, VmRecord
from workers.host.identity import incarnation_of, read_vantage
from workers.host.inventory import HOST_VARIABLE
from workers.host.rundir import HostFiles
from workers.ports import Change, Outcome, Snapshot
from workers.services.health import chunks
from workers.specs import VmSpec, dump_spec, spec_from
from workers.vmm.firecracker import FirecrackerDriver

_AT_ONCE, _THREADS = 250, 8
_START = b'{"action_type":"InstanceStart"}'
_REQUEST = b"PUT /actions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(_START), _START)


class Crowd:
    """`grow` makes it as large as is wanted."""

    def __init__(self, on: Stage) -> None:
        settings = on.settings()
        self._store = Fleet(settings).store
        self._files = HostFiles(settings.state_dir)
        self._files.prepare()
        self._vantage: Vantage = read_vantage(settings.state_dir)
        self._passes = settings.health_check.recovery_threshold
        driver = settings.drivers.firecracker
        self._driver = FirecrackerDriver(driver.binary, driver.environment)
        self._kernel = str(on.folder / "images" / "vmlinux")
        self._vms = 0

    def grow(self, vms: int) -> None:
        names = [f"bench-{number:05d}" for number in range(self._vms, vms)]
        for part in chunks(names, _AT_ONCE):
            self._add(part)
        self._vms = vms

    def _add(self, names: Sequence[str]) -> None:
        now = self._store.read(())
        specs = [self._spec(name) for name in names]
        # Most of the time is waiting for the disk, to which intents and identities are synced.
        with ThreadPoolExecutor(_THREADS) as pool:
            processes = list(pool.map(lambda spec: self._start(spec, now.now_us), specs))
        changes = [
            Change(spec.id, 0, self._record(spec.id, now, process), check_in_ms=0, spec=spec)
            for spec, process in zip(specs, processes, strict=True)
        ]
        if set(self._store.write(changes).outcomes) != {Outcome.DONE}:
            raise RuntimeError("the records of the crowd were not written")

    def _spec(self, name: str) -> VmSpec:
        return spec_from({"id": name, "host": HOST, "driver": "firecracker", "kernel": self._kernel})

    def _start(self, spec: VmSpec, generation: int) -> Incarnation:
        launch = self._driver.launch(spec)
        environment = {**launch.environment, HOST_VARIABLE: HOST}
        with self._files.lock(spec.id) as lock:
            run = self._files.begin(spec.id, generation, driver=spec.driver, spec=dump_spec(spec))
            child = subprocess.Popen(
                launch.argv,
                cwd=run.path,
                env=environment,
                stdin=lock,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        child.returncode = 0  # ended with the stage, by its lock: nobody waits for it here
        process = incarnation_of(child.pid, self._vantage)
        if process is None:
            raise RuntimeError(f"the VMM of {spec.id} ended at once")
        run.write_process(process)
        boot(run.socket)
        run.note_served()
        return process

    def _record(self, vm_id: str, at: Snapshot, process: Incarnation) -> VmRecord:
        return VmRecord(
            vm_id,
            HOST,
            "firecracker",
            state=State.HEALTHY,
            since_ms=at.now_ms,
            created_ms=at.now_ms,
            generation=at.now_us,
            passes=self._passes,
            process=process,
        )


def boot(api: Path) -> None:
    """Start the guest through the API of the VMM, as soon as it listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        wait_until(lambda: client.connect_ex(str(api)) == 0, what=str(api))
        client.sendall(_REQUEST)
        if b" 204 " not in client.recv(256):
            raise RuntimeError(f"{api}: the VMM did not start its guest")
