"""What people set on the fleet, a host or a VM at run time: holds of a mode, and switches of single parts."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from workers.domain.audit import Event, EventKind
from workers.domain.errors import Refused
from workers.domain.modes import FLEET, Flag, Hold, Mode, Modes, Scope, Switch
from workers.ports import ModeStore
from workers.specs import check_vm_id

T = TypeVar("T")

_TRIES = 5
_MOST_HOLDS = 50


class OperatorModes:
    """Every change is one event of `actor`. Raises StoreUnavailable; Refused where it would change nothing.

    For `settle_ms` after the end of a maintenance its VMs are only observed, so that not all is mended at once.
    """

    def __init__(self, store: ModeStore, *, actor: str, settle_ms: int = 0) -> None:
        self._store, self._actor, self._settle_ms = store, actor, settle_ms

    def all(self) -> tuple[int, Modes]:
        """Server time in ms, and every scope on which anything is set."""
        return self._store.all_modes()

    def hold(self, scope: str, mode: Mode, *, why: str, for_ms: int = 0) -> Hold:
        """Put a mode in force, for a time or (0) until it is lifted."""
        settle_ms = self._settle_ms if mode is Mode.MAINTENANCE else 0

        def decide(now: int, before: Scope) -> tuple[Scope, Hold, str]:
            if len(before.holds) >= _MOST_HOLDS:
                raise Refused(f"{scope} has {_MOST_HOLDS} holds already: lift some first", "too_many")
            until_ms = now + for_ms if for_ms else 0
            made = Hold(uuid.uuid4().hex[:8], mode, self._actor, why, now, until_ms, settle_ms)
            return replace(before, holds=(*before.holds, made)), made, f"{mode} begins: {why}"

        return self._change(scope, decide)

    def lift(
        self,
        scope: str,
        *,
        hold_id: str | None = None,
        mode: Mode | None = None,
        every: bool = False,
        why: str | None = None,
    ) -> list[Hold]:
        """Lift one hold (by id, or the only one there is), or all with `every`; `mode` narrows which are meant."""

        def decide(now: int, before: Scope) -> tuple[Scope, list[Hold], str]:
            del now
            meant = [h for h in before.holds if hold_id in (None, h.id) and mode in (None, h.mode)]
            if not meant:
                raise Refused(f"nothing of that kind holds {scope}; see `reliability status`", "not_held")
            if len(meant) > 1 and not every:
                listed = "; ".join(f"{h.id} ({h.mode}, {h.actor}: {h.why})" for h in meant)
                raise Refused(
                    f"{scope} is held {len(meant)} times: {listed}; name one by --id, or use --all", "several"
                )
            kept = tuple(h for h in before.holds if h not in meant)
            lifted = ", ".join(f"{h.mode} lifted ({h.why})" for h in meant)
            return replace(before, holds=kept), meant, _with(lifted, why)

        return self._change(scope, decide)

    def switch(self, scope: str, flag: Flag, *, on: bool, why: str) -> Switch:
        """Switch a part on or off here, whatever is set on wider scopes; what settings switch off stays off."""

        def decide(now: int, before: Scope) -> tuple[Scope, Switch, str]:
            made = Switch(flag, on, self._actor, why, now)
            others = tuple(each for each in before.switches if each.flag is not flag)
            return replace(before, switches=(*others, made)), made, f"{flag} switched {'on' if on else 'off'}: {why}"

        return self._change(scope, decide)

    def unswitch(self, scope: str, flag: Flag, *, why: str | None = None) -> None:
        """Take a switch back: wider scopes decide again."""

        def decide(now: int, before: Scope) -> tuple[Scope, None, str]:
            del now
            others = tuple(each for each in before.switches if each.flag is not flag)
            if others == before.switches:
                raise Refused(f"{flag} is not set on {scope}; see `reliability flag list`", "not_set")
            return replace(before, switches=others), None, _with(f"{flag} is not set here any more", why)

        return self._change(scope, decide)

    def _change(self, scope: str, decide: Callable[[int, Scope], tuple[Scope, T, str]]) -> T:
        vm_id, host = _parts(scope)
        for _ in range(_TRIES):
            now_ms, modes = self._store.modes([scope])
            before = modes.scopes.get(scope, Scope())
            after, result, why = decide(now_ms, before)
            told = Event(EventKind.MODE, vm_id, host, self._actor, why, scope=scope)
            if self._store.put_scope(scope, before, after.without_ended(now_ms), told):
                return result
        raise Refused(f"what is set on {scope} keeps changing; try again", "contended")


def _with(what: str, why: str | None) -> str:
    return f"{what}: {why}" if why else what


def _parts(scope: str) -> tuple[str, str]:
    """VM id and host of a scope, for its event. Raises ValueError where it is none."""
    kind, colon, name = scope.partition(":")
    if scope == FLEET:
        return "", ""
    if colon and kind in ("host", "vm"):
        check_vm_id(name)
        return (name, "") if kind == "vm" else ("", name)
    raise ValueError(f"field scope: must be fleet, host:<host> or vm:<id>, got {scope!r}")
