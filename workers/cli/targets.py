"""What a command is about: VMs by id, one host, or the fleet; and what holds there in the words of people."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

import click

from workers.cli.arguments import host_option, vms_argument
from workers.cli.failures import Failure
from workers.cli.session import Session
from workers.domain.errors import UnreadableRecord
from workers.domain.modes import FLEET, InForce, Modes, host_scope, vm_scope
from workers.domain.words import age, iso
from workers.durations import format_duration

F = TypeVar("F", bound=Callable[..., Any])

_HOST, _VM = host_scope(""), vm_scope("")


@dataclass(frozen=True, slots=True)
class Targets:
    """Exactly one kind of them."""

    vm_ids: tuple[str, ...] = ()
    host: str | None = None

    @property
    def scopes(self) -> list[str]:
        if self.host is not None:
            return [host_scope(self.host)]
        return [vm_scope(vm_id) for vm_id in self.vm_ids] or [FLEET]


def target_options(command: F) -> Callable[..., Any]:
    """Give a command `targets`: `VM...`, `--host HOST` or `--fleet`."""

    @wraps(command)
    def run(*, vm_ids: tuple[str, ...], host: str | None, fleet: bool, **rest: Any) -> Any:
        return command(targets=_targets(vm_ids, host, fleet=fleet), **rest)

    with_fleet = click.option("--fleet", is_flag=True, help="All VMs of all hosts.")(run)
    return vms_argument(required=False)(host_option("All VMs of this host.")(with_fleet))


def _targets(vm_ids: tuple[str, ...], host: str | None, *, fleet: bool) -> Targets:
    kinds = sum((bool(vm_ids), host is not None, fleet))
    if kinds == 0:
        raise click.UsageError("say what it is about: VM ids, --host HOST or --fleet", click.get_current_context())
    if kinds > 1:
        raise click.UsageError("only one of VM ids, --host and --fleet goes", click.get_current_context())
    return Targets(vm_ids, host)


def hosts_of(here: Session, targets: Targets) -> dict[str, str]:
    """Return the host of each VM that is meant. Raises Failure, or UnknownVm, for what nobody knows."""
    if targets.host is not None:
        check_host(here, targets.host)
    found: dict[str, str] = {}
    for snapshot in here.snapshots(targets.vm_ids):
        for vm_id, why in snapshot.unreadable.items():
            raise UnreadableRecord(vm_id, why)
        found |= {vm_id: stored.record.host for vm_id, stored in snapshot.found.items()}
    for vm_id in targets.vm_ids:
        if vm_id not in found:
            raise here.unknown(vm_id)
    return found


def check_host(here: Session, host: str) -> None:
    """Refuse a host that has no VM and never had a worker. Raises Failure."""
    names = [each.name for each in here.fleet.hosts.all()[1]]
    if host in names or here.fleet.store.host_sizes([host])[host]:
        return
    close = get_close_matches(host, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `reliability host list`"
    raise Failure(f"no host {host!r} is known: it has no VM, and no worker ever served it; {hint}")


def spoken(scope: str) -> str:
    """Call a scope as people do."""
    if scope == FLEET:
        return "the fleet"
    return scope.removeprefix(_VM) if scope.startswith(_VM) else f"host {scope.removeprefix(_HOST)}"


def as_arguments(scope: str) -> str:
    """Write a scope as one has to on the command line."""
    if scope == FLEET:
        return "--fleet"
    return scope.removeprefix(_VM) if scope.startswith(_VM) else f"--host {scope.removeprefix(_HOST)}"


def held(scope: str, modes: Modes, hosts: Mapping[str, str], now_ms: int) -> list[InForce]:
    """What is in force on a scope now, also what wider ones bring; strongest first."""
    if scope.startswith(_VM):
        vm_id = scope.removeprefix(_VM)
        return modes.holds_on(vm_id, hosts.get(vm_id, ""), now_ms)
    host = scope.removeprefix(_HOST) if scope != FLEET else ""
    return [each for each in modes.holds_on("", host, now_ms) if not each.scope.startswith(_VM)]


def until(each: InForce, now_ms: int) -> str:
    """Say when a hold ends, or what ends it."""
    ends_ms = _ends_ms(each, now_ms)
    if not ends_ms:
        return "until it is lifted"
    left = format_duration(timedelta(seconds=max(0, round((ends_ms - now_ms) / 1000))))
    return f"until {(iso(ends_ms) or '')[:19]}Z ({left} left)"


def ends_in(each: InForce, now_ms: int) -> str:
    """Say the same in a table."""
    ends_ms = _ends_ms(each, now_ms)
    return f"in {age(ends_ms - now_ms)}" if ends_ms else "when lifted"


def _ends_ms(each: InForce, now_ms: int) -> int:
    ends_ms = each.hold.until_ms
    # A maintenance that is over only observes for a while.
    return ends_ms + each.hold.settle_ms if ends_ms and ends_ms <= now_ms else ends_ms


def all_holds(modes: Modes, now_ms: int) -> list[InForce]:
    """Every hold on every scope that is in force, in the order of their scopes."""
    return [
        InForce(mode, name, hold)
        for name in _widest_first(modes.scopes)
        for hold in modes.scopes[name].holds
        if (mode := hold.mode_at(now_ms))
    ]


def _widest_first(scopes: Iterable[str]) -> Sequence[str]:
    return sorted(scopes, key=lambda name: (name != FLEET, name.startswith(_VM), name))
