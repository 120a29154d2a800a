"""Who may ask what of the pages: which names the dashboard answers to, and which requests may act. Fails closed."""

import ipaddress
import socket
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from workers.domain.errors import ReliabilityError

# A page of another site cannot send it without being asked first, and nobody is ever allowed to.
ACTION_HEADER = "X-Fleet-Request"

READ_ONLY = (
    "this dashboard has no password, so it only shows: set flower.basic_auth to user:password, start it again, "
    "and log in"
)


class Denied(ReliabilityError):
    """`why` is one line that says what to do; `hindrance` names it for programs."""

    def __init__(self, why: str, hindrance: str) -> None:
        super().__init__(why)
        self.why, self.hindrance = why, hindrance


def own_names(names: Collection[str]) -> frozenset[str]:
    """Return every name under which this dashboard is itself, beside addresses."""
    machine = socket.gethostname().lower()
    return frozenset({"localhost", machine, machine.partition(".")[0], *(name.lower() for name in names)})


def check_host(host: str, names: Collection[str]) -> None:
    """Refuse a name that is not ours: a page elsewhere may have had its own name point here. Raises Denied."""
    name = _name_of(host)
    if name is not None and (name in names or _is_address(name)):
        return
    raise Denied(
        "this dashboard does not go by the host name of this request: use its address, or add the name to flower.names",
        "host",
    )


def check_action(headers: Mapping[str, str], host: str) -> None:
    """Refuse what a page of another site may have made the browser send. Raises Denied."""
    site = headers.get("Sec-Fetch-Site")
    origin = headers.get("Origin")
    if site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc.lower() != host.lower()):
        raise Denied("this request comes from another site", "origin")
    if headers.get(ACTION_HEADER) != "1":
        raise Denied(f"a request that acts needs the header {ACTION_HEADER}: 1", "csrf")
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise Denied("a request that acts needs the header Content-Type: application/json", "csrf")


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
