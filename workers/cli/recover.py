"""`recover`: a person's request for the recovery of one VM; whether it is followed is decided on the VM's host."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import click

from workers import queues
from workers.bootstrap import recovery_policy
from workers.cli.events import block_ms, event_line
from workers.cli.failures import REFUSED, Failure
from workers.cli.messaging import send
from workers.cli.output import output_option, say, show_json
from workers.cli.session import Session, checked_id, session
from workers.domain.audit import Event, EventKind
from workers.domain.recovery import Stale, WakeUp, gate
from workers.domain.vm import Desired, State
from workers.durations import format_duration, parse_duration
from workers.ports import Stored
from workers.store.events import Entry

_ENDS = frozenset({State.HEALTHY, State.FAILED, State.STOPPED})
_REASON_MAX = 200  # characters, as of every text in a message
_HINTS = {
    State.HEALTHY: "there is nothing to recover",
    State.STOPPED: "apply it with `desired: running` to start it",
}


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@dataclass(frozen=True, slots=True)
class _Request:
    vm_id: str
    host: str
    request_id: str
    after: str
    in_flight: bool
    """An attempt runs already: nothing is sent, only watched."""


@click.command()
@click.argument("vm_id", metavar="VM", callback=checked_id)
@click.option("--wait", is_flag=True, help="Watch until the VM is healthy (status 0) or not (status 1).")
@click.option("--timeout", callback=_duration, default="15m", show_default=True, help="How long --wait is patient.")
@click.option("--reason", metavar="TEXT", help="Why, for the audit.")
@output_option("table", "json")
def recover(vm_id: str, timeout: timedelta, reason: str | None, output: str, *, wait: bool) -> int:
    """Ask for the recovery of a VM.

    Works on a VM that is down, also on one that was given up (failed), and does not wait for the next attempt's turn. A
    VM that serves is left alone. Each request acts once, however often its message comes.
    """
    with session() as here:
        request = _ask(here, vm_id, _checked(reason))
        if not wait:
            _tell(request, output)
            return 0
        tell = say if output == "json" else click.echo
        tell(_words(request))
        state = _watch(here, request, timeout, tell)
    if output == "json":
        show_json(_document(request) | {"state": state, "recovered": state is State.HEALTHY})
    else:
        click.echo(f"{vm_id} is {state or 'forgotten'}")
    return 0 if state is State.HEALTHY else REFUSED


def _checked(reason: str | None) -> str | None:
    if reason is not None and (len(reason) > _REASON_MAX or not reason.isprintable()):
        raise click.BadParameter(f"must be one line of at most {_REASON_MAX} characters", param_hint="--reason")
    return reason


def _ask(here: Session, vm_id: str, reason: str | None) -> _Request:
    """Refuse what the VM's host would refuse anyway, else write it down and send it."""
    stored, now_ms = here.stored(vm_id)
    record = stored.record
    _refuse_without_worker(here, record.host)
    request = WakeUp(request_id=uuid.uuid4().hex, actor=here.actor)
    after = here.fleet.events.last_id()
    in_flight = stored.leased and record.desired is Desired.RUNNING
    asked = _Request(vm_id, record.host, str(request.request_id), after, in_flight)
    if in_flight:
        return asked
    ruling = gate(record, request, recovery_policy(here.settings), leased=stored.leased, now_ms=now_ms)
    if isinstance(ruling, Stale):
        raise Failure(_refusal(stored, ruling.why))
    _note(here, asked, reason)
    send(here.settings, queues.RECOVER_VM, vm_id, {"request_id": asked.request_id, "actor": here.actor})
    return asked


def _refuse_without_worker(here: Session, host: str) -> None:
    if not here.is_served(host):
        raise Failure(f"no worker serves host {host}: start `reliability worker` there first; nothing was sent")
    pause = here.kill_switch() if host == here.settings.host else None
    if pause:
        raise Failure(f"the kill switch {pause} is on: remove it first; nothing was sent")
    halt = here.fleet.data.halted().get(host)
    if halt is not None:
        hint = "see `reliability state show`" if halt.frozen else "remove it on that host first"
        raise Failure(f"host {host} recovers nothing now: {halt.why}; {hint}; nothing was sent")


def _refusal(stored: Stored, why: str) -> str:
    record = stored.record
    hint = _HINTS.get(record.state, f"see `reliability vm show {record.vm_id}`")
    what = f"{record.vm_id} {why.removeprefix('vm ')}" if why.startswith("vm ") else f"{record.vm_id}: {why}"
    return f"{what}: {hint}"


def _note(here: Session, asked: _Request, reason: str | None) -> None:
    why = f"recovery requested: {reason}" if reason else "recovery requested"
    told = Event(EventKind.OVERRIDE, asked.vm_id, asked.host, here.actor, why, request_id=asked.request_id)
    here.fleet.store.note([told])


def _words(request: _Request) -> str:
    if request.in_flight:
        return f"{request.vm_id} is being recovered already; nothing was sent"
    return f"recovery of {request.vm_id} requested from host {request.host} (request {request.request_id})"


def _document(request: _Request) -> dict[str, object]:
    sent = not request.in_flight
    return {
        "vm_id": request.vm_id,
        "host": request.host,
        "requested": sent,
        "request_id": request.request_id if sent else None,
    }


def _tell(request: _Request, output: str) -> None:
    if output == "json":
        show_json(_document(request))
    else:
        click.echo(_words(request))
        say(f"see `reliability events --vm {request.vm_id} --follow`, or use --wait")


def _watch(here: Session, request: _Request, patience: timedelta, tell: Callable[[str], object]) -> State | None:
    """Follow the events until the VM has got somewhere; None when it is forgotten. Raises Failure."""
    deadline = time.monotonic() + patience.total_seconds()
    served = True
    for entry in here.fleet.events.follow(request.after, block_ms=block_ms(here.settings)):
        if entry is not None and entry.event.vm_id == request.vm_id:
            tell(event_line(entry))
            if _is_end(entry):
                return entry.event.after
        elif entry is None:
            state, served = _look_again(here, request, tell, served=served)
            if state is not None:
                return state
        if time.monotonic() > deadline:
            break
    waited = format_duration(patience)
    raise Failure(f"{request.vm_id} is not healthy after {waited}; see `reliability vm show {request.vm_id}`")


def _is_end(entry: Entry) -> bool:
    return entry.event.after in _ENDS or entry.event.kind is EventKind.FORGOTTEN


def _look_again(
    here: Session, request: _Request, tell: Callable[[str], object], *, served: bool
) -> tuple[State | None, bool]:
    """In quiet moments: the record rules, and a host may have lost its worker."""
    stored, _ = here.stored(request.vm_id)
    record = stored.record
    ours = record.episode is not None and record.episode.request_id == request.request_id
    if record.state is State.HEALTHY or (record.state is State.FAILED and ours and not stored.leased):
        return record.state, served
    serves = here.is_served(request.host)
    if served and not serves:
        tell(f"no worker serves host {request.host} any more: it waits until one does")
    return None, serves
