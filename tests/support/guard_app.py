"""A small Celery app with the broker settings of the real one, to kill Redis under its worker.

`python -m tests.support.guard_app` runs the worker; tests import `make_app` to send to it. What happened is
appended to a file, since the server under test loses connections and must not be the witness.
"""

import os
import sys
import time
from pathlib import Path

from celery import Celery
from kombu.entity import Exchange, Queue

from workers.broker import install_guard

NODE = "guard@test"
QUEUE = "recovery.guard-test"
UNACKED_KEY = f"unacked:{QUEUE}"
VISIBILITY_TIMEOUT_S = 3
NOTE = "guard.note"
HOLD = "guard.hold"
HOLD_LIMIT_S = 30.0


def own_queue() -> Queue:
    nameless = Exchange("")  # type: ignore[no-untyped-call] # kombu
    return Queue(QUEUE, nameless, routing_key=QUEUE, no_declare=True)  # type: ignore[no-untyped-call] # kombu


def make_app(broker_url: str) -> Celery:
    app = Celery("guard-test", broker=broker_url, set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_key": UNACKED_KEY,
            "unacked_index_key": f"unacked_index:{QUEUE}",
            "unacked_mutex_key": f"unacked_mutex:{QUEUE}",
            "unacked_mutex_expire": 3,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "unacked_restore_limit": 200,
            "priority_steps": [0],
            "polling_interval": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": "reliability-guard-test",
        },
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=4,
        broker_connection_timeout=3,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5},
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=True,
        task_ignore_result=True,
        task_create_missing_queues=False,
        task_default_queue=QUEUE,
        task_queues=[own_queue()],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_eta_task_limit=1000,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=True,
        worker_send_task_events=False,
        worker_disable_rate_limits=True,
        control_queue_expires=60,
    )
    return app


def add_tasks(app: Celery, notes: Path) -> None:
    def note(word: str) -> None:
        _append(notes, word)

    def hold(word: str) -> None:
        """Run until a file named like the word stands beside the notes."""
        _append(notes, f"{word} started")
        deadline = time.monotonic() + HOLD_LIMIT_S
        while not (notes.parent / word).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        _append(notes, f"{word} finished")

    app.task(name=NOTE)(note)
    app.task(name=HOLD)(hold)


def _append(notes: Path, line: str) -> None:
    with notes.open("a") as file:
        file.write(f"{line}\n")


def run_worker() -> int:
    install_guard()
    app = make_app(os.environ["GUARD_TEST_BROKER"])
    add_tasks(app, Path(os.environ["GUARD_TEST_NOTES"]))
    worker = app.Worker(
        pool="threads",
        concurrency=4,
        hostname=NODE,
        loglevel="INFO",
        without_gossip=True,
        without_mingle=True,
        heartbeat_interval=30,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(run_worker())
