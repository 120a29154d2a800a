"""The Telemetry port, told to several at once; what goes wrong with one of them concerns nobody else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import structlog

from workers.domain.audit import Event
from workers.domain.evidence import Observation
from workers.domain.vm import VmRecord
from workers.ports import Ignorance, Stored, Telemetry, Work

_log = structlog.get_logger(component="telemetry")


class Together:
    def __init__(self, *all_of: Telemetry) -> None:
        self._all = all_of

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        self._tell(lambda each: each.decided(events, record))

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        self._tell(lambda each: each.looked(found, looks, now_ms))

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        self._tell(lambda each: each.ignored(vm_id, why, cause))

    def checks_came(self, age_ms: int) -> None:
        self._tell(lambda each: each.checks_came(age_ms))

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        return self._span(work, record)

    @contextmanager
    def _span(self, work: Work, record: VmRecord | None) -> Iterator[None]:
        with ExitStack() as stack:
            self._tell(lambda each: stack.enter_context(each.span(work, record)))
            yield

    def _tell(self, call: Callable[[Telemetry], Any]) -> None:
        for each in self._all:
            try:
                call(each)
            except Exception:  # noqa: BLE001 - no VM may suffer for what is only said about it
                _log.exception("telemetry failed", part=type(each).__name__)
