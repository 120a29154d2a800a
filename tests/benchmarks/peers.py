"""Benchmark beside the peers: a VMM is killed; how long until its API answers again under each supervisor?

This system, supervisord, runit and monit keep the same VMM alive on the same machine, in turns. How to read the tables
stands in README.md.
"""

import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import figures
from tests.benchmarks.commandline import Options, end
from tests.benchmarks.peer_ours import ThisSystem
from tests.benchmarks.peer_prober import Answer, Door, Killed, NoAnswer, age_s, await_answers, kill
from tests.benchmarks.peer_report import (
    AGAIN,
    EAGER,
    FIRST_ANSWER,
    OURS,
    RAISED,
    RECORDED,
    Case,
    Findings,
    figures_of,
    report,
)
from tests.benchmarks.peer_supervisors import Missing, Monit, Runit, Supervisor, Supervisord, Team
from tests.benchmarks.stage import STANDIN, allow_many_files, ended_by_signals, say, vmm_binary
from workers.vmm.firecracker import program

# Older than every rule about young processes: one second of supervisord and runit, and the cycle of monit.
_OLD_S = 3.0
# A young process is killed so long after its first answer, and at most so much later where kills come at any moment of
# a turn: sooner, monit has not seen it yet, and waits 30 s for it.
_YOUNG_S, _SPREAD_S = 0.3, 0.4
_START_S, _BACK_S = 120.0, 60.0
TINY = "tiny"
_RAISED = {"recovery__per_host": "16", "worker__concurrency": "24"}
# What acts at once is measured alone, one VM at a time; those that mostly sleep, at the same time.
_OURS: Sequence[Supervisor] = (ThisSystem(),)
_QUICK: Sequence[Supervisor] = (Runit(),)
_SLOW: Sequence[Supervisor] = (Supervisord(), Supervisord(name=EAGER, startsecs=0), Monit())
_OF_MANY: Sequence[Supervisor] = (*_OURS, ThisSystem(name=RAISED, settings=_RAISED), *_QUICK, *_SLOW)


@dataclass(frozen=True, slots=True)
class Plan:
    """`again` VMs are lost a second time right after they came back: this system then waits by its settings."""

    deaths: int
    slow_deaths: int
    rounds: int
    again: int
    at_once: int
    vmm: str
    vmm_at_once: str

    def part(self, of: int, number: int) -> int:
        """Return how many of so many fall to this round."""
        return of * (number + 1) // self.rounds - of * number // self.rounds


@dataclass(slots=True)
class Member:
    """A supervisor that runs, and which process each of its VMs is now."""

    name: str
    turn_s: float
    team: Team
    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Loss:
    """Some VMs of one supervisor."""

    member: Member
    doors: Sequence[Door]

    @property
    def oldest_s(self) -> float:
        return max(age_s(self.member.pids[door.vm]) for door in self.doors)


class Bench:
    def __init__(self, plan: Plan, binaries: dict[str, str], found: Findings) -> None:
        self._plan, self._binaries, self._found = plan, binaries, found
        self._is_over = threading.Event()

    def run(self) -> None:
        for number in range(self._plan.rounds):
            deaths = self._plan.part(self._plan.deaths, number)
            say(f"round {number + 1} of {self._plan.rounds}, {deaths} deaths each …")
            self._found.bare_ms.setdefault(False, []).extend(bare_starts(self._binary(many=False), deaths))
            self._one_at_a_time(_OURS, deaths, again=self._plan.again if number == 0 else 0)
            self._one_at_a_time(_QUICK, deaths)
            self._one_at_a_time(_SLOW, self._plan.part(self._plan.slow_deaths, number))
        if self._plan.at_once:
            self._found.bare_ms[True] = bare_starts(self._binary(many=True), 20)
            for each in self._present(_OF_MANY):
                self._many(each)

    def _binary(self, *, many: bool) -> str:
        return self._binaries[self._plan.vmm_at_once if many else self._plan.vmm]

    def _present(self, those: Sequence[Supervisor]) -> list[Supervisor]:
        return [each for each in those if each.name not in self._found.missing]

    def _start(self, stack: ExitStack, who: Supervisor, vms: int, *, many: bool) -> Member:
        say(f"  {who.name}: {vms} VMs …")
        team = stack.enter_context(who.run(self._binary(many=many), vms))
        answers = await_answers(team.doors, {}, timeout_s=_START_S)
        return Member(who.name, who.turn_s, team, {vm: answer.pid for vm, answer in answers.items()})

    def _one_at_a_time(self, group: Sequence[Supervisor], deaths: int, *, again: int = 0) -> None:
        group = self._present(group)
        with ExitStack() as stack:
            members = [self._start(stack, who, deaths + again, many=False) for who in group]
            time.sleep(_OLD_S)
            # Each at its own pace, or a young process would grow old while another supervisor takes its time.
            with ThreadPoolExecutor(max_workers=len(_SLOW)) as pool:
                runs = [pool.submit(self._deaths, member, deaths) for member in members]
                try:
                    for run in runs:
                        run.result()
                finally:
                    self._is_over.set()
            self._is_over.clear()
            if again and members:
                self._lose_again(members[0], members[0].team.doors[-again:])

    def _deaths(self, member: Member, deaths: int) -> None:
        for number in range(deaths):
            if self._is_over.is_set():
                return
            moment_s = member.turn_s * fraction(number)
            time.sleep(moment_s)
            old = Loss(member, [member.team.doors[number]])
            self._lose(Case.OLD, old, begins_round=number == 0)
            young = self._young(old)
            time.sleep(_YOUNG_S + _SPREAD_S * moment_s)
            self._lose(Case.YOUNG, young, begins_round=number == 0)

    def _lose_again(self, member: Member, doors: Sequence[Door]) -> None:
        say(f"  {member.name}: lost again, {len(doors)} VMs …")
        loss = Loss(member, doors)
        strike(loss)
        member.team.settle(doors)
        killed, answers = strike(loss)
        self._found.add(Case.YOUNG, AGAIN, [1000 * (each.ready_s - killed.at_s) for each in answers])

    def _many(self, who: Supervisor) -> None:
        with ExitStack() as stack:
            member = self._start(stack, who, self._plan.at_once, many=True)
            time.sleep(_OLD_S)
            loss = Loss(member, member.team.doors)
            self._lose_many(Case.MANY_OLD, loss)
            again = self._young(loss)
            if again.doors is loss.doors and again.oldest_s > _OLD_S:
                self._found.skipped[Case.MANY_YOUNG, who.name] = "none is young: they come back too slowly"
                return
            time.sleep(_YOUNG_S if who.turn_s else 0)
            self._lose_many(Case.MANY_YOUNG, again)

    def _lose_many(self, case: Case, loss: Loss) -> None:
        self._lose(case, loss)
        ideal_s = loss.member.team.ideal_s(loss.doors)
        if ideal_s is not None:
            self._found.ideal_ms.setdefault((case, loss.member.name), []).append(1000 * ideal_s)

    def _young(self, loss: Loss) -> Loss:
        doors = loss.member.team.young(loss.doors)
        if doors is not loss.doors:
            answers = await_answers(doors, {}, timeout_s=_START_S)
            loss.member.pids |= {vm: answer.pid for vm, answer in answers.items()}
        return Loss(loss.member, doors)

    def _lose(self, case: Case, loss: Loss, *, begins_round: bool = True) -> None:
        name = loss.member.name
        if case in (Case.YOUNG, Case.MANY_YOUNG):
            self._found.oldest_s[case, name] = max(loss.oldest_s, self._found.oldest_s.get((case, name), 0.0))
        killed, answers = strike(loss)
        ready_ms = [1000 * (answer.ready_s - killed.at_s) for answer in answers]
        self._found.add(case, name, ready_ms, begins_round=begins_round)
        recorded_s = loss.member.team.settle(loss.doors)
        if name == OURS:
            first_ms = [1000 * (answer.first_s - killed.at_s) for answer in answers]
            recorded_ms = [1000 * (at_s - killed.wall_s) for at_s in recorded_s.values()]
            self._found.add(case, FIRST_ANSWER, first_ms, begins_round=begins_round)
            self._found.add(case, RECORDED, recorded_ms, begins_round=begins_round)


def fraction(number: int) -> float:
    """Return the number's place in a sequence that fills 0 to 1 evenly however long it is."""
    return number * 0.6180339887 % 1


def strike(loss: Loss) -> tuple[Killed, list[Answer]]:
    """Kill these VMs at once, and wait until all are back; their new processes are remembered. Raises NoAnswer."""
    pids = loss.member.pids
    old = {door.vm: pids[door.vm] for door in loss.doors}
    killed = kill(list(old.values()))
    answers = await_answers(loss.doors, old, timeout_s=_BACK_S + len(old))
    pids |= {vm: answer.pid for vm, answer in answers.items()}
    return killed, list(answers.values())


def bare_starts(binary: str, times: int) -> list[float]:
    """How long the VMM takes from its exec to its first answer, in ms, started by nothing but this process."""
    took = []
    with tempfile.TemporaryDirectory(prefix="rel-bare-") as folder:
        for number in range(times):
            door = Door(f"bare-{number}", f"{folder}/{number}.sock")
            words = [*program(binary).resolve(), "--api-sock", door.path, "--id", door.vm]
            began_s = time.monotonic()
            vmm = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                took.append(1000 * (await_answers([door], {}, timeout_s=_BACK_S)[door.vm].ready_s - began_s))
            finally:
                vmm.kill()
                vmm.wait()
    return took


def missing(those: Sequence[Supervisor]) -> dict[str, str]:
    """Return how to install each that is not there, by name."""
    found = {}
    for each in those:
        try:
            each.check()
        except Missing as error:
            found[each.name] = str(error)
    return found


def main() -> int:
    plan, wanted, out, must_be_there = _arguments()
    left_out = {each.name: "left out" for each in _OF_MANY if wanted and not each.name.startswith(tuple(wanted))}
    absent = missing([each for each in _OF_MANY if each.name not in left_out])
    for name, how in absent.items():
        say(f"{name}: {how}")
    if absent and must_be_there:
        return 1
    allow_many_files()
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="rel-peers-") as folder:
        binaries = {STANDIN: STANDIN, TINY: vmm_binary(Path(folder))}
        names = {False: plan.vmm, True: plan.vmm_at_once}
        found = Findings(plan.at_once, names, missing=absent | left_out)
        is_whole = ran(Bench(plan, binaries, found))
    print(report(found), end="\n\n")
    measured = figures_of(found)
    print(figures.table(measured))
    if out:
        runs = {f"{case}: {who}": rounds for (case, who), rounds in found.ms.items()}
        figures.write(out, figures.document("peers", measured, ms=runs, missing=found.missing))
    return 0 if is_whole else 1


def ran(bench: Bench) -> bool:
    """Run it; where VMs do not come back, what was found so far still is."""
    try:
        bench.run()
    except NoAnswer as error:
        say(f"given up: {error}")
        return False
    return True


def _arguments() -> tuple[Plan, list[str], Path | None, bool]:
    parser = Options(description=__doc__)

    parser.number("--deaths", 30, "how many VMs of each supervisor die one at a time, old ones and young ones")
    parser.number("--slow-deaths", 12, "the same for those that look once a second, and so take it each time")
    parser.number("--rounds", 3, "in so many rounds, in each of which every supervisor has its turn")
    parser.number(
        "--again", 3, "how many VMs this system loses a second time right after; it waits recovery.retry_interval"
    )
    parser.number("--at-once", 200, "how many die at once; 0 leaves that out")
    vmms = (STANDIN, TINY)
    parser.add_argument("--vmm", choices=vmms, default=STANDIN, help=f"what dies one at a time ({STANDIN})")
    parser.add_argument("--vmm-at-once", choices=vmms, default=TINY, help=f"what dies at once ({TINY})")
    parser.add_argument("--only", action="append", metavar="NAME", help="only those whose name begins so; repeat it")
    parser.add_argument("--require-peers", action="store_true", help="a supervisor that is not there is an error")
    parser.json()
    given = parser.parse_args()
    rounds = max(1, min(given.rounds, given.deaths, given.slow_deaths))
    plan = Plan(given.deaths, given.slow_deaths, rounds, given.again, given.at_once, given.vmm, given.vmm_at_once)
    return plan, given.only or [], given.json, given.require_peers


if __name__ == "__main__":
    end(main)
