"""The scenarios that come with the package go as they say, each shows something of its own; bad ones are refused."""

import re
from functools import cache
from itertools import groupby

import pytest

from workers.simulator.scenario import Played, Scenario, ScenarioError, all_scenarios, play, scenarios_in

SCENARIOS = all_scenarios()
# What is decided may depend on the dice (jitter, which of two workers takes a message); what a scenario says may not.
SEEDS = (0, 1)

GOOD = """
name: a-dead-vm
shows: a death
vms: {host-a: vm-1}
story:
  - at: 10s
    do: kill vm-1
    then:
      - vm-1 healthy -> orphaned (process_dead)
      - vm-1 attempt 1
      - vm-1 recovered
  - at: 20s
    then: []
until: 1m
"""


@cache
def played(name: str, seed: int) -> Played:
    return play(SCENARIOS[name], seed)


def one(text: str) -> Scenario:
    (scenario,) = scenarios_in(text, "own.yaml")
    return scenario


def same_names(text: str) -> str:
    return re.sub(r"\bvm-[a-z0-9]+\b", "vm", text)


def story_of(name: str) -> tuple[tuple[int, str], ...]:
    """Say what happened and what was decided in which second, with the names of VMs left out."""
    return tuple((round(told.at_s), same_names(told.text)) for told in played(name, SEEDS[0]).told)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_goes_as_it_says(name: str, seed: int) -> None:
    assert played(name, seed).problems == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_row_of_a_scenario_says_what_follows(name: str) -> None:
    rows = SCENARIOS[name].story

    assert all((row.then is None) != (row.sums is None) for row in rows)
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    assert rows[-1].at < SCENARIOS[name].until


def test_there_are_many_scenarios() -> None:
    assert len(SCENARIOS) >= 40


def test_no_two_scenarios_show_the_same() -> None:
    shown = sorted(scenario.shows for scenario in SCENARIOS.values())

    assert [text for text, group in groupby(shown) if len(list(group)) > 1] == []


def test_no_two_scenarios_tell_the_same_story() -> None:
    stories: dict[object, list[str]] = {}
    for name in SCENARIOS:
        stories.setdefault(story_of(name), []).append(name)

    assert [names for names in stories.values() if len(names) > 1] == []


def test_a_scenario_that_goes_as_it_says_has_no_problems() -> None:
    result = play(one(GOOD))

    assert result.problems == []
    assert [(told.at_s, told.text) for told in result.told if told.is_happening] == [(10.0, "kill vm-1")]


def test_sums_count_decisions_with_the_names_of_vms_left_out() -> None:
    text = """
name: two-dead-vms
shows: two deaths
vms: {host-a: vm-1 vm-2}
story:
  - at: 10s
    do: [kill vm-1, kill vm-2]
    sums: {vm-* healthy -> orphaned (process_dead): 2, vm-* attempt 1: 2, vm-* recovered: 2}
until: 1m
"""

    assert play(one(text)).problems == []
    assert play(one(text.replace("attempt 1: 2", "attempt 1: 1"))).problems[0] == (
        "row 10 s (kill vm-1; kill vm-2): expected '1 x vm-* attempt 1', got '2 x vm-* attempt 1'"
    )


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (("- vm-1 attempt 1", "- vm-1 attempt 2"), "expected 'vm-1 attempt 2', got 'vm-1 attempt 1'"),
        (("      - vm-1 recovered\n", ""), "expected 'nothing more', got 'vm-1 recovered'"),
        (("- vm-1 recovered", "- vm-1 recovered\n      - vm-2 recovered"), "'vm-2 recovered', got 'nothing more'"),
        (("then: []", "then: [vm-1 attempt 2]"), "row 20 s (): expected 'vm-1 attempt 2', got 'nothing more'"),
    ],
)
def test_an_expectation_that_does_not_hold_is_told_with_its_row(changed: tuple[str, str], problem: str) -> None:
    problems = play(one(GOOD.replace(*changed))).problems

    assert problem in problems[0]


def test_everything_that_was_seen_in_a_row_is_told_where_it_went_otherwise() -> None:
    problems = play(one(GOOD.replace("- vm-1 attempt 1", "- vm-1 attempt 2"))).problems

    assert problems[1:] == [
        "row 10 s (kill vm-1): seen: vm-1 healthy -> orphaned (process_dead)",
        "row 10 s (kill vm-1): seen: vm-1 attempt 1",
        "row 10 s (kill vm-1): seen: vm-1 recovered",
    ]


def test_a_vm_that_is_not_where_it_should_be_in_the_end_is_a_problem_unless_the_scenario_says_so() -> None:
    text = GOOD.replace("kill vm-1", "[kill-worker host-a, kill vm-1]").replace("until: 1m", "until: 20500ms")
    text = re.sub(r"then:\n(      - .*\n)+", "then: []\n", text)

    assert play(one(text + "settled: false\n")).problems == []
    assert "vm-1 is called healthy, and does not live" in play(one(text)).problems[0]


@pytest.mark.parametrize(
    ("happening", "complaint"),
    [
        ("explode vm-1", r"no happening 'explode'; known: .*\bkill\b.*"),
        ("kill", r"'kill' must be: kill VM \[CAUSE\]"),
        ("refuse-starts vm-1", r"'refuse-starts vm-1' must be: refuse-starts VM TIMES \[CAUSE\]"),
    ],
)
def test_an_unknown_happening_is_refused(happening: str, complaint: str) -> None:
    with pytest.raises(ScenarioError, match=complaint):
        play(one(GOOD.replace("kill vm-1", happening)))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("recovery.max_retrys: 4", "settings.recovery.max_retrys: is unknown; did you mean max_retries?"),
        ("recovery.max_retries: 0", "settings.recovery.max_retries: must be at least 1 (got 0)"),
        ("recovery.per_host: 8", "settings.recovery.per_host: must be less than worker.concurrency, which is 8"),
    ],
)
def test_a_wrong_setting_is_refused(settings: str, complaint: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        play(one(f"{GOOD}settings: {{{settings}}}\n"))

    assert str(refused.value).startswith(complaint)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (("at: 10s", "at: soon"), 'a-dead-vm: story[0].at: must be a duration: write it with a unit, .* (got "soon")'),
        (("until: 1m", "until: 1"), "a-dead-vm: until: must be a duration: write it with a unit, .* (got 1)"),
        (("until: 1m", ""), "a-dead-vm: until: is required"),
        (("    then: []", "    than: []"), "a-dead-vm: story[1].than: is unknown; did you mean then?"),
        (("until: 1m", "until: 1m\ncolour: red"), "a-dead-vm: colour: is unknown; known here: .*"),
        (("name: a-dead-vm", "name: A dead VM"), 'A dead VM: name: .* (got "A dead VM")'),
        (("until: 1m", "until: ]"), "is not YAML: .*"),
    ],
)
def test_a_scenario_of_another_form_is_refused_with_file_and_place(changed: tuple[str, str], complaint: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        one(GOOD.replace(*changed))

    expected = re.escape(f"own.yaml: {complaint}").replace(r"\.\*", ".*")
    assert re.fullmatch(expected, str(refused.value))


def test_a_scenario_whose_vms_are_not_healthy_in_time_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"^a-dead-vm: not healthy when the story begins: vm-1$"):
        play(one(GOOD + "boot: 3m\n"))
