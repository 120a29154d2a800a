"""The obvious way, to compare with: a Celery app with one task per VM, and the loop that sends the tasks.

`celery -A tests.benchmarks.naive_worker worker` checks, `python naive_worker.py SOCKETS.json` sends. Addresses come
from NAIVE_BROKER and NAIVE_REDIS. It is written as its author's friends would, not as its enemies: one connection pool,
no certificates loaded for a Unix socket, no results, no events, and a sender that reuses its connection.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import redis
from celery import Celery

_QUEUE = "celery"
_ENOUGH_WAITING = 500
_TIMEOUT_S = 5.0

app = Celery("naive", broker=os.environ.get("NAIVE_BROKER", "redis://127.0.0.1:6379/1"))
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
_records = redis.Redis.from_url(os.environ.get("NAIVE_REDIS", "redis://127.0.0.1:6379/0"))


@app.task(name="naive.check")  # type: ignore[untyped-decorator] # Celery is untyped
def check(vm_id: str, path: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=path, verify=False), timeout=_TIMEOUT_S) as client:
        answer = client.get("http://localhost/")
    if answer.json()["id"] != vm_id:
        raise ValueError(f"{path} answers for another VM")
    _records.hset(f"vm:{vm_id}", mapping={"state": answer.json()["state"], "checked": time.time()})


def send_for_ever(sockets: dict[str, str]) -> None:
    """Send every VM's check round after round, and keep the queue short enough to measure the checks, not the queue."""
    broker: Any = redis.Redis.from_url(os.environ["NAIVE_BROKER"])
    with app.producer_or_acquire() as producer:
        while True:
            for number, (vm_id, path) in enumerate(sockets.items()):
                if number % 50 == 0:
                    while broker.llen(_QUEUE) > _ENOUGH_WAITING:
                        time.sleep(0.01)
                check.apply_async((vm_id, path), producer=producer)


if __name__ == "__main__":
    send_for_ever(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
