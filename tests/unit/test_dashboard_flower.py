"""Flower is inside what `flower_plugin` takes it for: what fails here after an upgrade is to be put right there."""

from collections.abc import Iterator

import pytest
import tornado.web
from flower import urls
from flower.views import BaseHandler

from workers.dashboard.flower_plugin import FLOWER_PAGES, FlowerHandler, Route, install


class _Mine(FlowerHandler):
    pass


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    handlers, settings = list(urls.handlers), dict(urls.settings)
    yield
    urls.handlers[:] = handlers
    urls.settings.clear()
    urls.settings.update(settings)


def test_our_routes_come_before_the_one_that_takes_all_that_is_left() -> None:
    install([Route("/fleet", _Mine, {}, "fleet")])

    assert urls.handlers[-1][0] == ".*"
    assert urls.handlers[-2].handler_class is _Mine
    assert {name for _, name in FLOWER_PAGES} <= {each.name for each in urls.handlers if hasattr(each, "name")}


def test_the_link_stands_in_the_navbar_of_flowers_pages() -> None:
    install([Route("/fleet", _Mine, {}, "fleet")])
    navbar = urls.settings["template_loader"].load("navbar.html")

    made = navbar.generate(
        reverse_url=lambda name: f"/{name}", static_url=str, active_tab="", current_user=None, handler=_Any()
    )

    assert made.count(b'href="/fleet">Fleet</a>') == 1


class _Any:
    """Stands for what the template looks at of its handler."""

    def __getattr__(self, name: str) -> object:
        return _Any()


def test_the_base_of_flowers_handlers_says_who_is_logged_in() -> None:
    assert issubclass(FlowerHandler, tornado.web.RequestHandler)
    for name in ("get_current_user", "check_xsrf_cookie"):
        assert name in vars(BaseHandler)
