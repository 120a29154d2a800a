"""A provider is somebody else's code: whatever it does is a list in time, or one reason why there is none."""

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import HOST, a_spec
from tests.support.processes import wait_until
from workers.integration.contract import ProviderContract
from workers.integration.registry import (
    FolderRegistry,
    Listing,
    ListingFailed,
    VmProvider,
    load_provider,
    registry_of,
)
from workers.settings import SettingsError, load


class Provider:
    """Lists what this function returns."""

    def __init__(self, listing: Callable[[], Any] = list) -> None:
        self.list_vms = listing


def entries(listing: Callable[[], Any], timeout_s: float = 5.0) -> list[object]:
    return [*Listing(lambda: Provider(listing), timeout_s=timeout_s).entries()]


def test_specs_and_mappings_of_any_iterable_are_listed() -> None:
    spec = a_spec()
    assert entries(lambda: iter([spec, {"id": "vm-2"}])) == [spec, {"id": "vm-2"}]


def raising(error: BaseException) -> Callable[[], Any]:
    def listing() -> Iterator[object]:
        yield {"id": "vm-1"}
        raise error

    return listing


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (raising(OSError("the\ndatabase is gone")), "the registry failed: OSError: the database is gone"),
        (raising(SystemExit(3)), "the registry failed: SystemExit: 3"),
        (lambda: None, "the registry failed: TypeError: "),
        (lambda: ["vm-1"], "entry 0 of the registry is a str, no spec and no mapping"),
        (lambda: repeat({}), "the registry lists more than 200000 VMs"),
    ],
)
def test_whatever_goes_wrong_is_one_line(listing: Callable[[], Any], why: str) -> None:
    with pytest.raises(ListingFailed) as failed:
        entries(listing)
    assert str(failed.value).startswith(why)
    assert "\n" not in str(failed.value)


def test_a_provider_that_hangs_is_given_up_and_not_asked_again_before_it_has_ended() -> None:
    go_on = threading.Event()
    asked: list[int] = []

    def slow() -> list[object]:
        asked.append(1)
        go_on.wait(20)
        return []

    listing = Listing(lambda: Provider(slow), timeout_s=0.01)
    with pytest.raises(ListingFailed, match=r"no list within 0\.01 s \(registry\.timeout\)"):
        listing.entries()
    with pytest.raises(ListingFailed, match="still being read since the last time"):
        listing.entries()
    assert asked == [1]

    go_on.set()
    assert wait_until(lambda: _ends(listing), what="the first call to end")


def _ends(listing: Listing) -> bool:
    try:
        return listing.entries() == []
    except ListingFailed:
        return False


def test_a_provider_is_made_from_its_name() -> None:
    assert list(load_provider(f"{__name__}:Provider").list_vms()) == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere.at:All", "cannot be made: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{__name__}:Absent", "cannot be made: AttributeError: "),
        (f"{__name__}:HOST", "cannot be made: TypeError: "),
        ("builtins:dict", "has no list_vms()"),
        ("tests.support.acme.exits_at_import:All", "cannot be made: SystemExit: 3"),
    ],
)
def test_a_provider_that_cannot_be_made_is_named(name: str, why: str) -> None:
    with pytest.raises(ListingFailed, match=r"^registry\.provider ") as failed:
        load_provider(name)
    assert why in str(failed.value)


class TestFolder(ProviderContract):
    @pytest.fixture
    def provider(self, tmp_path: Path) -> VmProvider:
        (tmp_path / "a.yaml").write_text(
            "- {id: vm-1, driver: qemu, kernel: /k}\n- {id: vm-2, driver: qemu, kernel: /k}\n"
        )
        (tmp_path / "b.json").write_text('{"id": "vm-3", "driver": "firecracker", "kernel": "/k", "host": "host-z"}')
        return FolderRegistry(tmp_path, host=HOST)

    @pytest.fixture(params=["absent", "empty", "broken"])
    def failing_provider(self, tmp_path: Path, request: pytest.FixtureRequest) -> VmProvider:
        folder = tmp_path / "registry"
        if request.param != "absent":
            folder.mkdir()
        if request.param == "broken":
            (folder / "a.yaml").write_text("id: [")
        return FolderRegistry(folder, host=HOST)


def test_a_class_and_a_folder_are_one_registry_and_fail_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("id: vm-1\ndriver: qemu\nkernel: /k\n")

    both = registry_of(f"{__name__}:Provider", tmp_path, host=HOST)
    assert [each.id for each in both.list_vms() if not isinstance(each, Mapping)] == ["vm-1"]

    (tmp_path / "a.yaml").write_text("id: [")
    with pytest.raises(ListingFailed):
        Listing(lambda: both, timeout_s=5).entries()


def test_a_provider_has_a_name_that_can_be_imported(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "RELIABILITY_REGISTRY__PROVIDER": "our/module.py"}
    with pytest.raises(SettingsError, match=r'^registry\.provider: must be like "package\.module:Class"'):
        load(environ, tmp_path)
    environ["RELIABILITY_REGISTRY__PROVIDER"] = "our.module:Registry"
    assert load(environ, tmp_path).settings.registry.provider == "our.module:Registry"
