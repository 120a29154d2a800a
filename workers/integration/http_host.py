"""The hooks API as a part of a host's worker: wired from the settings, started and stopped with it."""

from datetime import timedelta

from workers.bootstrap import Fleet, redis_client
from workers.domain.answer import Answer
from workers.integration.feed import RedisFeed
from workers.integration.http_api import HooksApi
from workers.integration.http_server import HooksServer
from workers.integration.manager import ReliabilityManager
from workers.services.why import why

_STOP = timedelta(seconds=1)


class HooksApiHost:
    """Neither `start` nor `stop` fails; what could not be delivered stays on the disk for the next worker."""

    def __init__(self, fleet: Fleet, version: str) -> None:
        settings = fleet.settings
        self._manager = ReliabilityManager(settings)
        timeout_s = settings.redis.timeout.total_seconds()
        feed = RedisFeed(redis_client(settings), prefix=settings.redis.prefix, timeout_s=timeout_s)

        def explain(vm_id: str, at_ms: int | None) -> Answer:
            return why(fleet, vm_id, at_ms=at_ms)

        api = HooksApi(self._manager, feed, explain, version=version)
        self._server = HooksServer(settings.hooks_socket, api.answer, group=settings.hooks.group)

    def start(self) -> None:
        self._manager.start()
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._manager.stop(_STOP)
