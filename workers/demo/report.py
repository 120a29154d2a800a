"""What came of the faults: percentiles, who was touched without reason, the verdict, and the JSON report. Pure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from workers.demo.plan import Step
from workers.demo.timeline import Seen
from workers.domain.audit import EventKind
from workers.domain.vm import State

SCHEMA_VERSION = 1
PERCENTILES = (50, 95, 99)
# How long after a VM serves again the sampler may still meet its new process for the first time.
_SAMPLER_LATE_S = 0.5
_TROUBLE = frozenset({State.UNHEALTHY, State.ORPHANED, State.RECOVERING, State.FAILED, State.STOPPED, State.UNKNOWN})
_ATTEMPTS = frozenset({EventKind.ATTEMPT_STARTED, EventKind.ATTEMPT_FAILED, EventKind.STOPPED_AGAIN})


@dataclass(frozen=True, slots=True)
class Result:
    """One fault. Times are seconds since 1970 on this host's clock; `problem` says why it was not recovered."""

    step: Step
    injected_s: float
    detected_s: float | None
    recovered_s: float | None
    reason: str | None = None
    attempts: int = 0
    problem: str | None = None
    note: str = ""

    @property
    def is_recovered(self) -> bool:
        return self.recovered_s is not None and self.problem is None

    @property
    def known_after_s(self) -> float | None:
        return None if self.detected_s is None else self.detected_s - self.injected_s

    @property
    def serving_after_s(self) -> float | None:
        return None if self.recovered_s is None else self.recovered_s - self.injected_s


@dataclass(frozen=True, slots=True)
class Samples:
    """What the sampler wrote: VMM processes as (vm id, pid, wall clock) when first met, and doublings."""

    met: Sequence[tuple[str, int, float]] = ()
    doubled: Mapping[str, Sequence[int]] = field(default_factory=dict)
    passes: int = 0
    longest_gap_s: float = 0.0


def read_samples(lines: Iterable[str]) -> Samples:
    found = [json.loads(line) for line in lines]
    end: dict[str, Any] = next((line for line in found if "passes" in line), {})
    return Samples(
        met=[(line["met"], line["pid"], line["at"]) for line in found if "met" in line],
        doubled={line["doubled"]: line["pids"] for line in found if "doubled" in line},
        passes=end.get("passes", 0),
        longest_gap_s=end.get("longest_gap_s", 0.0),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile: always a value that was measured."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES} | {"max": max(values, default=None)}


def touched(results: Sequence[Result], events: Sequence[Seen], samples: Samples, since_s: float) -> dict[str, str]:
    """Return each VM that was found sick, acted upon, or replaced while no fault was on it, with what happened."""
    found: dict[str, str] = {}
    for seen in events:
        event = seen.event
        if (event.after in _TROUBLE or event.kind in _ATTEMPTS) and not _had_fault(results, event.vm_id, seen.at_s):
            found.setdefault(event.vm_id, f"{event.after or event.kind}: {event.why}")
    for vm_id, pid, at_s in samples.met:
        if at_s > since_s and not _had_fault(results, vm_id, at_s, late_s=_SAMPLER_LATE_S):
            found.setdefault(vm_id, f"pid {pid} appeared")
    return found


def _had_fault(results: Sequence[Result], vm_id: str, at_s: float, late_s: float = 0.0) -> bool:
    """Whether this VM had a fault then: from its injection until it served again."""
    return any(
        result.step.vm_id == vm_id
        and result.injected_s <= at_s
        and (result.recovered_s is None or at_s <= result.recovered_s + late_s)
        for result in results
    )


@dataclass(frozen=True, slots=True)
class Report:
    """`ended` names processes of the system that ended by themselves, `lost` VMs that do not serve at the end."""

    vms: int
    results: Sequence[Result]
    touched: Mapping[str, str]
    samples: Samples
    ended: Sequence[str] = ()
    lost: Sequence[str] = ()

    @property
    def recovered(self) -> int:
        return sum(result.is_recovered for result in self.results)

    @property
    def is_good(self) -> bool:
        bad = (self.touched, self.samples.doubled, self.ended, self.lost)
        return self.recovered == len(self.results) and not any(bad)

    @property
    def verdict(self) -> str:
        doubled, touched_ = len(self.samples.doubled), len(self.touched)
        parts = [
            f"{self.recovered} of {len(self.results)} faults recovered",
            f"{doubled} VMs DOUBLED" if doubled else "none doubled",
            f"{touched_} healthy VMs TOUCHED" if touched_ else "no healthy VM touched",
            *(f"{vm_id} DOES NOT SERVE" for vm_id in self.lost),
            *self.ended,
        ]
        return ", ".join(parts)

    @property
    def known_s(self) -> list[float]:
        return [result.known_after_s for result in self._of_vms() if result.known_after_s is not None]

    @property
    def serving_s(self) -> list[float]:
        return [result.serving_after_s for result in self._of_vms() if result.serving_after_s is not None]

    def _of_vms(self) -> list[Result]:
        """Faults of the worker and of Redis are not in the figures: no VM was down."""
        return [result for result in self.results if result.step.vm_id is not None]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "vms": self.vms,
            "faults": [_fault_json(result) for result in self.results],
            "mttd_s": _rounded(spread(self.known_s)),
            "mttr_s": _rounded(spread(self.serving_s)),
            "recovered": self.recovered,
            "unrecovered": len(self.results) - self.recovered,
            "false_positives": len(self.touched),
            "doubled": len(self.samples.doubled),
        }


def _fault_json(result: Result) -> dict[str, Any]:
    return {
        "vm_id": result.step.vm_id,
        "fault": result.step.fault,
        "reason": result.reason,
        "injected_at": _time(result.injected_s),
        "detected_at": _time(result.detected_s),
        "recovered_at": _time(result.recovered_s) if result.is_recovered else None,
        "attempts": result.attempts,
    }


def _time(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds")


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """To microseconds: what is finer was not measured."""
    return {name: None if value is None else round(value, 6) for name, value in figures.items()}
