"""The part of a Celery worker that makes it the worker of its host: a worker-level boot step.

It takes the host's lease before anything is consumed (a second worker waits here, passive), raises limits, starts the
watcher, and keeps the lease by heartbeats from a thread of its own, so that they do not depend on the broker.
"""

import ctypes
import gc
import resource
import sys
import threading
import time
from typing import Any

import structlog
from celery import bootsteps
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.signals import task_postrun, task_prerun
from celery.worker import state as worker_state

from workers.domain.errors import StoreUnavailable
from workers.telemetry.vitals import BROKER, CONSUMER, HEARTBEAT, HOST_LEASE, MAIN_LOOP, REDIS, VITALS

_log = structlog.get_logger(component="worker")

# Shorter turns of the interpreter: a death must not wait behind a thread that checks a thousand VMs.
SWITCH_INTERVAL_S = 0.0005
# M_ARENA_MAX of <malloc.h>. One heap for all threads, which the interpreter lock keeps apart anyway: with a heap of
# its own, each thread keeps what a burst of recoveries once needed (20 MiB in all after a thousand starts).
_M_ARENA_MAX, _ARENAS = -8, 1
_SAY_AGAIN_S = 60.0
_POLL_S = 0.2
_LOOP_PULSE_S = 1.0
# Between two tries to reach Redis.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.25, 4.0
_OTHER_TAKES_OVER = 70  # exit status: another worker serves this host (EX_SOFTWARE of sysexits.h)


class Outage:
    """An outage of Redis as this worker lives through it: said once, then now and then; asked again ever less often."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._said_at = 0.0
        self.wait_s: float | None = None

    def goes_on(self, error: str) -> None:
        now = time.monotonic()
        if self._since is None or now - self._said_at > _SAY_AGAIN_S:
            _log.warning("redis is away: nothing is recovered until it is back", error=error)
            self._said_at = now
        self._since = self._since or now
        self.wait_s = min(self.wait_s * 2, _LONGEST_WAIT_S) if self.wait_s else _SHORTEST_WAIT_S

    def ends(self) -> bool:
        """Redis has answered: whether that is news."""
        if self._since is None:
            return False
        _log.info("redis is back", away_s=round(time.monotonic() - self._since, 1))
        self._since = self.wait_s = None
        return True


class HostAgent(bootsteps.StartStopStep):  # type: ignore[misc] # Celery is untyped
    """Started before the consumer, stopped after it. `worker.settings` are in the app's configuration."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        _refuse_forking_pool(parent)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._runtime: Any = None
        self._hooks_api: Any = None

    def start(self, parent: Any) -> None:
        # Wired only where a worker really starts: the app is also imported by beat, Flower and the command line.
        from workers.bootstrap_host import hooks_api, start_host_runtime  # noqa: PLC0415

        settings = parent.app.conf.settings
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _share_one_heap()
        _raise_fd_limit()
        self._runtime = start_host_runtime(settings, parent.app)
        VITALS.trouble(BROKER, "not asked for messages yet")
        _watch_tasks(settings.visibility_timeout.total_seconds())
        self._longest_round_s = _longest_round_s(settings)
        self._runtime.monitor.start()
        self._hooks_api = hooks_api(settings)
        if self._hooks_api is not None:
            self._hooks_api.start()
        self._take_host()
        self._runtime.watcher.start()
        self._runtime.active = True
        _spare_what_stays()
        self._thread = threading.Thread(target=self._live, name="host-agent", daemon=True)
        self._thread.start()

    def _take_host(self) -> None:
        """Wait until the host name is ours; say who has it, once and then now and then."""
        told: tuple[str, float] = ("", 0.0)
        while True:
            try:
                holder = self._runtime.lease.acquire()
                why = f"{holder} serves it" if holder else ""
                if not holder:
                    self._runtime.tend()
            except StoreUnavailable as error:
                why = str(error)
            VITALS.pulse(MAIN_LOOP, needs=REDIS)
            if not why:
                VITALS.well(HOST_LEASE)
                _log.info("this worker serves the host", host=self._runtime.host)
                return
            VITALS.trouble(HOST_LEASE, why)
            if why != told[0] or time.monotonic() - told[1] > _SAY_AGAIN_S:
                _log.warning("passive: waiting for the host's lease", host=self._runtime.host, why=why)
                told = (why, time.monotonic())
            _end_if_asked()
            self._stopping.wait(_POLL_S)

    def _live(self) -> None:
        outage = Outage()
        is_watching = False
        while not self._stopping.is_set():
            VITALS.pulse(HEARTBEAT, self._longest_round_s)
            try:
                self._heartbeat()
                VITALS.well(REDIS)
                if outage.ends():
                    self._runtime.redis_is_back()
                    is_watching = False
                if not is_watching:
                    self._catch_up()
                    is_watching = True
            except StoreUnavailable as error:
                VITALS.trouble(REDIS, str(error))
                outage.goes_on(str(error))
            except Exception:  # noqa: BLE001 - a dead heartbeat would cost the host its worker
                _log.exception("host agent: this round failed, the next one tries again")
            self._stopping.wait(outage.wait_s or self._runtime.lease.every_s)

    def _heartbeat(self) -> None:
        holder = self._runtime.lease.acquire()
        if holder is not None:
            self._runtime.active = False
            _log.critical("another worker serves this host: this one ends", host=self._runtime.host, holder=str(holder))
            worker_state.should_stop = _OTHER_TAKES_OVER
            self._stopping.set()
            return
        self._runtime.tend()

    def _catch_up(self) -> None:
        """What happened while nobody looked: watch what lives, find what died, drive what was left undone."""
        if self._stopping.is_set():
            return
        watched = self._runtime.watch_known()
        self._runtime.detect_orphans()
        _log.info("watching", vmms=watched)

    def stop(self, parent: Any) -> None:
        del parent
        self._stopping.set()
        if self._runtime is None:
            return
        self._runtime.active = False
        if self._hooks_api is not None:
            self._hooks_api.stop()
        if self._thread is not None:
            self._leave(self._thread)
        self._runtime.monitor.stop()

    def _leave(self, thread: threading.Thread) -> None:
        thread.join(timeout=5)
        self._runtime.watcher.stop()
        try:
            self._runtime.lease.release()
        except StoreUnavailable:
            _log.info("the host's lease runs out by itself: redis is away")

    terminate = stop


class LoopPulse(bootsteps.StartStopStep):  # type: ignore[misc] # Celery is untyped
    """Part of the consumer: shows that the main loop turns. While there is no connection, the tries for one show it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        parent.timer.call_repeatedly(_LOOP_PULSE_S, _show_loop)

    def stop(self, parent: Any) -> None:
        """What follows is the end of this worker, or the next try to connect."""
        del parent
        VITALS.over(MAIN_LOOP)
        VITALS.end(CONSUMER)


def _show_loop() -> None:
    # Calls of a broker that hangs may take it longer than we would wait; no restart would mend that.
    VITALS.pulse(MAIN_LOOP, _LOOP_PULSE_S, needs=REDIS)


def _longest_round_s(settings: Any) -> float:
    """Of heartbeats: the pause between two, and some calls of a Redis that does not answer."""
    redis = settings.redis
    pause_s = max(settings.worker.host_lease.total_seconds() / 3, _LONGEST_WAIT_S)
    return float(pause_s + 4 * (redis.timeout + redis.connect_timeout).total_seconds())


def _watch_tasks(longest_s: float) -> None:
    """A task that runs for so long comes a second time; it will not end by itself either."""

    def began(task_id: str, task: Any, **_: Any) -> None:
        VITALS.begin(task_id, f"task {task.name}", longest_s)

    def ended(task_id: str, **_: Any) -> None:
        VITALS.end(task_id)

    task_prerun.connect(began, weak=False, dispatch_uid="vitals-begin")
    task_postrun.connect(ended, weak=False, dispatch_uid="vitals-end")


def _refuse_forking_pool(parent: Any) -> None:
    """A forked child would hold VM locks after their VMM's death (DESIGN section 8)."""
    name = str(getattr(parent.pool_cls, "__module__", parent.pool_cls))
    if "thread" not in name and "solo" not in name:
        raise SystemExit(f"pool {name}: only `--pool threads` keeps the one-process guard; start `reliability worker`")


def _share_one_heap() -> None:
    """Only glibc has heaps to share."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def _spare_what_stays() -> None:
    """What has been loaded stays: looking for garbage in it again and again stops every thread for 70 ms each time."""
    gc.collect()
    gc.freeze()


def _raise_fd_limit() -> None:
    """A pidfd per VMM and a socket per probe: the soft limit of 1024 is too low, the hard one is ours to use."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_if_asked() -> None:
    if worker_state.should_terminate is not None and worker_state.should_terminate is not False:
        raise WorkerTerminate(worker_state.should_terminate)
    if worker_state.should_stop is not None and worker_state.should_stop is not False:
        raise WorkerShutdown(worker_state.should_stop)
