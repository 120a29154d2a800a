"""The short intervals of the demo, and by arithmetic what the same faults take with the defaults of production."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from workers.demo.plan import Fault
from workers.durations import format_duration
from workers.settings import ENV_PREFIX, JITTER_MAX, Settings, value_of

# Unlike that of a demo beside this one: a worker takes over what runs under its host's name.
HOST = f"demo-{os.getpid()}"
SHORT: Mapping[str, str] = {
    "health_check.interval": "1s",
    "health_check.timeout": "500ms",
    "health_check.failing_interval": "200ms",
    "recovery.retry_interval": "300ms",
    "recovery.detection_interval": "2s",
    "recovery.stable_period": "1s",
    "recovery.stop_grace": "500ms",
    # As long as nothing is recovered after Redis was restarted.
    "recovery.lease": "3s",
    "recovery.call_timeout": "1s",
    "reconcile_interval": "5s",
    "beat.max_interval": "100ms",
}
_SHOWN = {
    "health_check.interval": "checks every",
    "health_check.timeout": "timeout",
    "health_check.failing_interval": "in doubt",
    "recovery.retry_interval": "retries",
}
# That the API names another VM is confirmed by one more look, whatever the threshold (domain.evidence).
_CONFIRMING_LOOKS = 1


def variable(key: str) -> str:
    """Return the environment variable that sets this key."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def production(state_dir: Path) -> Settings:
    return Settings(host=HOST, state_dir=state_dir)


def beside_production(here: Settings, there: Settings) -> str:
    """Name the intervals that matter, each with its value in production."""
    pairs = [f"{name} {_text(here, key)} ({_text(there, key)})" for key, name in _SHOWN.items()]
    return ", ".join(pairs)


def _text(settings: Settings, key: str) -> str:
    return format_duration(value_of(settings, key))


def known_within(fault: Fault, settings: Settings) -> timedelta | None:
    """Return what the settings promise after a fault at the worst moment; None: the kernel tells at once."""
    check = settings.health_check
    again = check.failure_threshold - 1
    match fault:
        case Fault.SIGSTOP:
            return check.interval + check.failure_threshold * check.timeout + again * check.failing_interval
        case Fault.SOCKET_REMOVED:
            return check.interval + again * check.failing_interval
        case Fault.OTHER_VM:
            return check.interval + min(_CONFIRMING_LOOKS, again) * check.failing_interval
        case _:
            return None


def waits(settings: Settings) -> timedelta:
    """Return how long a VM waits between its attempts when two of them fail, at most."""
    recovery = settings.recovery
    return recovery.retry_interval * (1 + recovery.backoff_factor) * (1 + JITTER_MAX)
