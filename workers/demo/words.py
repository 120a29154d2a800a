"""The demo's report in words: one line per fault, figures in columns. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from workers.demo.plan import Fault
from workers.demo.profile import known_within, waits
from workers.demo.report import PERCENTILES, Report, Result, spread
from workers.settings import Settings

_FAULT = 16
_A_SECOND = 0.9995  # what would be written as 1000 ms


def span(seconds: float | None) -> str:
    """Write a short time as it is read best."""
    if seconds is None:
        return "-"
    if seconds >= _A_SECOND:
        return f"{seconds:.2f} s"
    ms = seconds * 1000
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"  # noqa: PLR2004 - two digits either way


def fault_line(result: Result, width: int) -> str:
    """`width` is that of the longest name."""
    return f"{result.step.target:<{width}}  {result.step.fault.label:<{_FAULT}}  {_outcome(result)}"


def _outcome(result: Result) -> str:
    if not result.is_recovered:
        known = "never known" if result.known_after_s is None else f"known {span(result.known_after_s)}"
        return f"{known}  NOT RECOVERED: {result.problem}"
    again = span(result.serving_after_s)
    if not result.step.fault.hits_a_vm:
        return f"{result.note}: all VMs lived on, checked again after {again}"
    attempts = f", {result.attempts} attempts" if result.attempts > 1 else ""
    return f"known {span(result.known_after_s):>7}  serving again {again:>7}  {result.reason}{attempts}"


def details(report: Report, here: Settings, there: Settings) -> Iterator[str]:
    """Everything below the verdict."""
    yield from _touched(report)
    yield ""
    yield from _per_fault(report.results)
    yield ""
    yield from _figures(report)
    yield ""
    yield from _per_kind(report.results, here, there)
    yield ""
    yield _sampled(report)


def _touched(report: Report) -> Iterator[str]:
    for vm_id, what in report.touched.items():
        yield f"  {vm_id} was healthy, yet: {what}"
    for vm_id, pids in report.samples.doubled.items():
        yield f"  {vm_id} had several live processes at once: {', '.join(map(str, pids))}"


def _per_fault(results: Sequence[Result]) -> Iterator[str]:
    width = max(len(result.step.target) for result in results)
    layout = f"  {{:>2}}  {{:<{width}}}  {{:<{_FAULT}}}  {{:<12}}  {{:>8}}  {{:>8}}  {{:<19}}  {{:>8}}"
    yield layout.format("#", "on", "fault", "injected", "known", "serving", "reason", "attempts")
    for number, result in enumerate(results, start=1):
        step = result.step
        clock = datetime.fromtimestamp(result.injected_s).astimezone().strftime("%H:%M:%S.%f")[:-3]
        known, serving = span(result.known_after_s), span(result.serving_after_s if result.is_recovered else None)
        reason = result.reason or "-"
        yield layout.format(
            number, step.target, step.fault.label, clock, known, serving, reason, result.attempts
        ).rstrip()


def _figures(report: Report) -> Iterator[str]:
    names = [*(f"p{percent}" for percent in PERCENTILES), "max"]
    yield f"  {'VM faults':<22}" + "".join(f"{name:>10}" for name in names)
    for label, values in (("known (MTTD)", report.known_s), ("serving again (MTTR)", report.serving_s)):
        figures = spread(values)
        yield f"  {label:<22}" + "".join(f"{span(figures[name]):>10}" for name in names)


def _per_kind(results: Sequence[Result], here: Settings, there: Settings) -> Iterator[str]:
    layout = f"  {{:<{_FAULT}}}  {{:>10}}  {{:>16}}  {{:>24}}"
    yield layout.format("known", "slowest", "by arithmetic", "with production defaults")
    for fault, slowest in _slowest(results).items():
        promised = [_promise(known_within(fault, settings)) for settings in (here, there)]
        yield layout.format(fault.label, span(slowest), *promised)
    if any(result.step.fault is Fault.REFUSES_STARTS for result in results):
        between = f"{_short(waits(here))} here, {_short(waits(there))} with production defaults"
        yield f"  Waits between three attempts, at most: {between}."


def _promise(within: timedelta | None) -> str:
    return "at once (pidfd)" if within is None else f"at most ~{_short(within)}"


def _short(duration: timedelta) -> str:
    return f"{duration.total_seconds():.3g} s"


def _slowest(results: Sequence[Result]) -> Mapping[Fault, float]:
    found: dict[Fault, float] = {}
    for result in results:
        known = result.known_after_s
        if known is not None and result.step.fault.hits_a_vm:
            found[result.step.fault] = max(known, found.get(result.step.fault, 0.0))
    return found


def _sampled(report: Report) -> str:
    samples = report.samples
    return (
        f"  Seen from outside: {len(samples.met)} VMM processes came and went in /proc, "
        f"read {samples.passes} times, at most {span(samples.longest_gap_s)} apart."
    )


def failure(result: Result, last_events: Iterable[str]) -> Iterator[str]:
    """What the one who has to find out needs first."""
    yield f"  {result.step.target}: {result.step.fault.label} was not recovered: {result.problem}"
    for line in last_events:
        yield f"    {line}"


def suggestions(vm_id: str, pid: int, curl: str | None, env: Path) -> Iterator[str]:
    """`curl` is None where no Flower runs."""
    yield "The fleet runs on until Ctrl-C. Try, in another terminal:"
    yield f"  kill -9 {pid}    # that is {vm_id}: see it come back here"
    yield f"  kill -STOP {pid}"
    yield f"  . {env}    # so that `reliability` speaks to this fleet"
    yield f"  reliability vm show {vm_id}"
    if curl is not None:
        yield f"  {curl}"
