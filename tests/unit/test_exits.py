"""What the way in which a VMM ended says about starting it again."""

import pytest

from workers.domain.exits import ExitAction, action_for
from workers.vmm.firecracker import EXITS

TABLES = {"firecracker": EXITS}


@pytest.mark.parametrize(
    ("driver", "cause", "action"),
    [
        ("firecracker", "exit 0", ExitAction.RESTART),
        ("firecracker", "exit 152", ExitAction.NEVER),
        ("firecracker", "exit 153", ExitAction.NEVER),
        ("firecracker", "exit 1", ExitAction.DEFAULT),
        ("firecracker", "signal 9", ExitAction.DEFAULT),
        ("firecracker", "something new", ExitAction.DEFAULT),
        ("firecracker", None, ExitAction.DEFAULT),
        ("qemu", "exit 152", ExitAction.DEFAULT),
    ],
)
def test_each_end_says_what_may_help_and_an_unknown_one_is_an_ordinary_loss(
    driver: str, cause: str | None, action: ExitAction
) -> None:
    assert action_for(TABLES, driver, cause) is action
