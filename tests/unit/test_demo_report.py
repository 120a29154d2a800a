"""Figures, false positives, verdict and JSON of the demo's report, from made-up results."""

import json

import pytest

from workers.demo.plan import Fault, Step
from workers.demo.report import Report, Result, Samples, percentile, read_samples, spread, touched
from workers.demo.timeline import Seen, seen
from workers.demo.words import fault_line, span
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Reason, State
from workers.store.events import Entry


def a_result(vm_id: str | None = "vm-07", *, fault: Fault = Fault.SIGKILL, at: float = 100.0) -> Result:
    return Result(Step(fault, vm_id), at, at + 0.0004, at + 0.021, reason="process_dead", attempts=1)


def unrecovered(vm_id: str = "vm-07") -> Result:
    return Result(Step(Fault.SIGSTOP, vm_id), 100.0, None, None, problem="not serving after 40 s")


def an_event(vm_id: str, at_s: float, *, after: State | None = State.ORPHANED, kind: str = "transition") -> Seen:
    event = Event(EventKind(kind), vm_id, "demo", "recovery", "why", State.HEALTHY, after, Reason.PROCESS_DEAD)
    return Seen("1-0", at_s, event)


def a_report(*results: Result, **other: object) -> Report:
    found: dict[str, object] = {"vms": 20, "results": results, "touched": {}, "samples": Samples()}
    return Report(**(found | other))  # type: ignore[arg-type] # a builder


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (75, 3), (95, 4), (99, 4), (1, 1)])
def test_a_percentile_is_the_smallest_value_that_covers_its_share(percent: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], percent) == expected


def test_figures_of_nothing_are_none() -> None:
    assert spread([]) == {"p50": None, "p95": None, "p99": None, "max": None}


def test_an_orphaned_vm_with_a_fault_on_it_is_no_false_positive() -> None:
    assert touched([a_result(at=100.0)], [an_event("vm-07", 100.01)], Samples(), 0.0) == {}


@pytest.mark.parametrize("at_s", [99.0, 100.5])
def test_an_orphaned_vm_before_its_fault_or_after_its_recovery_is_a_false_positive(at_s: float) -> None:
    assert touched([a_result(at=100.0)], [an_event("vm-07", at_s)], Samples(), 0.0) == {"vm-07": "orphaned: why"}


def test_a_vm_found_sick_while_the_worker_was_dead_is_a_false_positive() -> None:
    killed = a_result(None, fault=Fault.WORKER_KILLED)

    assert touched([killed], [an_event("vm-01", 100.01)], Samples(), 0.0) == {"vm-01": "orphaned: why"}


@pytest.mark.parametrize("after", [State.DEGRADED, State.HEALTHY])
def test_a_doubt_that_passes_touches_nobody(after: State) -> None:
    assert touched([], [an_event("vm-01", 100.0, after=after)], Samples(), 0.0) == {}


def test_an_attempt_on_a_healthy_vm_is_a_false_positive() -> None:
    attempt = an_event("vm-01", 100.0, after=None, kind="attempt_started")

    assert touched([], [attempt], Samples(), 0.0) == {"vm-01": "attempt_started: why"}


def test_a_vm_that_was_not_recovered_is_expected_to_be_sick_to_the_end() -> None:
    assert touched([unrecovered()], [an_event("vm-07", 900.0)], Samples(), 0.0) == {}


def test_a_new_process_of_a_vm_without_a_fault_is_a_false_positive() -> None:
    samples = Samples(met=[("vm-01", 11, 5.0), ("vm-07", 12, 100.01), ("vm-02", 13, 100.01)])

    assert touched([a_result()], [], samples, since_s=50.0) == {"vm-02": "pid 13 appeared"}


def test_the_sampler_may_meet_a_new_process_a_little_late() -> None:
    samples = Samples(met=[("vm-07", 12, 100.1)])

    assert touched([a_result()], [], samples, since_s=50.0) == {}


def test_lines_of_the_sampler_are_read_back() -> None:
    lines = [
        json.dumps({"met": "vm-01", "pid": 1, "start_ticks": 5, "at": 2.0}),
        json.dumps({"doubled": "vm-01", "pids": [1, 2], "at": 3.0}),
        json.dumps({"passes": 10, "longest_gap_s": 0.01}),
    ]

    assert read_samples(lines) == Samples([("vm-01", 1, 2.0)], {"vm-01": [1, 2]}, 10, 0.01)


def test_all_is_well_only_if_every_single_thing_is() -> None:
    assert a_report(a_result()).is_good
    assert not a_report(a_result(), unrecovered("vm-08")).is_good
    assert not a_report(a_result(), touched={"vm-01": "orphaned"}).is_good
    assert not a_report(a_result(), samples=Samples(doubled={"vm-01": [1, 2]})).is_good
    assert not a_report(a_result(), ended=["beat ended by itself (exit 1)"]).is_good
    assert not a_report(a_result(), lost=["vm-01"]).is_good


def test_the_verdict_names_what_went_wrong() -> None:
    good = a_report(a_result()).verdict
    bad = a_report(unrecovered(), touched={"vm-01": "x"}, samples=Samples(doubled={"vm-02": [1, 2]})).verdict

    assert good == "1 of 1 faults recovered, none doubled, no healthy VM touched"
    assert bad == "0 of 1 faults recovered, 1 VMs DOUBLED, 1 healthy VMs TOUCHED"


def test_the_json_report_counts_worker_faults_but_keeps_them_out_of_the_figures() -> None:
    killed = Result(Step(Fault.WORKER_KILLED, None), 200.0, 200.0, 203.0)

    report = a_report(a_result(), killed).as_json()

    assert report["schema_version"] == 1
    assert (report["recovered"], report["unrecovered"]) == (2, 0)
    assert (report["false_positives"], report["doubled"], report["vms"]) == (0, 0, 20)
    assert report["mttd_s"] == {"p50": 0.0004, "p95": 0.0004, "p99": 0.0004, "max": 0.0004}
    assert report["mttr_s"]["max"] == 0.021
    assert report["faults"][0] == {
        "vm_id": "vm-07",
        "fault": "sigkill",
        "reason": "process_dead",
        "injected_at": "1970-01-01T00:01:40.000000+00:00",
        "detected_at": "1970-01-01T00:01:40.000400+00:00",
        "recovered_at": "1970-01-01T00:01:40.021000+00:00",
        "attempts": 1,
    }
    assert report["faults"][1]["vm_id"] is None


def test_an_unrecovered_fault_has_no_time_of_recovery() -> None:
    fault = a_report(unrecovered()).as_json()["faults"][0]

    assert (fault["detected_at"], fault["recovered_at"]) == (None, None)


def test_a_fault_is_one_line() -> None:
    assert " ".join(fault_line(a_result(), 6).split()) == "vm-07 SIGKILL known 0.4 ms serving again 21 ms process_dead"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00041, "0.4 ms"), (0.0213, "21 ms"), (0.9996, "1.00 s"), (2.407, "2.41 s"), (None, "-")],
)
def test_times_are_written_as_they_are_read_best(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(("received_s", "at_s"), [(5.1003, 5.1003), (5.3, 5.101), (5.0, 5.1)])
def test_an_event_is_dated_within_the_millisecond_of_the_stream(received_s: float, at_s: float) -> None:
    entry = Entry("5100-0", an_event("vm-01", 0.0).event)

    assert seen(entry, received_s).at_s == at_s
