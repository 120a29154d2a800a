"""The QMP conversation against scripted bytes: whatever the packets' borders, and whatever a peer may say instead."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.vmm.conversation import Conversation, T
from workers.vmm.qmp import MAX_LINE_BYTES, QmpError, QmpStatus, status_conversation

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": []}}'
OK = b'{"return": {}}'
NAME = b'{"return": {"name": "vm-1"}}'
RUNNING = b'{"return": {"status": "running", "singlestep": false, "running": true}}'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"offset": 3}}'

ANSWERS = QmpStatus(version="7.2.22", name="vm-1", status="running", running=True)


def played(chunks: Iterable[bytes], conversation: Conversation[T]) -> tuple[T, bytes]:
    """Drive a conversation with these chunks, then with a closed connection; return its result and what it sent."""
    left = iter(chunks)
    sent = b""
    try:
        sent += next(conversation)
        while True:
            sent += conversation.send(next(left, b""))
    except StopIteration as end:
        return end.value, sent


def asked(*chunks: bytes) -> QmpStatus:
    return played(chunks, status_conversation())[0]


def lines(*messages: bytes, end: bytes = b"\r\n") -> bytes:
    return b"".join(message + end for message in messages)


def test_conversation_waits_for_the_greeting_before_it_says_anything() -> None:
    conversation = status_conversation()

    assert next(conversation) == b""
    assert conversation.send(GREETING) == b""
    assert conversation.send(b"\r\n").startswith(b'{"execute": "qmp_capabilities"}')


def test_status_is_asked_for_after_the_capabilities_in_one_go() -> None:
    status, sent = played([lines(GREETING), lines(OK, NAME, RUNNING)], status_conversation())

    assert status == ANSWERS
    commands = [json.loads(line)["execute"] for line in sent.splitlines()]
    assert commands == ["qmp_capabilities", "query-name", "query-status"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_both_line_ends_are_understood(end: bytes) -> None:
    assert asked(lines(GREETING, end=end), lines(OK, NAME, RUNNING, end=end)) == ANSWERS


def test_a_vm_without_a_name_has_none() -> None:
    assert asked(lines(GREETING), lines(OK, OK, RUNNING)).name is None


def test_a_stopped_guest_is_not_running() -> None:
    paused = b'{"return": {"status": "paused", "singlestep": false, "running": false}}'

    status = asked(lines(GREETING), lines(OK, NAME, paused))

    assert (status.status, status.running) == ("paused", False)


def test_run_states_of_later_versions_come_through_as_they_are() -> None:
    later = b'{"return": {"status": "daydreaming", "running": false}}'

    assert asked(lines(GREETING), lines(OK, NAME, later)).status == "daydreaming"


@given(data=st.data())
def test_events_and_packet_borders_change_nothing(data: st.DataObject) -> None:
    events = st.lists(st.just(EVENT), max_size=2)
    answers = [OK, NAME, RUNNING]
    stream = lines(*(message for answer in answers for message in (*data.draw(events), answer)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    greeting = lines(GREETING)
    cut = data.draw(st.integers(1, len(greeting) - 1))

    assert asked(greeting[:cut], greeting[cut:], *pieces) == ANSWERS


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=6))
def test_noise_ends_in_an_error_and_nothing_else(noise: list[bytes]) -> None:
    with pytest.raises(QmpError):
        asked(*noise)


@given(st.integers(0, 2), st.binary(max_size=40))
def test_noise_between_the_answers_ends_in_an_error(before: int, noise: bytes) -> None:
    answers = [OK, NAME, RUNNING][:before]

    with pytest.raises(QmpError, match="not JSON"):
        asked(lines(GREETING), lines(*answers, b"}" + noise))


@pytest.mark.parametrize("answered", [0, 1, 2, 3])
def test_a_connection_closed_early_is_an_error(answered: int) -> None:
    messages = [lines(message) for message in (GREETING, OK, NAME)]

    with pytest.raises(QmpError, match="closed"):
        asked(*messages[:answered])


@pytest.mark.parametrize(
    "greeting",
    [
        OK,
        b'{"QMP": 1}',
        b'{"QMP": {"version": {"qemu": {"major": "7", "minor": 2, "micro": 0}}}}',
        EVENT,
        b"[]",
        b"7",
        b"HTTP/1.1 200 OK",
        b"\xff\xfe",
        b"[" * 30_000,
    ],
)
def test_a_peer_that_does_not_greet_as_qemu_does_is_refused(greeting: bytes) -> None:
    with pytest.raises(QmpError):
        asked(lines(greeting), lines(OK, NAME, RUNNING))


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b'{"error": {"class": "CommandNotFound", "desc": "busy"}}'], "qmp_capabilities answered .*busy"),
        ([OK, b'{"error": {"class": "GenericError", "desc": "no"}}'], "query-name answered .*GenericError"),
        ([OK, b'{"return": {"name": 7}}'], "query-name answered"),
        ([OK, NAME, OK], "query-status answered"),
        ([OK, NAME, b'{"return": {"status": "running", "running": 1}}'], "query-status answered"),
        ([OK, NAME, b'{"return": []}'], "query-status answered"),
        ([OK, NAME, b"{}"], "query-status answered"),
    ],
)
def test_refused_and_misshapen_answers_are_named(answers: list[bytes], said: str) -> None:
    with pytest.raises(QmpError, match=said):
        asked(lines(GREETING), lines(*answers))


@pytest.mark.parametrize("depth", range(100, 1000, 20))
def test_deep_nesting_is_an_error_like_any_other(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth

    with pytest.raises(QmpError):
        asked(lines(GREETING), lines(b'{"error": ' + nested + b"}"))


@pytest.mark.parametrize("size", [MAX_LINE_BYTES + 1, 40 * MAX_LINE_BYTES])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_line_without_end_is_given_up(size: int, end: bytes) -> None:
    with pytest.raises(QmpError, match="longer than"):
        asked(b" " * size + end)


def test_many_lines_in_one_packet_may_be_longer_than_one_line_may() -> None:
    flood = [EVENT] * (2 * MAX_LINE_BYTES // len(EVENT))

    assert asked(lines(GREETING), lines(*flood, OK, NAME, RUNNING)) == ANSWERS


def test_an_error_quotes_only_the_beginning_of_what_came() -> None:
    with pytest.raises(QmpError) as raised:
        asked(lines(b'"' + b"x" * 10_000 + b'"'))

    assert len(str(raised.value)) < 300
