"""The worker's part of delivery: what no manager's thread has brought to Redis, at each heartbeat of its host."""

import grp

import structlog

from workers.bootstrap import Fleet
from workers.domain.vm import Vantage
from workers.integration.delivery import Delivery
from workers.integration.journal import Journal
from workers.integration.server_time import ServerTime
from workers.settings import Settings

_log = structlog.get_logger(component="integration")

# A heartbeat must not be late because of a backlog: the next ones take the rest.
_AT_MOST = 200


def journal_of(settings: Settings) -> Journal:
    """Return this host's journal, its folder made. Where that cannot be, hooks are kept in memory only."""
    journal = Journal(settings.state_dir, gid=_gid(settings.hooks.group))
    try:
        journal.prepare()
    except OSError as error:
        _log.error("hooks cannot be kept on this host's disk", error=str(error))
    return journal


def _gid(group: str | None) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        _log.error("no such group: hooks are for this account only", group=group)
        return None


def delivery_of(settings: Settings, fleet: Fleet, journal: Journal, vantage: Vantage) -> Delivery:
    server_time = ServerTime(journal.folder / ".server-time.json", vantage.boot_id)
    return Delivery(fleet, journal, server_time, vantage, host=settings.host)


class JournalReplay:
    def __init__(self, settings: Settings, fleet: Fleet, vantage: Vantage) -> None:
        self._delivery = delivery_of(settings, fleet, journal_of(settings), vantage)

    def __call__(self) -> int:
        """Return of how many VMs something is left to be delivered. Raises StoreUnavailable."""
        try:
            delivered = self._delivery.run(at_most=_AT_MOST)
        except OSError as error:
            _log.error("hooks cannot be read from this host's disk", error=str(error))
            return 0
        if delivered.taken:
            _log.info("hooks of this host delivered", taken=delivered.taken, left=delivered.left)
        return delivered.left
