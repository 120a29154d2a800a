"""The Telemetry port, told to several at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from workers.domain.audit import Event
from workers.domain.evidence import Observation
from workers.domain.vm import VmRecord
from workers.ports import Ignorance, Stored, Telemetry, Work


class Together:
    def __init__(self, *all_of: Telemetry) -> None:
        self._all = all_of

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        for each in self._all:
            each.decided(events, record)

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        for each in self._all:
            each.looked(found, looks, now_ms)

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        for each in self._all:
            each.ignored(vm_id, why, cause)

    def checks_came(self, age_ms: int) -> None:
        for each in self._all:
            each.checks_came(age_ms)

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        return self._span(work, record)

    @contextmanager
    def _span(self, work: Work, record: VmRecord | None) -> Iterator[None]:
        with ExitStack() as stack:
            for each in self._all:
                stack.enter_context(each.span(work, record))
            yield
