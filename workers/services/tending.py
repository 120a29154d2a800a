"""What each heartbeat of a host looks after: are the data those we know, is the kill switch on, who is called next."""

from collections.abc import Callable

from workers.domain.audit import Event, EventKind
from workers.domain.epoch import Frozen, judge_data
from workers.domain.errors import Paused
from workers.ports import Data, Halt, Memory, VmHost
from workers.services.ledger import Ledger

ACTOR = "worker"


class Tending:
    """`not_saved` hears why the memory could not be saved; the next heartbeat tries again."""

    def __init__(
        self,
        ledger: Ledger,
        data: Data,
        memory: Memory,
        host: VmHost,
        *,
        host_name: str,
        not_saved: Callable[[OSError], None],
    ) -> None:
        self._ledger, self._data, self._memory, self._host = ledger, data, memory, host
        self._host_name, self._not_saved = host_name, not_saved
        self._told: Halt | None = None
        self._has_told = False
        self._pause: Halt | None = None

    @property
    def is_paused(self) -> bool:
        """Whether the kill switch was on at the last heartbeat, whatever else halts this host."""
        return self._pause is not None

    @property
    def halted(self) -> Halt | None:
        """Why nothing is recovered here, as of the last heartbeat."""
        return self._told

    def tend(self) -> None:
        """Raises StoreUnavailable."""
        frozen, self._pause = self._frozen(), self._paused()
        self._tell(frozen or self._pause)
        if self._told is None or not self._told.frozen:
            self._ledger.tend(self._host_name)
        try:
            self._memory.save()
        except OSError as error:
            self._not_saved(error)

    def _frozen(self) -> Halt | None:
        known = self._memory.known
        found = self._data.look(known)
        if known is None and found.epoch is None:
            found = self._data.begin(known)
        verdict = judge_data(known, found)
        if isinstance(verdict, Frozen):
            return Halt(verdict.why, known.epoch if known else "", frozen=True)
        self._memory.trust(verdict.known)
        return None

    def _paused(self) -> Halt | None:
        try:
            self._host.check_kill_switch()
        except Paused as error:
            return Halt(str(error))
        return None

    def _tell(self, halt: Halt | None) -> None:
        """Tell each change once in the audit; a halt is told to the other hosts again and again: data may get lost."""
        if halt is not None or not self._has_told or self._told is not None:
            self._data.halt(self._host_name, halt)
        if self._has_told and halt == self._told:
            return
        if halt is not None:
            self._ledger.note(self._event(EventKind.FROZEN, f"nothing is recovered on this host: {halt.why}"))
        elif self._told is not None:
            self._ledger.note(self._event(EventKind.THAWED, "recovery goes on on this host"))
        self._told, self._has_told = halt, True

    def _event(self, kind: EventKind, why: str) -> Event:
        return Event(kind, "", self._host_name, ACTOR, why, scope=f"host:{self._host_name}")
