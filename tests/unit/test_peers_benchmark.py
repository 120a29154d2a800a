"""The benchmark beside the peers: what it reads from an answer, and how it puts its findings."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.benchmarks.peer_prober import Door, NoAnswer, await_answers, state_in
from tests.benchmarks.peer_report import MONIT, OURS, RUNIT, SUPERVISORD, Case, Findings, figures_of, percentile, report
from tests.benchmarks.peer_supervisors import Charge
from tests.benchmarks.peers import Plan, fraction

_BODY = b'{"id":"vm-1","state":"Running"}'
_ANSWER = b"HTTP/1.1 200 \r\nServer: x\r\nContent-Length: 31\r\n\r\n" + _BODY


@pytest.mark.parametrize(
    ("received", "state"),
    [
        (b"", None),
        (_ANSWER[:30], None),
        (_ANSWER[:-1], None),
        (_ANSWER, "Running"),
        (_ANSWER.replace(b" 200 ", b" 503 "), ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", ""),
        (b"HTTP/1.1 204 \r\n\r\n", ""),
    ],
)
def test_an_answer_names_its_state_once_it_is_complete(received: bytes, state: str | None) -> None:
    assert state_in(received) == state


@contextmanager
def listening(path: Path, *answers: bytes) -> Iterator[None]:
    """One connection, one answer to each request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as client:
                for answer in answers:
                    client.recv(4096)
                    client.sendall(answer)
                client.recv(4096)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


def test_a_vm_is_back_when_it_says_the_state_that_was_waited_for(tmp_path: Path) -> None:
    with listening(tmp_path / "s", _ANSWER.replace(b"Running", b"Waiting"), _ANSWER):
        began_s = time.monotonic()
        answer = await_answers([Door("vm-1", str(tmp_path / "s"), "Running")], {}, timeout_s=5)["vm-1"]

    assert began_s < answer.first_s < answer.ready_s


def test_the_answer_of_the_old_process_does_not_count(tmp_path: Path) -> None:
    door = Door("vm-1", str(tmp_path / "s"))
    with listening(tmp_path / "s", _ANSWER):
        pid = await_answers([door], {}, timeout_s=5)["vm-1"].pid

    with socket.socket(socket.AF_UNIX) as listener:
        (tmp_path / "s").unlink()
        listener.bind(door.path)
        listener.listen()
        with pytest.raises(NoAnswer, match="vm-1"):
            await_answers([door], {"vm-1": pid}, timeout_s=0.01)


def test_deaths_are_spread_over_rounds_and_over_a_turn_of_the_supervisor() -> None:
    plan = Plan(10, 10, 3, 0, 0, "standin", "tiny")

    assert [plan.part(10, number) for number in range(3)] == [3, 3, 4]
    moments = sorted(fraction(number) for number in range(10))
    assert max(after - before for before, after in pairwise(moments)) < 0.2


def test_a_script_clears_the_socket_and_becomes_the_vmm_or_leaves_its_pid(tmp_path: Path) -> None:
    charge = Charge("vm-1", tmp_path)

    text = charge.script(tmp_path / "a" / "run", "/bin/true").read_text("utf-8")
    left = charge.script(tmp_path / "start", "/bin/true", in_background=True).read_text("utf-8")

    assert f"rm -f {charge.socket}\nexec /bin/true --api-sock {charge.socket} --id vm-1\n" in text
    assert "exec" not in left
    assert left.endswith(f"&\necho $! >{charge.pidfile}\n")


def test_the_percentile_is_one_of_the_values() -> None:
    values = [float(number) for number in range(100, 0, -1)]

    assert (percentile(values, 50), percentile(values, 99), percentile([7.0], 99)) == (50, 99, 7)


def findings() -> Findings:
    found = Findings(2, {False: "standin", True: "tiny"}, missing={MONIT: "not installed: apt-get install monit"})
    found.bare_ms = {False: [30.0]}
    for first, who in ((40.0, OURS), (1000.0, SUPERVISORD), (20.0, RUNIT)):
        found.add(Case.OLD, who, [first, first])
        found.add(Case.OLD, who, [2 * first])
        found.add(Case.MANY_OLD, who, [first, 10 * first])
    found.ideal_ms[Case.MANY_OLD, OURS] = [200.0]
    return found


def test_ratios_have_one_value_per_round_and_the_limits_of_the_issue() -> None:
    by_name = {figure.name: figure for figure in figures_of(findings())}

    faster = by_name["one at a time, old: supervisord over this system"]
    assert (list(faster.values), faster.is_kept) == ([25, 25], True)
    slower = by_name["one at a time, old: this system over runit"]
    assert (list(slower.values), slower.is_kept) == ([2, 2], True)
    assert list(by_name["many at once, old: this system over what its caps allow"].values) == [2]
    assert by_name["one at a time, old: this system beyond the VMM's own start"].median == 10
    assert not any(MONIT in name for name in by_name)


def test_the_table_says_how_to_install_who_is_missing() -> None:
    text = report(findings())

    assert "many at once, old (2): tiny killed" in text
    assert text.count("not installed: apt-get install monit") == 2
