"""The prober on real sockets and processes: each kind of trouble is told apart, and one hung VM delays no other."""

import errno
import fcntl
import os
import resource
import signal
import socket
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.builders import a_vm
from tests.support.hosts import LocalHost, local_host
from tests.support.processes import wait_until
from tests.support.standin import Reply, Standin
from workers.domain.evidence import Evidence, Observation
from workers.domain.vm import Incarnation, VmRecord
from workers.host.identity import incarnation_of
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Finding
from workers.vmm.prober import EpollProber


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LocalHost]:
    with local_host(tmp_path) as made:
        yield made


def record_of(process: Incarnation, vm_id: str = "vm-1", generation: int = 10) -> VmRecord:
    return a_vm(vm_id, process=process, generation=generation)


def look(prober: EpollProber, *records: VmRecord) -> dict[str, Observation]:
    found: dict[str, Observation] = {}
    for group in prober.probe(records):
        assert not found.keys() & group.keys(), "each vm is told once"
        found |= group
    return found


def evidence(host: LocalHost, record: VmRecord, timeout_s: float = 0.3) -> Evidence:
    return look(host.prober(timeout_s), record)["vm-1"].evidence


def call(host: LocalHost, vm_id: str, method: str, path: str, body: object) -> Reply:
    vm = Standin(None, host.files.run(vm_id, 10).socket)  # type: ignore[arg-type] # only its socket is used
    return vm.call(method, path, body)


def test_a_running_vm_answers(host: LocalHost) -> None:
    assert evidence(host, record_of(host.start())) is Evidence.ANSWERS


def test_a_vm_that_was_never_started_is_told(host: LocalHost) -> None:
    assert evidence(host, a_vm(process=None)) is Evidence.NOT_STARTED


def test_a_dead_process_is_told_before_its_socket_is_asked(host: LocalHost) -> None:
    process = host.start()
    host.fence(process)
    assert evidence(host, record_of(process)) is Evidence.PROCESS_ENDED


def test_a_death_that_is_seen_before_it_is_told_has_its_cause(host: LocalHost) -> None:
    process = host.start()
    host.fence(process)
    prober = EpollProber(
        host.drivers, host.vantage, socket_of=host.socket_of, timeout_s=1, cause_of={process: "exit 152"}.get
    )

    seen = prober.look_at_process(record_of(process))

    assert seen is not None
    assert (seen.cause, seen.detail) == ("exit 152", f"pid {process.pid} ended: exit 152")


def test_a_zombie_is_told(host: LocalHost) -> None:
    process = host.start()
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: evidence(host, record_of(process)) is Evidence.ZOMBIE, what="the zombie: nobody reaps here")
    os.waitpid(process.pid, 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_ticks": 1}, Evidence.PID_REUSED),
        ({"boot_id": "before"}, Evidence.BOOTED_ANEW),
        ({"machine_id": "another"}, Evidence.FOREIGN_PLACE),
        ({"pid_ns": 1}, Evidence.FOREIGN_PLACE),
        ({"machine_id": "another", "boot_id": "before"}, Evidence.FOREIGN_PLACE),
    ],
)
def test_another_life_or_place_of_the_process_is_told(
    host: LocalHost, changes: dict[str, int | str], expected: Evidence
) -> None:
    process = replace(host.start(), **changes)  # type: ignore[arg-type] # some of its fields
    assert evidence(host, record_of(process)) is expected


def test_a_missing_socket_is_told(host: LocalHost) -> None:
    process = host.start()
    host.files.run("vm-1", 10).socket.unlink()
    assert evidence(host, record_of(process)) is Evidence.SOCKET_MISSING


def test_a_socket_nobody_listens_on_is_told(host: LocalHost) -> None:
    process = host.start()
    call(host, "vm-1", "PUT", "/faults", {"close_socket": True})
    wait_until(lambda: evidence(host, record_of(process)) is Evidence.SOCKET_REFUSED, what="the refusal")


def test_a_listener_that_is_another_process_is_told(host: LocalHost) -> None:
    process = host.start()
    path = host.files.run("vm-1", 10).socket
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert evidence(host, record_of(process)) is Evidence.OTHER_LISTENER


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"report_id": "vm-99"}, Evidence.OTHER_VM),
        ({"report_state": "Dancing"}, Evidence.UNKNOWN_STATE),
        ({"answer_status": 500}, Evidence.SERVER_ERROR),
        ({"hang": True}, Evidence.NO_ANSWER),
        ({"slow_ms": 5000}, Evidence.NO_ANSWER),
        ({"slow_ms": 50}, Evidence.ANSWERS),
    ],
)
def test_what_the_api_says_is_told_apart(host: LocalHost, fault: dict[str, object], expected: Evidence) -> None:
    process = host.start()
    assert call(host, "vm-1", "PUT", "/faults", fault).status == 204
    assert evidence(host, record_of(process)) is expected


def test_a_paused_vm_drifts(host: LocalHost) -> None:
    process = host.start()
    assert call(host, "vm-1", "PATCH", "/vm", {"state": "Paused"}).status == 204
    assert evidence(host, record_of(process)) is Evidence.DRIFT


def test_a_stopped_process_does_not_answer(host: LocalHost) -> None:
    process = host.start()
    os.kill(process.pid, signal.SIGSTOP)
    assert evidence(host, record_of(process)) is Evidence.NO_ANSWER


def test_ten_open_connections_of_others_are_inconclusive(host: LocalHost) -> None:
    process = host.start()
    path = str(host.files.run("vm-1", 10).socket)
    others = [socket.socket(socket.AF_UNIX) for _ in range(10)]
    try:
        for other in others:
            other.connect(path)
        assert evidence(host, record_of(process)) is Evidence.TOO_MANY_CONNECTIONS
    finally:
        for other in others:
            other.close()


@contextmanager
def listener_of_ours(path: Path, backlog: int) -> Iterator[socket.socket]:
    """A listener in this very process, whose identity a record then names."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        yield listener


def test_a_full_backlog_is_told(host: LocalHost, tmp_path: Path) -> None:
    path = tmp_path / "full.sock"
    me = incarnation_of(os.getpid(), host.vantage)
    assert me is not None
    with listener_of_ours(path, 0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        assert evidence(host, a_vm(process=me, socket=str(path))) is Evidence.BACKLOG_FULL


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"id":"vm-1"}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"X" * (2 << 20),
    ],
)
def test_a_broken_answer_is_told(host: LocalHost, tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "broken.sock"
    me = incarnation_of(os.getpid(), host.vantage)
    assert me is not None
    with listener_of_ours(path, 5) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                try:
                    peer.sendall(answer)
                except OSError as error:
                    assert error.errno in (errno.EPIPE, errno.ECONNRESET)  # noqa: PT017 - in the server's thread

        server = threading.Thread(target=serve)
        server.start()
        assert evidence(host, a_vm(process=me, socket=str(path)), timeout_s=5) is Evidence.BROKEN_ANSWER
        server.join()


def test_a_refusal_sent_before_we_asked_is_read_although_we_can_send_no_more(host: LocalHost, tmp_path: Path) -> None:
    """Firecracker answers the eleventh connection and closes it at once, whatever the client is about to send."""
    path = tmp_path / "refusing.sock"
    me = incarnation_of(os.getpid(), host.vantage)
    assert me is not None
    body = b'{"error": "Too many open connections"}'
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    record = a_vm(process=me, socket=str(path))
    with listener_of_ours(path, 5) as listener:
        prober = host.prober(5)
        looked = prober.look(record, {})
        assert not isinstance(looked, Observation)
        peer, _ = listener.accept()
        peer.sendall(refusal)
        peer.close()
        looked.sock.setblocking(True)  # noqa: FBT003 - the socket's own signature
        with pytest.raises(BrokenPipeError):
            looked.sock.send(looked.unsent)
        assert looked.sock.recv(4096) == refusal, "this is what the kernel does, and what the next look relies on"
        looked.sock.close()

        def serve() -> None:
            peer, _ = listener.accept()
            peer.sendall(refusal)
            peer.close()

        for _ in range(20):
            server = threading.Thread(target=serve)
            server.start()
            assert evidence(host, record, timeout_s=5) is Evidence.TOO_MANY_CONNECTIONS
            server.join()


def test_an_answer_in_many_small_pieces_is_put_together(host: LocalHost, tmp_path: Path) -> None:
    path = tmp_path / "slow.sock"
    me = incarnation_of(os.getpid(), host.vantage)
    assert me is not None
    body = b'{"id": "vm-1", "state": "Running", "vmm_version": "1", "app_name": "x"}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with listener_of_ours(path, 5) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                for byte in answer:
                    peer.send(bytes([byte]))

        server = threading.Thread(target=serve)
        server.start()
        assert evidence(host, a_vm(process=me, socket=str(path)), timeout_s=5) is Evidence.ANSWERS
        server.join()


def test_our_own_fd_limit_is_never_the_vms_fault(host: LocalHost) -> None:
    process = host.start()
    prober = host.prober()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rounds = prober.probe([record_of(process)])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # fds from 3 on are refused
        found = next(iter(rounds))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found["vm-1"].evidence is Evidence.MONITOR_FAULT


def test_one_hung_vm_does_not_delay_the_verdict_of_the_others(host: LocalHost) -> None:
    processes = {f"vm-{n}": host.start(f"vm-{n}") for n in range(1, 6)}
    os.kill(processes["vm-3"].pid, signal.SIGSTOP)
    records = [record_of(process, vm_id) for vm_id, process in processes.items()]

    groups = list(host.prober(0.5).probe(records))

    assert set(groups[0]) == processes.keys() - {"vm-3"}
    assert groups[-1] == {"vm-3": groups[-1]["vm-3"]}
    assert groups[-1]["vm-3"].evidence is Evidence.NO_ANSWER


def test_nobody_looks_at_a_vm_while_another_one_does(host: LocalHost) -> None:
    process = host.start()
    call(host, "vm-1", "PUT", "/faults", {"slow_ms": 300})
    prober = host.prober(2)
    first: dict[str, Observation] = {}
    thread = threading.Thread(target=lambda: first.update(look(prober, record_of(process))))
    thread.start()
    wait_until(lambda: prober._busy, what="the first look to begin")

    assert look(prober, record_of(process)) == {}
    thread.join()
    assert first["vm-1"].evidence is Evidence.ANSWERS
    assert look(prober, record_of(process))["vm-1"].evidence is Evidence.ANSWERS


def test_nothing_is_kept_open_after_a_look(host: LocalHost) -> None:
    process = host.start()
    prober = host.prober(0.2)
    look(prober, record_of(process))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        look(prober, record_of(process))
    os.kill(process.pid, signal.SIGSTOP)
    look(prober, record_of(process))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_driver_nobody_has_here_is_a_fault_of_the_monitor(host: LocalHost) -> None:
    record = replace(record_of(host.start()), driver="cloud-hypervisor")
    assert evidence(host, record) is Evidence.MONITOR_FAULT


def test_another_answer_than_last_time_is_found_out(host: LocalHost) -> None:
    prober, record = host.prober(), record_of(host.start())
    for state, expected in (("Resumed", Evidence.ANSWERS), ("Paused", Evidence.DRIFT), ("Resumed", Evidence.ANSWERS)):
        assert call(host, "vm-1", "PATCH", "/vm", {"state": state}).status == 204
        assert [look(prober, record)["vm-1"].evidence for _ in range(3)] == [expected] * 3


def test_a_vm_that_dies_after_its_process_was_looked_at_is_dead_and_not_unreachable(host: LocalHost) -> None:
    process = host.start()
    prober = host.prober(living=lambda: {"vm-1": process})
    record = record_of(process)
    assert look(prober, record)["vm-1"].evidence is Evidence.ANSWERS

    host.fence(process)

    assert look(prober, record)["vm-1"].evidence is Evidence.PROCESS_ENDED


def test_a_process_that_lives_is_not_looked_up_again(host: LocalHost) -> None:
    """The watcher knows: then /proc is not read, not even where it would speak against this incarnation."""
    process = replace(host.start(), start_ticks=1)
    assert look(host.prober(), record_of(process))["vm-1"].evidence is Evidence.PID_REUSED
    prober = host.prober(living=lambda: {"vm-1": replace(process)})
    assert look(prober, record_of(process))["vm-1"].evidence is Evidence.ANSWERS
    younger = replace(process, start_ticks=2)
    assert look(prober, record_of(younger))["vm-1"].evidence is Evidence.PID_REUSED, "it is another one that lives"


class Chatty:
    """Greets, is asked, and answers, in as many pieces as it likes: ends at the full stop of the second sentence."""

    name, exits = "chatty", ()

    def __init__(self, *, stateless_probe: bool) -> None:
        self.stateless_probe = stateless_probe
        self.heard: list[bytes] = []

    def probe(self, vm_id: str) -> Conversation[Finding]:
        del vm_id
        heard = yield b""
        self.heard.append(heard)
        while not heard.endswith(b"."):
            heard += yield b""
        answer = yield b"and?"
        self.heard.append(answer)
        while not answer.endswith(b"."):
            answer += yield b""
        return Evidence.ANSWERS if answer == b"I am well." else Evidence.DRIFT, answer.decode()


def talks(
    host: LocalHost, folder: Path, driver: Chatty, *sayings: tuple[list[bytes], list[bytes]]
) -> list[Observation]:
    """What is seen of a VM that says these pieces of its two sentences, one pair at each look."""
    path, me = folder / "chatty.sock", incarnation_of(os.getpid(), host.vantage)
    prober = host.prober(5, chatty=driver)  # type: ignore[arg-type] # only what a probe needs
    record = a_vm(process=me, socket=str(path), driver="chatty")
    seen = []
    with listener_of_ours(path, 5) as listener:
        for greeting, answer in sayings:

            def serve(greeting: list[bytes] = greeting, answer: list[bytes] = answer) -> None:
                peer, _ = listener.accept()
                with peer:
                    for pieces in (greeting, answer):
                        for piece in pieces:
                            peer.sendall(piece)
                            wait_until(lambda: not unread(peer), what="the piece to be read")
                        if pieces is greeting:
                            assert peer.recv(100) == b"and?"

            server = threading.Thread(target=serve)
            server.start()
            seen.append(look(prober, record)["vm-1"])
            server.join()
    return seen


def unread(peer: socket.socket) -> int:
    """How many bytes the other end has not taken yet (SIOCOUTQ, unix(7))."""
    return int.from_bytes(fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


WHOLE = ([b"Hello."], [b"I am well."])
IN_PIECES = ([b"Hel", b"lo."], [b"I am ", b"well."])
UNWELL = ([b"Hello."], [b"I am ", b"tired."])


def test_a_driver_that_vouches_for_it_hears_again_only_what_is_new(host: LocalHost, tmp_path: Path) -> None:
    driver = Chatty(stateless_probe=True)

    seen = talks(host, tmp_path, driver, WHOLE, WHOLE, IN_PIECES, IN_PIECES, UNWELL, UNWELL, WHOLE)

    drift = [Evidence.ANSWERS] * 4 + [Evidence.DRIFT] * 2 + [Evidence.ANSWERS]
    assert [(each.evidence, each.detail) for each in seen] == [
        (evidence, "I am tired." if evidence is Evidence.DRIFT else "I am well.") for evidence in drift
    ]
    assert len(driver.heard) == 2 * 5, "the second and the fourth look said what the one before had said"


def test_a_driver_that_does_not_vouch_for_it_hears_everything(host: LocalHost, tmp_path: Path) -> None:
    driver = Chatty(stateless_probe=False)
    assert {each.evidence for each in talks(host, tmp_path, driver, WHOLE, WHOLE, WHOLE)} == {Evidence.ANSWERS}
    assert driver.heard == [b"Hello.", b"I am well."] * 3


class Mute(Chatty):
    def probe(self, vm_id: str) -> Conversation[Finding]:
        yield from () if vm_id else (b"",)
        return Evidence.MONITOR_FAULT, "broken"


def test_a_driver_that_finds_without_asking_is_heard(host: LocalHost, tmp_path: Path) -> None:
    path, me = tmp_path / "mute.sock", incarnation_of(os.getpid(), host.vantage)
    prober = host.prober(5, mute=Mute(stateless_probe=False))  # type: ignore[arg-type] # only what a probe needs
    with listener_of_ours(path, 5):
        seen = look(prober, a_vm(process=me, socket=str(path), driver="mute"))["vm-1"]
    assert (seen.evidence, seen.detail) == (Evidence.MONITOR_FAULT, "broken")
