"""Recovery of many VMs at one word: looked at first, asked for one by one, and followed together."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import click

from workers.cli.documents import asked_document
from workers.cli.failures import REFUSED, Failure, one_line
from workers.cli.following import Following
from workers.cli.listing import in_order
from workers.cli.output import (
    clean,
    on_terminal,
    say,
    show_json,
    show_table,
)
from workers.cli.session import Session
from workers.cli.targets import check_host
from workers.cli.vm import episode_in_short
from workers.domain.errors import Refused, ReliabilityError, StoreUnavailable, UnknownVm
from workers.domain.vm import Force, State
from workers.domain.words import counted
from workers.durations import format_duration
from workers.ports import Stored
from workers.services.operations import Asked

_ROWS = 20  # of a preview
_OF_THE_HOST = ("no_worker", "halted")  # hindrances of every VM there
_END_OF_LINE = "\x1b[K"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is going to be asked for, and what is refused, each with why; how many are left alone, by state."""

    wanted: dict[str, tuple[State, str]]
    refused: dict[str, tuple[State, str]]
    left: dict[State, int]


@dataclass(slots=True)
class _Progress:
    """How far it is: one line that changes on a terminal, a line for each VM elsewhere."""

    of: int
    output: str
    ended: dict[str, State | None] = field(default_factory=dict)

    @property
    def _is_live(self) -> bool:
        return self.output != "json" and on_terminal()

    def end(self, vm_id: str, state: State | None) -> None:
        self.ended[vm_id] = state
        if not self._is_live:
            self.say(f"{vm_id} is {state or 'forgotten'} ({len(self.ended)} of {self.of})")
        elif state is not State.HEALTHY:
            self.say(f"{vm_id} is {state or 'forgotten'}")
        self.draw()

    def say(self, words: str) -> None:
        if self._is_live:
            click.echo(f"\r{clean(words)}{_END_OF_LINE}")
        elif self.output == "json":
            say(words)
        else:
            click.echo(words)

    def draw(self) -> None:
        if self._is_live:
            healthy = sum(state is State.HEALTHY for state in self.ended.values())
            left = self.of - len(self.ended)
            click.echo(f"\r{healthy} of {self.of} healthy, {left} on their way{_END_OF_LINE}", nl=False)

    def close(self) -> None:
        if self._is_live:
            click.echo(f"\r{_END_OF_LINE}", nl=False)


class MassRecovery:
    """Every VM is asked for alone: one that is refused keeps none of the others back."""

    def __init__(self, here: Session, reason: str | None, force: Force, output: str) -> None:
        self._here, self._reason, self._force, self._output = here, reason, force, output

    def of_host(self, host: str, patience: timedelta | None, *, yes: bool) -> int:
        """Show what would be done, ask, and do it. Raises Failure where nobody can be asked."""
        check_host(self._here, host)
        plan = self._plan(host)
        self._show(host, plan)
        if plan.wanted and not yes:
            self._ask(len(plan.wanted), host)
        before = {vm_id: why for vm_id, (_, why) in plan.refused.items()}
        return self._recover(list(plan.wanted), patience, before)

    def of_vms(self, vm_ids: Sequence[str], patience: timedelta | None) -> int:
        for vm_id in vm_ids:
            self._here.stored(vm_id)
        return self._recover(vm_ids, patience, {})

    def _recover(self, vm_ids: Sequence[str], patience: timedelta | None, before: Mapping[str, str]) -> int:
        """`before` is what was refused, and told, already."""
        asked, refused = self._send(vm_ids)
        ended = self._follow(list(asked.values()), patience) if patience is not None and asked else {}
        if self._output == "json":
            self._document(asked, {**before, **refused}, ended, waited=patience is not None)
        elif asked or refused:
            self._tell(asked, refused, ended, patience)
        all_well = patience is None or all(ended.get(vm_id) is State.HEALTHY for vm_id in asked)
        return 0 if all_well and not (before or refused) else REFUSED

    def _plan(self, host: str) -> _Plan:
        """Raises Refused where the host recovers nothing at all."""
        plan = _Plan({}, {}, {})
        for snapshot in self._here.snapshots(in_order(self._here.fleet.store.ids(host=host))):
            for vm_id, why in snapshot.unreadable.items():
                plan.refused[vm_id] = (State.UNKNOWN, f"its record cannot be read: {why}")
            for vm_id, stored in snapshot.found.items():
                self._judge(vm_id, stored.record.state, snapshot.now_ms, plan)
        return plan

    def _judge(self, vm_id: str, state: State, now_ms: int, plan: _Plan) -> None:
        try:
            _, stored = self._here.operations.preview(vm_id, reason=self._reason, force=self._force)
        except Refused as error:
            if error.hindrance in _OF_THE_HOST:
                raise
            if error.hindrance == state:
                plan.left[state] = plan.left.get(state, 0) + 1
            else:
                plan.refused[vm_id] = (state, error.why.removeprefix(f"{vm_id}: "))
        except UnknownVm:
            return  # forgotten meanwhile
        else:
            plan.wanted[vm_id] = (stored.record.state, _need(stored, now_ms))

    def _show(self, host: str, plan: _Plan) -> None:
        tell = say if self._output == "json" else click.echo
        total = len(plan.wanted) + len(plan.refused) + sum(plan.left.values())
        tell(f"{len(plan.wanted)} of {counted(total, 'VM')} of host {host} to recover")
        if self._output != "json":
            _show_some(plan.wanted)
        if plan.left:
            tell(f"Left alone: {', '.join(f'{number} {state}' for state, number in plan.left.items())}")
        if plan.refused:
            tell(f"Refused: {len(plan.refused)}")
            if self._output != "json":
                _show_some(plan.refused)

    def _ask(self, number: int, host: str) -> None:
        if not sys.stdin.isatty():
            raise click.UsageError(
                "nobody can be asked here: look at the list, then say --yes", click.get_current_context()
            )
        if not click.confirm(f"Recover {counted(number, 'VM')} of host {host}?", err=True):
            raise Failure("nothing was sent")

    def _send(self, vm_ids: Sequence[str]) -> tuple[dict[str, Asked], dict[str, str]]:
        asked: dict[str, Asked] = {}
        refused: dict[str, str] = {}
        for vm_id in vm_ids:
            try:
                asked[vm_id] = self._here.operations.recover(vm_id, reason=self._reason, force=self._force)
            except StoreUnavailable:
                raise
            except ReliabilityError as error:
                refused[vm_id] = one_line(error)
        return asked, refused

    def _follow(self, asked: Sequence[Asked], patience: timedelta) -> Mapping[str, State | None]:
        progress = _Progress(len(asked), self._output)
        progress.draw()
        following = Following(self._here, asked, self._force, on_end=progress.end, on_silence=progress.say)
        try:
            return following.run(patience)
        finally:
            progress.close()

    def _tell(
        self,
        asked: Mapping[str, Asked],
        refused: Mapping[str, str],
        ended: Mapping[str, State | None],
        patience: timedelta | None,
    ) -> None:
        if patience is None:
            sent = sum(each.sent for each in asked.values())
            under_way = len(asked) - sent
            rest = f", {under_way} on their way already" if under_way else ""
            click.echo(f"recovery of {counted(sent, 'VM')} requested{rest}; see `reliability status --watch`")
        else:
            healthy = sum(state is State.HEALTHY for state in ended.values())
            click.echo(f"{healthy} of {counted(len(asked), 'VM')} healthy")
            for vm_id in (each for each in asked if each not in ended):
                click.echo(f"{vm_id} is not healthy after {format_duration(patience)}; see `reliability why {vm_id}`")
        say(*(f"reliability: {why}" for why in refused.values()))

    def _document(
        self,
        asked: Mapping[str, Asked],
        refused: Mapping[str, str],
        ended: Mapping[str, State | None],
        *,
        waited: bool,
    ) -> None:
        vms: list[dict[str, Any]] = [
            asked_document(each) | _end_of(vm_id, ended, waited=waited) for vm_id, each in asked.items()
        ]
        show_json({"vms": vms, "refused": dict(refused)})


def _end_of(vm_id: str, ended: Mapping[str, State | None], *, waited: bool) -> dict[str, object]:
    if not waited:
        return {}
    state = ended.get(vm_id)
    return {"state": state, "recovered": state is State.HEALTHY}


def _need(stored: Stored, now_ms: int) -> str:
    if stored.leased:
        return "an attempt is in flight: it is followed"
    return episode_in_short(stored.record, now_ms) or "asked for by you"


def _show_some(plan: Mapping[str, tuple[State, str]]) -> None:
    if not plan:
        return
    rows = [(vm_id, state, why) for vm_id, (state, why) in plan.items()]
    show_table(("VM", "STATE", "WHY"), rows[:_ROWS], indent=2)
    if len(rows) > _ROWS:
        click.echo(f"  … and {len(rows) - _ROWS} more")
