"""The play itself: wait until all VMs are healthy, inject one fault after the other, watch each until it is mended."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from workers.demo.faults import Faults, NotInjected
from workers.demo.fleet import DemoFleet
from workers.demo.interrupts import Interrupts
from workers.demo.outside import pids, serves
from workers.demo.plan import Fault, Step
from workers.demo.processes import WORKER
from workers.demo.report import Report, Result, read_samples, touched
from workers.demo.screen import Screen, View
from workers.demo.timeline import Seen
from workers.demo.words import fault_line
from workers.domain.audit import EventKind
from workers.domain.errors import StoreUnavailable
from workers.domain.vm import State, VmRecord
from workers.ports import Stored

T = TypeVar("T")

_BOOT_S = 60.0
_FAULT_S = 40.0
_TICK_S = 0.05
_REDIS_AWAY_S = 1.0
_KNOWN = frozenset({State.UNHEALTHY, State.ORPHANED})


class NotReady(RuntimeError):
    """The fleet did not come up; the text says how far it came."""


@dataclass(slots=True)
class _Comeback:
    """`was_denied`: the product said that the VM serves, and the first look from outside did not confirm it."""

    before: VmRecord
    was_denied: bool = False


@dataclass(frozen=True, slots=True)
class _Ending:
    recovered_s: float | None
    problem: str | None = None


class Session:
    def __init__(self, fleet: DemoFleet, interrupts: Interrupts, screen: Screen) -> None:
        self._fleet, self._interrupts, self._screen = fleet, interrupts, screen
        self._faults = Faults(fleet)
        self._now, self._now_since = "", 0.0
        self._title = f"{len(fleet.vm_ids)} VMs"
        self.ended: list[str] = []
        self._redis_may_be_away = False
        self._results: list[Result] = []
        self._calm_since: tuple[int, float] = (0, 0.0)

    def until_healthy(self) -> float:
        """Return the seconds it took. Raises NotReady, Interrupted."""
        began = time.monotonic()
        wanted = len(self._fleet.vm_ids)
        limit_s = _BOOT_S + wanted * self._fleet.cast.seconds_per_start
        if not self.until(lambda: self._healthy() == wanted, limit_s):
            raise NotReady(f"{self._healthy()} of {wanted} VMs were healthy after {limit_s:.0f} s")
        return time.monotonic() - began

    def _healthy(self) -> int:
        healthy = self._fleet.records.store.counts().get(State.HEALTHY, 0)
        self._screen.progress(f"{healthy} of {len(self._fleet.vm_ids)} VMs healthy")
        return healthy

    def until_flower_answers(self, answers: Callable[[], bool]) -> bool:
        self._screen.progress("Flower is starting")
        return bool(self.until(answers, _BOOT_S, every_s=0.2))

    def play(self, steps: Sequence[Step]) -> Report:
        """Raises Interrupted."""
        self._calm_since = (self._fleet.timeline.length, time.time())
        width = max(len(step.target) for step in steps)
        for number, step in enumerate(steps, start=1):
            self._now = f"fault {number} of {len(steps)}: {step.target} {step.fault.label}"
            self._now_since = time.time()
            result = self._play(step)
            self._results.append(result)
            self._screen.result(f"{number:>2}/{len(steps)}  {fault_line(result, width)}")
        self._now = ""
        return self._report()

    def _report(self) -> Report:
        given_up = {result.step.vm_id for result in self._results if not result.is_recovered}
        lost = [vm_id for vm_id in self._not_serving() if vm_id not in given_up]
        self._fleet.sampler.stop()
        position, since_s = self._calm_since
        samples = read_samples(self._fleet.home.samples.read_text().splitlines())
        events = self._fleet.timeline.since(position)
        return Report(
            vms=len(self._fleet.vm_ids),
            results=self._results,
            touched=touched(self._results, events, samples, since_s),
            samples=samples,
            ended=self.ended,
            lost=lost,
        )

    def _not_serving(self) -> list[str]:
        """At the end every VM has to have one process, that of its record, and that has to answer."""
        alive = pids(self._fleet.home)
        return [
            vm_id
            for vm_id, stored in self._records().items()
            if [vmm.pid for vmm in alive.get(vm_id, [])] != [self._answering_pid(stored.record)]
        ]

    def _play(self, step: Step) -> Result:
        match step.fault:
            case Fault.WORKER_KILLED:
                return self._kill_worker(step)
            case Fault.REDIS_KILLED:
                return self._kill_redis(step)
            case _:
                return self.hit(step, step.vm_id or "")

    # One VM

    def hit(self, step: Step, vm_id: str) -> Result:
        """Do the fault to a VM that is well, and watch it until it serves again. Raises Interrupted."""
        record = self.until(lambda: self._rested(vm_id), _FAULT_S)
        if record is None:
            return Result(step, time.time(), None, None, problem="it was not healthy before the fault")
        position = self._fleet.timeline.length
        try:
            injected_s = self._faults.inject(step, record)
        except (NotInjected, OSError) as error:
            return Result(step, time.time(), None, None, problem=f"not injected: {error}")
        comeback = _Comeback(record)
        ending = self.until(lambda: self._ending(comeback, position), _FAULT_S)
        self._faults.tidy(vm_id)
        return self._outcome(step, position, injected_s, ending or _Ending(None, f"not serving after {_FAULT_S:.0f} s"))

    def _rested(self, vm_id: str) -> VmRecord | None:
        """Healthy for so long that its next loss is a new one."""
        snapshot = self._fleet.records.store.read([vm_id])
        record = snapshot.found[vm_id].record
        stable_ms = self._fleet.settings.recovery.stable_period.total_seconds() * 1000
        rested = record.episode is None or snapshot.now_ms - record.episode.ended_ms > stable_ms
        return record if record.state is State.HEALTHY and rested else None

    def _ending(self, comeback: _Comeback, position: int) -> _Ending | None:
        """The VM serves again: the product says so, and a look from outside finds a new process that answers."""
        before = comeback.before
        told = [seen for seen in self._about(before.vm_id, position) if seen.event.after is not None]
        last = told[-1] if told else None
        if last is None or last.event.after not in (State.HEALTHY, State.FAILED):
            return None
        if last.event.after is State.FAILED:
            return _Ending(None, last.event.why)
        record = self._records([before.vm_id])[before.vm_id].record
        if record.process != before.process and self._answering_pid(record) is not None:
            return _Ending(time.time() if comeback.was_denied else last.at_s)
        comeback.was_denied = True
        return None

    def _answering_pid(self, record: VmRecord) -> int | None:
        if record.process is None:
            return None
        pid = serves(self._fleet.driver, record.vm_id, self._fleet.socket_of(record))
        return pid if pid == record.process.pid else None

    def _about(self, vm_id: str, position: int) -> list[Seen]:
        return [seen for seen in self._fleet.timeline.since(position) if seen.event.vm_id == vm_id]

    def _outcome(self, step: Step, position: int, injected_s: float, ending: _Ending) -> Result:
        events = self._about(step.vm_id or "", position)
        known = next((seen for seen in events if seen.event.after in _KNOWN), None)
        reason = known.event.reason if known else None
        return Result(
            step,
            injected_s,
            detected_s=known.at_s if known else None,
            recovered_s=ending.recovered_s,
            reason=str(reason) if reason else None,
            attempts=sum(seen.event.kind is EventKind.ATTEMPT_STARTED for seen in events),
            problem=ending.problem,
        )

    # What looks after the VMs

    def _kill_worker(self, step: Step) -> Result:
        def restart() -> str:
            self._fleet.processes.start(WORKER)
            return "restarted, as systemd would"

        return self._strike(step, lambda: self._fleet.processes.kill(WORKER), restart)

    def _kill_redis(self, step: Step) -> Result:
        def kill() -> None:
            self._redis_may_be_away = True
            self._fleet.server.kill()

        def restart() -> str:
            self.until(lambda: None, _REDIS_AWAY_S)
            self._fleet.server.start()
            self._redis_may_be_away = False
            return f"back after {_REDIS_AWAY_S:.0f} s"

        return self._strike(step, kill, restart)

    def _strike(self, step: Step, kill: Callable[[], None], restart: Callable[[], str]) -> Result:
        """It is recovered when every VM was checked again, and each still has the process that it had before."""
        healthy = [vm_id for vm_id, stored in self._records().items() if stored.record.state is State.HEALTHY]
        before, injected_s = pids(self._fleet.home), time.time()
        kill()
        noticed_s = time.time()
        note, back_s = restart(), time.time()
        recovered_s = self.until(lambda: self.checked_since(back_s, healthy), _FAULT_S)
        problem = None if recovered_s else f"not all VMs were checked again after {_FAULT_S:.0f} s"
        if pids(self._fleet.home) != before:
            problem = "the VMs' processes are not the same as before"
        return Result(step, injected_s, noticed_s, recovered_s, problem=problem, note=note)

    def checked_since(self, since_s: float, vm_ids: Collection[str]) -> float | None:
        """Return the time when all of these are healthy, and were looked at since then."""
        for stored in self._records(vm_ids).values():
            if stored.record.state is not State.HEALTHY or (stored.checked_ms or 0) <= since_s * 1000:
                return None
        return time.time()

    # Waiting

    def _records(self, vm_ids: Collection[str] | None = None) -> Mapping[str, Stored]:
        return self._fleet.records.store.read(self._fleet.vm_ids if vm_ids is None else vm_ids).found

    def until(self, condition: Callable[[], T | None], timeout_s: float, *, every_s: float = _TICK_S) -> T | None:
        """Ask at each event, and at least every `every_s`, until the answer is true; None when time is up.

        Raises Interrupted.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self._interrupts.check()
            position = self._fleet.timeline.length
            with contextlib.suppress(StoreUnavailable):
                if answer := condition():
                    return answer
            self._look_after()
            self._screen.paint(self._view)
            if time.monotonic() >= deadline:
                return None
            self._fleet.timeline.wait(position, every_s)

    def _look_after(self) -> None:
        for ended in self._fleet.start_again():
            self.ended.append(str(ended))
            self._screen.say(f"{ended}, started again", style="bold red")
        if not (self._redis_may_be_away or self._fleet.server.is_running):
            self.ended.append("redis ended by itself")
            self._screen.say("redis ended by itself, started again", style="bold red")
            self._fleet.server.start()

    def _view(self) -> View:
        states: dict[str, str] | None = None
        with contextlib.suppress(StoreUnavailable):
            states = {vm_id: str(stored.record.state) for vm_id, stored in self._records().items()}
        now = f"{self._now}, {time.time() - self._now_since:.1f} s" if self._now else ""
        return View(self._title, states, now)

    def keep(self) -> None:
        """Show what happens until somebody ends it. Raises Interrupted."""
        self._screen.progress("until Ctrl-C")
        told = self._fleet.timeline.length
        while True:
            self.until(lambda: None, _TICK_S)
            for seen in self._fleet.timeline.since(told):
                told += 1
                if seen.event.after is not None:
                    self._screen.say(f"{seen.event.vm_id} {seen.event.after}: {seen.event.why}")

    def last_events(self, vm_id: str | None, most: int = 6) -> Iterator[str]:
        for seen in self._about(vm_id or "", 0)[-most:]:
            clock = time.strftime("%H:%M:%S", time.localtime(seen.at_s))
            yield f"{clock} {seen.event.kind} {seen.event.after or ''} {seen.event.why}"

    def somebody(self) -> tuple[str, int]:
        """Return a VM and its pid, to play with."""
        return next(
            (vm_id, stored.record.process.pid) for vm_id, stored in self._records().items() if stored.record.process
        )
