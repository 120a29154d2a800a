"""Writes to the store, and what follows from each: events are told, and who was called is woken."""

from collections.abc import Collection, Sequence

from workers.crashpoints import Point, reach
from workers.domain.audit import Event
from workers.domain.vm import VmRecord
from workers.ports import Change, Outcome, Telemetry, VmStore, Wakeups, Written


class Ledger:
    """Raises StoreUnavailable wherever the store does."""

    def __init__(self, store: VmStore, wakeups: Wakeups, telemetry: Telemetry) -> None:
        self._store, self._wakeups, self._telemetry = store, wakeups, telemetry

    def write(
        self, changes: Sequence[Change], *, seen: Collection[str] = (), enlist: Collection[str] = ()
    ) -> Sequence[Outcome]:
        """Write each change that is not refused; the events of those are told."""
        written = self._store.write(changes, seen=seen, enlist=enlist)
        for change, outcome in zip(changes, written.outcomes, strict=True):
            if outcome is Outcome.DONE and change.events:
                self._telemetry.decided(change.events, change.after)
        self.follow(written)
        return written.outcomes

    def write_one(self, change: Change) -> Outcome:
        return self.write([change])[0]

    def note(self, *events: Event) -> None:
        self._store.note(events)
        self._telemetry.decided(events)

    def pass_on(self, vm_id: str) -> None:
        self.follow(self._store.pass_on(vm_id))

    def tend(self, host: str) -> None:
        self.follow(self._store.tend(host))

    def follow(self, written: Written) -> None:
        """Tell what the store decided, and wake whoever it called."""
        if written.told:
            self._telemetry.decided(written.told)
        for called in written.called:
            reach(Point.BEFORE_CALL)
            self._wakeups.recover(called.vm_id, called.host, episode=called.episode, attempt=called.attempt)
            reach(Point.AFTER_CALL)

    def wake_later(self, record: VmRecord, delay_ms: int) -> None:
        """Ask again when the next attempt on this record may begin; the record says so too."""
        episode = record.open_episode
        self._wakeups.recover(
            record.vm_id,
            record.host,
            episode=episode.id if episode else None,
            attempt=episode.attempt + 1 if episode else None,
            delay_ms=delay_ms,
        )

    def stop(self, record: VmRecord) -> None:
        self._wakeups.stop(record.vm_id, record.host)
