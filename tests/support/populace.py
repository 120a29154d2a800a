"""Many VMs at once, as records alone: what pages and lists have to cope with, without a single VMM."""

from dataclasses import replace

from tests.support.builders import a_process, an_episode
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind, event
from workers.domain.vm import Episode, EpisodeEnd, Reason, State, VmRecord
from workers.ports import Change, Outcome

_CHUNK = 500
_PER_HOST = 500
_ODD = (State.FAILED, State.ORPHANED, State.UNHEALTHY, State.RECOVERING, State.STARTING, State.DEGRADED, State.STOPPED)


def populate(fleet: Fleet, vms: int, *, odd_every: int = 50) -> list[VmRecord]:
    """Write so many records; every `odd_every`th is in another state than healthy."""
    now_ms, _ = fleet.hosts.all()
    records = [_record(number, odd_every, now_ms) for number in range(vms)]
    for start in range(0, vms, _CHUNK):
        put(fleet, records[start : start + _CHUNK])
    return records


def put(fleet: Fleet, records: list[VmRecord]) -> None:
    told = {
        record.vm_id: event(EventKind.REGISTERED, record, actor="test", why="put there", before=record.state)
        for record in records
    }
    changes = [Change(record.vm_id, 0, record, (told[record.vm_id],)) for record in records]
    assert set(fleet.store.write(changes).outcomes) <= {Outcome.DONE}


def _record(number: int, odd_every: int, now_ms: int) -> VmRecord:
    record = VmRecord(
        vm_id=f"vm-{number:05d}",
        host=f"host-{number // _PER_HOST:03d}",
        driver="firecracker" if number % 3 else "qemu",
        state=State.HEALTHY,
        since_ms=now_ms - 1000 * (number * 37 % 90_000) - 60_000,
        generation=now_ms * 1000 + number,
        process=a_process(pid=1000 + number),
    )
    if number % odd_every:
        return record
    state = _ODD[number // odd_every % len(_ODD)]
    lost = state in (State.FAILED, State.ORPHANED, State.UNHEALTHY, State.RECOVERING)
    return replace(record, state=state, episode=_episode(record, state, now_ms) if lost else None)


def _episode(record: VmRecord, state: State, now_ms: int) -> Episode:
    episode = an_episode(
        id=f"{record.vm_id}@1",
        reason=Reason.PROCESS_DEAD,
        started_ms=now_ms - 90_000,
        attempt=1,
        error="the VMM did not answer in 10 s",
        next_attempt_ms=now_ms + 30_000,
    )
    match state:
        case State.FAILED:
            return replace(episode, attempt=3, end=EpisodeEnd.FAILED, ended_ms=now_ms - 5000, next_attempt_ms=0)
        case State.RECOVERING:
            return replace(episode, running=True, attempt_started_ms=now_ms - 2000, next_attempt_ms=0)
        case _:
            return episode
