"""`reliability why` and `reliability agreement`, as typed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ServerOf
from tests.support.builders import a_process, a_spec, a_vm
from tests.support.cli import Answer
from tests.support.servers import RedisFlavour, empty
from workers.bootstrap import Fleet
from workers.cli import main
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Reason, State
from workers.ports import Change
from workers.settings import load
from workers.store.hosts import HostWorker

HOST = "host-a"


@pytest.fixture
def fleet(server_of: ServerOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    server = server_of(RedisFlavour.VALKEY)
    empty(server)
    environ = {"RELIABILITY_REDIS__URL": server.url(0), "RELIABILITY_STATE_DIR": str(tmp_path)}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    made = Fleet(load(environ, tmp_path).settings)
    made.hosts.hold(HostWorker("me", HOST, a_process(), 0, "1"), ttl_ms=60_000)
    return made


@pytest.fixture
def ask(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    del fleet

    def run(*arguments: str) -> Answer:
        status = main(arguments)
        output = capsys.readouterr()
        return Answer(status, output.out, output.err)

    return run


def put(fleet: Fleet, **changes: Any) -> None:
    record = a_vm("vm-10", since_ms=fleet.modes.modes([])[0], **changes)
    fleet.store.write([Change("vm-10", 0, record, check_in_ms=30_000, spec=a_spec("vm-10"))])


def test_a_vm_that_is_fine(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    put(fleet)

    answer = ask("why", "vm-10")

    first, *facts, last = answer.out.splitlines()
    assert (answer.status, answer.err) == (0, "")
    assert first.startswith("vm-10 is healthy for ")
    assert [line.split("  ")[1] for line in facts] == ["state", "evidence", "threshold", "worker"]
    assert last.startswith("next: the next check in ")


def test_a_vm_that_is_fine_for_programs(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    put(fleet)

    document = ask("why", "vm-10", "-o", "json").document

    assert list(document) == [
        "schema_version",
        "vm_id",
        "known",
        "at",
        "asked_about",
        "state",
        "summary",
        "findings",
        "next",
    ]
    assert (document["known"], document["state"], document["next"]["what"]) == ("record", "healthy", "check")


def test_an_id_that_nobody_knows_is_answered_and_a_status(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    put(fleet)

    answer = ask("why", "vm-1")

    assert (answer.status, answer.err) == (1, "")
    assert "close match  did you mean vm-10?" in answer.out


def test_what_an_error_holds_cannot_steer_the_terminal(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    sick = a_vm("vm-10", state=State.DEGRADED, fails=1, doubt=Reason.HEALTH_CHECK_FAILED)
    put(fleet, state=State.DEGRADED, fails=1, doubt=Reason.HEALTH_CHECK_FAILED)
    why = "no_answer: \x1b[2J<script>"
    fleet.store.note(
        [
            Event(
                EventKind.TRANSITION, "vm-10", HOST, "x", why, before=State.HEALTHY, after=sick.state, reason=sick.doubt
            )
        ]
    )

    assert "\\x1b[2J<script>" in ask("why", "vm-10").out


def test_an_earlier_time(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    put(fleet)

    assert ask("why", "vm-10", "--at", "0s").out.startswith("vm-10 was healthy on host host-a at ")
    assert "is not told of by what is kept" in ask("why", "vm-10", "--at", "2h").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("why", "../x"), "reliability: Invalid value for 'VM': '../x'"),
        (("why", "vm-10", "--at", "soon"), "'soon' must be how long ago, like 2h, or a time like"),
        (("why", "vm-10", "--at", "2100-01-01T00:00Z"), "--at: the time is still to come: ask for one that is past"),
        (("agreement", "--last", "day"), "'day' must be a duration"),
    ],
)
def test_mistakes_are_told_on_one_line(ask: Callable[..., Answer], arguments: tuple[str, ...], says: str) -> None:
    answer = ask(*arguments)

    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert says in answer.err


def test_a_host_that_nobody_knows_has_no_agreement(ask: Callable[..., Answer]) -> None:
    answer = ask("agreement", "--host", "host-z")

    assert (answer.status, answer.err.count("\n")) == (1, 1)
    assert "no host 'host-z' is known" in answer.err


def observed(fleet: Fleet) -> None:
    """One loss that its manager mended, and one that was none."""
    would = "would have recovered it: host:host-a is observe-only: first week"
    dead, sick = Reason.PROCESS_DEAD, Reason.HEALTH_CHECK_FAILED
    up, down, lame = State.HEALTHY, State.ORPHANED, State.UNHEALTHY
    fleet.store.note(
        [
            Event(EventKind.TRANSITION, "vm-1", HOST, "health_check", "process_ended", up, down, dead),
            Event(EventKind.WOULD_HAVE, "vm-1", HOST, "recovery", would, reason=dead),
            Event(EventKind.TRANSITION, "vm-2", HOST, "health_check", "no_answer", up, lame, sick),
            Event(EventKind.WOULD_HAVE, "vm-2", HOST, "recovery", would, reason=sick),
            Event(EventKind.ADOPTED, "vm-1", HOST, "recovery", "pid 7 runs and serves this vm: taken over", down, up),
            Event(EventKind.TRANSITION, "vm-2", HOST, "health_check", "2 consecutive checks passed", lame, up),
        ]
    )


def test_the_agreement_report(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    observed(fleet)

    answer = ask("agreement", "--last", "2h", "--host", HOST)

    assert answer.status == 0
    assert [" ".join(re.sub(r"\b\ds\b", "Ns", line).split()) for line in answer.out.splitlines()] == [
        "last 2h: 2 losses, would have recovered 2, 1 wrong kill",
        "1 came back by itself",
        "1 was restarted",
        "VM HOST LOST REASON DECIDED WRONG KILL WHAT BECAME OF IT",
        "vm-2 host-a Ns ago health_check_failed recover YES came back by itself after Ns",
        "vm-1 host-a Ns ago process_dead recover no was restarted after Ns",
    ]


def test_the_agreement_report_for_programs(fleet: Fleet, ask: Callable[..., Answer]) -> None:
    observed(fleet)

    document = ask("agreement", "-o", "json").document

    assert (document["losses"], document["would_have_recovered"], document["wrong_kills"]) == (2, 2, 1)
    assert [case["fate"] for case in document["cases"]] == ["restarted", "came_back"]
    assert json.dumps(document)
