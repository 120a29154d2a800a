"""How a worker is fitted to its host."""

from pathlib import Path

import pytest

from workers.processes import threads_for
from workers.settings import load


@pytest.mark.parametrize(
    ("vms", "settings", "threads"),
    [
        (0, {}, 8),
        (500, {}, 8),
        (1000, {}, 10),
        (10_000, {}, 46),
        (100_000, {}, 64),
        (10_000, {"WORKER__CONCURRENCY": "100"}, 100),
        (1000, {"HEALTH_CHECK__BATCH_SIZE": "100"}, 26),
        (1000, {"RECOVERY__PER_HOST": "16", "WORKER__CONCURRENCY": "17"}, 22),
    ],
)
def test_a_host_of_many_vms_gets_threads_for_all_its_batches(
    tmp_path: Path, vms: int, settings: dict[str, str], threads: int
) -> None:
    found = load({f"RELIABILITY_{name}": value for name, value in settings.items()}, tmp_path).settings
    assert threads_for(found, vms=vms) == threads
