"""What the command lines of all benchmarks share: numbers with a default, `--json`, and an end on Ctrl-C."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tests.benchmarks.stage import say

_INTERRUPTED = 130


class Options(argparse.ArgumentParser):
    def number(self, name: str, default: Any, meaning: str) -> None:
        """An option of the default's type; the help shows it."""
        self.add_argument(name, type=type(default), default=default, help=f"{meaning} ({default})")

    def json(self, what: str = "all figures") -> None:
        self.add_argument("--json", type=Path, metavar="FILE", help=f"write {what} there too")


def end(main: Callable[[], int]) -> NoReturn:
    """Run the benchmark, and end this process with its status."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; everything was ended")
        sys.exit(_INTERRUPTED)
