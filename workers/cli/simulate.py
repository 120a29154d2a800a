"""`simulate`: a scenario, or a random schedule, played in virtual time with the real decisions and services."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workers.cli.failures import REFUSED, Failure
from workers.cli.output import (
    output_option,
    say,
    show_json,
    show_names,
    show_table,
)
from workers.domain.words import counted

if TYPE_CHECKING:
    from workers.simulator.story import Told

_MOST_STEPS = 100_000


@click.command()
@click.argument("what", metavar="[SCENARIO|FILE]", required=False)
@click.option(
    "--random", "seed", type=int, metavar="SEED", help="Play a random schedule instead, this one again and again."
)
@click.option(
    "--steps", type=click.IntRange(1, _MOST_STEPS), default=200, show_default=True, help="Of a random schedule."
)
@output_option("table", "json", "name")
def simulate(what: str | None, seed: int | None, steps: int, output: str) -> int:
    """Replay a scenario in the terminal.

    Tells what happened, and what was decided, in virtual time. Without arguments the scenarios are listed. A FILE holds
    scenarios of your own, in the same form. Nothing outside this process is touched, and no Redis is needed: hosts,
    VMMs and the broker are simulated, the decisions are real.
    Status 1 where something went otherwise than the scenario says, or something happened that must never happen.
    """
    if seed is not None:
        return _play_random(seed, steps, output)
    if what is None:
        _list(output)
        return 0
    return _play(what, output)


def _list(output: str) -> None:
    from workers.simulator.scenario import all_scenarios  # noqa: PLC0415 - loads the simulator

    found = all_scenarios()
    match output:
        case "json":
            show_json({"scenarios": [{"name": s.name, "shows": s.shows} for s in found.values()]})
        case "name":
            show_names(list(found))
        case _:
            show_table(("SCENARIO", "SHOWS"), [(scenario.name, scenario.shows) for scenario in found.values()])


def _play(what: str, output: str) -> int:
    # It loads the simulator.
    from workers.simulator.scenario import ScenarioError, all_scenarios, play, scenarios_from  # noqa: PLC0415

    try:
        known = all_scenarios()
        if what in known:
            chosen = [known[what]]
        elif Path(what).exists():
            chosen = scenarios_from(Path(what))
        else:
            raise Failure(f"no scenario and no file {what!r}; `reliability simulate` lists the scenarios")
        played = [play(scenario) for scenario in chosen]
    except ScenarioError as error:
        raise Failure(*error.lines) from error
    for each in played:
        if output == "json":
            show_json({"name": each.scenario.name, "told": _documents(each.told), "problems": each.problems})
            continue
        click.echo(f"{each.scenario.name}: {each.scenario.shows}")
        _show_story(each.told)
        click.echo("\n".join([f"  WRONG: {problem}" for problem in each.problems] or ["  as it should be"]))
    return REFUSED if any(each.problems for each in played) else 0


def _show_story(told: "Sequence[Told]") -> None:
    for each in told:
        click.echo(f"  {each.at_s:9.3f} s  {'>> ' if each.is_happening else '   '}{each.text}")


def _documents(told: "Sequence[Told]") -> list[dict[str, object]]:
    return [{"at_s": each.at_s, "happening": each.is_happening, "text": each.text} for each in told]


def _play_random(seed: int, length: int, output: str) -> int:
    from workers.simulator.invariants import Violation  # noqa: PLC0415 - loads the simulator
    from workers.simulator.schedules import Run, draw  # noqa: PLC0415

    plan, run = draw(random.Random(seed), length), Run(seed)  # noqa: S311 - it has to be repeatable
    problem = None
    try:
        run.play(plan)
    except Violation as error:
        problem = str(error)
    told = run.story.told
    if output == "json":
        show_json({"seed": seed, "told": _documents(told), "problem": problem})
    else:
        _show_story(told)
        decided = counted(sum(not each.is_happening for each in told), "decision")
        say(f"{counted(length, 'step')}, {decided}: {problem or 'nothing that must never happen'}")
    return REFUSED if problem else 0
