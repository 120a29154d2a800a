"""The JSON API beside the pages: see docs/dashboard.md. What is refused is `{"error": why, "hindrance": name}`."""

import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from tornado.web import HTTPError, RequestHandler

from workers.cli.documents import event_document
from workers.dashboard.access import Denied, check_action
from workers.dashboard.actions import Action, wish_of
from workers.dashboard.overview import held_words
from workers.dashboard.progress import event_id
from workers.dashboard.reading import View, to_json
from workers.dashboard.requests import FleetHandler
from workers.dashboard.rows import Query, query_of, row_document, select
from workers.dashboard.vm_reading import vm_answer
from workers.domain.errors import Held, Refused, ReliabilityError, StoreUnavailable, UnknownVm
from workers.specs import check_vm_id

_MOST_EVENTS = 1000
_MOST_BODY = 10_000  # bytes


class ApiHandler(FleetHandler):
    def refuse(self, status: int, why: str, hindrance: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(to_json({"error": " ".join(why.split()), "hindrance": hindrance}))

    def answer(self, body: bytes, tag: str = "") -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        if tag:
            self.set_header("ETag", tag)
            if self.check_etag_header():
                self.set_status(HTTPStatus.NOT_MODIFIED)
                self.finish()
                return
        self.finish(body)

    def compute_etag(self) -> None:
        """Only what says so itself is compared: hashing each answer again would cost more than it saves."""

    def plain_argument(self, name: str) -> str:
        return str(RequestHandler.get_argument(self, name, ""))

    def vm_id(self, text: str) -> str:
        """Raises ValueError."""
        try:
            return check_vm_id(text)
        except ValueError as error:
            raise ValueError(f"field vm: {error}") from error

    async def told(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, and answer what goes wrong as what it is."""
        try:
            await work()
        except ValueError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error), "wrong")
        except Denied as denied:
            self.refuse(HTTPStatus.FORBIDDEN, denied.why, denied.hindrance)
        except UnknownVm as error:
            self.refuse(HTTPStatus.NOT_FOUND, str(error), "unknown_vm")
        except Refused as error:
            self.refuse(HTTPStatus.CONFLICT, error.why, error.hindrance)
        except Held as error:
            self.refuse(HTTPStatus.CONFLICT, str(error), "held")
        except StoreUnavailable as error:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"Redis does not answer: {error}", "no_redis")
        except ReliabilityError as error:
            self.refuse(HTTPStatus.CONFLICT, str(error), "refused")


class FleetApi(ApiHandler):
    async def get(self) -> None:
        async def work() -> None:
            view = await self.dashboard.fleet.get()
            self.answer(view.body, f'"{view.revision}"')

        await self.told(work)


class VmsApi(ApiHandler):
    async def get(self) -> None:
        async def work() -> None:
            query = query_of({name: self.plain_argument(name) for name in _QUERY})
            view = await self.dashboard.fleet.get()
            asked = hashlib.sha256(repr((query, sorted(query.states))).encode()).hexdigest()[:12]
            # Sorting ten thousand rows is done where it keeps nobody waiting.
            body = await self.dashboard.run(lambda: _page(view, query))
            self.answer(body, f'"{view.revision}-{asked}"')

        await self.told(work)


_QUERY = ("state", "host", "q", "sort", "page", "per_page")


def _page(view: View, query: Query) -> bytes:
    page = select(view.rows.values(), query)
    rows = [row_document(row) | {"held": held_words(view.modes, row.vm_id, row.host, view.now_ms)} for row in page.rows]
    found = {"total": page.total, "page": page.number, "pages": page.of, "per_page": query.per_page}
    return to_json({"vms": rows, "revision": view.revision, "now_ms": view.now_ms, **found})


class VmApi(ApiHandler):
    async def get(self, text: str) -> None:
        async def work() -> None:
            vm_id = self.vm_id(text)
            after, request_id = self.plain_argument("after"), self.plain_argument("request")
            if after:
                event_id(after)
            view = await self.dashboard.vms.get(vm_id)
            if not view.is_known:
                raise UnknownVm(vm_id)
            self.answer(*vm_answer(vm_id, view, after=after, request_id=request_id))

        await self.told(work)


class WhyApi(ApiHandler):
    async def get(self, text: str) -> None:
        async def work() -> None:
            self.answer(to_json(await self.dashboard.explain.get(self.vm_id(text))))

        await self.told(work)


class EventsApi(ApiHandler):
    """Without `after`, the last ones; with it, those that came later, oldest first."""

    async def get(self) -> None:
        async def work() -> None:
            after = self.plain_argument("after")
            if after:
                event_id(after)
            self.answer(await self.dashboard.run(lambda: self._events(after)))

        await self.told(work)

    def _events(self, after: str) -> bytes:
        log = self.dashboard.events
        entries = list(log.since(after, limit=_MOST_EVENTS)) if after else log.latest(limit=100)
        last = entries[-1].id if entries else after or "0-0"
        return to_json({"events": [event_document(entry) for entry in entries], "last": last})


class ActionApi(ApiHandler):
    async def post(self, text: str, name: str) -> None:
        async def work() -> None:
            if self.read_only is not None:
                raise Denied(self.read_only, "read_only")
            check_action(self.request.headers, self.request.host)
            action, vm_id = Action(name), self.vm_id(text)
            if len(self.request.body) > _MOST_BODY:
                raise ValueError(f"the body is longer than {_MOST_BODY} bytes")
            wish = wish_of(action, vm_id, self.request.body)
            actor = f"flower:{self.user}"
            done = await self.dashboard.run(lambda: self.dashboard.actions.do(action, vm_id, wish, actor=actor))
            for shared in (self.dashboard.vms, self.dashboard.explain):
                shared.forget(vm_id)
            self.set_status(HTTPStatus.ACCEPTED if action is Action.RECOVER else HTTPStatus.OK)
            self.answer(to_json(done))

        await self.told(work)


class NoSuchApi(ApiHandler):
    def get(self) -> Any:
        raise HTTPError(HTTPStatus.NOT_FOUND)

    post = get
