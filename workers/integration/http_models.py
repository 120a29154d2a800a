"""What the hooks API takes and gives. Names here are a promise to programs; new ones may only be added."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from workers.domain.audit import EventKind
from workers.domain.vm import Desired, Force, Reason, State
from workers.integration.changes import ChangeKind

_REASON_MAX, _ERROR_MAX, _DAY_S = 200, 2000, 86_400.0
EVENTS_MAX, WAIT_MAX_S = 1000, 30.0
_POSITION = r"^[0-9]{1,16}(-[0-9]{1,16})?$"
_KIND = r"^[a-z][a-z0-9_-]{0,31}$"


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line of printable text")
    return text


OneLine = Annotated[str, AfterValidator(_one_line)]
Milliseconds = Annotated[int, Field(description="Redis server time, in ms since 1970; 0: never.")]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class Process(_Document):
    """The VMM. What is left out is read from /proc when the hook comes, so say it before the VMM can end."""

    pid: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
    start_ticks: Annotated[
        int | None, Field(strict=True, ge=0, description="Field 22 of /proc/PID/stat: tells a reused pid.")
    ] = None
    boot_id: Annotated[str | None, Field(max_length=64, description="/proc/sys/kernel/random/boot_id")] = None
    executable: Annotated[str | None, Field(max_length=4096)] = None
    socket: Annotated[
        str | None, Field(max_length=4096, description="Its API socket, where the command line does not tell it.")
    ] = None


class Created(_Document):
    process: Annotated[Process | None, Field(description="Where the VMM runs already.")] = None
    config: Annotated[
        dict[str, Any], Field(description="One VM, as `reliability apply` takes it; `id` may be left out.")
    ]


class Started(_Document):
    process: Annotated[Process | None, Field(description="The new VMM, where it is another one.")] = None


class Failed(_Document):
    error: Annotated[OneLine, Field(min_length=1, max_length=_ERROR_MAX)]


class Nothing(_Document):
    """No fields."""


class Busy(_Document):
    kind: Annotated[str, Field(pattern=_KIND, description="Such as snapshot, resize, migrate.")]
    deadline_s: Annotated[float, Field(gt=0, le=_DAY_S, description="From now; then it ends by itself.")]


class Recover(_Document):
    reason: Annotated[OneLine | None, Field(max_length=_REASON_MAX, description="For the audit.")] = None
    force: Force = Force.PLAIN


class WhyQuery(_Document):
    at_ms: Annotated[int | None, Field(ge=0, description="Ask about this time instead of now.")] = None


class EventsQuery(_Document):
    after: Annotated[
        str | None,
        Field(pattern=_POSITION, description="`next` of the page before; 0: all that is kept; left out: from now on."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=EVENTS_MAX)] = 100
    wait_s: Annotated[float, Field(ge=0, le=WAIT_MAX_S, description="How long to wait where there is nothing.")] = 25.0
    changes: Annotated[bool, Field(description="Only what says that a VM is lost, comes back, or is given up.")] = False


class Accepted(_Document):
    """Kept on this host, and delivered also if Redis is away now."""

    vm_id: str
    number: Annotated[int, Field(description="In this host's journal: later is greater. 0: switched off.")]


class Began(_Document):
    vm_id: str
    number: int
    operation: Annotated[str, Field(description="What to end it by.")]


class Requested(_Document):
    vm_id: str
    request_id: Annotated[str, Field(description="Stands at the events that follow from it.")]


class Health(_Document):
    vm_id: str
    host: str
    state: State
    desired: Desired
    healthy: Annotated[bool, Field(validation_alias="is_healthy")]
    since_ms: Milliseconds
    checked_ms: Milliseconds
    fails: Annotated[int, Field(description="Checks in a row that failed.")]
    reason: Annotated[Reason | None, Field(description="Why it is lost, or in doubt.")]
    attempt: Annotated[int | None, Field(description="The last one of the recovery that goes on.")]


class Vms(_Document):
    vms: list[Health]


class Attempt(_Document):
    number: int
    started_ms: Milliseconds
    ended_ms: Milliseconds
    reason: Reason | None
    outcome: str
    error: str | None


class Attempts(_Document):
    """Oldest first, as far as events are kept."""

    vm_id: str
    attempts: list[Attempt]


class Why(BaseModel):
    """`words` is for people; the rest says the same for programs."""

    model_config = ConfigDict(frozen=True, extra="allow")

    vm_id: str
    known: str
    summary: str
    state: str | None
    words: list[str]
    findings: list[dict[str, Any]]
    next: dict[str, Any]


class Happened(_Document):
    id: str
    at_ms: Milliseconds
    kind: EventKind
    change: Annotated[ChangeKind | None, Field(description="What this is to a subscriber, if anything.")]
    vm_id: str
    host: str
    actor: str
    why: str
    before: State | None
    after: State | None
    reason: Reason | None
    attempt: int | None
    request_id: str | None
    trace_id: str | None


class Events(_Document):
    """Keep `next` once these are dealt with, and ask with it again: then each change is told at least once."""

    events: list[Happened]
    next: str
    gap: Annotated[bool, Field(description="Events after the place you named are lost: look at all VMs once.")]


class Served(_Document):
    serves: bool
    version: str


class Description(BaseModel):
    """An OpenAPI document."""

    model_config = ConfigDict(frozen=True, extra="allow")

    openapi: str


class ErrorBody(_Document):
    code: str
    field: str | None
    message: str


class Error(_Document):
    error: ErrorBody
