"""The users of config/redis/roles.acl on real servers: each role does its own work, and is refused the others'."""

import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from tests.conftest import _require_flavour
from tests.support.builders import a_lost_vm, a_process, a_spec
from tests.support.cli import program
from tests.support.cluster import cluster, kill
from tests.support.lua_calls import calls_in, scripts
from tests.support.managers import CONFIG, manager_with
from tests.support.processes import wait_until
from tests.support.redis_process import redis_process
from tests.support.roles import Role, RoleSite, fill_in, role_site
from tests.support.servers import BROKER_DB, RedisFlavour, empty, start_server
from workers import queues
from workers.app import make_app
from workers.bootstrap import Fleet, fleet_schedule
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import Result, calls_of
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Hold, Mode, Scope
from workers.domain.registry_diff import Notes
from workers.domain.storm import Loss
from workers.domain.vm import State
from workers.embedded import free_port
from workers.messages import CeleryWakeups, NoWakeups
from workers.ports import Change, Halt, Lease, Outcome, Take
from workers.store.client import connect
from workers.store.hosts import HostWorker
from workers.store.keys import Keys
from workers.store.modes import RedisModes

PREFIX = "rel"
HOST = "host-a"
EVERYBODY = list(Role)
ME = HostWorker("me", HOST, a_process(), 0, "1")

# Which scripts each role runs. A new script has to stand here for somebody.
RUNS = {
    Role.HOOK: {"read", "write", "put_scope"},
    Role.WORKER: {
        "read",
        "write",
        "confirm",
        "put_scope",
        "tend",
        "renew",
        "host_lease",
        "budget",
        "epoch",
        "survey_host",
    },
    Role.BEAT: {"claim", "survey_fleet"},
    Role.OPERATOR: {"read", "write", "epoch", "put_scope", "set_breaker", "survey_host", "survey_fleet"},
    Role.READONLY: {"read", "survey_host", "survey_fleet"},
}
# The step of a script that is not theirs: only an operator confirms data.
NOT_THEIRS = {(Role.WORKER, "epoch", "ZADD")}

each_role = pytest.mark.parametrize("role", EVERYBODY)


@pytest.fixture(scope="module", params=list(RedisFlavour))
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoleSite]:
    flavour = RedisFlavour(request.param)
    _require_flavour(flavour)
    folder = tmp_path_factory.mktemp("roles")
    with start_server(folder / "server", flavour) as server, role_site(server, folder) as site:
        yield site


@pytest.fixture
def site(started: RoleSite) -> RoleSite:
    """A fleet of one healthy VM; what is refused to anybody but the administrator stands in the server's log."""
    empty(started.server)
    admin_of(started).registry(NoWakeups(), actor="test").apply([a_spec("vm-1", host=HOST)])
    started.refused()
    return started


def admin_of(site: RoleSite) -> Fleet:
    settings = site.settings(Role.OPERATOR)
    return Fleet(settings, connect(site.server.url(), timeout_s=5, connect_timeout_s=5))


def fleet_of(site: RoleSite, role: Role) -> Fleet:
    return Fleet(site.settings(role))


def messages(site: RoleSite, queue: str) -> int:
    site.admin.select(BROKER_DB)
    try:
        return int(site.admin.llen(queue))
    finally:
        site.admin.select(0)


# --- the rules


@pytest.mark.parametrize("flavour", list(RedisFlavour))
def test_the_rules_are_a_configuration_that_a_server_starts_with(flavour: RedisFlavour, tmp_path: Path) -> None:
    _require_flavour(flavour)
    users, port = fill_in(tmp_path / "roles"), free_port()

    with redis_process(tmp_path / "server", flavour, f"port {port}", f"include {users}"):
        password = (tmp_path / "roles" / "readonly.password").read_text()
        with redis.Redis(port=port, username="readonly", password=password) as client:
            assert client.exists("rel:vms") == 0
        with redis.Redis(port=port, username="health") as client:
            assert client.ping()
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(AuthenticationError):
            client.ping()


def test_passwords_are_readable_by_their_owner_alone_and_kept_when_the_rules_change(tmp_path: Path) -> None:
    users = fill_in(tmp_path / "roles")
    first = {path.name: path.read_text() for path in users.parent.iterdir()}

    fill_in(tmp_path / "roles")

    assert {path.name: path.read_text() for path in users.parent.iterdir()} == first
    assert {path.stat().st_mode & 0o777 for path in users.parent.iterdir()} == {0o600}
    passwords = [text for name, text in first.items() if name.endswith(".password")]
    assert sorted({len(text) for text in passwords}) == [64]
    assert len(set(passwords)) == len(Role)
    assert not any(text in first["users.acl"] for text in passwords)


def test_every_script_is_run_by_somebody() -> None:
    assert set.union(*RUNS.values()) == set(scripts())


@pytest.mark.parametrize("name", [name for name in vars(Keys) if not name.startswith("_") and name != "prefix"])
def test_every_key_is_written_by_somebody_and_by_few(started: RoleSite, name: str) -> None:
    """A new key has to be somebody's in roles.acl."""
    key = getattr(Keys(PREFIX), name)
    sample = key("x") if callable(key) else key
    writes = (
        f"SET {sample} 1",
        f"HSET {sample} f 1",
        f"SADD {sample} 1",
        f"ZADD {sample} 1 m",
        f"XADD {sample} * e 1",
        f"HINCRBY {sample} f 1",
    )

    writers = {role for role in EVERYBODY for write in writes if started.may(role, *write.split())}

    assert writers
    assert Role.READONLY not in writers
    assert all(started.may(role, "TYPE", sample) for role in EVERYBODY)


@each_role
def test_a_role_may_do_all_that_its_scripts_do(started: RoleSite, role: Role) -> None:
    """A script that is refused half-way has written half."""
    refused = [
        f"{script}.lua: {' '.join(call.words)}"
        for script in sorted(RUNS[role])
        for call in calls_in(script)
        if (role, script, call.command) not in NOT_THEIRS and not started.may(role, *call.words)
    ]

    assert refused == []


# --- what each role does


def test_the_hook_declares_stops_forgets_and_asks_for_recovery(site: RoleSite) -> None:
    fleet, app = fleet_of(site, Role.HOOK), make_app(site.settings(Role.HOOK))
    wakeups = CeleryWakeups(app)
    registry = fleet.registry(wakeups, actor="manager")
    fleet.store.note([Event(EventKind.OVERRIDE, "vm-1", HOST, "manager", "trigger_recovery")])

    registry.apply([a_spec("vm-2", host=HOST), a_spec("vm-1", host=HOST, desired="stopped")])
    wakeups.recover("vm-2", HOST)
    app.send_task(queues.RECOVER_VM, args=["vm-2"])
    registry.forget("vm-2")
    app.close()

    assert fleet.store.ids() == ["vm-1"]
    assert (messages(site, f"recovery.{HOST}"), messages(site, queues.CONTROL)) == (2, 1)
    assert site.refused() == []


def test_a_vm_manager_needs_no_more_than_the_hook_may(site: RoleSite) -> None:
    heard: list[str] = []
    fleet_of(site, Role.WORKER).hosts.hold(ME, ttl_ms=60_000)
    with manager_with(site.settings(Role.HOOK), started=False) as manager:
        manager.on_failed(lambda change: heard.append(change.vm_id))
        manager.start()
        manager.on_vm_created("vm-2", None, CONFIG)
        manager.on_vm_created("vm-3", None, CONFIG)
        with manager.operation("vm-2", "snapshot", timedelta(minutes=1)):
            manager.on_vm_error("vm-2", "a test")
        manager.on_vm_stopping("vm-3")
        manager.on_vm_stopped("vm-3")
        manager.on_vm_deleting("vm-1")
        manager.on_vm_deleted("vm-1")
        wait_until(lambda: manager.undelivered == 0, what="what the hooks told to be delivered")
        assert site.refused() == []
        assert {each.vm_id for each in manager.get_all_vm_health()} == {"vm-2", "vm-3"}
        assert manager.get_recovery_attempts("vm-2") == []
        manager.trigger_recovery("vm-2", reason="a test")

    assert messages(site, queues.CONTROL) == 1
    assert site.refused() == []


def test_the_hook_hears_of_every_change_in_a_group_of_its_own(site: RoleSite) -> None:
    key = f"{PREFIX}:events"
    with site.connected(Role.HOOK) as client:
        client.xgroup_create(key, "manager", id="0")
        read = client.xreadgroup("manager", "me", {key: ">"}, count=10)
        rows = next(iter(read.values()))[0] if isinstance(read, dict) else read[0][1]
        client.xautoclaim(key, "manager", "me", min_idle_time=0)
        assert client.xack(key, "manager", rows[0][0]) == 1
        assert client.xpending(key, "manager")["pending"] == 0

    assert site.refused() == []


def test_the_hook_ends_what_an_attempt_has_left_behind_when_it_forgets_its_vm(site: RoleSite) -> None:
    """The breakers and the line hear of it: a hook that could not write there would forget by half."""
    fleet = fleet_of(site, Role.WORKER)
    fleet.hosts.hold(ME, ttl_ms=60_000)
    take_a_lost_vm(fleet, "vm-2")
    site.admin.hset(f"{PREFIX}:vm:vm-2", "lu", 1)  # its lease has run out

    fleet_of(site, Role.HOOK).registry(NoWakeups(), actor="manager").forget("vm-2")

    assert site.refused() == []


def test_a_worker_holds_its_host_and_leads_a_vm_through_recovery(site: RoleSite) -> None:
    fleet = fleet_of(site, Role.WORKER)

    assert fleet.hosts.hold(ME, ttl_ms=60_000) is None
    assert fleet.data.begin(None).epoch
    taken = take_a_lost_vm(fleet, "vm-2")
    lease = Lease("me", taken.generation)
    assert fleet.store.renew("vm-2", lease, 30_000)
    rev = fleet.store.read(["vm-2"]).found["vm-2"].rev
    failed = Change("vm-2", rev, taken, held_by=lease, release=True, result=Result.FAILURE, loss=Loss.UNCERTAIN)
    assert fleet.store.write([failed], seen=["vm-1"], enlist=["vm-2"]).outcomes == [Outcome.DONE]
    fleet.store.pass_on("vm-2")
    fleet.store.tend(HOST)
    fleet.store.count("ignored_messages")
    fleet.hosts.put_strays(HOST, [], ttl_ms=1000)
    fleet.hosts.put_unreadable(HOST, {"vm-9": "why"}, ttl_ms=1000)
    fleet.hosts.put_unreadable(HOST, {}, ttl_ms=1000)
    fleet.hosts.put_registry_notes(HOST, Notes(), ttl_ms=1000)
    assert fleet.hosts.may_destroy(HOST, per_hour=1)
    fleet.events.trim(older_than_ms=3_600_000)
    fleet.data.halt(HOST, Halt("a test"))
    fleet.data.halt(HOST, None)
    fleet.surveys.host(HOST)
    fleet.hosts.release(ME)

    assert site.refused() == []


def test_a_beat_claims_what_is_due_and_sends_it(site: RoleSite) -> None:
    fleet_of(site, Role.WORKER).hosts.hold(ME, ttl_ms=60_000)
    settings = site.settings(Role.BEAT)

    due = fleet_schedule(settings).claim(10)
    app = make_app(settings)
    app.send_task(queues.CHECK_VMS, args=[["vm-1"], due.now_ms], queue=queues.checks(HOST))
    app.close()

    assert due.checks == [(HOST, ["vm-1"])]
    assert Fleet(settings).surveys.fleet().hosts
    assert messages(site, f"checks.{HOST}") == 1
    assert site.refused() == []


def test_an_operator_declares_confirms_holds_and_asks(site: RoleSite) -> None:
    fleet, settings = fleet_of(site, Role.OPERATOR), site.settings(Role.OPERATOR)
    fleet_of(site, Role.WORKER).data.halt(HOST, Halt("frozen", epoch="other", frozen=True))

    registry = fleet.registry(NoWakeups(), actor="cli:me")
    registry.apply([a_spec("vm-2", host=HOST)])
    registry.forget("vm-2")
    assert fleet.data.confirm(Event(EventKind.CONFIRMED, "", "", "cli:me", "looked", scope="fleet")).epoch
    held = Scope((Hold("h1", Mode.PAUSED, "cli:me", "a test", 1),))
    told = Event(EventKind.OVERRIDE, "", "", "cli:me", "a test", scope="fleet")
    modes = RedisModes(connect(site.url(Role.OPERATOR), timeout_s=5, connect_timeout_s=5), prefix=PREFIX, events_kept=9)
    assert modes.put_scope("fleet", Scope(), held, told)
    app = make_app(settings)
    app.send_task(queues.RECOVER_VM, args=["vm-1"])
    app.send_task(queues.REBUILD, args=[HOST], queue=queues.checks(HOST))
    app.close()

    assert (messages(site, queues.CONTROL), messages(site, f"checks.{HOST}")) == (1, 1)
    assert site.refused() == []


@each_role
def test_whoever_has_a_role_but_beat_can_look_at_everything(site: RoleSite, role: Role) -> None:
    if role is Role.BEAT:
        assert not site.may(role, "EVALSHA", "0" * 40, "1", f"{PREFIX}:vm:vm-1")
        return
    fleet = fleet_of(site, role)

    assert fleet.store.read(["vm-1"], with_specs=True).found["vm-1"].record.host == HOST
    assert fleet.store.spec("vm-1").id == "vm-1"
    assert fleet.store.ids(host=HOST, state=State.STARTING) == ["vm-1"]
    assert fleet.store.counts() == {State.STARTING: 1}
    assert fleet.store.host_sizes([HOST]) == {HOST: 1}
    assert fleet.hosts.all()[1] == []
    assert [entry.event.kind for entry in fleet.events.latest(limit=5)] == [EventKind.REGISTERED]
    assert next(fleet.events.follow("0-0")) is not None
    assert fleet.data.look(None).epoch is None
    assert (fleet.weather.breakers(), fleet.weather.storms([HOST]), fleet.data.halted()) == ([], [], {})
    assert fleet.surveys.host(HOST).states[State.STARTING] == 1
    assert fleet.surveys.fleet().states[State.STARTING] == 1
    assert site.refused() == []


# --- and what it does not


FOR_NOBODY = [
    "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "SHUTDOWN", "KEYS *", "DEBUG SLEEP 0", "MONITOR",
    "ACL LIST", "ACL SETUSER me", "SCAN 0", "RANDOMKEY", "SWAPDB 0 1", "REPLICAOF NO ONE", "SAVE", "BGREWRITEAOF",
    "CLIENT LIST", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "SCRIPT FLUSH", "SCRIPT KILL", "MODULE LIST", "SLOWLOG GET",
    "FUNCTION FLUSH", "MIGRATE 127.0.0.1 1 rel:vms 0 1", "RESTORE rel:vm:x 0 x", "RENAME rel:vm:x rel:vm:y",
    "COPY rel:vm:x rel:vm:y", "DEL rel:events", "XDEL rel:events 1-1", "DEL rel:vms",
    "GET other:key", "SET other:key 1", "EXPIRE rel:vm:x 1", "PUBLISH anything x", "SUBSCRIBE anything",
]  # fmt: skip


@pytest.mark.parametrize("command", FOR_NOBODY)
def test_nobody_rules_the_server_or_wipes_what_it_holds(started: RoleSite, command: str) -> None:
    assert [role for role in EVERYBODY if started.may(role, *command.split())] == []


# Who may, of all; each line is one thing that one of them would do to the others.
ONLY = [
    ("HSET rel:vm:vm-1 doc x", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("DEL rel:vm:vm-1", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("XADD rel:events * e x", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("XTRIM rel:events MINID 1", {Role.WORKER}),
    ("XACK rel:events manager 1-1", {Role.HOOK, Role.OPERATOR}),
    ("XGROUP DESTROY rel:events manager", {Role.OPERATOR}),
    ("SET rel:host:host-a x", {Role.WORKER}),
    ("SET rel:strays:host-a x", {Role.WORKER}),
    ("ZADD rel:budget:host-a 1 x", {Role.WORKER}),
    ("HSET rel:halted host-a x", {Role.WORKER}),
    ("HDEL rel:halted host-a", {Role.WORKER}),
    ("HSET rel:epoch id x", {Role.WORKER, Role.OPERATOR}),
    ("ZADD rel:epochs 1 x", {Role.OPERATOR}),
    ("HSET rel:modes fleet x", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("ZADD rel:due 1 vm-1", {Role.HOOK, Role.WORKER, Role.BEAT, Role.OPERATOR}),
    ("HSET rel:breaker:fleet state closed", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("LPUSH recovery.host-a x", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("LPUSH checks.host-a x", {Role.WORKER, Role.BEAT, Role.OPERATOR}),
    ("LPUSH control x", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
    ("BRPOP recovery.host-a 1", {Role.WORKER}),
    ("DEL recovery.host-a", {Role.WORKER}),
    ("HSET unacked:host-a 1 x", {Role.WORKER}),
    ("PUBLISH /1.celery.pidbox x", {Role.WORKER, Role.OPERATOR}),
    ("INFO", {Role.HOOK, Role.WORKER, Role.OPERATOR}),
]  # fmt: skip


@pytest.mark.parametrize(("command", "who"), ONLY)
def test_each_thing_is_left_to_those_whose_work_it_is(started: RoleSite, command: str, who: set[Role]) -> None:
    assert {role for role in EVERYBODY if started.may(role, *command.split())} == who


@pytest.mark.parametrize(
    ("role", "act"),
    [
        (Role.READONLY, "apply"),
        (Role.READONLY, "forget"),
        (Role.READONLY, "note"),
        (Role.READONLY, "hold"),
        (Role.READONLY, "confirm"),
        (Role.BEAT, "apply"),
        (Role.BEAT, "note"),
        (Role.BEAT, "hold"),
        (Role.HOOK, "hold"),
        (Role.HOOK, "confirm"),
        (Role.OPERATOR, "hold"),
        (Role.WORKER, "confirm"),
    ],
)
def test_our_own_code_is_refused_as_well_and_changes_nothing(site: RoleSite, role: Role, act: str) -> None:
    fleet = fleet_of(site, role)
    registry = fleet.registry(NoWakeups(), actor="me")
    told = Event(EventKind.CONFIRMED, "", "", "me", "why", scope="fleet")
    acts: dict[str, Callable[[], object]] = {
        "apply": lambda: registry.apply([a_spec("vm-2", host=HOST)]),
        "forget": lambda: registry.forget("vm-1"),
        "note": lambda: fleet.store.note([told]),
        "hold": lambda: fleet.hosts.hold(ME, ttl_ms=1000),
        "confirm": lambda: fleet.data.confirm(told),
    }
    fleet_of(site, Role.WORKER).data.begin(None)
    before = contents(site)

    with pytest.raises(StoreUnavailable, match=r"(?i)permission|executing the script can't"):
        acts[act]()

    assert contents(site) == before


def contents(site: RoleSite) -> dict[bytes, Any]:
    read = {
        b"string": site.admin.get,
        b"hash": site.admin.hgetall,
        b"set": site.admin.smembers,
        b"zset": lambda key: site.admin.zrange(key, 0, -1, withscores=True),
        b"stream": site.admin.xrange,
    }
    return {key: read[site.admin.type(key)](key) for key in site.admin.keys(f"{PREFIX}:*")}


@pytest.mark.parametrize("role", [Role.READONLY, Role.BEAT])
def test_who_only_looks_or_schedules_sends_no_recovery(site: RoleSite, role: Role) -> None:
    lost: list[bool] = []
    app = make_app(site.settings(role))

    CeleryWakeups(app, unsent=lambda: lost.append(True)).recover("vm-1", HOST)
    app.close()

    assert lost == [True]
    assert messages(site, f"recovery.{HOST}") == 0


@pytest.mark.full
def test_a_fleet_lives_with_each_program_in_its_role(started: RoleSite, tmp_path: Path) -> None:
    """Worker, beat, the command line and Flower: a VM is found dead and recovered, by itself and by hand."""
    empty(started.server)
    started.refused()

    def urls(role: Role) -> dict[str, Any]:
        return {"REDIS__URL": started.url(role), "BROKER__URL": started.url(role, BROKER_DB)}

    with cluster(tmp_path, started.server) as fleet:
        worker = fleet.start_successor(**urls(Role.WORKER))
        fleet.start_beat("beat", **urls(Role.BEAT))
        operator = {"FLOWER__BASIC_AUTH": "me:sesame", **urls(Role.OPERATOR)}
        port = free_port()
        with program(fleet, "flower", "--port", str(port), name="flower", **operator):
            before = fleet.run_vms("roles-vm-1")["roles-vm-1"]
            kill(before, signal.SIGKILL)
            after = fleet.wait_healthy("roles-vm-1", after=before)
            assert after.process != before.process
            flower = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("me", "sesame"), timeout=20)
            with flower:
                # Events and answers of the worker come by the channels of Celery.
                wait_until(lambda: fleet.host in page(flower, "/workers?json=1"), timeout_s=20, what="its events")
                wait_until(lambda: fleet.host in page(flower, "/api/workers?refresh=1"), what="its answer")
        worker.stop()
        refused = started.refused()

    assert refused == []


def page(flower: httpx.Client, path: str) -> str:
    try:
        return flower.get(path).text
    except httpx.ConnectError:  # not up yet
        return ""


def take_a_lost_vm(fleet: Fleet, vm_id: str) -> Any:
    """Register a VM that was lost, and admit an attempt on it; returns its record."""
    lost = a_lost_vm(vm_id, host=HOST)
    calls = calls_of(vm_id, host=HOST, image="i", driver="d@1")
    put = Change(vm_id, 0, lost, check_in_ms=0, spec=a_spec(vm_id), loss=Loss.CERTAIN, enlist=True)
    assert fleet.store.write([put]).outcomes == [Outcome.DONE]
    rev = fleet.store.read([vm_id]).found[vm_id].rev
    take = Change(vm_id, rev, lost, take=Take("me", 30_000, calls))
    assert fleet.store.write([take]).outcomes in ([Outcome.DONE], [Outcome.WAITING])
    return lost
