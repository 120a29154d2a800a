"""What fleets of several sizes cost: the table, the figures that are compared, and the plot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.figures import Better, Figure, shown
from tests.benchmarks.fleet_server import ScriptTime, Work
from tests.benchmarks.plot import Line, Panel, chart

_MIB = 1 << 20
_LIMIT_PER_VM = 1024
_MOST_SCRIPTS = 9
# A window may begin and end anywhere in the interval.
_LEAST_MADE = 0.97
_ENOUGH, _TOO_LATE_S = 0.95, 2.0
# What DESIGN asks of one beat, at this many VMs.
_GOAL_VMS, _GOAL_INTERVAL_S = 100_000, 30.0


@dataclass(frozen=True, slots=True)
class Window:
    """Rates per second; CPU as a share of one core, `machine` of all of them. Pairs are p50 and p99."""

    server: Work
    beat_cpu: float
    hosts_cpu: float
    machine: float
    checks: float
    messages: float
    errors: int
    events: Mapping[str, int]
    ages_ms: tuple[float, float]
    lags_ms: tuple[float, float]
    hosts_late_ms: float


@dataclass(slots=True)
class Size:
    """What was found for one fleet."""

    vms: int
    hosts: int
    interval_s: float
    probe_s: float
    bytes_per_event: float = 0.0
    events_kept: int = 0
    empty_bytes: int = 0
    used_bytes: int = 0
    stream_bytes: int = 0
    oldest_check_s: float = 0.0
    windows: list[Window] = field(default_factory=list)
    scripts: dict[str, ScriptTime] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def due(self) -> float:
        return self.vms / self.interval_s

    @property
    def bytes_per_vm(self) -> float:
        """All keys, the audit apart, whose length the settings bound."""
        return (self.used_bytes - self.empty_bytes - self.stream_bytes) / self.vms

    @property
    def stream_mib(self) -> float:
        """What the audit takes when it is as long as it may get."""
        return self.bytes_per_event * self.events_kept / _MIB

    def middle(self, of: Callable[[Window], float]) -> float:
        return median(of(window) for window in self.windows)

    def count(self, event: str) -> int:
        return sum(window.events.get(event, 0) for window in self.windows)


def report(sizes: Sequence[Size]) -> str:
    rows = [[name, *(cell(size) for size in sizes)] for name, cell in _ROWS]
    notes = [note for size in sizes for note in _doubts(size)]
    return "\n".join([_aligned(rows), *notes, "", *_by_script(sizes[-1]), "", *_by_kind(sizes[-1])])


def _doubts(size: Size) -> Iterator[str]:
    """What the hosts left undone, Redis had not to do either: such figures are too low."""
    made, late_s = size.middle(lambda each: each.checks), size.middle(lambda each: each.hosts_late_ms) / 1000
    if made < _ENOUGH * size.due or late_s > _TOO_LATE_S:
        busy = _percent(size.middle(lambda each: each.machine))
        yield f"{size.vms:,} VMs: the simulated hosts did not keep up: these figures are too low, do not use them"
        yield f"  (heartbeats {late_s:.1f} s late, machine {busy} busy)"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _middle(of: Callable[[Window], float], form: Callable[[float], str] = shown) -> Callable[[Size], str]:
    return lambda size: form(size.middle(of))


def _pair(of: Callable[[Window], tuple[float, float]]) -> Callable[[Size], str]:
    return lambda size: f"{size.middle(lambda each: of(each)[0]):,.0f}, {size.middle(lambda each: of(each)[1]):,.0f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _kib(value: float) -> str:
    return shown(value / 1024)


_ROWS: Sequence[tuple[str, Callable[[Size], str]]] = (
    ("VMs", lambda size: f"{size.vms:,}"),
    ("hosts", lambda size: f"{size.hosts:,}"),
    ("checks due per s", lambda size: shown(size.due)),
    ("checks made per s", _middle(lambda each: each.checks)),
    ("oldest check, s", lambda size: shown(size.oldest_check_s)),
    ("Redis CPU, of one core", _middle(lambda each: each.server.cpu, _percent)),
    ("  in our scripts", _middle(lambda each: each.server.scripts, _percent)),
    ("  in commands of the broker", _middle(lambda each: each.server.broker, _percent)),
    ("  network, parsing, AOF, rest", _middle(lambda each: _rest(each.server), _percent)),
    ("requests per s", _middle(lambda each: each.server.requests)),
    ("commands per s, those in scripts too", _middle(lambda each: each.server.commands)),
    ("KiB/s to Redis", _middle(lambda each: each.server.bytes_in, _kib)),
    ("KiB/s from Redis", _middle(lambda each: each.server.bytes_out, _kib)),
    ("Redis bytes per VM, audit apart", lambda size: shown(size.bytes_per_vm)),
    ("Redis MiB for the fleet, audit apart", lambda size: shown(size.bytes_per_vm * size.vms / _MIB)),
    ("MiB of the audit when it is full", lambda size: shown(size.stream_mib)),
    ("beat CPU, of one core", _middle(lambda each: each.beat_cpu, _percent)),
    ("beat lag p50, p99, ms", _pair(lambda each: each.lags_ms)),
    ("messages per s", _middle(lambda each: each.messages)),
    ("age of messages p50, p99, ms", _pair(lambda each: each.ages_ms)),
    ("VMs recovered meanwhile", lambda size: str(size.count("recovered"))),
    ("simulated hosts' CPU, of one core", _middle(lambda each: each.hosts_cpu, _percent)),
    ("simulated hosts late p99, ms", _middle(lambda each: each.hosts_late_ms)),
    ("machine busy, of all cores", _middle(lambda each: each.machine, _percent)),
    ("probes not made here, of one core", lambda size: _percent(size.middle(lambda each: each.checks) * size.probe_s)),
    ("answers of Redis that came too late", lambda size: str(sum(each.errors for each in size.windows))),
)


def _rest(server: Work) -> float:
    return max(0.0, server.cpu - server.scripts - server.broker)


def _by_script(size: Size) -> Iterator[str]:
    yield f"{size.vms:,} VMs, scripts: calls per s, share of one core"
    for name, took in list(size.scripts.items())[:_MOST_SCRIPTS]:
        yield f"  {name:<40} {took.calls:>8,.1f}  {took.share:>6.1%}"


def _by_kind(size: Size) -> Iterator[str]:
    yield f"{size.vms:,} VMs, bytes per VM by kind of key (MEMORY USAGE; the table of all keys comes on top)"
    for kind, taken in size.kinds.items():
        if taken / size.vms >= 1:
            yield f"  {kind:<40} {taken / size.vms:>8,.0f}"


def found(sizes: Sequence[Size]) -> list[Figure]:
    """Those of the largest fleet, and what a VM costs there over what it costs in the smallest one."""
    least, most = sizes[0], sizes[-1]
    is_goal = most.vms == _GOAL_VMS and most.interval_s == _GOAL_INTERVAL_S
    windows = most.windows

    def values(of: Callable[[Window], float]) -> list[float]:
        return [of(window) for window in windows]

    def growth(of: Callable[[Window], float]) -> list[float]:
        before = least.middle(of) / least.vms
        return [of(window) / most.vms / before for window in windows]

    return [
        Figure(
            "checks made over due, largest fleet",
            "ratio",
            [v / most.due for v in values(lambda w: w.checks)],
            Better.HIGHER,
            _LEAST_MADE,
        ),
        Figure("beat CPU per VM, largest fleet over smallest", "ratio", growth(lambda w: w.beat_cpu), limit=1.5),
        Figure("Redis CPU per VM, largest fleet over smallest", "ratio", growth(lambda w: w.server.cpu)),
        Figure("Redis memory per VM", "B", [most.bytes_per_vm], limit=_LIMIT_PER_VM),
        Figure("Redis CPU, largest fleet", "cores", values(lambda w: w.server.cpu)),
        Figure("beat CPU, largest fleet", "cores", values(lambda w: w.beat_cpu), limit=0.25 if is_goal else None),
        Figure("beat lag p99, largest fleet", "ms", values(lambda w: w.lags_ms[1]), limit=1000),
        Figure("age of messages p99, largest fleet", "ms", values(lambda w: w.ages_ms[1])),
        Figure("requests to Redis, largest fleet", "1/s", values(lambda w: w.server.requests)),
        Figure("oldest check, largest fleet", "s", [most.oldest_check_s]),
    ]


def plotted(sizes: Sequence[Size]) -> str:
    def line(name: str, of: Callable[[Size], float]) -> Line:
        return Line(name, [(size.vms, of(size)) for size in sizes])

    def share(of: Callable[[Window], float]) -> Callable[[Size], float]:
        return lambda size: 100 * size.middle(of)

    cpu = Panel(
        "CPU",
        "% of one core",
        [
            line("Redis", share(lambda each: each.server.cpu)),
            line("beat", share(lambda each: each.beat_cpu)),
            line("of Redis: our scripts", share(lambda each: each.server.scripts)),
            line("of Redis: broker commands", share(lambda each: each.server.broker)),
        ],
    )
    traffic = Panel(
        "Traffic",
        "per second",
        [
            line("requests to Redis", lambda size: size.middle(lambda each: each.server.requests)),
            line("commands, in scripts too", lambda size: size.middle(lambda each: each.server.commands)),
            line("KiB both ways", lambda size: size.middle(lambda each: _both_ways(each.server)) / 1024),
            line("checks", lambda size: size.middle(lambda each: each.checks)),
        ],
    )
    memory = Panel(
        "Redis memory, audit apart",
        "MiB",
        [
            line("all keys", lambda size: size.bytes_per_vm * size.vms / _MIB),
            Line("limit: 1 KiB per VM", [(size.vms, size.vms / 1024) for size in sizes], is_limit=True),
        ],
    )
    return chart(f"What a fleet costs, each VM checked every {sizes[0].interval_s:g} s", "VMs", [cpu, traffic, memory])


def _both_ways(server: Work) -> float:
    return server.bytes_in + server.bytes_out
