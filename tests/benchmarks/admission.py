"""Benchmark of one admission: lease, slots, breakers and attempt taken together, at a steady pace of recoveries.

Prints, for several states of the fleet, what an admission takes beside a bare PING and a script that does nothing, all
measured in turns on the same connection; how to read it stands in README.md.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.commandline import Options, end
from tests.benchmarks.figures import Figure, document, table, write
from tests.benchmarks.measures import at_share, cpu_of, goal, machine_busy
from tests.benchmarks.stage import HOST, Stage, ended_by_signals, say, stage
from tests.support.fakes import FakeMemory
from workers.bootstrap import Fleet, crash_policy, recovery_policy, redis_client
from workers.domain.audit import Event
from workers.domain.breaker import Call, Result, calls_of
from workers.domain.epoch import Known
from workers.domain.recovery import WakeUp, admit, lose, succeed
from workers.domain.storm import Loss
from workers.domain.vm import Reason, State, VmRecord
from workers.host.identity import incarnation_of, read_vantage
from workers.ports import Change, Lease, Outcome, Take, Written
from workers.services.health import chunks
from workers.specs import spec_from
from workers.store.hosts import HostRegistry, HostWorker

_PER_HOST, _PER_FLEET = 8, 64
_VMS = 100  # beside those that wait
_WARM_UP = 50
_PARTS = 4  # of what was measured, to see how much it varies
_SERVER_SAMPLE = 10
_BATCH = 200
_A_DAY_MS = 86_400_000
_DRIVER, _IMAGE = "firecracker@1.17.0", "/images/vmlinux"
ADMISSION, PING, TRIVIAL, END = "admission", "PING", "empty script", "end of one"
_OPERATIONS = (ADMISSION, PING, TRIVIAL, END)


@dataclass(frozen=True, slots=True)
class World:
    """A state of the fleet. `lost`: VMs lost at once; `windows`: what each breaker has counted; `storm`: or is none.

    `kind` is the name without numbers.
    """

    name: str
    kind: str
    lost: int = 0
    windows: int = 0
    storm: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    seconds: float
    rate: float
    many: int

    @property
    def worlds(self) -> list[World]:
        many = self.many
        return [
            World("nobody waits", "nobody waits"),
            World(f"{many} wait", "many wait", lost=many + _PER_HOST),
            World(f"breakers saw {many}", "full windows", windows=many),
            World(
                f"storm, {many} wait, breakers saw {many}", "all that in a storm", many + _PER_HOST, many, storm=True
            ),
        ]


@dataclass(slots=True)
class Took:
    """What single operations took, in ms; `server_ms` of some admissions, as the server counts it.

    `worked_ms` leaves out for how long we and the server waited for a processor that others had.
    """

    ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _OPERATIONS})
    worked_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _OPERATIONS})
    server_ms: list[float] = field(default_factory=list)
    round_trips: set[int] = field(default_factory=set)
    bytes_sent: list[int] = field(default_factory=list)
    line: int = 0
    seconds: float = 0.0
    others: float = 0.0


class Counting(redis.Connection):
    """Counts requests that are sent, each of which waits for its answer."""

    requests = bytes_sent = 0

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:  # noqa: FBT001, FBT002 - redis-py's
        Counting.requests += 1
        Counting.bytes_sent += sum(map(len, command))
        return super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call, unused-ignore] # redis-py is half typed


class Subject:
    """The store as the worker of this host has it, and a fleet in it as `world` describes it."""

    def __init__(self, on: Stage, world: World, number: int) -> None:
        limits = {
            "recovery__per_host": str(_PER_HOST),
            "recovery__per_fleet": str(_PER_FLEET),
            "worker__concurrency": str(2 * _PER_HOST),
        }
        settings = on.settings(redis__prefix=f"rel{number}", **limits)
        self.client, self._world = redis_client(settings), world
        self.client.connection_pool.connection_class = Counting
        memory = FakeMemory()
        fleet = Fleet(settings, self.client, memory=memory)
        self.store, self._policy, self._crash = fleet.store, recovery_policy(settings), crash_policy(settings)
        begun = fleet.data.begin(None)
        memory.trust(Known(begun.epoch or "", begun.last_event))
        process = incarnation_of(os.getpid(), read_vantage(on.folder / "state"))
        if process is None:
            raise RuntimeError("/proc does not show this process")
        self._process = process
        HostRegistry(self.client, prefix=settings.redis.prefix).hold(
            HostWorker("bench", HOST, process, 0, "0"), ttl_ms=_A_DAY_MS
        )
        self._known: dict[str, tuple[int, VmRecord]] = {}
        self._free, self._called, self._in_flight = deque[str](), deque[str](), deque[str]()

    def prepare(self) -> None:
        names = [f"bench-{number:05d}" for number in range(self._world.lost + _VMS)]
        for part in chunks(names, _BATCH):
            records = [VmRecord(name, HOST, "firecracker", state=State.HEALTHY, process=self._process) for name in part]
            self._put([Change(record.vm_id, 0, record, spec=_spec(record.vm_id)) for record in records])
        for number in range(self._world.windows):
            self._fill_windows(names[0], number)
        waiting = names[: self._world.lost]
        self._free.extend(names[self._world.lost :])
        for part in chunks(waiting, _BATCH):
            self._put([self._loss(vm_id) for vm_id in part])
        # A storm lowers the caps of the host, and of the fleet, until one slot-full of each has come back.
        for _ in range(2 * _PER_FLEET if self._world.storm else 0):
            self._go_on()
        if self._world.lost:
            self._go_on()
        while len(self._in_flight) < _PER_HOST - 1:
            self.lose_another()
            self.admit(self.next_admission())

    def _go_on(self) -> None:
        while self._called:
            self.admit(self.next_admission())
        self.end()
        self.lose_another()

    def _fill_windows(self, vm_id: str, number: int) -> None:
        """An attempt that ended, of another VM, image and host in each scope; one in three without success."""
        calls = tuple(Call(call.scope, tuple(f"{c}-{number}" for c in call.children)) for call in _calls(vm_id))
        rev, record = self._known[vm_id]
        result = Result.SUCCESS if number % 3 else Result.FAILURE
        self._put([Change(vm_id, rev, record, take=Take("filler", self._policy.lease_ms, calls))])
        held = Lease("filler", record.generation)
        self._put([Change(vm_id, rev + 1, record, held_by=held, release=True, result=result)])

    def lose_another(self) -> None:
        """One more VM is lost: it waits, or is called at once where nobody does."""
        self._put([self._loss(self._free.popleft())])

    def _loss(self, vm_id: str) -> Change:
        rev, record = self._known[vm_id]
        why, now_ms = "its process has ended", time.time_ns() // 1_000_000
        after, events = lose(
            replace(record, episode=None),
            State.ORPHANED,
            Reason.PROCESS_DEAD,
            why=why,
            actor="watcher",
            now_ms=now_ms,
            crash=self._crash,
        )
        loss = Loss.CERTAIN if self._world.storm else None
        return Change(vm_id, rev, after, events, enlist=True, loss=loss)

    def next_admission(self) -> Change:
        """As `workers.services.recovery` asks for it."""
        vm_id = self._called.popleft()
        rev, record = self._known[vm_id]
        after, started = admit(record, WakeUp(), self._policy, now_us=time.time_ns() // 1000)
        return Change(vm_id, rev, after, (started,), take=Take(vm_id, self._policy.lease_ms, _calls(vm_id)))

    def admit(self, change: Change) -> None:
        self.follow([change], self.store.write([change]))
        self._in_flight.append(change.vm_id)

    def end(self) -> None:
        """The oldest attempt has brought its VM back."""
        vm_id = self._in_flight.popleft()
        change = self._end_of(vm_id)
        self._put([change])
        self._free.append(vm_id)

    def _end_of(self, vm_id: str) -> Change:
        rev, record = self._known[vm_id]
        after, event = succeed(record, self._process, why="it serves", now_ms=time.time_ns() // 1_000_000)
        events: tuple[Event, ...] = (event,)
        held = Lease(vm_id, record.generation)
        return Change(vm_id, rev, after, events, 0, held_by=held, release=True, result=Result.SUCCESS)

    def _put(self, changes: Sequence[Change]) -> None:
        self.follow(changes, self.store.write(changes))

    def follow(self, changes: Sequence[Change], written: Written) -> None:
        if any(outcome is not Outcome.DONE for outcome in written.outcomes):
            raise RuntimeError(f"not written: {written.outcomes}")
        for change in changes:
            if change.after is not None:
                self._known[change.vm_id] = change.rev + 1, change.after
        self._called.extend(called.vm_id for called in written.called)

    def waiting(self) -> int:
        return self.client.zcard(self.store._keys.line(f"host:{HOST}"))


def _spec(vm_id: str) -> Any:
    return spec_from({"id": vm_id, "host": HOST, "driver": "firecracker", "kernel": _IMAGE})


def _calls(vm_id: str) -> tuple[Call, ...]:
    return calls_of(vm_id, host=HOST, image=_IMAGE, driver=_DRIVER)


def measure(subject: Subject, plan: Plan, server: int) -> Took:
    """Each operation comes after a rest, as in a worker that is not hurried, and none always comes first."""
    took, period = Took(), 1 / plan.rate
    trivial = subject.client.register_script("return 1")
    others: list[tuple[str, Callable[[], Any]]]
    others = [(PING, subject.client.ping), (TRIVIAL, trivial), (END, subject.end)]
    rounds = _WARM_UP + round(plan.seconds * plan.rate)
    began = time.monotonic()
    for number in range(rounds):
        if number == _WARM_UP:
            took, spent, measured = Took(), _spent(server), time.monotonic()
        at = began + number * period
        subject.lose_another()
        change = subject.next_admission()
        _sleep_until(at)
        _admit(subject, change, took, server, is_sampled=number % _SERVER_SAMPLE == 0)
        for part, (name, work) in enumerate(others, start=1):
            _sleep_until(at + part * period / 4)
            _time(name, work, took, server)
    took.seconds = time.monotonic() - measured
    ours, machine = (after - before for after, before in zip(_spent(server), spent, strict=True))
    took.others = max(0.0, machine - ours) / (took.seconds * (os.cpu_count() or 1))
    took.line = subject.waiting()
    return took


def _admit(subject: Subject, change: Change, took: Took, server: int, *, is_sampled: bool) -> None:
    if is_sampled:
        took.server_ms.append(_in_server(subject, lambda: subject.admit(change)))
        return
    requests, sent = Counting.requests, Counting.bytes_sent
    _time(ADMISSION, lambda: subject.admit(change), took, server)
    took.round_trips.add(Counting.requests - requests)
    took.bytes_sent.append(Counting.bytes_sent - sent)


def _in_server(subject: Subject, work: Callable[[], None]) -> float:
    """What the server says that its part took; asking for it disturbs, so this one is not timed here."""

    def so_far() -> float:
        return float(subject.client.info("commandstats")["cmdstat_evalsha"]["usec"])

    before = so_far()
    work()
    return (so_far() - before) / 1000


def _time(name: str, work: Callable[[], Any], took: Took, server: int) -> None:
    waited, began = _waited_ns(server), time.perf_counter_ns()
    work()
    spent = time.perf_counter_ns() - began
    took.ms[name].append(spent / 1e6)
    took.worked_ms[name].append((spent - (_waited_ns(server) - waited)) / 1e6)


def _waited_ns(server: int) -> int:
    """How long this thread and the server's have waited for a processor so far."""
    threads = ("thread-self", f"{server}/task/{server}")
    return sum(int(Path(f"/proc/{thread}/schedstat").read_text(encoding="ascii").split()[1]) for thread in threads)


def _spent(server: int) -> tuple[float, float]:
    return time.process_time() + cpu_of(server), machine_busy()


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _shares(values: Sequence[float]) -> str:
    return f"{at_share(values, 0.5):9.3f}{at_share(values, 0.99):9.3f}{max(values):9.3f}"


def report(found: dict[str, Took], plan: Plan) -> str:
    lines = [f"{plan.rate:g} recoveries/s for {plan.seconds:g} s in each state, {os.cpu_count()} processors"]
    for name, took in found.items():
        lines += ["", f"{name} ({took.line} in line; others {took.others:.0%} of the machine)", *_rows(took)]
    return "\n".join([*lines, "", *_goals(found), "", table(list(figures(found, plan)))])


def figures(found: dict[str, Took], plan: Plan) -> Iterator[Figure]:
    for world in plan.worlds:
        took, kind = found[world.name], world.kind
        for bare in (TRIVIAL, PING):
            yield Figure(f"admission over {bare}, {kind}", "ratio", list(_ratios(took, bare)))
        yield Figure(f"admission, {kind}", "ms", took.ms[ADMISSION])
        yield Figure(f"admission, p99, {kind}", "ms", [at_share(took.ms[ADMISSION], 0.99)], limit=2)
        worked = at_share(took.worked_ms[ADMISSION], 0.99)
        yield Figure(f"admission, p99 less waits for a processor, {kind}", "ms", [worked], limit=2)
    yield Figure("admission", "round trips", [max(max(took.round_trips) for took in found.values())], limit=1)


def _ratios(took: Took, bare: str) -> Iterator[float]:
    """Of the medians, in each part of the time."""
    for admission, other in zip(_medians(took.ms[ADMISSION]), _medians(took.ms[bare]), strict=True):
        yield admission / other


def _medians(values: Sequence[float]) -> Iterator[float]:
    ends = [len(values) * part // _PARTS for part in range(_PARTS + 1)]
    return (statistics.median(values[start:end]) for start, end in pairwise(ends))


def _rows(took: Took) -> Iterator[str]:
    yield f"  {'':14}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}   less waits for a processor: p50, p99, max"
    for name, values in took.ms.items():
        yield f"  {name:14}{_shares(values)}   {_shares(took.worked_ms[name])}"
    p50 = {name: at_share(values, 0.5) for name, values in took.ms.items()}
    p99 = {name: at_share(values, 0.99) for name, values in took.ms.items()}
    for bare in (PING, TRIVIAL):
        yield f"  admission / {bare}: p50 {p50[ADMISSION] / p50[bare]:.1f}, p99 {p99[ADMISSION] / p99[bare]:.1f}"
    trips = ", ".join(map(str, sorted(took.round_trips)))
    yield (
        f"  of it in the server {statistics.median(took.server_ms):.3f} ms; {trips} round trip of "
        f"{statistics.median(took.bytes_sent):.0f} bytes"
    )


def _goals(found: dict[str, Took]) -> Iterator[str]:
    for name, took in found.items():
        yield goal(f"p99 of an admission, ms: {name}", at_share(took.ms[ADMISSION], 0.99), 2)
        worked = at_share(took.worked_ms[ADMISSION], 0.99)
        yield goal("  without what it waited for a processor", worked, 2)
    yield goal("round trips of an admission", max(max(took.round_trips) for took in found.values()), 1)


def main() -> int:
    plan, out = _arguments()
    found: dict[str, Took] = {}
    with ended_by_signals(), stage() as on:
        for number, world in enumerate(plan.worlds):
            say(f"{world.name} …")
            subject = Subject(on, world, number)
            subject.prepare()
            found[world.name] = measure(subject, plan, on.server.pid)
            subject.client.close()
    print(report(found, plan))
    if out:
        plain = {name: asdict(took) | {"round_trips": sorted(took.round_trips)} for name, took in found.items()}
        write(out, document("admission", list(figures(found, plan)), states=plain))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)
    parser.number("--seconds", 20.0, "how long each state is measured")
    parser.number("--rate", 50.0, "admissions per second")
    parser.number("--many", 1000, "how many wait, and are counted by a breaker")
    parser.json("every single figure")
    given = parser.parse_args()
    return Plan(given.seconds, given.rate, given.many), given.json


if __name__ == "__main__":
    end(main)
