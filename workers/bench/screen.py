"""One line that tells how far a bench is, below the lines that stay; plain lines where there is no terminal.

It draws nothing while something is measured but that line: a live table would be measured too.
"""

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from workers.demo.screen import PlainScreen, Screen, View

_AGAIN_S = 0.2
_CLEAR = "\r\x1b[K"


def screen_for(console: Console) -> Screen:
    return LineScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(console)


class LineScreen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self._shown_at = 0.0

    def say(self, text: str = "", style: str = "") -> None:
        self.stop()
        self._console.print(Text(text, style), soft_wrap=True)

    def result(self, text: str) -> None:
        self.say(text)

    def progress(self, text: str) -> None:
        now = time.monotonic()
        if text == self._shown or now - self._shown_at < _AGAIN_S:
            return
        self._shown, self._shown_at = text, now
        self._write(f"{_CLEAR}  ... {text[: max(10, self._console.width - 8)]}")

    def paint(self, view: Callable[[], View]) -> None:
        pass

    def stop(self) -> None:
        if self._shown:
            self._shown = ""
            self._write(_CLEAR)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
