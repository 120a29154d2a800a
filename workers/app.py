"""The Celery app, made from the settings; every option that keeps work from being lost or doubled has its reason."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import setup_logging

from workers import queues
from workers.agent import HostAgent, LoopPulse
from workers.broker import CarefulTask, PromptAmqp, install_guard
from workers.publishing import TracedCelery
from workers.redis_url import verified
from workers.settings import Settings, load
from workers.telemetry.logging import bind_tasks, configure_logging
from workers.telemetry.redaction import header_values, passwords_in

# kombu uses the same numbers to reconnect for a publish: more would make every hand-over wait for a dead broker.
_PUBLISH_RETRIES = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}
_HEADER_VARIABLES = [f"OTEL_EXPORTER_OTLP_{signal}HEADERS" for signal in ("", "TRACES_", "METRICS_", "LOGS_")]


def make_app(settings: Settings) -> Celery:
    install_guard()
    app = TracedCelery(
        "workers",
        broker=verified(settings.broker.url.get_secret_value()),
        include=_TASK_MODULES,
        amqp=PromptAmqp,
        task_cls=CarefulTask,
    )
    app.conf.update(_transport(settings) | _delivery(settings) | _worker(settings))
    app.steps["worker"].add(HostAgent)
    app.steps["consumer"].add(LoopPulse)
    return app


_TASK_MODULES = ["workers.tasks.health", "workers.tasks.recovery", "workers.tasks.orphans"]


def _transport(settings: Settings) -> dict[str, Any]:
    host = settings.host
    return {
        "broker_transport_options": {
            # Longer than any countdown plus the longest attempt: anything shorter runs waiting work twice.
            "visibility_timeout": settings.visibility_timeout.total_seconds(),
            # One set of unacknowledged messages per host: a shared one is a point of contention for all workers.
            "unacked_key": f"unacked:{host}",
            "unacked_index_key": f"unacked_index:{host}",
            "unacked_mutex_key": f"unacked_mutex:{host}",
            "unacked_mutex_expire": 30,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "priority_steps": [0],
            "polling_interval": settings.broker.polling_interval.total_seconds(),
            "socket_timeout": settings.broker.polling_interval.total_seconds() + 4,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": f"reliability-{host}",
        },
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # the default gives up after 100, and the worker ends
        "broker_connection_timeout": 3,
        # Each of Flower's up to 33 threads takes two at once: with fewer they wait for each other for ever.
        "broker_pool_limit": 100,
        "control_queue_expires": 60,
    }


def _delivery(settings: Settings) -> dict[str, Any]:
    return {
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure": True,  # a failure stands in the record; the message must not come round again
        "task_acks_on_timeout": True,
        "task_ignore_result": True,
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_create_missing_queues": False,  # a wrong host name is an error, not a new queue
        "task_default_queue": queues.CONTROL,
        "task_default_exchange": "",
        "task_default_routing_key": queues.CONTROL,
        "task_queues": queues.served_by(settings.host),
        "task_publish_retry_policy": _PUBLISH_RETRIES,
        "task_send_sent_event": False,
    }


def _worker(settings: Settings) -> dict[str, Any]:
    return {
        "worker_pool": "threads",
        "worker_concurrency": settings.worker.concurrency,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_eta_task_limit": 10_000,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # half a recovery is worse than a fenced double
        "worker_enable_prefetch_count_reduction": False,
        "worker_enable_remote_control": True,
        # Of the tasks that say so (`send_events`): recovery is shown in Flower, checks would drown it.
        "worker_send_task_events": True,
        "worker_disable_rate_limits": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "enable_utc": True,
        "timezone": "UTC",
        "beat_scheduler": "beat.scheduler:FleetScheduler",
        "beat_max_loop_interval": settings.beat.max_interval.total_seconds(),
        "settings": settings,
    }


@setup_logging.connect  # type: ignore[untyped-decorator] # celery.signals is untyped
def _log_our_way(**_: Any) -> None:
    start_logging()


def start_logging() -> None:
    """Log as the settings say, for a program that runs on; every line names this host, unless it is about another."""
    log, secrets = SETTINGS.log, _secrets(SETTINGS, os.environ)
    configure_logging(log.level, log.format, secrets=secrets, static={"host": SETTINGS.host})
    bind_tasks()


def _secrets(settings: Settings, environ: Mapping[str, str]) -> set[str]:
    """Collect what may stand in no log line."""
    found = {value for name in _HEADER_VARIABLES for value in header_values(environ.get(name, ""))}
    for url in (settings.redis.url, settings.broker.url):
        found |= passwords_in(url.get_secret_value())
    if settings.flower.basic_auth is not None:
        login = settings.flower.basic_auth.get_secret_value()
        found |= {login, login.partition(":")[2]}
    return found


SETTINGS = load(os.environ, Path.cwd()).settings
app = make_app(SETTINGS)
