"""Requests for recovery, watched until each VM has got somewhere: by events, and by records in quiet moments."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from workers.cli.events import block_ms
from workers.cli.session import Session
from workers.domain.audit import EventKind
from workers.domain.epoch import order
from workers.domain.vm import Force, State
from workers.ports import Stored
from workers.services.operations import Asked
from workers.store.events import Entry

_ENDS = frozenset({State.HEALTHY, State.FAILED, State.STOPPED})


@dataclass(slots=True)
class Following:
    """`ended` says what became of each VM, None where it was forgotten; the others are still on their way."""

    here: Session
    asked: Sequence[Asked]
    force: Force = Force.PLAIN
    on_event: Callable[[Entry], object] = lambda _: None
    on_end: Callable[[str, State | None], object] = lambda _vm_id, _state: None
    on_silence: Callable[[str], object] = lambda _: None  # a host lost its worker, or has one again
    ended: dict[str, State | None] = field(default_factory=dict)
    _unserved: set[str] = field(default_factory=set)

    def run(self, patience: timedelta) -> Mapping[str, State | None]:
        """Return when all have ended, or patience has. Raises StoreUnavailable."""
        deadline = time.monotonic() + patience.total_seconds()
        after = min((each.after for each in self.asked), key=order)
        of_vm = {each.vm_id: each for each in self.asked}
        for entry in self.here.fleet.events.follow(after, block_ms=block_ms(self.here.settings)):
            if entry is None:
                self._look_again()
            elif (asked := of_vm.get(entry.event.vm_id)) is not None and asked.vm_id not in self.ended:
                self._hear(entry, asked)
            if len(self.ended) == len(of_vm) or time.monotonic() > deadline:
                break
        return self.ended

    def _hear(self, entry: Entry, asked: Asked) -> None:
        told = entry.event
        if order(entry.id) <= order(asked.after):
            return
        self.on_event(entry)
        if told.kind is EventKind.FORGOTTEN:
            self._end(asked, None)
        elif told.after in _ENDS and (not self._was_well or told.request_id == asked.request_id):
            self._end(asked, told.after)

    @property
    def _was_well(self) -> bool:
        """Then only what came of this very request says that it is over."""
        return self.force is Force.KILL_HEALTHY

    def _end(self, asked: Asked, state: State | None) -> None:
        self.ended[asked.vm_id] = state
        self.on_end(asked.vm_id, state)

    def _look_again(self) -> None:
        """The record rules, whatever events were missed; and a host may have lost its worker."""
        waiting = {each.vm_id: each for each in self.asked if each.vm_id not in self.ended}
        for snapshot in self.here.snapshots(list(waiting)):
            for vm_id, stored in snapshot.found.items():
                if self._is_over(stored, waiting[vm_id]):
                    self._end(waiting[vm_id], stored.record.state)
        self._look_for_workers({each.host for each in waiting.values()})

    def _is_over(self, stored: Stored, asked: Asked) -> bool:
        record = stored.record
        episode = record.episode.request_id if record.episode else None
        is_ours = asked.request_id in (record.last_request, episode)
        if record.state is State.HEALTHY:
            return is_ours or not self._was_well
        return record.state is State.FAILED and is_ours and not stored.leased

    def _look_for_workers(self, hosts: set[str]) -> None:
        _, seen = self.here.fleet.hosts.all()
        unserved = hosts - {host.name for host in seen if host.worker}
        for host in sorted(unserved - self._unserved):
            self.on_silence(f"no worker serves host {host} any more: it waits until one does")
        self._unserved = unserved
