"""One performance: the fleet comes up, the faults are played, the report is given, and everything is taken down."""

import base64
import contextlib
import http.client
import json
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from workers.demo.casting import Cast, cast
from workers.demo.fleet import USER, DemoFleet, LeftBehind
from workers.demo.home import Home, open_log
from workers.demo.interrupts import Interrupted, Interrupts
from workers.demo.outside import are_free
from workers.demo.plan import Wish, names, plan
from workers.demo.profile import beside_production, production
from workers.demo.report import Report
from workers.demo.screen import Screen
from workers.demo.session import NotReady, Session
from workers.demo.words import details, failure, suggestions
from workers.embedded import EmbeddedServerError

GOOD, BAD = 0, 1
_FLOWER_TIMEOUT_S = 1.0


def perform(home: Home, wish: Wish, screen: Screen, interrupts: Interrupts) -> int:
    """Return the exit status. Raises Unavailable, Interrupted; whatever is raised, nothing is left behind."""
    home.prepare()
    chosen = cast(wish.driver, home)
    return with_log(home, lambda log, name: Stage(home, wish, screen, interrupts, name).perform(chosen, log))


def with_log(home: Home, work: Callable[[IO[bytes], str], int]) -> int:
    """Do this with a log for all processes; it is kept, under its name, unless all was good or somebody interrupted."""
    log, log_name = open_log(home)
    keep_log = True
    with log:
        try:
            status = work(log, log_name)
            keep_log = status != GOOD
        except Interrupted:
            keep_log = False
            raise
        finally:
            if not keep_log:
                home.remove_log()
    return status


@contextlib.contextmanager
def taken_down(fleet: DemoFleet, screen: Screen) -> Iterator[None]:
    """Whatever happens inside, and to the screen, the fleet is ended."""
    try:
        yield
    finally:
        try:
            screen.stop()
        finally:
            fleet.close()


@dataclass
class Stage:
    home: Home
    wish: Wish
    screen: Screen
    interrupts: Interrupts
    log_name: str

    def perform(self, chosen: Cast, log: IO[bytes]) -> int:
        vm_ids = names(self.wish.vms)
        if not are_free(vm_ids, self.home):
            vm_ids = names(self.wish.vms, f"{secrets.token_hex(2)}-")
        fleet = DemoFleet(self.home, chosen, vm_ids, log, metrics_port=self.wish.metrics_port)
        try:
            with taken_down(fleet, self.screen):
                return self._play(fleet)
        except (NotReady, EmbeddedServerError, LeftBehind) as error:
            self.screen.say(f"the demo could not do its work: {error}\nlog: {self.log_name}", style="bold red")
            return BAD

    def _play(self, fleet: DemoFleet) -> int:
        session = Session(fleet, self.interrupts, self.screen)
        self._bring_up(fleet, session)
        steps = plan(fleet.vm_ids, self.wish.faults, fleet.cast.kinds, random.Random(self.wish.seed))  # noqa: S311 - a game
        report = session.play(steps)
        self.screen.stop()
        self._tell(report, fleet, session)
        status = GOOD if report.is_good else BAD
        if self.wish.keep:
            self._keep(fleet, session)
        return status

    def _bring_up(self, fleet: DemoFleet, session: Session) -> None:
        say = self.screen.say
        say(f"  VMs: {fleet.cast.label}")
        say(f"  logs of all processes: {self.log_name}")
        fleet.start()
        worker, beat = fleet.monitored_urls
        say(f"  worker {worker} and beat {beat}: /metrics /healthz /readyz /status")
        there = production(self.home.state)
        say(f"  short intervals (production): {beside_production(fleet.settings, there)}")
        took_s = session.until_healthy()
        say(f"  {len(fleet.vm_ids)} VMs healthy after {took_s:.1f} s")
        fleet.start_flower()
        if not session.until_flower_answers(lambda: _answers(fleet)):
            raise NotReady("Flower did not answer")
        say(f"  Flower: {fleet.flower_url}  user {USER}  password {fleet.password}")
        say(f"  ask for a recovery by hand: {fleet.curl(fleet.vm_ids[0])}")

    def _tell(self, report: Report, fleet: DemoFleet, session: Session) -> None:
        say = self.screen.say
        say()
        say(report.verdict, style="bold green" if report.is_good else "bold red")
        for line in details(report, fleet.settings, production(self.home.state)):
            say(line)
        for result in report.results:
            if not result.is_recovered:
                for line in failure(result, session.last_events(result.step.vm_id)):
                    say(line)
        if not report.is_good:
            say(f"  What every process wrote: {self.log_name}; for one VM: grep vm_id=…")
        if self.wish.json_file is not None:
            self.wish.json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n")

    def _keep(self, fleet: DemoFleet, session: Session) -> None:
        vm_id, pid = session.somebody()
        self.screen.say()
        for line in suggestions(vm_id, pid, fleet.curl(vm_id), self.home.env):
            self.screen.say(line)
        with contextlib.suppress(Interrupted):  # the expected end
            session.keep()


def _answers(fleet: DemoFleet) -> bool:
    """Whether Flower lets the demo's user in, and nobody else."""
    token = base64.b64encode(f"{USER}:{fleet.password}".encode()).decode()
    return [_get(fleet.flower_port, headers) for headers in ({"Authorization": f"Basic {token}"}, {})] == [200, 401]


def _get(port: int, headers: dict[str, str]) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_FLOWER_TIMEOUT_S)
    try:
        connection.request("GET", "/api/tasks", headers=headers)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
