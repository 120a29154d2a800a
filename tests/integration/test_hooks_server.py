"""The server of the hooks API: who may connect, what one caller can cost, and whose socket file is whose."""

import grp
import io
import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.hooks import Site, caller, error_of, received, serving
from tests.support.log_lines import logged
from tests.support.processes import wait_until
from workers.integration.http_server import BODY_MAX, Answer, HooksServer, Times
from workers.integration.peers import Admission, Peer, gid_of, peer_of

STOPPED = "/v1/vms/vm-1/stopped"
ASK = b"GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(tmp_path) as made:
        yield made


# Who may connect


@pytest.mark.parametrize(
    ("peer", "is_admitted"),
    [
        (Peer(1, 0, frozenset({0})), True),
        (Peer(1, 500, frozenset({500})), True),
        (Peer(1, 1000, frozenset({1000, 42})), True),
        (Peer(1, 1000, frozenset({42})), True),
        (Peer(1, 1000, frozenset({1000, 0, 500})), False),
    ],
)
def test_root_the_worker_s_account_and_members_of_the_group_are_admitted(peer: Peer, is_admitted: bool) -> None:  # noqa: FBT001
    assert Admission(uid=500, gid=42).admits(peer) is is_admitted


def test_without_a_group_no_group_is_admitted() -> None:
    assert not Admission(uid=500).admits(Peer(1, 1000, frozenset({42})))


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def test_a_group_that_is_missing_is_said() -> None:
    with pytest.raises(OSError, match="there is no group no-such-group"):
        gid_of("no-such-group")


def test_only_the_owner_and_the_group_can_open_the_socket(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    with serving(tmp_path, group=group) as site:
        found = site.path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_gid == os.getegid()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_stranger(path: Path, *groups: int) -> str:
    """Ask as another account, and return the status, or the error."""
    code = (
        "import socket,sys\n"
        "s=socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except OSError as e: print(e.strerror); sys.exit()\n"
        "s.sendall(b'GET /v1/healthz HTTP/1.0\\r\\n\\r\\n')\n"
        "print(s.recv(12).decode()[9:])"
    )
    found = subprocess.run(
        ["/usr/bin/env", "-i", "/usr/bin/python3", "-c", code, str(path)],
        user=65534,
        group=65534,
        extra_groups=groups,
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


def require_root() -> None:
    require("root", os.geteuid() == 0, "run the tests as root")
    require("python3", Path("/usr/bin/python3").exists(), "apt-get install python3-minimal")


def test_a_member_of_the_group_is_served_and_another_account_does_not_get_in(open_folder: Path) -> None:
    require_root()
    group = grp.getgrnam("games")
    with serving(open_folder, group="games") as site:
        assert as_stranger(site.path, group.gr_gid) == "200"
        assert as_stranger(site.path) == "Permission denied"


def test_a_folder_that_the_group_may_not_enter_is_said(open_folder: Path, lines: io.StringIO) -> None:
    group = grp.getgrgid(os.getegid()).gr_name
    with serving(open_folder, group=group):
        pass
    assert "closed to its group" not in lines.getvalue()
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with serving(closed, group=group):
        wait_until(lambda: "closed to its group" in lines.getvalue(), what="it to be said")
    assert f"folder={closed}" in lines.getvalue()


def test_who_got_in_though_the_socket_was_opened_wide_is_refused_with_one_line(
    open_folder: Path, lines: io.StringIO
) -> None:
    require_root()
    with serving(open_folder) as site:
        site.path.chmod(0o777)
        assert as_stranger(site.path) == "403"
        assert site.http.get("/v1/healthz").status_code == 200
    refusals = [line for line in lines.getvalue().splitlines() if "refused a caller" in line]
    assert len(refusals) == 1
    assert "uid=65534" in refusals[0]


# What one caller can cost


def test_a_body_may_be_so_long_and_no_longer_and_the_connection_goes_on(site: Site) -> None:
    assert site.http.post(STOPPED, content=b" " * BODY_MAX).status_code == 202
    assert error_of(site.http.post(STOPPED, content=b" " * (BODY_MAX + 1))) == (413, "too_large", None)
    assert site.http.post(STOPPED).status_code == 202


def test_a_body_far_beyond_is_not_read(site: Site) -> None:
    reply = site.raw(b"POST " + STOPPED.encode() + b" HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in reply


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 1e3\r\n", 400),
        (b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        (b"X: " + b"x" * 20_000 + b"\r\n", 431),
        (b"X: y\r\n" * 101, 431),
    ],
)
def test_a_head_that_cannot_be_taken_has_its_status_and_ends_the_connection(
    site: Site, head: bytes, status: int
) -> None:
    reply = site.raw(b"POST " + STOPPED.encode() + b" HTTP/1.1\r\n" + head + b"\r\n")
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply
    assert reply.count(b"HTTP/1.1") == 1
    assert site.hooks.calls == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /v1/healthz HTTP/9.9\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x00\x00\r\n", b"400"),
        (b"GET /v1/healthz\x00 HTTP/1.0\r\n\r\n", b"404"),
    ],
)
def test_what_is_no_request_is_answered_and_concerns_nobody(site: Site, sent: bytes, status: bytes) -> None:
    assert status in site.raw(sent)[:20]
    assert site.http.get("/v1/healthz").status_code == 200


def test_a_connection_serves_many_requests_one_after_the_other(site: Site) -> None:
    with site.connected() as client:
        client.sendall(ASK * 2 + ASK.replace(b"Host: x", b"Connection: close"))
        assert received(client).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1/he", ASK[:-2], b"POST /v1/vms/a/stopped HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_caller_that_does_not_go_on_is_let_go(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path, times=Times(idle_s=0.1, request_s=0.1)) as site, site.connected() as client:
        client.sendall(sent)
        assert received(client) == b""
        assert site.hooks.calls == []


def test_a_caller_that_goes_on_too_slowly_is_let_go(tmp_path: Path) -> None:
    with serving(tmp_path, times=Times(idle_s=5, request_s=0.2)) as site, site.connected() as client:
        client.sendall(ASK[:30])

        def is_closed() -> bool:
            try:
                client.sendall(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        wait_until(is_closed, what="it to be let go, though it sends all the time")


def test_beyond_so_many_connections_a_caller_is_told_to_come_again(tmp_path: Path) -> None:
    with serving(tmp_path, connections=2) as site:
        with ExitStack() as stack:
            for _ in range(2):
                client = stack.enter_context(site.connected())
                client.sendall(ASK)
                assert client.recv(15) == b"HTTP/1.1 200 OK"
            with site.connected() as third:
                reply = received(third)
            assert reply.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"Retry-After: 1\r\n" in reply
            assert b'"code": "busy"' in reply
        wait_until(lambda: site.raw(ASK.replace(b"1.1", b"1.0")).startswith(b"HTTP/1.1 200"), what="a place")


def test_a_worker_with_thousands_of_open_files_is_reached_as_well(tmp_path: Path) -> None:
    with ExitStack() as stack, serving(tmp_path) as site:
        for _ in range(1100):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        assert site.http.get("/v1/events?after=0&wait_s=0.05").status_code == 200


def test_callers_that_go_away_concern_nobody(site: Site, lines: io.StringIO) -> None:
    for sent in (b"", b"GET", ASK, ASK * 50):
        with site.connected() as client:
            client.sendall(sent)
    assert site.http.get("/v1/healthz").status_code == 200
    assert "level=error" not in lines.getvalue()


# Whose file is whose


def test_the_socket_goes_with_the_server_and_the_next_one_is_served(tmp_path: Path) -> None:
    for _ in range(2):
        with serving(tmp_path) as site:
            assert site.http.get("/v1/healthz").status_code == 200
        assert not site.path.exists()


def test_a_socket_that_a_dead_worker_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "hooks.sock"))
    with serving(tmp_path) as site:
        assert site.http.get("/v1/healthz").status_code == 200


def waiting_server(path: Path, **options: str) -> HooksServer:
    server = HooksServer(path, lambda _: Answer(200, {}), again_s=0.02, **options)  # type: ignore[arg-type]
    server.start()
    return server


def test_a_socket_on_which_another_program_listens_is_left_alone(tmp_path: Path, lines: io.StringIO) -> None:
    path = tmp_path / "hooks.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        server = waiting_server(path)
        try:
            wait_until(lambda: "another program listens" in lines.getvalue(), what="it to be said")
            assert path.is_socket()
            other.close()
            wait_until(lambda: server.listens, what="the socket, once the other has gone")
        finally:
            server.stop()
    assert lines.getvalue().count("hooks api waits for its socket") == 1


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, lines: io.StringIO) -> None:
    path = tmp_path / "hooks.sock"
    path.write_text("mine")
    server = waiting_server(path)
    try:
        wait_until(lambda: "is no socket" in lines.getvalue(), what="it to be said")
    finally:
        server.stop()
    assert path.read_text() == "mine"


def test_a_second_worker_waits_and_takes_over(tmp_path: Path, lines: io.StringIO) -> None:
    with serving(tmp_path) as site:
        successor = waiting_server(site.path)
        wait_until(lambda: "another worker listens there" in lines.getvalue(), what="it to be said")
        assert site.http.get("/v1/healthz").status_code == 200
    try:
        wait_until(lambda: successor.listens, what="the successor to listen")
        with caller(site.path) as http:
            assert http.get("/").json() == {}
    finally:
        successor.stop()


def test_a_file_that_somebody_put_in_its_place_stays(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        site.path.unlink()
        site.path.write_text("mine")
    assert site.path.read_text() == "mine"


def test_a_path_that_is_too_long_or_a_group_that_is_missing_is_said_and_kills_nothing(
    tmp_path: Path, lines: io.StringIO
) -> None:
    servers = [waiting_server(tmp_path / ("x" * 120)), waiting_server(tmp_path / "s", group="no-such-group")]
    try:
        wait_until(lambda: "longer than a socket" in lines.getvalue(), what="the first to be said")
        wait_until(lambda: "there is no group no-such-group" in lines.getvalue(), what="the second to be said")
    finally:
        for each in servers:
            each.stop()


def test_the_end_comes_also_where_it_never_began(tmp_path: Path) -> None:
    HooksServer(tmp_path / "s", lambda _: Answer(200, {})).stop()
