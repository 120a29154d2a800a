"""Telemetry told to several: one that fails keeps neither the others nor the work from anything."""

from typing import Any

import pytest

from tests.support.builders import a_vm, seen
from tests.support.fakes import RecordingTelemetry
from workers.domain.evidence import Evidence
from workers.ports import Ignorance, Stored, Work
from workers.telemetry.together import Together


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_one_that_is_broken_concerns_nobody_else() -> None:
    heard, broken = RecordingTelemetry(), Broken()
    telemetry = Together(broken, heard, broken)

    with telemetry.span(Work.HEALTH_CHECK):
        telemetry.checks_came(5)
        telemetry.looked({"vm-1": Stored(a_vm(), 1)}, {"vm-1": seen(Evidence.ANSWERS)}, 0)
        telemetry.decided([])
        telemetry.ignored("vm-1", "late", Ignorance.STALE)

    assert heard.works == [Work.HEALTH_CHECK]
    assert (heard.message_ages, heard.looks) == ([5], [("vm-1", Evidence.ANSWERS)])
    assert (heard.why_ignored, heard.causes) == (["vm-1: late"], [Ignorance.STALE])


def test_what_the_work_itself_raises_is_not_swallowed() -> None:
    def work() -> None:
        with Together(RecordingTelemetry()).span(Work.ATTEMPT):
            raise KeyError("vm-1")

    with pytest.raises(KeyError):
        work()
