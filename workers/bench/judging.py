"""Whether what was found is good, and what to do where it is not. Pure; the figures are those of DESIGN section 12."""

from collections import Counter
from collections.abc import Iterator, Sequence

from workers.bench.found import Checks, Deaths, Disk, Found, Hangs, Idle, Server
from workers.demo.report import percentile
from workers.demo.words import span
from workers.doctor.finding import Finding, fine, problem, warning
from workers.domain.words import counted
from workers.settings import Settings

_VMS = 1000
_SHARE = 0.25  # of one processor, for so many VMs
_KNOWN_S = 0.005
_BEYOND_S, _BEYOND_P99_S = 0.025, 0.1
_LATE_S = 0.3  # a beat's look, a batch, and the clock of the events
_MEMORY_MIB = 90.0
_IDLE_SHARE = 0.05
_BUSY_SHARE = 0.3
_FAILED_SHARE = 0.01
# An admission is one round trip and its script, and has 2 ms; the script takes about 0.4 ms of them.
_ADMISSION_S, _SCRIPT_S = 0.002, 0.0004
_FAR_S = 0.02
_UNSTEADY = 10  # times the median: not the way is long, but somebody has to wait now and then
_SYNC_S, _SLOW_SYNC_S = 0.01, 0.05
_FINE_S = 0.01
_QUIET = "run it again while the host does less"


def judge(found: Found, settings: Settings) -> Iterator[Finding]:
    """Say of each part that was measured how it is; `settings` are the user's own."""
    for says, times in Counter(found.ended).items():
        yield problem("processes", f"{says}, {counted(times, 'time')}", "look into the log; please report it")
    if found.checks is not None:
        yield from _checks(found.checks, settings)
    if found.idle is not None:
        yield _idle(found.idle)
    if found.deaths is not None:
        yield from _deaths(found.deaths)
    if found.hangs is not None:
        yield _hangs(found.hangs)
    if found.server is not None:
        yield _server(found.server)
    if found.disk is not None:
        yield _disk(found.disk)


def _checks(checks: Checks, settings: Settings) -> Iterator[Finding]:
    load, check = checks.large, settings.health_check
    if load.others_share > _BUSY_SHARE:
        says = f"other programs used {load.others_share:.0%} of the processors meanwhile"
        yield warning("checks", f"{says}: all times here are longer than they need to be", _QUIET)
    if load.failed > _FAILED_SHARE * load.checks:
        yield warning("checks", f"{load.failed} of {load.checks} checks got no answer in time", _QUIET)
    share = checks.cost.share(_VMS, check.interval.total_seconds(), check.batch_size)
    says = f"{_VMS:,} VMs would take {share:.1%} of one processor"
    if share > _SHARE:
        yield warning("checks", says, "raise health_check.interval, or let more hosts share the VMs")
    else:
        yield fine("checks", says)


def _idle(idle: Idle) -> Finding:
    worker, share = idle.memory_mib["worker"], idle.share["worker"]
    says = f"the worker takes {worker:.0f} MiB, and {share:.1%} of one processor at rest"
    if worker > _MEMORY_MIB or share > _IDLE_SHARE:
        return warning("rest", says, f"more than usual ({_MEMORY_MIB:.0f} MiB, {_IDLE_SHARE:.0%}): please report it")
    return fine("rest", says)


def _deaths(deaths: Deaths) -> Iterator[Finding]:
    for each in deaths.results:
        if not each.is_recovered:
            yield problem("deaths", f"{each.step.target} was not recovered: {each.problem}", "look into the log")
    known, half, most = (_of(deaths.known_s, 99), _of(deaths.beyond_s, 50), _of(deaths.beyond_s, 99))
    says = f"known after {span(known)}, back {span(half)} later than the VM's own start takes, {span(most)} at p99"
    if known > _KNOWN_S or half > _BEYOND_S or most > _BEYOND_P99_S:
        usual = f"usual is {span(_KNOWN_S)}, {span(_BEYOND_S)}, {span(_BEYOND_P99_S)}"
        yield warning("deaths", f"{says}; {usual}", f"{_QUIET}; on a slow processor it stays so")
    else:
        yield fine("deaths", says)


def _hangs(hangs: Hangs) -> Finding:
    lost = [each for each in hangs.results if not each.is_recovered]
    if lost:
        return problem("hangs", f"{lost[0].step.target} was not recovered: {lost[0].problem}", "look into the log")
    slowest, within = max(hangs.known_s), hangs.within.total_seconds()
    says = f"known after {span(slowest)} at most, promised are {within:g} s"
    return fine("hangs", says) if slowest <= within + _LATE_S else warning("hangs", says, _QUIET)


def _server(server: Server) -> Finding:
    if not server.round_trips_s:
        if server.is_default:
            return warning("redis", f"not measured: nobody answers at {server.url}", "set redis.url to measure yours")
        return problem("redis", f"{server.url}: {server.problem}", "check redis.url, and whether it runs")
    name = "EVALSHA" if "EVALSHA" in server.round_trips_s else "PING"
    p99 = _of(server.round_trips_s[name], 99)
    says = f"{name} takes {fine_span(p99)} at p99"
    if server.problem:
        return warning(
            "redis", f"this user may run no scripts: {server.problem}", "see docs/security.md for its rights"
        )
    if p99 <= _ADMISSION_S - _SCRIPT_S:
        return fine("redis", f"{says}: an admission fits into its {_ADMISSION_S * 1000:g} ms")
    does = "put Redis nearer, or see what keeps it busy: redis-cli --latency, SLOWLOG GET"
    if p99 > _UNSTEADY * _of(server.round_trips_s[name], 50):
        does = f"most are much shorter: {_QUIET}, or see what keeps Redis busy: SLOWLOG GET"
    if p99 <= _FAR_S:
        return warning("redis", f"{says}: every step of a recovery waits for that, and detection does not", does)
    return problem("redis", f"{says}: recoveries will be slow, and checks may come late", does)


def _disk(disk: Disk) -> Finding:
    if not disk.syncs_s:
        does = "run it as the user of the worker, or set state_dir"
        return warning("disk", f"not measured: {disk.folder}: {disk.problem}", does)
    p50, p99 = _of(disk.syncs_s, 50), _of(disk.syncs_s, 99)
    says = f"a sync takes {fine_span(p50)}, {fine_span(p99)} at p99; a start waits for one, beside that of the VMM"
    if p99 <= _SYNC_S:
        return fine("disk", says)
    does = "put state_dir on a faster disk, such as a local SSD"
    return problem("disk", says, does) if p50 > _SLOW_SYNC_S else warning("disk", says, does)


def fine_span(seconds: float) -> str:
    """Write what is short even among short times."""
    return f"{seconds * 1000:.2f} ms" if seconds < _FINE_S else span(seconds)


def _of(values: Sequence[float], percent: float) -> float:
    return percentile(values, percent) or 0.0
