"""A fleet on a real server, as one wants to find it: records, what stands around them, and events of any age.

Time is in the test's hands; `ago` is counted back from `NOW_MS`, in seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import redis

from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_process, a_spec, a_vm
from tests.support.stores import PREFIX, Subject, redis_subject
from workers.bootstrap import Fleet, limits
from workers.domain.audit import Event, EventKind, event
from workers.domain.breaker import Result, calls_of
from workers.domain.epoch import order
from workers.domain.modes import Hold, Mode, Scope, Switch
from workers.domain.strays import StrayPolicy
from workers.domain.vm import Episode, State, VmRecord
from workers.embedded import EmbeddedServer
from workers.ports import Change, Lease, Outcome, Running, StrayFound, Take
from workers.settings import load
from workers.store.client import connect
from workers.store.codec import dump_event
from workers.store.keys import Keys
from workers.store.vm_store import RedisVmStore

KEYS = Keys(PREFIX)


class Scene:
    def __init__(self, subject: Subject, client: redis.Redis, url: str, folder: Path) -> None:
        self.subject, self.client = subject, client
        environ = {
            "RELIABILITY_REDIS__URL": url,
            "RELIABILITY_REDIS__PREFIX": PREFIX,
            "RELIABILITY_STATE_DIR": str(folder),
            "RELIABILITY_BREAKER__MIN_CALLS": "2",
        }
        self.fleet = Fleet(load(environ, folder).settings, client)
        made = subject.make(limits(self.fleet.settings), None)
        self.store = self.fleet.store = cast("RedisVmStore", made)

    def put(self, *records: VmRecord, check_in_ms: int = 20_000) -> None:
        self._begin_now()
        changes = [Change(r.vm_id, 0, r, check_in_ms=check_in_ms, spec=a_spec(r.vm_id)) for r in records]
        assert set(self.store.write(changes).outcomes) == {Outcome.DONE}

    def change(self, vm_id: str, after: VmRecord | None, **fields: Any) -> Outcome:
        rev = self.store.read([vm_id]).found[vm_id].rev
        return self.store.write([Change(vm_id, rev, after, **fields)]).outcomes[0]

    def checked(self, *vm_ids: str) -> None:
        self.store.write([], seen=vm_ids)

    def _begin_now(self) -> None:
        """What the store writes down from here on is of now: a stream never goes back behind its last entry."""
        if order(self.fleet.events.last_id())[0] < NOW_MS:
            self.told(0, Event(EventKind.CONFIRMED, "", "", "test", "now"))

    def told(self, ago: float, told: Event) -> None:
        """Older events come first."""
        self.client.xadd(KEYS.events, {"e": dump_event(told)}, id=f"{NOW_MS - int(ago * 1000)}-*")

    def moved(self, ago: float, record: VmRecord, before: State, why: str, actor: str = "health_check") -> None:
        self.told(ago, event(EventKind.TRANSITION, record, actor=actor, why=why, before=before))

    def attempt_begun(self, ago: float, record: VmRecord, number: int) -> None:
        begun = replace(record, episode=replace(_episode(record), attempt=number))
        self.told(ago, event(EventKind.ATTEMPT_STARTED, begun, actor="recovery", why=f"attempt {number} of 3"))

    def failed_attempts(self, record: VmRecord, *ages: float, error: str) -> None:
        """Each of them began so long ago, and ran for 4 s."""
        for number, ago in enumerate(ages, 1):
            self.attempt_begun(ago, record, number)
            ended = replace(record, episode=replace(_episode(record), attempt=number))
            self.told(ago - 4, event(EventKind.ATTEMPT_FAILED, ended, actor="recovery", why=error))

    def attempt(self, record: VmRecord, owner: str = "attempt-1", calls: Any = ()) -> Outcome:
        episode = replace(_episode(record), attempt=1, running=True, attempt_started_ms=self.now_ms)
        begun = replace(record, state=State.RECOVERING, since_ms=self.now_ms, episode=episode)
        started = event(EventKind.ATTEMPT_STARTED, begun, actor="recovery", why="attempt 1 of 3")
        return self.change(record.vm_id, begun, events=(started,), take=Take(owner, 30_000, calls))

    @property
    def now_ms(self) -> int:
        return self.subject.clock.now_ms

    def break_image(self, image: str) -> None:
        """Let two VMs of this image fail here, so that its breaker opens."""
        for vm_id in ("vm-bad-1", "vm-bad-2"):
            self.put(a_lost_vm(vm_id))
            calls = calls_of(vm_id, host=HOST, image=image, driver="firecracker@1")
            assert self.attempt(a_lost_vm(vm_id), vm_id, calls) is Outcome.DONE
            lease = Lease(vm_id, 7)
            ended = self.change(vm_id, a_vm(vm_id), held_by=lease, release=True, result=Result.FAILURE)
            assert ended is Outcome.DONE

    def hold(self, scope: str, *holds: Hold, switches: tuple[Switch, ...] = ()) -> None:
        told = Event(EventKind.MODE, "", "", "test", "set by a test", scope=scope)
        assert self.fleet.modes.put_scope(scope, Scope(), Scope(holds, switches), told)

    def stray(self, vm_id: str, host: str, why: str = "policy") -> None:
        running = Running(vm_id, "firecracker", a_process(4711), None, guarded=True, age_s=60.0)
        found = StrayFound(running, StrayPolicy.REPORT, why)
        self.fleet.hosts.put_strays(host, [found], ttl_ms=60_000)

    def silence(self, host: str, ago: float) -> None:
        """Its worker went away so long ago, on the server's own clock."""
        seconds, micros = self.client.time()
        self.client.delete(KEYS.host(host))
        self.client.zadd(KEYS.hosts, {host: seconds * 1000 + micros // 1000 - int(ago * 1000)})


def _episode(record: VmRecord) -> Episode:
    assert record.episode is not None
    return record.episode


def a_hold(mode: Mode, why: str, *, ago: float = 600, actor: str = "cli:ann", **fields: Any) -> Hold:
    return Hold(f"hold-{ago:.0f}", mode, actor, why, NOW_MS - int(ago * 1000), **fields)


@contextmanager
def scene_on(server: EmbeddedServer, folder: Path) -> Iterator[Scene]:
    with redis_subject(server) as subject:
        client = connect(server.url(0), timeout_s=5, connect_timeout_s=5)
        subject.serve(HOST)
        try:
            yield Scene(subject, client, server.url(0), folder)
        finally:
            client.close()
