"""What a bench makes of its figures: the cost of a user's own fleet, what is good, and what to do where it is not."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from workers.bench.found import Checks, Deaths, Disk, Found, Hangs, Idle, Load, Server, cost_of
from workers.bench.judging import judge
from workers.bench.measuring import counted
from workers.bench.wish import Part, parts_of
from workers.bench.words import document, finding_lines, report
from workers.demo.plan import Fault, Step
from workers.demo.report import Result
from workers.doctor.finding import Finding, Level, warning
from workers.settings import HealthCheck, Settings

SETTINGS = Settings(host="here", state_dir=Path("/nowhere"))


def a_load(*, checks: int = 2000, batch: int = 40, per_check_ms: float = 0.2, others: float = 0.0) -> Load:
    cpu_s = checks * per_check_ms / 1000
    shares = {"worker": cpu_s * 0.5, "beat": cpu_s * 0.3, "redis": cpu_s * 0.2}
    return Load(5.0, checks, 0, batch, shares, vmms_s=0.4, others_share=others)


def some_checks(**large: float) -> Checks:
    return Checks(400.0, a_load(**large), a_load(batch=1, checks=400, per_check_ms=2.15))  # type: ignore[arg-type] # a builder


def a_result(
    took_s: float, *, known_s: float = 0.002, fault: Fault = Fault.SIGKILL, problem: str | None = None
) -> Result:
    return Result(Step(fault, "vm-1"), 100.0, 100.0 + known_s, 100.0 + took_s, problem=problem)


def some_deaths(*took_s: float, **more: object) -> Deaths:
    return Deaths([a_result(each, **more) for each in took_s or (0.06, 0.07)], [0.05, 0.05])  # type: ignore[arg-type] # the same


def a_server(seconds: float = 0.0005, **more: object) -> Server:
    plain: dict[str, object] = {"url": "redis://h/0", "is_default": False, "round_trips_s": {"EVALSHA": [seconds]}}
    return Server(**(plain | more))  # type: ignore[arg-type] # the same


def judged(settings: Settings = SETTINGS, **found: object) -> list[Finding]:
    return list(judge(Found(40, **found), settings))  # type: ignore[arg-type] # the same


def levels(**found: object) -> list[Level]:
    return [finding.level for finding in judge(Found(40, **found), SETTINGS)]  # type: ignore[arg-type] # the same


def test_the_cost_of_a_batch_and_of_a_check_come_from_batches_of_two_sizes() -> None:
    cost = cost_of(a_load(batch=40, per_check_ms=0.2), a_load(batch=1, per_check_ms=2.15))

    assert cost.batch_s == pytest.approx(0.002)
    assert cost.check_s == pytest.approx(0.00015)


def test_noise_makes_no_cost_negative() -> None:
    cost = cost_of(a_load(batch=40, per_check_ms=0.2), a_load(batch=1, per_check_ms=0.1))

    assert cost.batch_s == 0.0
    assert cost.check_s == pytest.approx(0.0002)


@pytest.mark.parametrize(("vms", "expected"), [(10, 0.0035), (100, 0.017), (1000, 0.154)])
def test_the_share_of_a_processor_is_that_of_few_batches_and_all_checks_in_an_interval(
    vms: int, expected: float
) -> None:
    share = some_checks().cost.share(vms, 30.0, 500)

    assert share * 30.0 == pytest.approx(expected)


def test_what_a_worker_can_do_is_what_fills_one_processor() -> None:
    assert some_checks().most == pytest.approx(10_000)


def test_the_own_start_of_the_vmm_is_taken_from_each_recovery() -> None:
    assert some_deaths(0.06, 0.045).beyond_s == [pytest.approx(0.01), 0.0]


def test_good_figures_are_called_good() -> None:
    idle = Idle({"worker": 0.01, "beat": 0.01, "redis": 0.0}, {"worker": 70.0, "beat": 60.0, "redis": 9.0})
    hangs = Hangs([a_result(3.0, known_s=2.5)], timedelta(seconds=2.9))

    found = judged(
        checks=some_checks(), idle=idle, deaths=some_deaths(), hangs=hangs, server=a_server(), disk=Disk("/d", [0.001])
    )

    assert [finding.level for finding in found] == [Level.OK] * 6
    assert [finding.does for finding in found] == [""] * 6


@pytest.mark.parametrize(
    "bad",
    [
        {"checks": some_checks(others=0.5)},
        {"deaths": some_deaths(0.06, known_s=0.02)},
        {"deaths": some_deaths(0.09)},
        {"hangs": Hangs([a_result(5.0, known_s=4.0)], timedelta(seconds=2.9))},
        {"server": a_server(0.005)},
        {"disk": Disk("/d", [0.02])},
    ],
    ids=["busy host", "late known", "late back", "late hang", "far Redis", "slow disk"],
)
def test_a_bad_figure_says_what_to_do(bad: dict[str, object]) -> None:
    worst = next(judge(Found(40, **bad), SETTINGS))  # type: ignore[arg-type] # the same

    assert worst.level is Level.WARNING
    assert worst.does


def test_a_fleet_that_would_fill_a_processor_is_told_how_to_be_cheaper() -> None:
    often = SETTINGS.model_copy(update={"health_check": HealthCheck(interval=timedelta(milliseconds=500))})

    (finding,) = judged(often, checks=some_checks())

    assert "1,000 VMs would take 30.8% of one processor" in finding.says
    assert "health_check.interval" in finding.does


@pytest.mark.parametrize(
    "broken",
    [
        {"deaths": some_deaths(0.06, problem="not serving")},
        {"server": a_server(round_trips_s={}, problem="refused")},
        {"server": a_server(0.1)},
        {"disk": Disk("/d", [0.2])},
        {"ended": ["worker ended by itself", "worker ended by itself"]},
    ],
    ids=["lost VM", "no Redis", "very far Redis", "very slow disk", "a process that ended"],
)
def test_what_does_not_work_is_a_problem(broken: dict[str, object]) -> None:
    assert levels(**broken)[0] is Level.PROBLEM


def test_a_redis_that_nobody_named_and_nobody_runs_is_no_problem() -> None:
    (finding,) = judged(server=a_server(round_trips_s={}, is_default=True, problem="refused"))

    assert finding.level is Level.WARNING
    assert "not measured" in finding.says


def test_a_user_of_redis_who_may_run_no_scripts_is_told() -> None:
    server = a_server(round_trips_s={"PING": [0.0001]}, problem="no permissions to run 'script|load'")

    (finding,) = judged(server=server)

    assert "may run no scripts" in finding.says


def everything() -> Found:
    idle = Idle({"worker": 0.01}, {"worker": 70.0})
    hangs = Hangs([a_result(3.0, known_s=2.5)], timedelta(seconds=2.9))
    return Found(40, some_checks(), idle, some_deaths(), hangs, a_server(), Disk("/d", [0.001]))


def test_the_report_fits_a_narrow_terminal_and_names_the_arithmetic() -> None:
    lines = list(report(everything(), SETTINGS))

    assert max(map(len, lines)) <= 80
    assert any("49 s  at most: 30s + 3 x 5s + 2 x 2s" in line for line in lines)
    assert any("0.01%        0.06%        0.51%" in line for line in lines)


def test_the_document_has_all_parts_and_null_for_what_was_not_asked_for() -> None:
    def keys(found: Found) -> Sequence[object]:
        read = json.loads(json.dumps(document(found, [warning("redis", "slow", "move it")], SETTINGS)))
        return [read[part] is not None for part in Part]

    assert keys(everything()) == [True] * len(Part)
    assert keys(Found(None)) == [False] * len(Part)


def test_a_finding_is_wrapped_on_a_terminal_and_one_line_elsewhere() -> None:
    finding = warning("disk", "slow " * 30, "move it")

    assert max(map(len, finding_lines(finding, 80))) <= 80
    assert len(list(finding_lines(finding, None))) == 2


def test_a_metric_is_added_up_over_its_series_and_no_other() -> None:
    text = '# HELP a_total x\na_total{driver="f"} 3.0\na_total{driver="q"} 4\na_total_other 9\n'

    assert counted(text, "a_total") == 7


def test_parts_are_read_with_commas_between_them() -> None:
    assert parts_of("check, hang") == {Part.CHECK, Part.HANG}


@pytest.mark.parametrize("text", ["", ",", "checks", "hang,none"])
def test_unknown_parts_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="choose from check, idle, recovery"):
        parts_of(text)
