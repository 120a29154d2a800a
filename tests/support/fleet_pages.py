"""The pages and the API of the dashboard in this process, on a loop of their own, without Flower around them."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import tornado.web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from workers.bootstrap import Fleet
from workers.dashboard.serving import dashboard, routes

LOGIN = ("alice", "sesame-7")
_SIGNED_BY = "of a test"
ACTS = {"X-Fleet-Request": "1"}


@dataclass
class Sent:
    """What was published."""

    messages: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, task: str, vm_id: str, arguments: Mapping[str, Any]) -> None:
        self.messages.append((task, vm_id, dict(arguments)))


@contextmanager
def served_pages(
    fleet: Fleet, *, login: tuple[str, str] | None = LOGIN, oauth: str = ""
) -> Iterator[tuple[httpx.Client, Sent]]:
    """Serve them on a free port of 127.0.0.1; the client logs in as who may, with `oauth` as this address."""
    sent = Sent()
    made = dashboard(fleet, sent, fresh_s=0.02)
    loop = asyncio.new_event_loop()
    sockets = bind_sockets(0, "127.0.0.1")
    servers: list[HTTPServer] = []

    async def start() -> None:
        server = HTTPServer(_application(made, login, oauth))
        server.add_sockets(sockets)
        servers.append(server)

    async def stop() -> None:
        servers[0].stop()
        await servers[0].close_all_connections()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(5)
    address = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    try:
        cookies = {"user": tornado.web.create_signed_value(_SIGNED_BY, "user", oauth).decode()} if oauth else {}
        with httpx.Client(base_url=address, auth=login, cookies=cookies, timeout=20) as client:
            yield client, sent
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        made.close()


def _application(made: Any, login: tuple[str, str] | None, oauth: str) -> tornado.web.Application:
    """As Flower is one, as far as our handlers look at it."""
    own = [tornado.web.url(each.pattern, each.handler, each.arguments, name=each.name) for each in routes(made)]
    others = [
        tornado.web.url(f"/{name}", tornado.web.RequestHandler, name=name) for name in ("workers", "tasks", "broker")
    ]
    application = tornado.web.Application(
        [*own, *others], xsrf_cookies=True, login_url="/login", cookie_secret=_SIGNED_BY
    )
    basic = [":".join(login)] if login else []
    application.options = SimpleNamespace(basic_auth=basic, auth=oauth, url_prefix="")  # type: ignore[attr-defined]
    return application
