"""Starts the plain Celery programs of this project in this process, with the options they need here.

What they do is decided in `agent`, `tasks` and `beat`; that they can be asked to end from their first moment on is up
to the caller.
"""

import ipaddress
import os
import signal
import socket
import sys
import warnings
from math import ceil
from types import FrameType
from typing import Any

import structlog
from celery.apps.beat import Beat
from celery.apps.worker import Worker
from celery.platforms import SecurityWarning

from workers.app import SETTINGS, app, start_logging
from workers.bootstrap import Fleet
from workers.host.rundir import HostFiles
from workers.settings import Flower, Settings, SettingsError

_log = structlog.get_logger()

_MOST_THREADS = 64
_HEARTBEAT_S = 30  # each one goes to everybody who listens to events
_FLOWER_DEFAULTS = {"FLOWER_MAX_TASKS": "20000", "FLOWER_PURGE_OFFLINE_WORKERS": "600"}
_FLOWER_AUTH = ("FLOWER_BASIC_AUTH", "FLOWER_AUTH")


class _HostWorker(Worker):  # type: ignore[misc] # Celery is untyped
    def install_platform_tweaks(self, worker: Any) -> None:
        """Make the first Ctrl-C what SIGTERM is; a second one is less patient."""
        super().install_platform_tweaks(worker)

        def interrupted(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.getsignal(signal.SIGQUIT))
            finish = signal.getsignal(signal.SIGTERM)
            if callable(finish):
                finish(number, frame)

        signal.signal(signal.SIGINT, interrupted)


class _FleetBeat(Beat):  # type: ignore[misc] # Celery is untyped
    def install_sync_handler(self, service: Any) -> None:
        """Only leave: Celery's own handler closes the scheduler, which may be half made when the signal comes."""
        del service
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def run_worker() -> int:
    """Run the worker of this host until it is asked to end; returns the exit status. Raises SettingsError."""
    _prepare_state_dir(SETTINGS)
    # VMMs mostly need root, and nothing but JSON is ever unpickled here.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = _HostWorker(
        app=app,
        pool="threads",
        concurrency=threads_for(SETTINGS, vms=_vms_of_this_host(SETTINGS)),
        hostname=f"{SETTINGS.host}@{socket.gethostname()}",
        loglevel=SETTINGS.log.level.upper(),
        without_gossip=True,
        without_mingle=True,
        heartbeat_interval=_HEARTBEAT_S,
        quiet=not sys.stdout.isatty(),
    )
    worker.start()
    return int(worker.exitcode or 0)


def threads_for(settings: Settings, *, vms: int) -> int:
    """How many tasks run side by side on a host of so many VMs; a thread is started only when it is needed.

    A VM that hangs keeps the check of its batch waiting for `health_check.timeout`: however many hang, there is a
    thread for each batch and one for the next, besides those of recovery, of a sweep and of a person's request.
    """
    batches = ceil(vms / settings.health_check.batch_size)
    wanted = settings.recovery.per_host + 2 * batches + 2
    return max(settings.worker.concurrency, min(wanted, _MOST_THREADS))


def _vms_of_this_host(settings: Settings) -> int:
    """By their run directories: Redis may be away, and the worker starts all the same."""
    return sum(1 for _ in HostFiles(settings.state_dir).runs_dir.iterdir())


def _prepare_state_dir(settings: Settings) -> None:
    try:
        HostFiles(settings.state_dir).prepare()
    except OSError as error:
        wrong = f"state_dir: {settings.state_dir} cannot be used: {error.strerror}; make it writable or set another"
        raise SettingsError([wrong]) from error


def run_beat() -> int:
    """Run a beat until it is asked to end; returns the exit status."""
    # Before a signal may end us by an exception, which an import half done would make into something else.
    import beat.scheduler  # noqa: F401, PLC0415

    _FleetBeat(app=app, loglevel=SETTINGS.log.level.upper(), quiet=not sys.stdout.isatty()).run()
    return 0


def run_flower(*, address: str | None = None, port: int | None = None) -> int:
    """Run Flower until it is asked to end; returns the exit status. Raises SettingsError."""
    start_logging()
    flower = SETTINGS.flower
    address, port = address or flower.address, port or flower.port
    _hand_over_password(flower)
    _check_access(address)
    _add_fleet_pages()
    _log.info("flower starts", component="flower", url=f"http://{address}:{port}")
    try:
        app.start(["--quiet", "flower", *_flower_options(address, port)])
    except OSError as error:
        raise SettingsError([f"flower.port: cannot listen on {address}:{port}: {error.strerror}"]) from error
    return 0


def _add_fleet_pages() -> None:
    # Only here: Flower brings a web server along that no worker and no beat needs.
    from workers.dashboard.serving import serve_fleet  # noqa: PLC0415 - see above

    serve_fleet(Fleet(SETTINGS), app)


def _hand_over_password(flower: Flower) -> None:
    """By this process's environment: a command line can be read by every user of the machine."""
    for name, value in _FLOWER_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if flower.basic_auth is not None:
        os.environ["FLOWER_BASIC_AUTH"] = flower.basic_auth.get_secret_value()


def _check_access(address: str) -> None:
    if any(os.environ.get(name) for name in _FLOWER_AUTH):
        return
    if not _is_loopback(address):
        wrong = (
            f"flower.address: {address} without a password would give everybody the controls: "
            "set flower.basic_auth to user:password, or use 127.0.0.1"
        )
        raise SettingsError([wrong])
    _log.warning(
        "flower has no password: every user of this machine can use its pages, and its API stays closed; "
        "set flower.basic_auth",
        component="flower",
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _flower_options(address: str, port: int) -> list[str]:
    return [
        f"--address={address}",
        f"--port={port}",
        # Or it switches on the events of all tasks of all workers every five seconds, health checks among them.
        "--enable_events=False",
        "--persistent=False",
        "--logging=none",  # ours is set up already
    ]
