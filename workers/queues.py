"""Names of tasks and queues. Only these, and ids and numbers as arguments, ever stand in a message."""

from functools import lru_cache

from kombu.entity import Exchange, Queue

CHECK_VMS = "workers.tasks.health.check_vms"
RECOVER_VM = "workers.tasks.recovery.recover_vm"
STOP_VM = "workers.tasks.recovery.stop_vm"
DETECT_ORPHANS = "workers.tasks.orphans.detect_orphans"
RECONCILE = "workers.tasks.orphans.reconcile"
REBUILD = "workers.tasks.orphans.rebuild"

CONTROL = "control"


@lru_cache(maxsize=10_000)  # a beat sends to each of its hosts every few seconds, and kombu is slow to make one
def checks(host: str) -> Queue:
    return _queue(f"checks.{host}")


def recovery(host: str) -> Queue:
    return _queue(f"recovery.{host}")


def control() -> Queue:
    return _queue(CONTROL)


def served_by(host: str) -> list[Queue]:
    """What the worker of a host consumes. Recovery first: with equal arrival it is asked for first."""
    return [recovery(host), checks(host), control()]


def _queue(name: str) -> Queue:
    # Undeclared: a declared queue leaves two keys in Redis for ever, for every host there ever was.
    exchange = Exchange("")  # type: ignore[no-untyped-call] # kombu is half typed
    return Queue(name, exchange, routing_key=name, no_declare=True)  # type: ignore[no-untyped-call] # the same
