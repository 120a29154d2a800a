"""What every command that reads or declares VMs works with: the settings, the fleet behind them, and who is asking."""

import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path

import click

from workers.bootstrap import Fleet
from workers.cli.failures import Failure, no_redis
from workers.domain.errors import Paused, StoreUnavailable, UnknownVm, UnreadableRecord
from workers.domain.evidence import Evidence
from workers.domain.vm import Incarnation
from workers.host.identity import look_at, read_vantage
from workers.host.rundir import HostFiles
from workers.ports import Snapshot, Stored
from workers.services.operations import Operations
from workers.settings import Settings, load
from workers.specs import check_vm_id

_CHUNK = 500
_SUGGEST_AMONG = 5000  # ids: looking further would take longer than reading the list


def checked_id(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what can be no id of a VM or host, as a callback of click."""
    if value is None:
        return None
    try:
        return check_vm_id(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}", ctx, param) from error


class Session:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def fleet(self) -> Fleet:
        return Fleet(self.settings)

    @cached_property
    def files(self) -> HostFiles:
        return HostFiles(self.settings.state_dir)

    @cached_property
    def operations(self) -> Operations:
        """What a person may ask for; only this sends messages."""
        from workers.cli.messaging import send  # noqa: PLC0415 - what it needs takes long to load

        return self.fleet.operations(partial(send, self.settings), actor=self.actor)

    @property
    def actor(self) -> str:
        """Who is asking, for the audit."""
        uid = os.getuid()
        try:
            return f"cli:{pwd.getpwuid(uid).pw_name}"
        except KeyError:
            return f"cli:{uid}"

    def stored(self, vm_id: str) -> tuple[Stored, int]:
        """Return the record and server time in ms. Raises UnknownVm, UnreadableRecord, StoreUnavailable."""
        snapshot = self.fleet.store.read([vm_id])
        if vm_id in snapshot.unreadable:
            raise UnreadableRecord(vm_id, snapshot.unreadable[vm_id])
        if vm_id not in snapshot.found:
            raise self.unknown(vm_id)
        return snapshot.found[vm_id], snapshot.now_ms

    def unknown(self, vm_id: str) -> Exception:
        ids = self.fleet.store.ids()
        close = get_close_matches(vm_id, ids, n=1) if len(ids) <= _SUGGEST_AMONG else []
        return Failure(f"no vm {vm_id!r} is registered; did you mean {close[0]}?") if close else UnknownVm(vm_id)

    def snapshots(self, vm_ids: Sequence[str]) -> Iterator[Snapshot]:
        for start in range(0, len(vm_ids), _CHUNK):
            yield self.fleet.store.read(vm_ids[start : start + _CHUNK])

    def is_served(self, host: str) -> bool:
        _, hosts = self.fleet.hosts.all()
        return any(each.name == host and each.worker is not None for each in hosts)

    def evidence_against(self, process: Incarnation) -> Evidence | None:
        """What speaks against this process of this host being alive; None when it lives. Raises OSError."""
        return look_at(process, read_vantage(self.settings.state_dir))

    def kill_switch(self) -> str | None:
        """The path of the kill switch of this host if it is on. Raises OSError where that cannot be seen."""
        try:
            self.files.check_kill_switch()
        except Paused as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            # Without a state folder no worker has run here yet.
            return error.path if self.settings.state_dir.exists() else None
        return None


@contextmanager
def session() -> Iterator[Session]:
    """Raises SettingsError, and Failure where Redis does not answer."""
    settings = load(os.environ, Path.cwd()).settings
    try:
        yield Session(settings)
    except StoreUnavailable as error:
        raise no_redis("redis.url", settings.redis.url, error) from error
