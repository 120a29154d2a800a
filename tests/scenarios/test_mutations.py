"""Random schedules on code that was broken on purpose: what they are there to find, they find."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import workers

pytestmark = [pytest.mark.full, pytest.mark.timeout(360)]

PACKAGE = Path(workers.__file__).parent
SEEDS = 400
FOUND = 3

# Plays one random schedule per seed until one shows what must never happen. What else a mutant breaks does not count.
PROGRAM = f"""
import random, sys
import workers
from workers.simulator.invariants import Violation
from workers.simulator.schedules import Run, draw

assert workers.__file__.startswith(sys.argv[1]), workers.__file__
for seed in range({SEEDS}):
    try:
        Run(seed).play(draw(random.Random(seed), 200))
    except Violation as violation:
        print(f"seed {{seed}}: {{violation}}")
        sys.exit({FOUND})
    except Exception as error:
        print(f"seed {{seed}}: {{error!r}}", file=sys.stderr)
print("clean")
"""


@dataclass(frozen=True)
class Edit:
    module: str
    was: str
    becomes: str


@dataclass(frozen=True)
class Mutant:
    """`found`: the invariant of DESIGN section 3 that has to catch it.

    Where two checks stand one behind the other, either alone is enough: then both are taken out.
    """

    found: str
    edits: tuple[Edit, ...]


ATTEMPT, STORE, RECOVERY = "services/attempt.py", "simulator/memory_store.py", "domain/recovery.py"

MUTANTS = {
    "an attempt asks for its token neither when it renews nor before it starts a vm": Mutant(
        "invariant 4",
        (
            Edit(
                ATTEMPT,
                "elif stored.lease_owner != self._lease.owner or stored.record.generation != self._lease.token:",
                "elif False:",
            ),
            Edit(ATTEMPT, "        if not ours:\n            raise self._lost()\n", ""),
        ),
    ),
    "the generation neither grows nor is it checked by the host": Mutant(
        "invariant 4",
        (
            Edit("domain/guard.py", "if asked <= seen:", "if False:"),
            Edit(
                RECOVERY,
                "generation = max(record.generation + 1, seen_generation + 1, now_us)",
                "generation = record.generation or now_us",
            ),
        ),
    ),
    "the store renews a lease that has expired": Mutant(
        "invariant 4",
        (
            Edit(
                STORE,
                "if row is None or self._holder(row) != lease.owner or row.token != lease.token:",
                "if row is None or row.owner != lease.owner:",
            ),
        ),
    ),
    "a step begins in the last moments of its lease": Mutant(
        "invariant 4",
        (Edit(ATTEMPT, "        if self.left_s <= 0:\n            raise self._lost()\n", "        return\n"),),
    ),
    "the store takes what is written with a lease that is gone": Mutant(
        "invariant 7",
        (
            Edit(
                STORE,
                "if held is not None and (row is None or holder != held.owner or row.token != held.token):",
                "if False:",
            ),
        ),
    ),
    "the store gives out a lease that somebody holds": Mutant(
        "invariant 4", (Edit(STORE, "if holder not in (None, change.take.owner):", "if False:"),)
    ),
    "a recovery does not look again before it fences": Mutant(
        "invariant 9",
        (
            Edit(
                "services/recovery.py",
                "if found is not None and _serves(record, found, seen) and not _may_kill_healthy(record):",
                "if False:",
            ),
        ),
    ),
    "neither the store nor an attempt heeds operator modes": Mutant(
        "invariant 3",
        (
            Edit(STORE, "return Modes(self._data.modes).in_force(record, self._now) is not None", "return False"),
            Edit(
                RECOVERY,
                "return modes.in_force(record, now_ms) if record.force is Force.PLAIN else None",
                "return None",
            ),
            Edit(ATTEMPT, "            raise Held(self._vm_id, held.words)\n", "            return\n"),
        ),
    ),
    "an attempt does not wait for its backoff": Mutant(
        "invariant 5",
        (Edit(RECOVERY, "if episode.next_attempt_ms > now_ms:\n        # A", "if False:\n        # A"),),
    ),
    "the store counts no slots": Mutant(
        "invariant 5",
        (
            Edit(
                STORE,
                "return next((place for place in (here, FLEET) if self._room(place) < 1), None)",
                "return None",
            ),
        ),
    ),
    "the sweep drives nothing again": Mutant(
        "invariant 6",
        (Edit("services/sweeps.py", "if abandoned or (waiting and is_due(record, now_ms)):", "if False:"),),
    ),
}


def a_copy(folder: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")))


def play(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_broken_code_is_caught_by_the_invariant_that_watches_over_it(mutant: Mutant, tmp_path: Path) -> None:
    package = a_copy(tmp_path)
    for edit in mutant.edits:
        broken = package / edit.module
        text = broken.read_text(encoding="utf-8")
        assert text.count(edit.was) == 1, f"{edit.module} has changed: this mutant has to follow it"
        broken.write_text(text.replace(edit.was, edit.becomes), encoding="utf-8")

    played = play(tmp_path)

    assert played.returncode == FOUND, played.stdout + played.stderr[-2000:]
    assert mutant.found in played.stdout


def test_the_same_schedules_find_nothing_in_the_code_as_it_is(tmp_path: Path) -> None:
    a_copy(tmp_path)

    played = play(tmp_path)

    assert (played.returncode, played.stdout, played.stderr) == (0, "clean\n", "")
