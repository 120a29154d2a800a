"""What the pages and the API have in common: who may come in, and what every answer says about itself."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tornado.web import HTTPError

from workers.dashboard.access import READ_ONLY, Denied, check_host
from workers.dashboard.actions import Actions
from workers.dashboard.flower_plugin import FlowerHandler
from workers.dashboard.reading import View
from workers.dashboard.sharing import Run, Shared
from workers.dashboard.vm_reading import VmView
from workers.store.events import EventLog

_CSP = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'"
)


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What the handlers work with, one for the process. `explain` is the answer of `why`, as words and document.

    `run` does what blocks elsewhere than in the loop that serves everybody.
    """

    fleet: Shared[View]
    vms: Shared[VmView]
    explain: Shared[dict[str, Any]]
    actions: Actions
    events: EventLog
    names: frozenset[str]
    run: Run[Any]
    executors: tuple[ThreadPoolExecutor, ...]

    def close(self) -> None:
        for executor in self.executors:
            executor.shutdown()


class FleetHandler(FlowerHandler):
    """Serves who is logged in, under our own names only. Errors are told by `refuse`."""

    dashboard: Dashboard

    def initialize(self, dashboard: Dashboard) -> None:
        self.dashboard = dashboard

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", _CSP)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "private, no-cache")

    def options(self, *_: str, **__: str) -> None:
        """Nobody elsewhere is told that they may."""
        raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED)

    def prepare(self) -> None:
        try:
            check_host(self.request.host, self.dashboard.names)
        except Denied as denied:
            self.refuse(HTTPStatus.FORBIDDEN, denied.why, denied.hindrance)
            return
        self.check_login()

    def check_login(self) -> None:
        """Raises HTTPError 401, or answers with the way to log in."""
        if not self.current_user:
            raise HTTPError(HTTPStatus.UNAUTHORIZED)

    def refuse(self, status: int, why: str, hindrance: str) -> None:
        raise NotImplementedError

    @property
    def read_only(self) -> str | None:
        """Why nothing can be done here; None where it can."""
        return None if self.has_password else READ_ONLY

    def write_error(self, status_code: int, **given: Any) -> None:
        if status_code == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        error = given.get("exc_info", (None, None))[1]
        said = error.log_message if isinstance(error, HTTPError) else None
        # 403 is how Flower answers what may come from another site.
        self.refuse(
            status_code, said or _reason(status_code), "csrf" if status_code == HTTPStatus.FORBIDDEN else "error"
        )


def _reason(status: int) -> str:
    known = {401: "log in first", 404: "there is no such page", 405: "this method means nothing here"}
    return known.get(status, "something is wrong here: see the log of `reliability flower`")
