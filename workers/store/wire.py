"""What write.lua and tend.lua take and give, as values of the VmStore port."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from workers.domain.recovery import needs_attempt
from workers.ports import Called, Change, Limits, Outcome, Written
from workers.specs import dump_spec
from workers.store.codec import compact, dump_event, dump_record, load_event


def limits_text(limits: Limits) -> str:
    return compact(asdict(limits))


def change_to_wire(change: Change, version: int) -> dict[str, Any]:
    """Numbers beyond 2^53 go as text: the server's JSON would round them."""
    after = change.after
    wire: dict[str, Any] = {"id": change.vm_id, "rev": change.rev, "events": [dump_event(e) for e in change.events]}
    if after is not None:
        wire |= {
            "doc": dump_record(after, version),
            "state": after.state,
            "host": after.host,
            "token": str(after.generation),
            "needs_attempt": needs_attempt(after),
            "created_ms": after.created_ms,
        }
    if change.spec is not None:
        wire["spec"] = dump_spec(change.spec)
    if change.take is not None:
        wire["take"] = {name: value for name, value in asdict(change.take).items() if value is not None}
    if change.held_by is not None:
        wire["held_by"] = {"owner": change.held_by.owner, "token": str(change.held_by.token)}
    optional = {
        "check_in_ms": change.check_in_ms,
        "release": change.release or None,
        "result": change.result,
        "enlist": change.enlist or None,
        "loss": change.loss,
    }
    return wire | {name: value for name, value in optional.items() if value is not None}


def written_of(
    outcomes: Sequence[bytes], called: Sequence[Sequence[Any]], told: Sequence[bytes], *, intact: bool
) -> Written:
    return Written(
        [Outcome(text.decode()) for text in outcomes],
        [_called_of(row) for row in called],
        [load_event(text) for text in told],
        intact,
    )


def _called_of(row: Sequence[Any]) -> Called:
    vm_id, host, episode, attempt = row
    return Called(vm_id.decode(), host.decode(), episode.decode() or None, int(attempt) or None)
