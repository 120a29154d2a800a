"""What keeps a host from looking properly: a VM is not doubted for what only its monitor suffers from."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fakes import FakeClock
from workers.host.trouble import Trouble


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def trouble(tmp_path: Path, clock: FakeClock) -> Trouble:
    return Trouble(tmp_path, clock, redis_back_s=5)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing more can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_host_that_is_well_says_nothing(trouble: Trouble) -> None:
    assert trouble.now() is None


def test_a_run_directory_that_cannot_be_read_is_trouble(tmp_path: Path, clock: FakeClock) -> None:
    gone = tmp_path / "gone"

    assert Trouble(gone, clock, redis_back_s=5).now() == f"run directory {gone}: No such file or directory"


def test_a_worker_without_descriptors_is_trouble(trouble: Trouble) -> None:
    with no_descriptors():
        found = trouble.now()

    assert found == "no file descriptor is free: Too many open files"


def test_a_look_leaves_no_descriptor_open(trouble: Trouble) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        trouble.now()

    assert len(os.listdir("/proc/self/fd")) == before


def test_redis_that_has_just_come_back_is_trouble_for_as_long_as_the_settings_say(
    trouble: Trouble, clock: FakeClock
) -> None:
    trouble.redis_is_back()
    assert trouble.now() == "redis has just come back"
    clock.advance(4_999)
    assert trouble.now() == "redis has just come back"

    clock.advance(1)

    assert trouble.now() is None
