"""A driver of another package, whose bugs are findings and failed starts instead of crashes of ours."""

import re
from collections.abc import Sequence

import structlog

from workers.domain.errors import DriverUnavailable, StartFailed
from workers.domain.evidence import Evidence
from workers.specs import VmSpec
from workers.vmm.conversation import Conversation
from workers.vmm.driver import UNKNOWN_VERSION, Claim, Driver, Finding, Launch, has_stateless_probe

_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it becomes part of a breaker's name
_log = structlog.get_logger(component="worker")


class Contained:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.name, self.exits = driver.name, driver.exits
        self.stateless_probe = has_stateless_probe(driver)
        self._told = False

    def version(self) -> str:
        try:
            told = self._driver.version()
            return told if _WORD.fullmatch(told) else UNKNOWN_VERSION
        except Exception as error:  # noqa: BLE001 - see the top
            self._tell(error)
            return UNKNOWN_VERSION

    def launch(self, spec: VmSpec) -> Launch:
        try:
            return self._driver.launch(spec)
        except (StartFailed, DriverUnavailable):
            raise
        except Exception as error:
            raise StartFailed(spec.id, self._broken(error)) from error

    def configure(self, spec: VmSpec) -> Conversation[None]:
        try:
            yield from self._driver.configure(spec)
        except StartFailed:
            raise
        except Exception as error:
            raise StartFailed(spec.id, self._broken(error)) from error

    def probe(self, vm_id: str) -> Conversation[Finding]:
        try:
            return (yield from self._driver.probe(vm_id))
        except Exception as error:  # noqa: BLE001 - nothing is known about the VM then, so nothing is done
            return Evidence.MONITOR_FAULT, self._broken(error)

    def identify(self, argv: Sequence[str], exe: str) -> Claim | None:
        try:
            return self._driver.identify(argv, exe)
        except Exception as error:  # noqa: BLE001 - else nobody could look for any VMM of this host
            self._tell(error)
            return None

    def _broken(self, error: Exception) -> str:
        return f"driver {self.name} is broken: {error!r}"

    def _tell(self, error: Exception) -> None:
        """Once: it is asked for each process of the host."""
        if not self._told:
            self._told = True
            _log.error("driver broken", driver=self.name, error=repr(error))
