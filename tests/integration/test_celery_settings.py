"""The Celery settings that keep work from being lost or doubled, as the running worker has them, and what they do."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from celery import Celery

from tests.support.cluster import Cluster, cluster
from tests.support.processes import wait_until
from tests.support.servers import BROKER_DB, start_server
from workers import queues


@dataclass(frozen=True)
class Site:
    """A worker and a beat that run, and what a stranger with the broker's address can see and send."""

    cluster: Cluster
    app: Celery
    broker: Any

    @property
    def host(self) -> str:
        return self.cluster.host

    def log(self) -> str:
        assert self.cluster.worker is not None
        return self.cluster.worker.log()

    def ask(self, what: str) -> Any:
        """What the worker answers about itself."""
        name = f"worker@{self.host}"
        inspect = self.app.control.inspect(destination=[name], timeout=3)
        replies = wait_until(getattr(inspect, what), what=f"{name} to tell its {what}")
        return replies[name]

    @property
    def password(self) -> str:
        return self.cluster.server.url().removeprefix("redis://:").partition("@")[0]

    def held(self) -> list[list[Any]]:
        """Arguments of all messages that the worker has taken and not acknowledged."""
        return [body_of(json.loads(each)[0]) for each in self.broker.hvals(f"unacked:{self.host}")]

    def send(self, task: str, *args: object, **kwargs: object) -> None:
        self.app.send_task(task, args=args, kwargs=kwargs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = start_server(tmp_path_factory.mktemp("server"))
    with server, cluster(tmp_path_factory.mktemp("site"), server) as made:
        made.serve()
        app = Celery(broker=server.url(BROKER_DB), set_as_current=False)
        app.conf.task_default_queue = queues.CONTROL
        broker = redis.Redis.from_url(server.url(BROKER_DB), decode_responses=True)
        yield Site(made, app, broker)
        broker.close()
        app.close()


@pytest.fixture(scope="module")
def conf(site: Site) -> dict[str, Any]:
    told: dict[str, Any] = site.ask("conf")
    return told


@pytest.fixture(scope="module")
def transport(site: Site) -> dict[str, Any]:
    options: dict[str, Any] = site.ask("stats")["broker"]["transport_options"]
    return options


@pytest.mark.parametrize(
    ("setting", "expected", "why"),
    [
        ("task_acks_late", True, "a message is given back when its worker dies"),
        ("task_reject_on_worker_lost", True, "the same where only a part of the worker dies"),
        ("task_acks_on_failure", True, "a failure stands in the record; its message must not come round again"),
        ("task_acks_on_timeout", True, "the same"),
        ("task_ignore_result", True, "the record says what came of it; there is no result backend to fill"),
        ("task_serializer", "json", "messages are ids and numbers"),
        ("accept_content", ["json"], "a pickle from the broker would run whatever it likes"),
        ("result_accept_content", ["json"], "the same"),
        ("event_serializer", "json", "the same"),
        ("task_create_missing_queues", False, "a wrong host name is an error, not a new queue that nobody serves"),
        ("task_default_queue", "control", "a task sent by hand reaches any worker, which forwards it"),
        ("task_publish_retry_policy", {"max_retries": 2, "interval_max": 0.5}, "no hand-over waits for a dead broker"),
        ("broker_connection_retry", True, "a worker outlives its broker"),
        ("broker_connection_retry_on_startup", True, "a worker may be started before its broker"),
        ("broker_connection_max_retries", None, "the default gives up after 100, and the worker ends"),
        ("broker_connection_timeout", 3, "a dead address is noticed"),
        ("broker_pool_limit", 100, "Flower's threads wait for each other for ever with the usual 10"),
        ("worker_pool", "threads", "a forked child would hold VM locks"),
        ("worker_prefetch_multiplier", 1, "what a busy worker holds, nobody else can do"),
        ("worker_disable_prefetch", True, "the same"),
        ("worker_eta_task_limit", 10_000, "countdowns are held in memory, which is bounded"),
        ("worker_cancel_long_running_tasks_on_connection_loss", False, "half a recovery is worse than a fenced double"),
        ("worker_enable_prefetch_count_reduction", False, "a reconnection must not slow the worker down for good"),
        ("worker_enable_remote_control", True, "Flower and `celery inspect` have to reach it"),
        ("control_queue_expires", 60, "workers that are gone leave no queue behind"),
        ("worker_send_task_events", True, "recovery is shown in Flower; checks say for themselves that they are not"),
        ("worker_disable_rate_limits", True, "what limits recovery are slots, in the record"),
        ("worker_hijack_root_logger", False, "log lines are ours to shape"),
        ("enable_utc", True, "countdowns know no summer time"),
        ("timezone", "UTC", "the same"),
        ("beat_scheduler", "beat.scheduler:FleetScheduler", "stock beat is too slow, and cannot be doubled"),
    ],
)
def test_the_running_worker_is_set_up_not_to_lose_or_double_work(
    conf: dict[str, Any], setting: str, expected: object, why: str
) -> None:
    found = conf[setting]

    if isinstance(expected, dict):
        found = {name: found[name] for name in expected}
    assert found == expected, why


@pytest.mark.parametrize("setting", ["task_time_limit", "task_soft_time_limit", "task_annotations", "task_routes"])
def test_what_a_thread_cannot_obey_is_not_promised(site: Site, setting: str) -> None:
    told = site.app.control.broadcast(
        "conf", arguments={"with_defaults": True}, destination=[f"worker@{site.host}"], reply=True, timeout=3
    )

    assert told[0][f"worker@{site.host}"][setting] is None


@pytest.mark.parametrize(
    ("option", "expected", "why"),
    [
        ("unacked_key", "unacked:{host}", "a set shared by all workers is a point of contention"),
        ("unacked_index_key", "unacked_index:{host}", "the same"),
        ("unacked_mutex_key", "unacked_mutex:{host}", "the same"),
        ("unacked_mutex_expire", 30, "a killed sweeper blocks the next one for 5 min by default"),
        ("unacked_restore_interval", 10, "a lost message comes back soon after its time"),
        ("unacked_restore_throttle", 1, "the default looks every 10th time only"),
        ("priority_steps", [0], "one list per queue, not four"),
        ("polling_interval", 0.2, "what the settings say"),
        ("socket_timeout", 4.2, "longer than a poll; without it a publish can hang for ever"),
        ("socket_connect_timeout", 3, "a dead address is noticed"),
        ("socket_keepalive", True, "a half-open connection is noticed"),
        ("health_check_interval", 10, "the same"),
        ("client_name", "reliability-{host}", "`CLIENT LIST` tells who is who"),
    ],
)
def test_the_transport_of_the_running_worker_is_its_hosts_own(
    site: Site, transport: dict[str, Any], option: str, expected: object, why: str
) -> None:
    expected = expected.format(host=site.host) if isinstance(expected, str) else expected

    assert transport[option] == expected, why


def test_no_message_comes_again_while_its_first_copy_may_still_be_at_work(
    site: Site, transport: dict[str, Any]
) -> None:
    recovery = site.cluster.fleet.settings.recovery
    longest_wait_s = recovery.max_retry_interval.total_seconds()
    longest_attempt_s = (recovery.stop_grace + recovery.start_timeout).total_seconds()

    assert transport["visibility_timeout"] > longest_wait_s + longest_attempt_s


def test_the_worker_serves_its_hosts_queues_recovery_first_and_declares_none(site: Site) -> None:
    served = site.ask("active_queues")

    assert [each["name"] for each in served] == [f"recovery.{site.host}", f"checks.{site.host}", "control"]
    assert all(each["no_declare"] for each in served), "a declared queue leaves two keys for ever"
    assert not [key for key in site.broker.keys("_kombu.binding*") if site.host in key]


def test_what_the_worker_tells_of_its_settings_holds_no_password(site: Site, conf: dict[str, Any]) -> None:
    assert len(site.password) > 20
    assert "broker_url" in conf
    assert site.password not in json.dumps([conf, site.ask("stats"), site.ask("active_queues")])


def test_a_held_message_waits_under_the_name_of_its_host(site: Site) -> None:
    site.app.send_task(queues.RECOVER_VM, args=["settings-later"], countdown=60)

    wait_until(lambda: ["settings-later"] in site.held(), what="the message to be held")
    assert site.broker.zcard(f"unacked_index:{site.host}") >= 1
    assert not site.broker.exists("unacked", "unacked_index", "unacked_mutex")
    assert [each["request"]["args"] for each in site.ask("scheduled")] == [["settings-later"]]
    send_and_wait_for_log(site, queues.STOP_VM, "settings-now", said="vm_id=settings-now")


def send_and_wait_for_log(site: Site, task: str, *args: object, said: str, **kwargs: object) -> str:
    """Return what the worker has logged since, up to what it was expected to say and a little longer."""
    before = len(site.log())
    site.send(task, *args, **kwargs)
    wait_until(lambda: said in site.log()[before:], what=f"the worker to log {said}")
    return site.log()[before:]


def test_beat_sends_plain_messages_that_carry_their_deadline_in_server_time(site: Site) -> None:
    site.cluster.run_vms("settings-checked")
    tap = site.broker.monitor()
    with tap:
        message = next_message(tap, queues.CHECK_VMS)

    assert message["headers"]["expires"] is None, "workers' clocks decide nothing"
    assert message["headers"]["eta"] is None
    assert message["content-type"] == "application/json"
    assert message["queue"] == f"checks.{site.host}"
    vm_ids, deadline_ms = message["args"]
    assert "settings-checked" in vm_ids
    interval_ms = site.cluster.fleet.settings.health_check.interval.total_seconds() * 1000
    assert message["sent_ms"] - 10_000 < deadline_ms <= message["sent_ms"] + interval_ms + 1


def next_message(tap: Any, task: str) -> dict[str, Any]:
    """Return the next message of this task as it is pushed to its queue, whatever else goes on meanwhile."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        seen = tap.next_command()
        command, *rest = seen["command"].split(" ", 2)
        if command == "LPUSH" and task in rest[1]:
            message: dict[str, Any] = json.loads(rest[1].encode().decode("unicode_escape"))
            return message | {"queue": rest[0], "sent_ms": seen["time"] * 1000, "args": body_of(message)}
    raise AssertionError(f"no message of {task}")


def body_of(message: dict[str, Any]) -> list[Any]:
    args: list[Any] = json.loads(base64.b64decode(message["body"]))[0]
    return args


def test_beat_looks_as_often_as_the_settings_say(site: Site) -> None:
    log = (site.cluster.folder / "logs" / "beat.log").read_text(encoding="utf-8")

    assert "scheduler -> beat.scheduler.FleetScheduler" in log
    assert "maxinterval -> now (0.05s)" in log
    assert site.password not in log


WRONG: list[tuple[str, tuple[object, ...], dict[str, object], str]] = [
    (queues.RECOVER_VM, (7,), {}, "argument=vm_id"),
    (queues.RECOVER_VM, (None,), {}, "argument=vm_id"),
    (queues.RECOVER_VM, (["vm-1"],), {}, "argument=vm_id"),
    (queues.RECOVER_VM, ("vm-1",), {"attempt": "1"}, "argument=attempt"),
    (queues.RECOVER_VM, ("vm-1",), {"attempt": True}, "argument=attempt"),
    (queues.RECOVER_VM, ("vm-1",), {"episode": 5}, "argument=episode"),
    (queues.RECOVER_VM, ("vm-1",), {"tries": -1}, "argument=tries"),
    (queues.RECOVER_VM, ("vm-1",), {"request_id": "x" * 201}, "argument=request_id"),
    (queues.RECOVER_VM, ("vm-1",), {"actor": "two\nlines"}, "argument=actor"),
    (queues.STOP_VM, ({"vm_id": "vm-1"},), {}, "argument=vm_id"),
    (queues.CHECK_VMS, ("vm-1",), {}, "argument=vm_ids"),
    (queues.CHECK_VMS, ([],), {}, "argument=vm_ids"),
    (queues.CHECK_VMS, (["vm-1", "../etc"],), {}, "argument=vm_ids"),
    (queues.CHECK_VMS, (["vm-1"], "soon"), {}, "argument=deadline_ms"),
    (queues.DETECT_ORPHANS, (1.5,), {}, "argument=host"),
    (queues.RECONCILE, ("../etc",), {}, "argument=host"),
    (queues.REBUILD, (None,), {}, "argument=host"),
    (queues.REBUILD, ("host-a",), {}, "argument=host"),
    (queues.DETECT_ORPHANS, ("host-a",), {}, "which this worker serves, got host-a"),
    (queues.RECOVER_VM, (), {}, "missing 1 required positional argument: 'vm_id'"),
    (queues.STOP_VM, ("vm-1",), {"nonsense": 1}, "unexpected keyword argument 'nonsense'"),
    ("workers.tasks.nonsense", ("vm-1",), {}, "unregistered task of type 'workers.tasks.nonsense'"),
]


@pytest.mark.parametrize(
    ("task", "args", "kwargs", "said"), WRONG, ids=[f"{task.split('.')[-1]} {n}" for n, (task, *_) in enumerate(WRONG)]
)
def test_a_wrong_task_is_refused_in_words_and_never_comes_again(
    site: Site, task: str, args: tuple[object, ...], kwargs: dict[str, object], said: str
) -> None:
    before = len(site.log())
    send_and_wait_for_log(site, task, *args, said=said, **kwargs)
    # Whoever is asked after it is served after it: a message that is given back would come before.
    send_and_wait_for_log(site, queues.STOP_VM, "settings-after", said="vm_id=settings-after")

    assert len([line for line in site.log()[before:].splitlines() if said in line]) == 1
    assert site.broker.llen("control") == 0
    wait_until(lambda: site.held() in ([], [["settings-later"]]), what="it to be acknowledged")


def test_a_pickle_is_refused_unread(site: Site) -> None:
    before = len(site.log())
    site.app.send_task(queues.STOP_VM, args=["settings-pickled"], serializer="pickle")

    wait_until(lambda: "untrusted content of type pickle" in site.log()[before:], what="the refusal")
    send_and_wait_for_log(site, queues.STOP_VM, "settings-after", said="vm_id=settings-after")
    assert "vm_id=settings-pickled" not in site.log()


def test_a_vm_of_a_host_that_is_not_ours_is_handed_on_and_left_alone(site: Site) -> None:
    spec = site.cluster.spec("settings-foreign", host="host-elsewhere")
    site.cluster.apply(spec)
    before = site.cluster.record("settings-foreign")

    site.send(queues.RECOVER_VM, "settings-foreign")
    site.send(queues.CHECK_VMS, ["settings-foreign"])

    wait_until(lambda: site.broker.llen("recovery.host-elsewhere"), what="the message to be handed on")
    send_and_wait_for_log(site, queues.STOP_VM, "settings-after", said="vm_id=settings-after")
    assert site.broker.llen("recovery.host-elsewhere") == 1
    assert site.cluster.record("settings-foreign") == before
    assert site.cluster.live("settings-foreign") == []
