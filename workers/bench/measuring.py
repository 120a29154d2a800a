"""What is measured on the stand-in fleet: checks, rest, deaths and hangs. The fleet itself is made in `stage`."""

import http.client
import os
import subprocess
import time
from collections.abc import Iterator, Mapping

from workers.bench.found import Checks, Deaths, Hangs, Idle, Load
from workers.bench.usage import Usage, look, memory_mib
from workers.bench.wish import Extent
from workers.demo.fleet import DemoFleet
from workers.demo.outside import pids
from workers.demo.plan import Fault, Step
from workers.demo.processes import BEAT, WORKER
from workers.demo.profile import SHORT, known_within
from workers.demo.report import Result
from workers.demo.screen import Screen
from workers.demo.session import NotReady, Session
from workers.host.bringup import NewVmm
from workers.host.identity import incarnation_of, read_vantage
from workers.host.inventory import HOST_VARIABLE
from workers.host.rundir import Run
from workers.ports import Change
from workers.specs import VmSpec, spec_from
from workers.vmm.driver import Launch

_SETTLED_S = 1.0
_PATIENCE_S = 40.0
_START_S = 20.0
_ALONE = "bench-alone"
_METRICS = ("unkey_metald_vm_health_checks_total", "unkey_metald_vm_health_check_failures_total")

# Of production, but what would make many deaths in a minute an outage, and would keep a VM from dying twice.
CALM: Mapping[str, str] = {
    "recovery.stable_period": "1s",
    "recovery.per_host": "7",
    "storm.at_least": "100000",
    "beat.max_interval": "100ms",
}
# A VMM that answers late because the machine is busy must not become a recovery here.
_UNDER_LOAD = {**CALM, "health_check.failure_threshold": "100", "beat.max_interval": "20ms"}
_LARGE_INTERVAL_S, _SMALL_INTERVAL_S = 0.1, 0.5


def _loaded(interval_s: float, batch: int) -> dict[str, str]:
    ms = round(interval_s * 1000)
    return {
        **_UNDER_LOAD,
        "health_check.interval": f"{ms}ms",
        "health_check.timeout": f"{ms * 4 // 5}ms",
        "health_check.failing_interval": f"{ms}ms",
        "health_check.batch_size": str(batch),
    }


class Measuring:
    """Everything here raises Interrupted, and NotReady where the fleet does not do what it has to."""

    def __init__(self, fleet: DemoFleet, session: Session, screen: Screen, extent: Extent) -> None:
        self._fleet, self._session, self._screen, self._extent = fleet, session, screen, extent

    @property
    def _vms(self) -> int:
        return len(self._fleet.vm_ids)

    # At rest

    def idle(self) -> Idle:
        self._screen.progress("at rest")
        self._rest(_SETTLED_S)
        spent = self._usage_of(self._extent.window_s)
        memory = {role: memory_mib(pid) for role, pid in self._pids().items()}
        return Idle({role: seconds / spent.at_s for role, seconds in spent.cpu_s.items()}, memory)

    # Checks

    def checks(self) -> Checks:
        large = self._load(_LARGE_INTERVAL_S, self._vms)
        small = self._load(_SMALL_INTERVAL_S, 1)
        return Checks(self._vms / _LARGE_INTERVAL_S, large, small)

    def _load(self, interval_s: float, batch: int) -> Load:
        self._screen.progress(f"checks in batches of {batch}: beginning")
        self._begin(_loaded(interval_s, batch))
        self._rest(_SETTLED_S)
        self._screen.progress(f"checks in batches of {batch}: measuring")
        checks, failed = self._counted()
        spent = self._usage_of(self._extent.window_s)
        checks_after, failed_after = self._counted()
        return Load(
            seconds=spent.at_s,
            checks=checks_after - checks,
            failed=failed_after - failed,
            batch=batch,
            cpu_s=spent.cpu_s,
            vmms_s=spent.vmms_s,
            others_share=spent.others_share,
        )

    def _begin(self, own: Mapping[str, str]) -> None:
        """Return when all VMs are checked with these settings."""
        self._fleet.restart(own)
        self._make_all_due()
        since_s = time.time()
        if not self._session.until(lambda: self._session.checked_since(since_s, self._fleet.vm_ids), _PATIENCE_S):
            raise NotReady(f"not all VMs were checked within {_PATIENCE_S:.0f} s after worker and beat had begun anew")

    def _make_all_due(self) -> None:
        """A shorter interval counts from the next check on; without this, that one may be half a minute away."""
        store = self._fleet.records.store
        found = store.read(self._fleet.vm_ids).found.values()
        store.write([Change(each.record.vm_id, each.rev, each.record, check_in_ms=0) for each in found])

    def _counted(self) -> tuple[int, int]:
        """How many checks the worker has made so far, and how many of them failed."""
        connection = http.client.HTTPConnection("127.0.0.1", self._fleet.worker_port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise NotReady(f"the worker did not show its metrics: {error}") from error
        finally:
            connection.close()
        checks, failed = (round(counted(text, name)) for name in _METRICS)
        return checks, failed

    # Deaths

    def deaths(self) -> Deaths:
        """Before each, the same VMM is started alone, so that what disturbs one disturbs the other."""
        launch = self._fleet.driver.launch(self._spec_alone())
        alone, results = [], []
        for number in self._each(self._extent.deaths, "deaths"):
            alone.append(self._start_alone(launch, number))
            results.append(self._hit(Fault.SIGKILL, number))
        return Deaths(results, alone)

    def _each(self, times: int, what: str) -> Iterator[int]:
        for number in range(times):
            self._screen.progress(f"{what}: {number + 1} of {times}")
            yield number

    def _hit(self, fault: Fault, number: int) -> Result:
        vm_id = self._fleet.vm_ids[number % self._vms]
        return self._session.hit(Step(fault, vm_id), vm_id)

    def _spec_alone(self) -> VmSpec:
        cast = self._fleet.cast
        return spec_from({"id": _ALONE, "host": _ALONE, "driver": cast.driver, **cast.spec})

    def _start_alone(self, launch: Launch, number: int) -> float:
        """Below the folder of the fleet, so that whatever becomes of us, it ends with that."""
        run = Run(_ALONE, number, self._fleet.home.state / "alone" / str(number))
        run.path.mkdir(parents=True)
        began = time.monotonic()
        child = subprocess.Popen(
            launch.argv,
            cwd=run.path,
            # Or the worker would take it for a stray of its own host.
            env={"PATH": os.defpath, HOST_VARIABLE: _ALONE, **launch.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._bring_up(child.pid, run, began)
            return time.monotonic() - began
        finally:
            child.kill()
            child.wait()

    def _bring_up(self, pid: int, run: Run, began: float) -> None:
        process = incarnation_of(pid, read_vantage(self._fleet.home.state))
        if process is None:
            raise NotReady("a VMM that was started alone ended at once")
        pidfd = os.pidfd_open(pid)
        try:
            NewVmm(
                self._fleet.driver,
                self._spec_alone(),
                run,
                process,
                pidfd,
                deadline=began + _START_S,
                while_waiting=lambda: None,
            ).bring_up()
        finally:
            os.close(pidfd)

    # Hangs

    def hangs(self) -> Hangs:
        self._screen.progress("hangs: beginning")
        self._begin({**SHORT, "storm.at_least": "100000"})
        within = known_within(Fault.SIGSTOP, self._fleet.settings)
        if within is None:
            raise NotReady("the settings promise nothing for a hang")
        results = [self._hit(Fault.SIGSTOP, number) for number in self._each(self._extent.hangs, "hangs")]
        return Hangs(results, within)

    # What it used

    def _usage_of(self, seconds: float) -> Usage:
        vmms = [vmm.pid for found in pids(self._fleet.home).values() for vmm in found]
        roles = self._pids()
        before = look(roles, vmms)
        self._rest(seconds)
        return look(roles, vmms).since(before)

    def _pids(self) -> dict[str, int]:
        processes = self._fleet.processes
        return {"worker": processes.pid(WORKER), "beat": processes.pid(BEAT), "redis": self._fleet.server.pid}

    def _rest(self, seconds: float) -> None:
        self._session.until(lambda: None, seconds)


def counted(text: str, name: str) -> float:
    """Add up the series of a metric in the text that Prometheus reads."""
    rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(value) for _, _, value in rows)
