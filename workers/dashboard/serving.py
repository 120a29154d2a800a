"""Joins the dashboard from the fleet and puts it into Flower, before Flower starts."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from workers.bootstrap import Fleet
from workers.dashboard.access import own_names
from workers.dashboard.actions import Actions
from workers.dashboard.api import ActionApi, EventsApi, FleetApi, NoSuchApi, VmApi, VmsApi, WhyApi
from workers.dashboard.flower_plugin import Route, install
from workers.dashboard.pages import STATIC, FleetFiles, FleetPage, VmPage
from workers.dashboard.reading import FleetReader, View
from workers.dashboard.requests import Dashboard
from workers.dashboard.sharing import Run, Shared
from workers.dashboard.vm_reading import VmReader
from workers.domain.errors import StoreUnavailable
from workers.services.operations import Send
from workers.services.why import why

_log = structlog.get_logger(component="flower")

_THREADS = 4
_FRESH_S = 1.0
_VMS_AT_ONCE = 200


def serve_fleet(fleet: Fleet, app: Celery) -> Dashboard:
    """Add our pages and API to the Flower of this process."""
    made = dashboard(fleet, sender(app))
    install(routes(made))
    return made


def routes(made: Dashboard) -> list[Route]:
    given = {"dashboard": made}
    return [
        Route(r"/fleet", FleetPage, given, "fleet"),
        Route(r"/fleet/vm/([^/]*)", VmPage, given, "fleet-vm"),
        Route(r"/fleet/static/(.*)", FleetFiles, {"path": str(STATIC)}),
        Route(r"/api/fleet", FleetApi, given),
        Route(r"/api/fleet/vms", VmsApi, given),
        Route(r"/api/fleet/vms/([^/]*)", VmApi, given),
        Route(r"/api/fleet/vms/([^/]*)/why", WhyApi, given),
        Route(r"/api/fleet/vms/([^/]*)/(recover|pause|maintenance|resume|reset)", ActionApi, given),
        Route(r"/api/fleet/events", EventsApi, given),
        Route(r"/api/fleet/.*", NoSuchApi, given),
    ]


def dashboard(fleet: Fleet, send: Send, *, fresh_s: float = _FRESH_S) -> Dashboard:
    """`fresh_s`: how old what is shown may be."""
    executor = ThreadPoolExecutor(_THREADS, "fleet-pages")
    # A thread of its own, so that nothing slow that somebody asks for keeps the fleet from being read.
    reader = ThreadPoolExecutor(1, "fleet-reader")
    reading, vms = _FleetReading(FleetReader(fleet), executor), VmReader(fleet)
    run, read = _running_on(executor), _running_on(reader)
    return Dashboard(
        fleet=Shared(lambda _: reading.read(), read, fresh_s=fresh_s),
        vms=Shared(vms.read, run, fresh_s=fresh_s / 2, most=_VMS_AT_ONCE),
        explain=Shared(lambda vm_id: _explained(fleet, vm_id), run, fresh_s=fresh_s / 2, most=_VMS_AT_ONCE),
        actions=Actions(fleet, send),
        events=fleet.events,
        names=own_names((*fleet.settings.flower.names, fleet.settings.flower.address)),
        run=run,
        executors=(reader, executor),
    )


def _running_on(executor: ThreadPoolExecutor) -> Run[Any]:
    async def run(work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    return run


def _explained(fleet: Fleet, vm_id: str) -> dict[str, Any]:
    answer = why(fleet, vm_id)
    return {"words": answer.words(), "answer": answer.document()}


class _FleetReading:
    """The readings, and beside the first ones the counting of the day before. What was read last outlives Redis."""

    def __init__(self, reader: FleetReader, executor: ThreadPoolExecutor) -> None:
        self._reader, self._executor = reader, executor
        self._last: View | None = None
        self._counts = False

    def read(self) -> View:
        try:
            self._last = self._reader.read()
        except StoreUnavailable as error:
            if self._last is None:
                raise
            return self._last.without_store(str(error))
        if not self._counts and self._reader.needs_counting:
            self._counts = True
            self._executor.submit(self._count)
        return self._last

    def _count(self) -> None:
        try:
            self._reader.count_back()
        except StoreUnavailable:
            _log.warning("the figures of the last day are counted later: Redis does not answer")
        except Exception:  # noqa: BLE001 - nobody waits for this thread: what it dies of is told here
            _log.exception("the figures of the last day cannot be counted")
            self._reader.count_from_now()
        self._counts = False


def sender(app: Celery) -> Send:
    """Publish to the default queue, from where any worker hands it to the VM's host. Raises StoreUnavailable."""

    def send(task: str, vm_id: str, arguments: Mapping[str, Any]) -> None:
        try:
            app.send_task(task, args=[vm_id], kwargs=dict(arguments))
        except (KombuError, RedisError, OSError) as error:
            raise StoreUnavailable(f"broker: {error}") from error

    return send
