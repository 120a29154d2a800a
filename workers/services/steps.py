"""The steps of one attempt as spans: fence, start, verify, commit."""

from contextlib import ExitStack
from typing import Any, Self

from workers.domain.vm import VmRecord
from workers.ports import Telemetry, Work


class Steps:
    """The steps of an attempt, one after the other, each told as a span of its own."""

    def __init__(self, telemetry: Telemetry, record: VmRecord) -> None:
        self._telemetry, self._record = telemetry, record
        self._at: Work | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:  # noqa: PYI036 - handed on
        self._open.__exit__(*raised)

    def begin(self, work: Work) -> None:
        if work is not self._at:
            self._open.close()
            self._at = work
            self._open.enter_context(self._telemetry.span(work, self._record))
