"""Everything that depends on how Flower 2.2 is made inside; an upgrade of Flower is checked against this module.

Used of it: the lists `handlers` and `settings` of `flower.urls`, which `flower.app` and `flower.command` read when they
start; `BaseHandler`, for who is logged in; `navbar.html`, into which a link goes, in memory; the names of its pages.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import tornado.template
import tornado.web
from flower import urls
from flower.views import BaseHandler

_log = structlog.get_logger(component="flower")

# Where Flower's own script keeps the chosen theme, so that both choose together.
THEME_KEY = "flower-theme"
FLOWER_PAGES = (("Workers", "workers"), ("Tasks", "tasks"), ("Broker", "broker"))
_LIST_IN_NAVBAR = '<ul class="app-nav navbar-nav">'
_LINK = '<li class="nav-item"><a class="nav-link" href="{{ reverse_url(\'fleet\') }}">Fleet</a></li>'


@dataclass(frozen=True, slots=True)
class Route:
    """`name` is for `reverse_url`; routes without one are linked to by nobody."""

    pattern: str
    handler: type[tornado.web.RequestHandler]
    arguments: dict[str, Any]
    name: str | None = None


def install(routes: Sequence[Route]) -> None:
    """Put routes before Flower's last one, which takes all that is left; its option url_prefix is for them too."""
    own = [tornado.web.url(each.pattern, each.handler, each.arguments, name=each.name) for each in routes]
    urls.handlers[-1:-1] = own
    urls.settings["template_loader"] = _WithFleetLink(urls.settings["template_path"])


class _WithFleetLink(tornado.template.Loader):
    def _create_template(self, name: str) -> tornado.template.Template:
        made = super()._create_template(name)
        return self._linked(name, made) if name == "navbar.html" else made

    def _linked(self, name: str, made: tornado.template.Template) -> tornado.template.Template:
        text = Path(self.root, name).read_text(encoding="utf-8")
        if text.count(_LIST_IN_NAVBAR) != 1:
            _log.warning("flower's pages have no link to the fleet: open /fleet", reason="its navbar is another one")
            return made
        linked = text.replace(_LIST_IN_NAVBAR, _LIST_IN_NAVBAR + _LINK)
        return tornado.template.Template(linked, name=name, loader=self)


class FlowerHandler(BaseHandler):  # type: ignore[misc] # Flower is untyped
    """What our handlers ask of Flower. Who is not logged in gets its answer: 401, or its page to log in."""

    @property
    def has_password(self) -> bool:
        options = self.application.options
        return bool(options.basic_auth or options.auth)

    @property
    def user(self) -> str:
        """The name for the audit; only for who is logged in."""
        user = self.current_user
        return user if isinstance(user, str) else _basic_user(self.request.headers.get("Authorization", ""))

    def address_of(self, page: str, *arguments: str) -> str:
        """The path of a named page, with Flower's url_prefix."""
        return str(self.reverse_url(page, *arguments))

    def check_xsrf_cookie(self) -> None:
        """Flower's own check; ours, which is stricter, comes on top where something is done."""
        if self.has_password:
            super().check_xsrf_cookie()


def _basic_user(header: str) -> str:
    """Read the name as leniently as Flower reads it, so that nobody who gets in goes without."""
    return base64.b64decode(header.split()[1]).decode().partition(":")[0]
