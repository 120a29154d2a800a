"""What the way in which a VMM ended says about starting it again."""

from collections.abc import Mapping
from enum import StrEnum


class ExitAction(StrEnum):
    """`restart`: no failure, start again at once. `never`: starting again cannot help. `default`: an ordinary loss."""

    RESTART = "restart"
    NEVER = "never"
    DEFAULT = "default"


# Causes are written as the host tells them: `exit 152`, `signal 9`.
ExitTable = Mapping[str, ExitAction]


def action_for(tables: Mapping[str, ExitTable], driver: str, cause: str | None) -> ExitAction:
    """Return what to do about a VMM of `driver` that ended by `cause`; an unknown cause is an ordinary loss."""
    if cause is None:
        return ExitAction.DEFAULT
    return tables.get(driver, {}).get(cause, ExitAction.DEFAULT)
