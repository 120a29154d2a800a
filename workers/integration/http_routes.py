"""What stands where in the hooks API: requests are matched with this table, and its OpenAPI file is made from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel

from workers.integration import http_models as m
from workers.specs import check_vm_id

PREFIX = "/v1"
VM, OPERATION = "{vm_id}", "{operation}"
_OF_VM = f"{PREFIX}/vms/{VM}"


class BadPath(ValueError):
    """A part of a path that is not what has to stand there; `part` names it."""

    def __init__(self, part: str, why: str) -> None:
        super().__init__(why)
        self.part, self.why = part, why


@dataclass(frozen=True, slots=True)
class Route:
    """`name` is the operation's id, and that of the method that answers; `errors` beside those that any route has."""

    name: str
    method: str
    path: str
    summary: str
    answer: type[BaseModel]
    status: int = HTTPStatus.OK
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    errors: tuple[HTTPStatus, ...] = ()

    def match(self, segments: list[str]) -> bool:
        own = self.path.split("/")
        return len(own) == len(segments) and all(
            mine in (VM, OPERATION, theirs) for mine, theirs in zip(own, segments, strict=True)
        )

    def values(self, segments: list[str]) -> dict[str, str]:
        """Return what stands at the variable parts, decoded and checked. Raises BadPath."""
        own = self.path.split("/")
        return {
            mine[1:-1]: _decoded(mine[1:-1], raw) for mine, raw in zip(own, segments, strict=True) if mine[:1] == "{"
        }


def _hook(event: str, summary: str, body: type[BaseModel] = m.Nothing) -> Route:
    return Route(event, "POST", f"{_OF_VM}/{event}", summary, m.Accepted, HTTPStatus.ACCEPTED, body)


_AWAY, _UNKNOWN, _CONFLICT = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT

ROUTES = (
    _hook("created", "The VM was made, and runs if a process is given", m.Created),
    _hook("started", "It was started again", m.Started),
    _hook("stopping", "It is about to be stopped: not to be brought back from now on"),
    _hook("stopped", "It is stopped"),
    _hook("deleting", "It is about to be deleted: not to be brought back from now on"),
    _hook("deleted", "It is gone for good"),
    _hook("error", "The manager met an error with it: look at it now", m.Failed),
    Route(
        "begin_operation",
        "POST",
        f"{_OF_VM}/operations",
        "It is busy until the deadline at most: not to be judged",
        m.Began,
        HTTPStatus.ACCEPTED,
        m.Busy,
    ),
    Route(
        "end_operation",
        "DELETE",
        f"{_OF_VM}/operations/{OPERATION}",
        "The operation has ended; saying so twice is no error",
        m.Accepted,
        HTTPStatus.ACCEPTED,
    ),
    Route(
        "recover",
        "POST",
        f"{_OF_VM}/recover",
        "Ask for its recovery",
        m.Requested,
        HTTPStatus.ACCEPTED,
        m.Recover,
        errors=(_UNKNOWN, _CONFLICT, _AWAY),
    ),
    Route("health", "GET", f"{_OF_VM}/health", "How it is", m.Health, errors=(_UNKNOWN, _CONFLICT, _AWAY)),
    Route("attempts", "GET", f"{_OF_VM}/attempts", "Attempts to recover it", m.Attempts, errors=(_AWAY,)),
    Route(
        "why",
        "GET",
        f"{_OF_VM}/why",
        "Why it is as it is, and what comes next; also for an id that nobody knows",
        m.Why,
        query=m.WhyQuery,
        errors=(_AWAY,),
    ),
    Route("vms", "GET", f"{PREFIX}/vms", "All VMs of this host", m.Vms, errors=(_AWAY,)),
    Route("orphans", "GET", f"{PREFIX}/orphans", "Those that are lost and not back yet", m.Vms, errors=(_AWAY,)),
    Route(
        "events",
        "GET",
        f"{PREFIX}/events",
        "What happened after a place in the event stream; waits where there is nothing",
        m.Events,
        query=m.EventsQuery,
        errors=(_AWAY,),
    ),
    Route("openapi", "GET", f"{PREFIX}/openapi.json", "This description", m.Description),
    Route("healthz", "GET", f"{PREFIX}/healthz", "Whether this API serves, whatever Redis does", m.Served),
)


def segments_of(target: str) -> tuple[list[str], str]:
    """Split a request's target at its slashes, before anything is decoded; returns the parts, and the query."""
    path, _, query = target.partition("?")
    return path.split("/"), query


def routes_at(segments: list[str]) -> Mapping[str, Route]:
    """Return the routes of a path by method."""
    return {route.method: route for route in ROUTES if route.match(segments)}


def _decoded(part: str, raw: str) -> str:
    """Nothing but an id comes through: no slash, no dot alone, no control character, however it is written."""
    try:
        return check_vm_id(unquote_to_bytes(raw).decode("ascii"))
    except UnicodeDecodeError:
        raise BadPath(part, "must be of plain ASCII characters") from None
    except ValueError as error:
        raise BadPath(part, str(error)) from None
