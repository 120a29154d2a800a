"""The two pages: a frame each, which scripts of ours fill from the API and keep up to date."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import tornado.template
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from workers.dashboard.flower_plugin import FLOWER_PAGES, THEME_KEY
from workers.dashboard.requests import FleetHandler
from workers.specs import is_vm_id

_HERE = Path(str(files("workers.dashboard")))
STATIC = _HERE / "static"
_templates = tornado.template.Loader(str(_HERE / "templates"))


def _version() -> str:
    """Another one for each release, so that no browser mixes two."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_VERSION = _version()


class PageHandler(FleetHandler):
    def check_login(self) -> None:
        if not self.current_user:
            self.redirect(self.get_login_url())

    def refuse(self, status: int, why: str, hindrance: str) -> None:
        del hindrance
        self.set_status(status)
        self.show("message.html", title="Fleet", words=why)

    def show(self, template: str, **values: Any) -> None:
        text = _templates.load(template).generate(
            **values,
            path=self.path,
            flower_pages=[(words, self.address_of(name)) for words, name in FLOWER_PAGES],
            theme_key=THEME_KEY,
            read_only=self.read_only or "",
            user=self.user if self.has_password and getattr(self, "_current_user", None) else "",
            xsrf=self.xsrf_token.decode(),
        )
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(text)

    def path(self, *parts: str) -> str:
        """The path of one of our own files or pages, with Flower's url_prefix."""
        own = self.address_of("fleet")
        match parts:
            case ("api",):
                return own.removesuffix("/fleet") + "/api/fleet"
            case ("static", name):
                return f"{own}/static/{name}?v={_VERSION}"
            case _:
                return "/".join((own, *parts))


class FleetPage(PageHandler):
    def get(self) -> None:
        self.show("fleet.html", title="Fleet")


class VmPage(PageHandler):
    def get(self, vm_id: str) -> None:
        if not is_vm_id(vm_id):
            raise HTTPError(404, f"{vm_id.replace('%', '%%')!r} can be no id of a VM")
        self.show("vm.html", title=vm_id, vm_id=vm_id)


class FleetFiles(StaticFileHandler):
    """The scripts and the style sheet: the same for everybody, and no secret."""

    def set_default_headers(self) -> None:
        RequestHandler.set_default_headers(self)
        self.set_header("X-Content-Type-Options", "nosniff")
