"""Drivers of other packages, found by the entry point group `metald_reliability.drivers`.

An entry point that cannot be used is a problem with a name, and takes nothing else down. What a driver does wrong later
is contained in `contained`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from workers.specs import DRIVERS, ThirdPartySpec
from workers.vmm.contained import Contained
from workers.vmm.driver import Driver

GROUP = "metald_reliability.drivers"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PARTS = ("version", "launch", "configure", "probe", "identify")


class DriverPlugin(Protocol):
    """What the entry point names: an object, a class or a module with these."""

    name: str
    spec_class: type[ThirdPartySpec]

    def make(self, settings: Mapping[str, Any]) -> Driver:
        """Return the driver for the table `drivers.third_party.<name>` of the settings. Raises ValueError."""
        ...


@dataclass(frozen=True, slots=True)
class Plugins:
    """What could be loaded, by the driver's name, and one line for each that could not."""

    drivers: Mapping[str, DriverPlugin]
    problems: Sequence[str]


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """Load all of them, once per process."""
    found: dict[str, DriverPlugin] = {}
    problems: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=_called):
        try:
            plugin = _checked(point.load(), taken=found)
            found[plugin.name] = plugin
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever somebody else's module does
            problems.append(f"{_called(point)}: {_in_short(error)}")
    return Plugins(found, problems)


def third_party_drivers(settings_of: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Driver], list[str]]:
    """Return the drivers by name, and what keeps others from being used; `settings_of` has a table for each name."""
    loaded = plugins()
    made: dict[str, Driver] = {}
    problems = list(loaded.problems)
    for name, plugin in loaded.drivers.items():
        try:
            made[name] = Contained(_complete(plugin.make(settings_of.get(name, {})), name))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
            problems.append(f"driver {name}, settings drivers.third_party.{name}: {_in_short(error)}")
    absent = sorted(settings_of.keys() - loaded.drivers.keys())
    problems += [f"drivers.third_party.{name}: no installed package brings this driver" for name in absent]
    return made, problems


def _checked(plugin: Any, taken: Collection[str]) -> DriverPlugin:
    """Raises ValueError."""
    name, spec_class = getattr(plugin, "name", None), getattr(plugin, "spec_class", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"its name must be 1 to 32 of a-z, 0-9 and -, beginning with a letter, not {name!r}")
    if name in DRIVERS:
        raise ValueError(f"the driver name {name} is ours: give it another")
    if name in taken:
        raise ValueError(f"the driver name {name} is taken by another package")
    if not (isinstance(spec_class, type) and issubclass(spec_class, ThirdPartySpec)):
        raise ValueError("its spec_class must derive from workers.specs.ThirdPartySpec")  # noqa: TRY004 - one kind of error for all of them
    _check_spec_class(name, spec_class)
    if not callable(getattr(plugin, "make", None)):
        raise ValueError("it must have make(settings), which returns the driver")  # noqa: TRY004 - same
    checked: DriverPlugin = plugin
    return checked


def _check_spec_class(name: str, spec_class: type[ThirdPartySpec]) -> None:
    """Ids, hosts and unknown names are held to the same rules as in our specs. Raises ValueError."""
    if spec_class.model_fields["driver"].default != name:
        raise ValueError(f'the field driver of its spec_class must be `driver: Literal["{name}"] = "{name}"`')
    for field in ("id", "host"):
        if field in vars(spec_class).get("__annotations__", {}):
            raise ValueError(f"its spec_class must leave the field {field} as it is")
    config = spec_class.model_config
    if config.get("extra") != "forbid" or not config.get("frozen"):
        raise ValueError("its spec_class must stay frozen, and must forbid unknown fields")


def _complete(driver: Driver, name: str) -> Driver:
    """Raises ValueError."""
    missing = [part for part in _PARTS if not callable(getattr(driver, part, None))]
    if not isinstance(getattr(driver, "exits", None), Mapping):
        missing.append("exits")
    if missing:
        raise ValueError(f"what make() returned has no {', '.join(missing)}")
    if driver.name != name:
        raise ValueError(f"what make() returned calls itself {driver.name!r}")
    return driver


def _called(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "unknown"
    return f"package {package}, entry point {point.name} = {point.value}"


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
