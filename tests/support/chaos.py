"""What every fault has to leave behind: each VM running once, losses that add up, and nothing leaked.

An arena is a cluster that is watched from outside, by the sampler's look at /proc, and whose audit is read as an
operator would. It injects nothing itself.
"""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cluster import Cluster, cluster, kill
from tests.support.hosts import holders
from tests.support.processes import RunningProcess, wait_until
from workers.bootstrap import drivers
from workers.demo.outside import serves
from workers.demo.processes import SamplerProcess
from workers.demo.sampler import vmms_below
from workers.demo.timeline import Seen, Timeline
from workers.domain.errors import StoreUnavailable
from workers.domain.vm import Desired, State, VmRecord
from workers.embedded import EmbeddedServer
from workers.host.rundir import GENERATIONS_KEPT

SHORT = {
    "RECOVERY__LEASE": "1500ms",
    "WORKER__HOST_LEASE": "1s",
    "RECOVERY__DETECTION_INTERVAL": "1s",
    "HEALTH_CHECK__FAILING_INTERVAL": "100ms",
}
_SETTLED_S = 60.0
# Beside a pidfd per VM: connections that pools keep, and probes under way. A worker at rest has some 30.
_SPARE_FDS = 96
_KNOWN_KEY = re.compile(
    r"rel:(vm:[a-z0-9-]+|vms|in:[a-z]+|of:[a-z0-9-]+|forgotten|due|slots:.+|line:.+|storm:.+|losses:[a-z]+:.+|"
    r"breaker:.+|breakers|server|epoch|epochs|halted|counts|budget:[a-z0-9-]+|events|host:[a-z0-9-]+|hosts|"
    r"strays:[a-z0-9-]+|unreadable:[a-z0-9-]+)"
)
_MUST_BE_GONE = ("rel:slots:", "rel:line:")
_WELL = frozenset({State.HEALTHY, State.DEGRADED, State.UNKNOWN})
_LOST = frozenset({State.UNHEALTHY, State.ORPHANED})
_END_OF = {State.HEALTHY: "recovered", State.FAILED: "failed", State.STOPPED: "withdrawn"}


@dataclass
class Tally:
    """One line of the table: `times` that the fault was injected, `losses` of VMs under it, what became of them."""

    fault: str
    times: int = 0
    losses: int = 0
    detected: int = 0
    recovered: int = 0
    failed: int = 0
    withdrawn: int = 0
    doubled: int = 0
    lost: int = 0


TALLIES: list[Tally] = []


def tally_of(fault: str) -> Tally:
    """The line of this fault, which several tests may share."""
    for tally in TALLIES:
        if tally.fault == fault:
            return tally
    TALLIES.append(Tally(fault))
    return TALLIES[-1]


@dataclass
class Arena:
    site: Cluster
    samples: Path
    timeline: Timeline
    _losses: Counter[str] = field(default_factory=Counter)
    _counted: int = 0

    def injure(self, vm_id: str, how: Callable[[VmRecord], None]) -> VmRecord:
        """Do to a healthy VM what makes it lost; returns its record from before."""
        before = self.site.record(vm_id)
        self.hurt_unseen(before, how)
        return before

    def hurt_unseen(self, before: VmRecord, how: Callable[[VmRecord], None]) -> None:
        """The same while Redis is away: the record has to be known already."""
        self._losses[before.vm_id] += 1
        how(before)

    def account(self, fault: str, *, times: int = 1, worker: RunningProcess | None = None) -> None:
        """Wait until nothing is left to be done, then add this to the table and check that it adds up.

        Losses are those since the last account.
        """
        wait_until(self._are_known, timeout_s=_SETTLED_S, what=f"all losses to be known: {self._losses}")
        wait_until(self._is_settled, timeout_s=_SETTLED_S, what="every VM to be where it should be")
        wait_until(self._is_told, what="the audit to be read")
        losses = list(losses_in(self._news()))
        detected, ends = Counter(vm_id for vm_id, _ in losses), Counter(end for _, end in losses)
        self._counted = self.timeline.length
        tally = tally_of(fault)
        tally.times += times
        tally.losses += self._losses.total()
        tally.detected += detected.total()
        for end in _END_OF.values():
            setattr(tally, end, getattr(tally, end) + ends[end])
        doubled, lost = self._doubled(), self._lost()
        tally.doubled += len(doubled)
        tally.lost += len(lost)

        assert detected == self._losses
        assert ends.total() == self._losses.total(), f"not all ended: {losses}"
        assert doubled == {}
        assert lost == []
        self._losses.clear()
        self._check_processes()
        self._check_keys()
        self._check_files()
        if worker is not None:
            wait_until(lambda: self._fds_fit(worker.pid), what=f"the descriptors of the worker, {fds_of(worker.pid)}")

    def _records(self) -> dict[str, VmRecord]:
        store = self.site.fleet.store
        return {vm_id: stored.record for vm_id, stored in store.read(store.ids()).found.items()}

    def _is_settled(self) -> bool:
        try:
            store = self.site.fleet.store
            found = store.read(store.ids()).found.values()
        except StoreUnavailable:
            return False
        live = Counter(vm_id for _, vm_id in holders(self.site.locks))
        return all(
            not stored.leased and not stored.waits_for and not stored.is_called and _rests(stored.record, live)
            for stored in found
        )

    def _is_told(self) -> bool:
        seen = self.timeline.since(0)
        return (seen[-1].id if seen else "0-0") == self.site.fleet.events.last_id()

    def _news(self) -> list[Seen]:
        return list(self.timeline.since(self._counted))

    def _are_known(self) -> bool:
        return Counter(vm_id for vm_id, _ in losses_in(self._news())) >= self._losses

    def _doubled(self) -> dict[str, list[int]]:
        lines = [json.loads(line) for line in self.samples.read_text().splitlines()]
        return {line["doubled"]: line["pids"] for line in lines if "doubled" in line}

    def _lost(self) -> list[str]:
        """VMs that should serve, and whose one process does not answer for them."""
        driver = drivers(self.site.fleet.settings)["firecracker"]
        return [
            record.vm_id
            for record in self._records().values()
            if record.state is State.HEALTHY
            and (record.process is None or serves(driver, record.vm_id, self.site.socket(record)) != record.process.pid)
        ]

    def _check_processes(self) -> None:
        """What runs is what the records say, also by its command line."""
        named = sorted(
            record.process.pid for record in self._records().values() if _should_run(record) and record.process
        )
        assert sorted(pid for pid, _ in holders(self.site.locks)) == named
        assert sorted(vmm.pid for vmm in vmms_below(str(self.site.state_dir))) == named

    def _check_keys(self) -> None:
        keys = sorted(os.fsdecode(key) for key in self.site.fleet.store._client.keys("*"))
        assert [key for key in keys if not _KNOWN_KEY.fullmatch(key)] == []
        assert [key for key in keys if key.startswith(_MUST_BE_GONE)] == []

    def _check_files(self) -> None:
        wait_until(lambda: not [path for path in self._files() if path.suffix == ".new"], what="no half-written file")
        generations = Counter(path.parts[1] for path in self._files() if len(path.parts) == 3 and path.name.isdigit())
        # One more where the oldest could not be dropped, for want of descriptors: the next start drops it too.
        assert all(number <= GENERATIONS_KEPT + 1 for number in generations.values()), generations

    def _files(self) -> list[Path]:
        return [path.relative_to(self.site.state_dir) for path in self.site.state_dir.rglob("*")]

    def _fds_fit(self, pid: int) -> bool:
        fds = fds_of(pid)
        return fds["pidfd"] == len(holders(self.site.locks)) and fds.total() <= fds["pidfd"] + _SPARE_FDS


def _should_run(record: VmRecord) -> bool:
    return record.desired is Desired.RUNNING and record.state is not State.FAILED


def _rests(record: VmRecord, live: Counter[str]) -> bool:
    if record.desired is Desired.STOPPED:
        return record.state is State.STOPPED and live[record.vm_id] == 0
    if record.state is State.FAILED:
        return True
    return record.state is State.HEALTHY and live[record.vm_id] == 1


def losses_in(events: list[Seen]) -> Iterator[tuple[str, str]]:
    """Yield (vm id, how it ended) of each loss that the audit tells of; `open` for those that have not ended."""
    lost: set[str] = set()
    for seen in events:
        event = seen.event
        if event.before in _WELL and event.after in _LOST:
            lost.add(event.vm_id)
        elif event.vm_id in lost and event.after in _END_OF:
            lost.discard(event.vm_id)
            yield event.vm_id, _END_OF[event.after]
    for vm_id in lost:
        yield vm_id, "open"


def die(record: VmRecord) -> None:
    kill(record, signal.SIGKILL)


def hang(record: VmRecord) -> None:
    kill(record, signal.SIGSTOP)


def sweeps_pass(worker: RunningProcess, number: int = 2) -> None:
    """Wait so long that whatever could be done about a lost VM has had its chance."""
    said = 'event="orphan detection"'
    worker.wait_for_log(said, timeout_s=20, times=worker.log().count(said) + number)


def ask(crash_file: Path, what: str) -> None:
    """Have the worker of this file die, or get another signal, at a point (`workers.crashpoints`)."""
    made = crash_file.with_suffix(".made")
    made.write_text(what)
    made.rename(crash_file)


def fds_of(pid: int) -> Counter[str]:
    """Count the descriptors of a process by what they are."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        kinds["pidfd" if "pidfd" in target else target.partition(":")[0]] += 1
    return kinds


@contextmanager
def arena(folder: Path, server: EmbeddedServer, **extra: str) -> Iterator[Arena]:
    with cluster(folder, server, **(SHORT | extra)) as site:
        samples = folder / "samples"
        samples.touch()
        sampler, timeline = SamplerProcess(site.state_dir, samples), Timeline(site.fleet.events)
        sampler.start()
        timeline.start()
        try:
            yield Arena(site, samples, timeline)
        finally:
            # Shown by pytest when the test has failed.
            print(*(f"{seen.at_s:.3f} {seen.event}" for seen in timeline.since(0)), sep="\n")
            timeline.end()
            sampler.stop()
