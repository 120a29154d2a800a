"""The report of a bench in words and as a JSON document. Pure."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from workers.bench.found import FLEETS, Checks, Deaths, Disk, Found, Hangs, Idle, Server, back
from workers.bench.judging import fine_span
from workers.demo.plan import Fault
from workers.demo.profile import known_within
from workers.demo.report import percentile
from workers.demo.words import span
from workers.doctor.finding import Finding, Level
from workers.durations import format_duration
from workers.settings import Settings

SCHEMA_VERSION = 1
_NAME = 27
_PERCENTS = (50, 99)
_WORDS = {Level.OK: "good", Level.WARNING: "look", Level.PROBLEM: "BAD"}


def report(found: Found, settings: Settings) -> Iterator[str]:
    """Write all figures; `settings` are the user's own."""
    parts: Sequence[Iterator[str]] = (
        _checks(found.checks, found.vms, settings) if found.checks else iter(()),
        _idle(found.idle, found.vms) if found.idle else iter(()),
        _deaths(found.deaths) if found.deaths else iter(()),
        _hangs(found.hangs, settings) if found.hangs else iter(()),
        _server(found.server) if found.server and found.server.round_trips_s else iter(()),
        _disk(found.disk) if found.disk and found.disk.syncs_s else iter(()),
    )
    for part in parts:
        lines = list(part)
        yield from ([*lines, ""] if lines else ())


def _line(name: str, text: str) -> str:
    return f"  {name:<{_NAME}}{text}"


def _checks(checks: Checks, vms: int | None, settings: Settings) -> Iterator[str]:
    load, cost = checks.large, checks.cost
    yield f"Health checks of {vms} stand-in VMs"
    failed = f", {load.failed} without an answer in time" if load.failed else ""
    yield _line("reached", f"{load.rate:,.0f} checks/s of {checks.offered:,.0f} asked for{failed}")
    yield _line(
        "CPU for 1,000 checks", f"{load.per_check_s * 1000:.2f} s: {_by_role(load.cpu_s, 1000 / max(load.checks, 1))}"
    )
    yield _line("", f"and {load.vmms_s * 1000 / max(load.checks, 1):.2f} s of the VMs, to answer")
    yield _line("", f"{cost.batch_s * 1000:.1f} ms for a batch and {cost.check_s * 1000:.2f} ms for each VM in it")
    yield _line("a worker can do at most", f"about {checks.most:,.0f} checks/s, on one processor")
    check = settings.health_check
    yield _line(
        f"checked every {format_duration(check.interval)}", "".join(f"{f'{size:,} VMs':>13}" for size in FLEETS)
    )
    shares = [cost.share(size, check.interval.total_seconds(), check.batch_size) for size in FLEETS]
    yield _line("  take of one processor", "".join(f"{f'{share:.2%}':>13}" for share in shares))


def _by_role(cpu_s: Mapping[str, float], factor: float) -> str:
    return ", ".join(f"{role} {seconds * factor:.2f}" for role, seconds in cpu_s.items())


def _idle(idle: Idle, vms: int | None) -> Iterator[str]:
    yield f"At rest, and that is to be added: {vms} VMs, a check every 30 s"
    for role, share in idle.share.items():
        yield _line(role, f"{idle.memory_mib[role]:.0f} MiB, {share:.1%} of one processor")


def _deaths(deaths: Deaths) -> Iterator[str]:
    yield f"Deaths: {len(deaths.results)} VMs killed (SIGKILL), one after the other, {len(deaths.again_s)} recovered"
    yield _heads()
    yield _spread("known after", deaths.known_s)
    yield _spread("verified again after", deaths.again_s)
    yield _spread("the VM's own start, alone", deaths.alone_s)
    yield _spread("what is ours of it", deaths.beyond_s)


def _heads() -> str:
    return _line("", "".join(f"{name:>13}" for name in [*(f"p{percent}" for percent in _PERCENTS), "max"]))


def _spread(name: str, values: Sequence[float], write: Callable[[float], str] = span) -> str:
    figures = [*(percentile(values, percent) for percent in _PERCENTS), max(values, default=None)]
    return _line(name, "".join(f"{'-' if value is None else write(value):>13}" for value in figures))


def _hangs(hangs: Hangs, settings: Settings) -> Iterator[str]:
    yield f"Hangs: {len(hangs.results)} VMs stopped (SIGSTOP), one after the other, short intervals"
    yield _heads()
    yield _spread("known after", hangs.known_s)
    yield _spread("verified again after", back(hangs.results))
    yield _line("by arithmetic, known after", f"{_promise(hangs.within):>13}  at most")
    yours = _promise(known_within(Fault.SIGSTOP, settings))
    yield _line("with your settings", f"{yours:>13}  at most: {_sum(settings)}")


def _promise(within: timedelta | None) -> str:
    return "-" if within is None else f"{within.total_seconds():.3g} s"


def _sum(settings: Settings) -> str:
    """How the time comes about: interval + n * timeout + (n - 1) * failing_interval."""
    check = settings.health_check
    looks = check.failure_threshold
    interval, timeout, again = (
        format_duration(each) for each in (check.interval, check.timeout, check.failing_interval)
    )
    return f"{interval} + {looks} x {timeout} + {looks - 1} x {again}"


def _server(server: Server) -> Iterator[str]:
    yield f"Redis at {server.url}"
    yield _heads()
    for name, values in server.round_trips_s.items():
        yield _spread(name, values, fine_span)


def _disk(disk: Disk) -> Iterator[str]:
    yield f"Disk of state_dir ({disk.folder})"
    yield _heads()
    yield _spread("fsync", disk.syncs_s, fine_span)


def finding_lines(finding: Finding, width: int | None) -> Iterator[str]:
    """`width` None: each on one line, for grep."""
    first = f"  {_WORDS[finding.level]:<6}{finding.name}: "
    yield from _wrapped(first + finding.says, "        ", width)
    if finding.does:
        yield from _wrapped(f"        -> {finding.does}", "           ", width)


def _wrapped(text: str, rest: str, width: int | None) -> list[str]:
    return [text] if width is None else textwrap.wrap(text, width, subsequent_indent=rest, drop_whitespace=True)


def document(found: Found, findings: Sequence[Finding], settings: Settings) -> dict[str, Any]:
    """Return all of it for programs; times in seconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "vms": found.vms,
        "check": _checks_document(found.checks, settings) if found.checks else None,
        "idle": {"share": dict(found.idle.share), "memory_mib": dict(found.idle.memory_mib)} if found.idle else None,
        "recovery": _deaths_document(found.deaths) if found.deaths else None,
        "hang": _hangs_document(found.hangs, settings) if found.hangs else None,
        "redis": _server_document(found.server) if found.server else None,
        "disk": {"folder": found.disk.folder, "fsync_s": _figures(found.disk.syncs_s)} if found.disk else None,
        "findings": [
            {"name": each.name, "level": each.level, "says": each.says, "does": each.does or None} for each in findings
        ],
    }


def _checks_document(checks: Checks, settings: Settings) -> dict[str, Any]:
    load, cost, check = checks.large, checks.cost, settings.health_check
    return {
        "offered_per_s": checks.offered,
        "reached_per_s": load.rate,
        "failed": load.failed,
        "cpu_s_per_1000": {role: seconds * 1000 / max(load.checks, 1) for role, seconds in load.cpu_s.items()},
        "cpu_s_per_batch": cost.batch_s,
        "cpu_s_per_check": cost.check_s,
        "others_share": load.others_share,
        "interval_s": check.interval.total_seconds(),
        "share_of_a_processor": {
            str(vms): cost.share(vms, check.interval.total_seconds(), check.batch_size) for vms in FLEETS
        },
    }


def _deaths_document(deaths: Deaths) -> dict[str, Any]:
    return {
        "deaths": len(deaths.results),
        "recovered": len(deaths.again_s),
        "known_s": _figures(deaths.known_s),
        "verified_again_s": _figures(deaths.again_s),
        "own_start_s": _figures(deaths.alone_s),
        "beyond_own_start_s": _figures(deaths.beyond_s),
    }


def _hangs_document(hangs: Hangs, settings: Settings) -> dict[str, Any]:
    yours = known_within(Fault.SIGSTOP, settings)
    return {
        "hangs": len(hangs.results),
        "known_s": _figures(hangs.known_s),
        "promised_s": hangs.within.total_seconds(),
        "promised_by_your_settings_s": yours.total_seconds() if yours else None,
    }


def _server_document(server: Server) -> dict[str, Any]:
    return {
        "url": server.url,
        "problem": server.problem or None,
        "round_trips_s": {name: _figures(values) for name, values in server.round_trips_s.items()},
    }


def _figures(values: Sequence[float]) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {f"p{percent}": percentile(values, percent) for percent in _PERCENTS}
    return found | {"max": max(values, default=None), "runs": len(values)}
