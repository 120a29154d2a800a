"""metald reliability: keeps the microVMs of a fleet alive. `celery -A workers` finds the app here, when it is asked."""

from typing import Any


def __getattr__(name: str) -> Any:
    # The app is made on demand: importing a module of this package must not read settings or load Celery.
    if name == "celery":
        from workers.app import app  # noqa: PLC0415

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
