"""Where the demo is watched: a live table on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

_REPAINT_S = 0.15
_SAY_AGAIN_S = 1.0
_LAST_RESULTS = 6
# Lines of the screen that are not for VMs, and the width of one VM in it.
_OTHER_LINES, _CELL_WIDTH = 16, 26
_STYLES = {
    "healthy": "green",
    "starting": "cyan",
    "degraded": "yellow",
    "unhealthy": "bold red",
    "orphaned": "bold red",
    "recovering": "bold magenta",
    "failed": "white on red",
}


@dataclass(frozen=True, slots=True)
class View:
    """What is to be seen at one moment. `states` is None while Redis is away."""

    title: str
    states: Mapping[str, str] | None
    now: str


class Screen(Protocol):
    def say(self, text: str = "", style: str = "") -> None:
        """Write a line that stays."""
        ...

    def result(self, text: str) -> None:
        """Write the line of a fault."""
        ...

    def progress(self, text: str) -> None:
        """Tell how far a longer step is."""
        ...

    def paint(self, view: Callable[[], View]) -> None:
        """Show the moment, if it is time for it; `view` is asked only then."""
        ...

    def stop(self) -> None:
        """Only lines come from here on."""
        ...


def screen_for(console: Console) -> Screen:
    return LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(console)


class PlainScreen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress_at = 0.0
        self._progress = ""

    def say(self, text: str = "", style: str = "") -> None:
        del style
        # Not through the console's layout: lines in a file are not wrapped.
        self._console.file.write(f"{text}\n")
        self._console.file.flush()

    def result(self, text: str) -> None:
        self.say(text)

    def progress(self, text: str) -> None:
        if text != self._progress and time.monotonic() - self._progress_at > _SAY_AGAIN_S:
            self.say(f"  {text}")
            self._progress, self._progress_at = text, time.monotonic()

    def paint(self, view: Callable[[], View]) -> None:
        pass

    def stop(self) -> None:
        pass


class LiveScreen:
    """The table stands below the lines that were said, and is gone when the demo ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._results: deque[str] = deque(maxlen=_LAST_RESULTS)
        self._painted_at = 0.0
        self._progress = ""

    def say(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    def result(self, text: str) -> None:
        self._results.append(text)
        self._painted_at = 0.0

    def progress(self, text: str) -> None:
        self._progress = text

    def paint(self, view: Callable[[], View]) -> None:
        if time.monotonic() - self._painted_at < _REPAINT_S:
            return
        self._painted_at = time.monotonic()
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._render(view()), refresh=True)

    def stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _render(self, view: View) -> RenderableType:
        parts: list[RenderableType] = [
            Panel(_vms(view.states, self._room()), title=f"{view.title}: {_summary(view.states)}", title_align="left")
        ]
        if self._results:
            parts.append(Panel(Text("\n".join(self._results), no_wrap=True), title="last faults", title_align="left"))
        # A short line last: the terminal's echo of Ctrl-C behind a full one would begin a new line and spoil the rest.
        parts.append(Text.assemble((" now  ", "dim"), (view.now or self._progress, "bold")))
        return Group(*parts)

    def _room(self) -> int:
        """How many VMs can be shown."""
        lines = max(2, self._console.height - _OTHER_LINES)
        return lines * max(1, (self._console.width - 4) // _CELL_WIDTH)


def _summary(states: Mapping[str, str] | None) -> str:
    if states is None:
        return "Redis is away, the VMs run on"
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state] = counts.get(state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none yet"


def _vms(states: Mapping[str, str] | None, room: int) -> RenderableType:
    """Every VM while there is room for all, else only those that are not healthy."""
    shown = dict(states or {})
    if len(shown) > room:
        shown = {vm_id: state for vm_id, state in shown.items() if state != "healthy"}
    cells = [
        Text.assemble((vm_id, ""), " ", (f"{state:<10}", _STYLES.get(state, ""))) for vm_id, state in shown.items()
    ]
    return Columns(cells[:room], equal=True, padding=(0, 2)) if cells else Text("-", "dim")
