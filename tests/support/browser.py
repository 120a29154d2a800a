"""Debian's Chromium, driven over its own protocol (CDP) through a pipe: needs no driver package, opens no port."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import wait_until

CHROMIUM = shutil.which("chromium")
_CALL_TIMEOUT_S = 30.0
_FLAGS = [
    "--headless=new",
    "--no-sandbox",  # root needs it
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
]
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "/": 191}


class Conversation:
    """Calls and answers, separated by NUL bytes; events that come meanwhile are kept."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd = write_fd, read_fd
        self._numbers = itertools.count(1)
        self._left = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": given}
        if session:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        while True:
            answer = self._next(deadline - time.monotonic(), method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, timeout_s: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, timeout_s))
            assert ready, f"chromium did not answer {method} in time"
            part = os.read(self._read_fd, 1 << 20)
            assert part, f"chromium ended during {method}"
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(text))


@dataclass
class Page:
    talk: Conversation
    session: str

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        return self.talk.call(method, self.session, **given)

    def look(self, width: int, height: int, *, theme: str = "light") -> None:
        mobile = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def log_in(self, login: str) -> None:
        """As a browser does after its dialog: with each request."""
        basic = base64.b64encode(login.encode()).decode()
        self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {basic}"})

    def go(self, url: str) -> None:
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression, or of what it promises."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, *, timeout_s: float = 15) -> Any:
        return wait_until(
            lambda: self.js(f"Boolean({expression})"), timeout_s=timeout_s, what=f"{expression} in the browser"
        )

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def focus_text(self) -> str:
        return str(self.js("document.activeElement.innerText || document.activeElement.id"))

    def click(self, selector: str) -> None:
        """With the mouse, where the element is: what covers it would get the click."""
        query = json.dumps(selector)
        self.js(f"document.querySelector({query}).scrollIntoView({{block: 'center'}})")
        box = self.js(
            f"(() => {{ const b = document.querySelector({query}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"Enter": "\r", "/": "/"}.get(key, "")
        keyed = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keyed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keyed)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def complaints(self) -> list[str]:
        """What the browser had to complain of: errors of scripts, and what the page's own policy kept out."""
        self.js("0")  # whatever came before it has been read then
        found = []
        for event in self.talk.events:
            if event.get("sessionId") != self.session:
                continue
            given = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(given["exceptionDetails"].get("exception", {}).get("description", given)))
            elif event["method"] == "Log.entryAdded" and given["entry"]["level"] == "error":
                found.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        return found

    def requested(self) -> list[str]:
        """The URLs that this page asked for."""
        self.js("0")
        return [
            event["params"]["request"]["url"]
            for event in self.talk.events
            if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"
        ]


class Browser:
    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def page(self, width: int = 1280, height: int = 800, *, theme: str = "light", login: str = "") -> Page:
        """A fresh page without cookies and storage of the ones before."""
        context = self._talk.call("Target.createBrowserContext")["browserContextId"]
        target = self._talk.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self._talk.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self._talk, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.look(width, height, theme=theme)
        if login:
            page.log_in(login)
        return page


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser of our own, which ends with the test."""
    assert CHROMIUM is not None
    to_read, write_fd = os.pipe()
    read_fd, to_write = os.pipe()
    # It reads calls from descriptor 3 and answers on 4.
    wired = f'exec "$@" 3<&{to_read} 4>&{to_write} {to_read}<&- {to_write}>&-'
    command = ["bash", "-c", wired, "bash", CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(Conversation(write_fd, read_fd))
    finally:
        os.close(write_fd)  # it ends when nobody can call it any more
        os.close(read_fd)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
