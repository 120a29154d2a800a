"""What can be asked for on a VM's page, or by a POST beside it: the request is checked, done, and answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from workers.bootstrap import Fleet, milliseconds
from workers.domain.modes import Hold, Mode, vm_scope
from workers.domain.vm import Force
from workers.durations import parse_duration
from workers.services.operations import Operations, Send
from workers.store.codec import first_error

_REASON_MAX = 200  # characters, as of every text in a message


class Action(StrEnum):
    RECOVER = "recover"
    PAUSE = "pause"
    MAINTENANCE = "maintenance"
    RESUME = "resume"
    RESET = "reset"


class Wish(BaseModel):
    """The body of a request. Which fields an action takes stands in docs/dashboard.md."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    reason: str
    force: Literal["plain", "force", "kill-healthy"] = "plain"
    confirm: str = ""
    duration: str = Field("", alias="for")
    hold: str = Field("", max_length=64)
    all: bool = False

    @field_validator("reason")
    @classmethod
    def _one_line(cls, text: str) -> str:
        text = text.strip()
        if not text or len(text) > _REASON_MAX or not text.isprintable():
            raise ValueError(f"say why, in one line of at most {_REASON_MAX} printable characters")
        return text

    @field_validator("duration")
    @classmethod
    def _some_time(cls, text: str) -> str:
        if text and not parse_duration(text):
            raise ValueError("must be longer than nothing")
        return text

    @property
    def for_ms(self) -> int:
        return milliseconds(parse_duration(self.duration)) if self.duration else 0


_TAKES: Mapping[Action, frozenset[str]] = {
    Action.RECOVER: frozenset({"reason", "force", "confirm"}),
    Action.PAUSE: frozenset({"reason", "for"}),
    Action.MAINTENANCE: frozenset({"reason", "for"}),
    Action.RESUME: frozenset({"reason", "hold", "all"}),
    Action.RESET: frozenset({"reason"}),
}


def wish_of(action: Action, vm_id: str, body: bytes) -> Wish:
    """Raises ValueError naming the field."""
    try:
        wish = Wish.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error
    given = {field.alias or name for name, field in Wish.model_fields.items() if name in wish.model_fields_set}
    for name in sorted(given - _TAKES[action]):
        raise ValueError(f"field {name}: means nothing to {action}")
    if wish.force != "plain" and wish.confirm != vm_id:
        raise ValueError("field confirm: what overrides protection is confirmed by the id of the VM")
    if action is Action.MAINTENANCE and not wish.duration:
        raise ValueError("field for: say how long the maintenance lasts, such as 30m or 2h")
    return wish


@dataclass(frozen=True, slots=True)
class Actions:
    """Blocks. Raises what the services raise: Refused, UnknownVm, UnreadableRecord, StoreUnavailable."""

    fleet: Fleet
    send: Send

    def do(self, action: Action, vm_id: str, wish: Wish, *, actor: str) -> dict[str, Any]:
        match action:
            case Action.RECOVER:
                return _recover(self.fleet.operations(self.send, actor=actor), vm_id, wish)
            case Action.RESET:
                self.fleet.operations(self.send, actor=actor).reset(vm_id, reason=wish.reason)
                return {"done": f"the finished episode of {vm_id} is cleared"}
            case Action.PAUSE:
                return self._hold(vm_id, Mode.PAUSED, wish, actor)
            case Action.MAINTENANCE:
                return self._hold(vm_id, Mode.MAINTENANCE, wish, actor)
            case Action.RESUME:
                modes = self.fleet.operator_modes(actor=actor)
                lifted = modes.lift(vm_scope(vm_id), hold_id=wish.hold or None, every=wish.all, why=wish.reason)
                return {"done": f"lifted: {', '.join(hold.mode for hold in lifted)}", "lifted": [h.id for h in lifted]}

    def _hold(self, vm_id: str, mode: Mode, wish: Wish, actor: str) -> dict[str, Any]:
        modes = self.fleet.operator_modes(actor=actor)
        made: Hold = modes.hold(vm_scope(vm_id), mode, why=wish.reason, for_ms=wish.for_ms)
        return {"done": f"{mode} begins", "hold": made.id, "until_ms": made.until_ms}


def _recover(operations: Operations, vm_id: str, wish: Wish) -> dict[str, Any]:
    asked = operations.recover(vm_id, reason=wish.reason, force=Force(wish.force))
    done = "recovery requested" if asked.sent else "it is being recovered already; nothing was sent"
    return {
        "done": done,
        "sent": asked.sent,
        "request_id": asked.request_id,
        "after": asked.after,
        "host": asked.host,
    }
