"""The hooks API: each request is checked, told to a `Hooks`, and answered as the table of routes says."""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError

from workers.complaints import Complaint, complaints_in, place
from workers.domain.audit import Event
from workers.domain.errors import Held, Refused, StoreUnavailable, UnknownVm, UnreadableRecord
from workers.integration import http_models as m
from workers.integration.changes import kind_of
from workers.integration.feed import Feed, Page
from workers.integration.hooks import Hooks, VmmProcess
from workers.integration.http_routes import BadPath, Route, routes_at, segments_of
from workers.integration.http_server import Answer, Request, error_answer
from workers.integration.openapi import description
from workers.specs import SpecError

_RETRY_S = 2
# So many may wait for events at once; hooks must find a thread.
_MOST_WAITING = 16

Body = TypeVar("Body", bound=BaseModel)


class Explained(Protocol):
    """The answer of `services.why`."""

    def words(self) -> list[str]: ...

    def document(self) -> dict[str, Any]: ...


Why = Callable[[str, int | None], Explained]


class Call:
    """One request, as far as it is understood: what stands in its path, its query and its body."""

    def __init__(self, route: Route, request: Request, path: Mapping[str, str], query: str) -> None:
        self._route, self._request, self._path, self._query = route, request, path, query
        self.is_over = request.is_over

    @property
    def vm_id(self) -> str:
        return self._path["vm_id"]

    @property
    def operation(self) -> str:
        return self._path["operation"]

    def body(self, model: type[Body]) -> Body:
        """Read the body; none is an empty one. Raises _Wrong."""
        try:
            return model.model_validate_json(self._request.body.strip() or b"{}")
        except ValidationError as error:
            raise _Wrong(complaints_in(error, model)[0]) from None

    def query(self, model: type[Body]) -> Body:
        """Raises _Wrong."""
        values: dict[str, str] = {}
        for name, value in parse_qsl(self._query, keep_blank_values=True, max_num_fields=20):
            if name in values:
                raise _Wrong(Complaint((name,), "is given twice"))
            values[name] = value
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise _Wrong(complaints_in(error, model)[0]) from None


class _Wrong(Exception):
    def __init__(self, complaint: Complaint) -> None:
        super().__init__(complaint.line)
        self.complaint = complaint


class HooksApi:
    """Each method beside `answer` is one route, by its name. `version` is that of this program."""

    def __init__(self, hooks: Hooks, feed: Feed, why: Why, *, version: str) -> None:
        self._hooks, self._feed, self._why, self._version = hooks, feed, why, version
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)

    def answer(self, request: Request) -> Answer:
        segments, query = segments_of(request.target)
        here = routes_at(segments)
        if not here:
            return error_answer(HTTPStatus.NOT_FOUND, "not_found", "no such path: see /v1/openapi.json")
        route = here.get(request.method)
        if route is None:
            allow = ", ".join(sorted(here))
            text = f"here is {allow} only"
            return error_answer(405, "method_not_allowed", text, headers={"Allow": allow})
        try:
            call = Call(route, request, route.values(segments), query)
            document = getattr(self, route.name)(call)
        except ValidationError:
            raise  # an answer of ours is not as it should be
        except (ValueError, _Wrong, *_OURS) as error:
            return _complain(error)
        return Answer(route.status, document.model_dump(mode="json", by_alias=False))

    # Hooks

    def created(self, call: Call) -> m.Accepted:
        told = call.body(m.Created)
        config = {"id": call.vm_id, **told.config}
        if config["id"] != call.vm_id:
            raise _Wrong(Complaint(("config", "id"), f"must be {call.vm_id}, as in the path", config["id"]))
        socket = told.process.socket if told.process else None
        return _accepted(call, self._hooks.on_vm_created(call.vm_id, _process(told.process), config, socket=socket))

    def started(self, call: Call) -> m.Accepted:
        told = call.body(m.Started)
        socket = told.process.socket if told.process else None
        return _accepted(call, self._hooks.on_vm_started(call.vm_id, _process(told.process), socket=socket))

    def stopping(self, call: Call) -> m.Accepted:
        call.body(m.Nothing)
        return _accepted(call, self._hooks.on_vm_stopping(call.vm_id))

    def stopped(self, call: Call) -> m.Accepted:
        call.body(m.Nothing)
        return _accepted(call, self._hooks.on_vm_stopped(call.vm_id))

    def deleting(self, call: Call) -> m.Accepted:
        call.body(m.Nothing)
        return _accepted(call, self._hooks.on_vm_deleting(call.vm_id))

    def deleted(self, call: Call) -> m.Accepted:
        call.body(m.Nothing)
        return _accepted(call, self._hooks.on_vm_deleted(call.vm_id))

    def error(self, call: Call) -> m.Accepted:
        return _accepted(call, self._hooks.on_vm_error(call.vm_id, call.body(m.Failed).error))

    def begin_operation(self, call: Call) -> m.Began:
        busy = call.body(m.Busy)
        begun = self._hooks.begin_operation(call.vm_id, busy.kind, timedelta(seconds=busy.deadline_s))
        return m.Began(vm_id=call.vm_id, number=begun.number, operation=begun.name)

    def end_operation(self, call: Call) -> m.Accepted:
        return _accepted(call, self._hooks.end_operation(call.vm_id, call.operation))

    # Questions, and the one request

    def recover(self, call: Call) -> m.Requested:
        asked = call.body(m.Recover)
        request_id = self._hooks.trigger_recovery(call.vm_id, reason=asked.reason, force=asked.force)
        return m.Requested(vm_id=call.vm_id, request_id=request_id)

    def health(self, call: Call) -> m.Health:
        return m.Health.model_validate(self._hooks.get_vm_health(call.vm_id))

    def vms(self, call: Call) -> m.Vms:
        del call
        return m.Vms(vms=[m.Health.model_validate(each) for each in self._hooks.get_all_vm_health()])

    def orphans(self, call: Call) -> m.Vms:
        del call
        return m.Vms(vms=[m.Health.model_validate(each) for each in self._hooks.get_orphaned_vms()])

    def attempts(self, call: Call) -> m.Attempts:
        seen = self._hooks.get_recovery_attempts(call.vm_id)
        return m.Attempts(vm_id=call.vm_id, attempts=[m.Attempt.model_validate(each) for each in seen])

    def why(self, call: Call) -> m.Why:
        answer = self._why(call.vm_id, call.query(m.WhyQuery).at_ms)
        return m.Why.model_validate({**answer.document(), "words": answer.words()})

    def events(self, call: Call) -> m.Events:
        asked = call.query(m.EventsQuery)
        page = self._feed.page(asked.after, asked.limit)
        if asked.after is not None and asked.wait_s and not _shown(page, asked):
            page = self._wait(call, asked, page)
        return m.Events(events=_shown(page, asked), next=page.next, gap=page.has_gap)

    def _wait(self, call: Call, asked: m.EventsQuery, page: Page) -> Page:
        """Long poll: until something comes, it is time, or nobody is there any more."""
        with self._place():
            until = time.monotonic() + asked.wait_s
            while not (page.has_gap or _shown(page, asked) or call.is_over()) and time.monotonic() < until:
                if not page.events:
                    self._feed.wait(page.next)
                page = self._feed.page(page.next, asked.limit)
        return page

    @contextmanager
    def _place(self) -> Any:
        if not self._waiting.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self._waiting.release()

    def openapi(self, call: Call) -> m.Description:
        del call
        return m.Description.model_validate(description())

    def healthz(self, call: Call) -> m.Served:
        del call
        return m.Served(serves=True, version=self._version)


class Busy(Exception):
    """So many wait for events already that no further one may."""


_OURS = (UnknownVm, UnreadableRecord, Refused, Held, StoreUnavailable, Busy)


def _complain(error: Exception) -> Answer:
    match error:
        case StoreUnavailable():
            return _later("store_unavailable", str(error))
        case Busy():
            return _later("busy", f"{_MOST_WAITING} callers wait for events already")
        case UnknownVm():
            return error_answer(HTTPStatus.NOT_FOUND, "unknown_vm", str(error), about="vm_id")
        case UnreadableRecord() | Refused() | Held():
            return _conflict(error)
        case _:
            return _bad_request(error)


def _conflict(error: UnreadableRecord | Refused | Held) -> Answer:
    if isinstance(error, Refused):
        return error_answer(HTTPStatus.CONFLICT, error.hindrance, error.why)
    code = "held" if isinstance(error, Held) else "unreadable_record"
    return error_answer(HTTPStatus.CONFLICT, code, str(error), about="vm_id")


def _bad_request(error: Exception) -> Answer:
    match error:
        case BadPath():
            return _bad(error.why, error.part)
        case _Wrong():
            return _complaint(error.complaint)
        case SpecError():
            return _complaint(error.complaints[0].under("config"))
        case _:
            return _of_hook(str(error))


def _complaint(wrong: Complaint) -> Answer:
    return _bad(Complaint((), wrong.text, wrong.value).line, place(wrong.loc) or None)


def _of_hook(text: str) -> Answer:
    """What a hook does not take names its field: `field process: must be …`."""
    name, colon, why = text.removeprefix("field ").partition(": ")
    is_named = bool(colon) and text.startswith("field ")
    return _bad(why if is_named else text, name if is_named else None)


def _bad(text: str, about: str | None) -> Answer:
    return error_answer(HTTPStatus.BAD_REQUEST, "bad_request", text, about=about)


def _later(code: str, text: str) -> Answer:
    return error_answer(HTTPStatus.SERVICE_UNAVAILABLE, code, text, headers={"Retry-After": str(_RETRY_S)})


def _accepted(call: Call, number: int) -> m.Accepted:
    return m.Accepted(vm_id=call.vm_id, number=number)


def _process(told: m.Process | None) -> VmmProcess | None:
    return VmmProcess(told.pid, told.start_ticks, told.boot_id, told.executable) if told else None


def _shown(page: Page, asked: m.EventsQuery) -> list[m.Happened]:
    return [
        _happened(event_id, event) for event_id, event in page.events if not asked.changes or kind_of(event) is not None
    ]


def _happened(event_id: str, event: Event) -> m.Happened:
    return m.Happened(
        id=event_id,
        at_ms=int(event_id.partition("-")[0]),
        kind=event.kind,
        change=kind_of(event),
        vm_id=event.vm_id,
        host=event.host,
        actor=event.actor,
        why=event.why,
        before=event.before,
        after=event.after,
        reason=event.reason,
        attempt=event.attempt,
        request_id=event.request_id,
        trace_id=event.trace_id,
    )
