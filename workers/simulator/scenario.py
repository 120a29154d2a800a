"""Scenarios as data: at these times this happens, and then exactly these decisions follow.

A file holds one or more documents:

    name: a-dead-vm-comes-back          unique; what `reliability simulate` takes
    shows: what this one shows and no other one does
    settings: {recovery.max_retries: 2} any setting, by its key
    vms: {host-a: vm-1 vm-2}            what runs, healthy, when the story begins
    story:
      - at: 10s                         since the story began
        do: kill vm-1                   one happening, or a list of them
        then:                           every decision until the next row, in order
          - vm-1 healthy -> orphaned (process_dead)
          - vm-1 attempt 1
          - vm-1 recovered
      - at: 1m
        do: kill-worker host-a
        sums: {vm-* attempt 1: 16}      instead of `then`: how often each, with the names of VMs left out
    until: 5m
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from workers.complaints import complaints_in
from workers.domain.vm import State
from workers.durations import Duration
from workers.settings import Settings
from workers.simulator.happenings import happen
from workers.simulator.invariants import Invariants, Violation
from workers.simulator.story import Story, Told
from workers.simulator.world import World

_BOOT_S = 120.0
_VM_NAME = re.compile(r"\bvm-[a-z0-9-]*[a-z0-9]\b")
_STATE_DIR = "/var/lib/simulated"


class ScenarioError(ValueError):
    """A scenario that cannot be played; `lines` say why."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Part):
    at: Duration
    do: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    then: tuple[str, ...] | None = None
    sums: dict[str, int] | None = None


class Scenario(_Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    shows: str
    settings: dict[str, Any] = Field(default_factory=dict)
    vms: dict[str, str] = Field(default_factory=dict)
    beats: int = 1
    boot: Duration = timedelta(milliseconds=250)
    story: tuple[Row, ...]
    until: Duration
    settled: bool = True


@dataclass(slots=True)
class Played:
    """`problems` is empty where everything went as the scenario says."""

    scenario: Scenario
    told: list[Told] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def all_scenarios() -> dict[str, Scenario]:
    """Every scenario that comes with the package, by name. Raises ScenarioError."""
    found: dict[str, Scenario] = {}
    folder = files("workers.simulator").joinpath("scenarios")
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        for scenario in scenarios_in(file.read_text(encoding="utf-8"), file.name):
            if scenario.name in found:
                raise ScenarioError([f"{file.name}: there are two scenarios {scenario.name}"])
            found[scenario.name] = scenario
    return found


def scenarios_from(path: Path) -> list[Scenario]:
    """Raises ScenarioError, OSError."""
    return list(scenarios_in(path.read_text(encoding="utf-8"), str(path)))


def scenarios_in(text: str, source: str) -> Iterator[Scenario]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise ScenarioError([f"{source}: is not YAML: {' '.join(str(error).split())}"]) from error
    for document in documents:
        try:
            yield Scenario.model_validate(document)
        except ValidationError as error:
            name = document.get("name", "?") if isinstance(document, dict) else "?"
            lines = [f"{source}: {name}: {each.line}" for each in complaints_in(error, Scenario)]
            raise ScenarioError(lines) from error


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Return the defaults with these keys changed. Raises ScenarioError."""
    tree: dict[str, Any] = {"host": "simulated", "state_dir": _STATE_DIR}
    for key, value in given.items():
        *above, name = key.split(".")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[name] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ScenarioError([f"settings.{each.line}" for each in complaints_in(error, Settings)]) from error


def play(scenario: Scenario, seed: int = 0) -> Played:
    """Play it to its end, or to the first thing that must never happen. Raises ScenarioError."""
    player = _Player(scenario, seed)
    try:
        return player.play()
    finally:
        player.world.close()


class _Player:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario, self._played = scenario, Played(scenario)
        hosts = list(scenario.vms) or ["host-a"]
        self.world = World(
            settings_of(scenario.settings),
            hosts,
            seed,
            boot_s=scenario.boot.total_seconds(),
            beats_wanted=scenario.beats,
        )
        self._invariants = Invariants(self.world)
        self._invariants.attach()
        self._story = Story(self.world)

    def play(self) -> Played:
        self._begin()
        rows = self._scenario.story
        ends = [*(row.at for row in rows[1:]), self._scenario.until]
        if sorted(times := [*(row.at for row in rows), self._scenario.until]) != times:
            raise ScenarioError([f"{self._scenario.name}: rows must be in order of time, and end before `until`"])
        try:
            for row, end in zip(rows, ends, strict=True):
                self._run_to(row.at)
                self._play_row(row, end)
            if self._scenario.settled:
                self._invariants.check_settled()
        except Violation as error:
            self._played.problems.append(str(error))
        self._played.told = self._story.told
        return self._played

    def _begin(self) -> None:
        """Everything runs and is healthy."""
        world = self.world
        world.start()
        for host, names in self._scenario.vms.items():
            world.apply(*[world.spec(vm_id, host) for vm_id in names.split()])
        world.clockwork.run_for(_BOOT_S)
        unwell = [v for v, row in world.server.contents.rows.items() if row.record.state is not State.HEALTHY]
        if unwell:
            raise ScenarioError([f"{self._scenario.name}: not healthy when the story begins: {', '.join(unwell)}"])
        self._story.begin()

    def _run_to(self, at: timedelta) -> None:
        self.world.clockwork.run_for(max(0.0, at.total_seconds() - self._story.now_s))

    def _play_row(self, row: Row, end: timedelta) -> None:
        for text in row.do:
            self._story.happens(text)
            try:
                happen(self.world, text)
            except (ValueError, LookupError) as error:
                where = f"{self._scenario.name}: row {row.at.total_seconds():g} s: {text!r}"
                raise ScenarioError([f"{where}: {error}"]) from error
        self._run_to(end)
        lines = [told.text for told in self._story.listen()]
        if row.then is not None and list(row.then) != lines:
            self._played.problems += _differences(row, list(row.then), lines)
        if row.sums is not None and row.sums != dict(_summed(lines)):
            self._played.problems += _differences(row, _sum_lines(row.sums), _sum_lines(_summed(lines)))
        self._invariants.check()


def _summed(lines: Sequence[str]) -> Counter[str]:
    return Counter(_VM_NAME.sub("vm-*", line) for line in lines)


def _sum_lines(sums: Mapping[str, int]) -> list[str]:
    return [f"{number} x {line}" for line, number in sorted(sums.items())]


def _differences(row: Row, expected: Sequence[str], found: Sequence[str]) -> list[str]:
    """Name the first line that is not as it should be, and everything that was seen."""
    pairs = zip([*expected, "nothing more"], [*found, "nothing more"], strict=False)
    first = next(((want, got) for want, got in pairs if want != got), ("nothing more", "more"))
    at = f"row {row.at.total_seconds():g} s ({'; '.join(row.do)})"
    return [f"{at}: expected {first[0]!r}, got {first[1]!r}", *(f"{at}: seen: {line}" for line in found)]
