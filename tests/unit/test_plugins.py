"""Drivers of other packages: found by their entry points, and whatever is wrong with one stays with that one."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tests.support.acme.driver import Acme, AcmeDriver, AcmeSpec
from tests.support.builders import a_spec
from tests.support.packages import install
from workers.bootstrap import driver_problems, drivers
from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.images import ImageRefused, check_images
from workers.settings import Settings, effective, load
from workers.specs import SpecError, ThirdPartySpec, dump_spec, parse_spec, spec_from
from workers.vmm.contained import Contained
from workers.vmm.plugins import plugins

HERE = __name__
Install = Callable[..., None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package that has these entry points, as far as importlib sees it."""

    def put(name: str, **points: str) -> None:
        folder = tmp_path / name
        install(folder, name, points)
        monkeypatch.syspath_prepend(str(folder))
        plugins.cache_clear()

    yield put
    monkeypatch.undo()
    plugins.cache_clear()


@pytest.fixture
def acme(package: Install) -> None:
    package("acme-metald", acme="tests.support.acme.driver:Acme")


def settings(tmp_path: Path, toml: str = "") -> Settings:
    (tmp_path / "settings.toml").write_text(toml)
    environ = {"HOME": str(tmp_path), "RELIABILITY_CONFIG": "settings.toml"}
    return load(environ, tmp_path).settings


PLAIN = {"id": "vm-1", "driver": "acme", "kernel": "/images/kernel", "colour": "blue"}


@pytest.mark.usefixtures("acme")
def test_a_driver_of_another_package_stands_beside_ours(tmp_path: Path) -> None:
    made = drivers(settings(tmp_path, '[drivers.third_party.acme]\ngreeting = "good day"'))

    assert list(made) == ["firecracker", "qemu", "acme"]
    launch = made["acme"].launch(spec_from(PLAIN))
    assert launch.environment == {"GREETING": "good day"}
    assert driver_problems(settings(tmp_path)) == []


@pytest.mark.usefixtures("acme")
def test_its_specs_are_read_and_written_like_ours() -> None:
    spec = spec_from(PLAIN)

    assert isinstance(spec, AcmeSpec)
    assert parse_spec(dump_spec(spec)) == spec
    with pytest.raises(SpecError, match=r'colour: must be red or blue \(got "green"\)'):
        spec_from(PLAIN | {"colour": "green"})
    with pytest.raises(SpecError, match=r"color: is unknown; did you mean colour\?"):
        spec_from({**PLAIN, "color": "red"})
    with pytest.raises(SpecError, match="id: must be 1 to 64"):
        spec_from(PLAIN | {"id": "../vm"})
    with pytest.raises(SpecError, match="driver: must be firecracker or qemu or acme"):
        spec_from(PLAIN | {"driver": "other"})


@pytest.mark.usefixtures("acme")
def test_every_file_that_its_spec_names_has_to_lie_below_the_image_roots(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    spec = spec_from(PLAIN | {"kernel": str(kernel), "drives": [{"id": "data", "path": "/etc/passwd"}]})

    with pytest.raises(ImageRefused, match=r"drives\[0\]\.path: /etc/passwd is really /etc/passwd, outside"):
        check_images(spec, [tmp_path])


@pytest.mark.usefixtures("acme")
def test_settings_that_it_refuses_cost_that_driver_alone(tmp_path: Path) -> None:
    refused = settings(tmp_path, "[drivers.third_party.acme]\nspeed = 7")

    assert list(drivers(refused)) == ["firecracker", "qemu"]
    assert driver_problems(refused) == [
        "driver acme, settings drivers.third_party.acme: speed: is unknown; known is greeting",
    ]


def test_settings_for_a_driver_that_is_not_there_are_named(tmp_path: Path) -> None:
    there = settings(tmp_path, "[drivers.third_party.emca]\nspeed = 7")
    assert driver_problems(there) == ["drivers.third_party.emca: no installed package brings this driver"]


class LooseSpec(ThirdPartySpec):
    driver: Literal["loose"] = "loose"
    id: str


class MislabelledSpec(ThirdPartySpec):
    driver: Literal["else"] = "else"


def a_plugin(**parts: Any) -> Any:
    return SimpleNamespace(**{"name": "acme", "spec_class": AcmeSpec, "make": Acme.make, **parts})


NAMELESS = a_plugin(name="../acme")
OURS = a_plugin(name="qemu")
SPECLESS = a_plugin(spec_class=dict)
LOOSE = a_plugin(name="loose", spec_class=LooseSpec)
MISLABELLED = a_plugin(name="mis", spec_class=MislabelledSpec)
MAKELESS = a_plugin(make=None)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("nowhere.at:All", "ModuleNotFoundError: No module named 'nowhere'"),
        (f"{HERE}:Absent", "AttributeError: "),
        (f"{HERE}:NAMELESS", "its name must be 1 to 32 of a-z, 0-9 and -"),
        (f"{HERE}:OURS", "the driver name qemu is ours: give it another"),
        (f"{HERE}:SPECLESS", "its spec_class must derive from workers.specs.ThirdPartySpec"),
        (f"{HERE}:LOOSE", "its spec_class must leave the field id as it is"),
        (f"{HERE}:MISLABELLED", 'must be `driver: Literal["mis"] = "mis"`'),
        (f"{HERE}:MAKELESS", "it must have make(settings)"),
        ("tests.support.acme.exits_at_import:All", "SystemExit: 3"),
    ],
)
def test_a_broken_entry_point_is_one_line_and_takes_no_other_down(
    package: Install, tmp_path: Path, value: str, why: str
) -> None:
    package("broken-pkg", wrong=value)
    package("good-pkg", acme="tests.support.acme.driver:Acme")

    assert "acme" in drivers(settings(tmp_path))
    (problem,) = driver_problems(settings(tmp_path))
    assert problem.startswith(f"package broken-pkg, entry point wrong = {value}: ")
    assert why in problem
    assert "\n" not in problem


def test_of_two_packages_that_bring_one_driver_the_second_is_refused(package: Install, tmp_path: Path) -> None:
    package("a-pkg", acme="tests.support.acme.driver:Acme")
    package("b-pkg", acme="tests.support.acme.driver:Acme")

    (problem,) = driver_problems(settings(tmp_path))

    assert problem.startswith("package b-pkg, ")
    assert problem.endswith("the driver name acme is taken by another package")


class Buggy(AcmeDriver):
    def version(self) -> str:
        raise KeyError("version")

    def launch(self, spec: Any) -> Any:
        raise KeyError(spec)

    def identify(self, argv: Any, exe: str) -> Any:
        raise KeyError(argv, exe)


class Talkative(AcmeDriver):
    def version(self) -> str:
        return "1.0 of\ntoday"

    def probe(self, vm_id: str) -> Any:
        yield b"who"
        raise KeyError(vm_id)

    def configure(self, spec: Any) -> Any:
        yield b"colour"
        raise KeyError(spec.id)


def test_a_bug_of_a_driver_is_a_finding_or_a_failed_start() -> None:
    buggy, spec = Contained(Buggy("")), a_spec()

    assert buggy.version() == "unknown"
    assert buggy.identify(["x"], "x") is None
    with pytest.raises(StartFailed, match="driver acme is broken: KeyError"):
        buggy.launch(spec)


def test_a_bug_in_the_middle_of_a_conversation_says_nothing_about_the_vm() -> None:
    talkative = Contained(Talkative(""))
    probe, configure = talkative.probe("vm-1"), talkative.configure(a_spec())
    next(probe)
    next(configure)

    with pytest.raises(StopIteration) as end:
        probe.send(b"")
    assert end.value.value[0] is Evidence.MONITOR_FAULT
    with pytest.raises(StartFailed, match="driver acme is broken: KeyError"):
        configure.send(b"")
    assert talkative.version() == "unknown", "what is no word becomes no part of a name"


def test_what_make_returns_has_to_be_a_driver(package: Install, tmp_path: Path) -> None:
    package("half-pkg", half=f"{HERE}:HALF")
    assert driver_problems(settings(tmp_path)) == [
        "driver acme, settings drivers.third_party.acme: what make() returned has no launch, configure, probe, identify"
    ]


def _half(_settings: Mapping[str, Any]) -> Any:
    return SimpleNamespace(name="acme", exits={}, version=lambda: "1")


HALF = a_plugin(make=_half)


@pytest.mark.usefixtures("acme")
def test_its_settings_may_come_from_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "RELIABILITY_DRIVERS__THIRD_PARTY__ACME__GREETING": "sesame"}
    given = load(environ, tmp_path)

    assert drivers(given.settings)["acme"].launch(spec_from(PLAIN)).environment == {"GREETING": "sesame"}
    assert "sesame" not in str(effective(given))
