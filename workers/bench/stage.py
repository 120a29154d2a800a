"""One bench: what is asked of the user's own host first, then a stand-in fleet, then the report; nothing is left."""

import contextlib
import json
import secrets
from typing import IO

from workers.bench import host
from workers.bench.found import Found
from workers.bench.judging import judge
from workers.bench.measuring import CALM, Measuring
from workers.bench.wish import Part, Wish
from workers.bench.words import document, finding_lines, report
from workers.demo.casting import cast
from workers.demo.fleet import DemoFleet, LeftBehind
from workers.demo.home import Home
from workers.demo.interrupts import Interrupted, Interrupts
from workers.demo.plan import names
from workers.demo.profile import SHORT
from workers.demo.screen import Screen
from workers.demo.session import NotReady, Session
from workers.demo.stage import BAD, GOOD, taken_down, with_log
from workers.demo.words import suggestions
from workers.doctor.finding import Level
from workers.domain.errors import StartFailed, StoreUnavailable
from workers.embedded import EmbeddedServerError
from workers.settings import Loaded

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


class Stage:
    """`loaded` are the user's own settings: what is measured on the stand-in fleet has settings of its own.

    `width` is that of a terminal, None where lines are not to be wrapped.
    """

    def __init__(
        self, home: Home, wish: Wish, loaded: Loaded, screen: Screen, interrupts: Interrupts, *, width: int | None
    ) -> None:
        self._home, self._wish, self._loaded, self._width = home, wish, loaded, width
        self._screen, self._interrupts = screen, interrupts
        self._found = Found(wish.vms if wish.needs_fleet else None)

    def perform(self) -> int:
        """Return the exit status. Raises Interrupted; whatever is raised, nothing is left behind."""
        self._warn()
        self._ask_host()
        if not self._wish.needs_fleet:
            self._tell()
            return self._status()
        self._home.prepare()
        return with_log(self._home, self._with_fleet)

    def _warn(self) -> None:
        if (pid := host.worker_here(self._loaded.settings)) is not None and self._wish.needs_fleet:
            says = f"a worker runs on this host (pid {pid}): it is left alone, but shares the processors with this"
            self._screen.say(f"  {says}", style="yellow")

    def _ask_host(self) -> None:
        parts, extent, check = self._wish.parts, self._wish.extent, self._interrupts.check
        if Part.REDIS in parts:
            self._screen.progress("your Redis")
            self._found.server = host.round_trips(self._loaded, extent.round_trips, check)
        if Part.DISK in parts:
            self._screen.progress("the disk of state_dir")
            self._found.disk = host.syncs(self._loaded.settings.state_dir, extent.syncs, check)

    def _with_fleet(self, log: IO[bytes], log_name: str) -> int:
        # Unlike those of any other fleet on this machine: VMMs are also looked for by name.
        vm_ids = names(self._wish.vms, f"bench-{secrets.token_hex(2)}-")
        fleet = DemoFleet(self._home, cast("firecracker", self._home), vm_ids, log, own=CALM, is_sampled=False)
        try:
            with taken_down(fleet, self._screen):
                self._measure(fleet)
                self._tell()
                if self._wish.keep:
                    self._keep(fleet)
        except (NotReady, EmbeddedServerError, LeftBehind, StartFailed, StoreUnavailable) as error:
            self._screen.say(f"the bench could not do its work: {error}\nlog: {log_name}", style="bold red")
            return BAD
        return self._status()

    def _measure(self, fleet: DemoFleet) -> None:
        session = Session(fleet, self._interrupts, self._screen)
        fleet.start()
        session.until_healthy()
        measuring, parts = Measuring(fleet, session, self._screen, self._wish.extent), self._wish.parts
        if Part.IDLE in parts:
            self._found.idle = measuring.idle()
        if Part.RECOVERY in parts:
            self._found.deaths = measuring.deaths()
        if Part.CHECK in parts:
            self._found.checks = measuring.checks()
        if Part.HANG in parts:
            self._found.hangs = measuring.hangs()
        self._found.ended.extend(session.ended)

    def _status(self) -> int:
        """Whether everything could be measured; how good it is, is told in words alone."""
        found, is_all = self._found, self._wish.parts == frozenset(Part)
        results = [*(found.deaths.results if found.deaths else ()), *(found.hangs.results if found.hangs else ())]
        server, disk = found.server, found.disk
        is_sound = (
            not found.ended
            and all(each.is_recovered for each in results)
            # Who names neither a Redis nor this part may have none.
            and (server is None or bool(server.round_trips_s) or (server.is_default and is_all))
            and (disk is None or bool(disk.syncs_s))
        )
        return GOOD if is_sound else BAD

    def _tell(self) -> None:
        self._screen.stop()
        self._screen.say()
        settings = self._loaded.settings
        for line in report(self._found, settings):
            self._screen.say(line)
        findings = list(judge(self._found, settings))
        for finding in findings:
            for line in finding_lines(finding, self._width):
                self._screen.say(line, style=_STYLES[finding.level])
        if self._wish.json_file is not None:
            text = json.dumps(document(self._found, findings, settings), indent=2)
            self._wish.json_file.write_text(text + "\n", encoding="utf-8")

    def _keep(self, fleet: DemoFleet) -> None:
        if Part.HANG not in self._wish.parts:
            fleet.restart(SHORT)  # who plays with it does not want to wait as long as in production
        session = Session(fleet, self._interrupts, self._screen)
        vm_id, pid = session.somebody()
        self._screen.say()
        for line in suggestions(vm_id, pid, None, self._home.env):
            self._screen.say(line)
        with contextlib.suppress(Interrupted):  # the expected end
            session.keep()
