"""The stand-in VMM against Firecracker's rules, as a real process on a real socket, and every fault it can play."""

import errno
import json
import py_compile
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.processes import wait_until
from tests.support.standin import (
    Standin,
    command,
    connect,
    read_reply,
    run_to_its_end,
    running_standin,
    send_request,
)
from workers.vmm import standin

OPENAPI = Path(__file__).parents[2].parent / "shared" / "reference" / "firecracker-openapi.yaml"

NO_ANSWER_S = 0.3
MAX_BACKLOG = standin.BACKLOG + 1  # the kernel takes one more than asked for

PRE_BOOT_PATHS = sorted({call.split()[1] for call in standin.CALLS} - {"/actions", "/faults", "/vm"})


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"kernel")
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"disk")
    return path


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Standin]:
    with running_standin(tmp_path) as started:
        yield started


@pytest.fixture
def booted(vm: Standin, kernel: Path) -> Standin:
    vm.boot(kernel)
    return vm


@pytest.fixture
def bodies(tmp_path: Path, kernel: Path, disk: Path) -> dict[str, dict[str, Any]]:
    """One body that is taken for each configuration call."""
    interface = {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:00:00:00:01", "mtu": 1500}
    return {
        "/balloon": {"amount_mib": 16, "deflate_on_oom": True, "stats_polling_interval_s": 1},
        "/boot-source": {"kernel_image_path": str(kernel), "boot_args": "console=ttyS0"},
        "/drives/{drive_id}": a_drive(disk),
        "/entropy": {"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}},
        "/logger": {"log_path": str(tmp_path / "fc.log"), "level": "Info", "show_level": True},
        "/machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "smt": False},
        "/metrics": {"metrics_path": str(tmp_path / "metrics.json")},
        "/mmds/config": {"network_interfaces": ["eth0"], "version": "V2"},
        "/network-interfaces/{iface_id}": interface,
        "/vsock": {"guest_cid": 3, "uds_path": "v.sock"},
    }


def a_drive(disk: Path, drive_id: str = "rootfs", *, root: bool = True) -> dict[str, Any]:
    return {"drive_id": drive_id, "path_on_host": str(disk), "is_root_device": root, "is_read_only": False}


def filled(path: str) -> str:
    return path.replace("{drive_id}", "rootfs").replace("{iface_id}", "eth0")


def fault_of(vm: Standin, method: str, path: str, body: object = None) -> str:
    """Make a call that is to be refused and return why it was."""
    reply = vm.call(method, path, body)
    assert reply.status == 400, reply
    return str(reply.body["fault_message"])


# --- the state machine


def test_a_fresh_process_says_it_is_not_started(vm: Standin) -> None:
    assert vm.get("/") == {
        "id": "vm-1",
        "state": "Not started",
        "vmm_version": standin.VERSION,
        "app_name": "Firecracker",
    }
    assert vm.get("/version") == {"firecracker_version": standin.VERSION}
    assert vm.get("/machine-config")["vcpu_count"] == 1


def test_a_configured_vm_boots_and_shows_it_on_its_console(vm: Standin, kernel: Path) -> None:
    vm.boot(kernel)

    assert vm.state() == "Running"
    assert "vm-1 booted\n" in vm.process.log()


def test_pause_and_resume_can_be_repeated(booted: Standin) -> None:
    for wanted, state in (("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running"), ("Resumed", "Running")):
        assert booted.call("PATCH", "/vm", {"state": wanted}).status == 204
        assert booted.state() == state


def test_ctrl_alt_del_ends_the_process_with_code_zero(booted: Standin) -> None:
    booted.put("/actions", {"action_type": "SendCtrlAltDel"})

    assert booted.wait_for_exit() == 0


def test_ctrl_alt_del_does_not_reach_a_paused_guest(booted: Standin) -> None:
    booted.call("PATCH", "/vm", {"state": "Paused"})
    booted.put("/actions", {"action_type": "SendCtrlAltDel"})

    assert booted.state() == "Paused"


def test_sigterm_ends_the_process_at_once(booted: Standin) -> None:
    assert booted.process.stop() == -signal.SIGTERM


def test_the_whole_configuration_can_be_read_back(vm: Standin, bodies: dict[str, Any]) -> None:
    for path in sorted(bodies, key=lambda name: name == "/mmds/config"):
        vm.put(filled(path), bodies[path])

    config = vm.get("/vm/config")

    assert config["boot-source"] == bodies["/boot-source"]
    assert config["drives"] == [bodies["/drives/{drive_id}"]]
    assert config["network-interfaces"] == [bodies["/network-interfaces/{iface_id}"]]
    assert config["mmds-config"] == bodies["/mmds/config"]
    assert vm.get("/machine-config") == config["machine-config"] == bodies["/machine-config"]
    assert vm.get("/balloon") == config["balloon"] == bodies["/balloon"]


def test_a_second_put_of_the_same_drive_replaces_it(vm: Standin, disk: Path) -> None:
    vm.put("/drives/rootfs", a_drive(disk))
    vm.put("/drives/rootfs", {**a_drive(disk), "is_read_only": True})

    assert [drive["is_read_only"] for drive in vm.get("/vm/config")["drives"]] == [True]


# --- what is refused


@pytest.mark.parametrize("path", PRE_BOOT_PATHS)
def test_bodies_are_checked_field_by_field(vm: Standin, bodies: dict[str, Any], path: str) -> None:
    body = bodies[path]
    vm.put("/network-interfaces/eth0", bodies["/network-interfaces/{iface_id}"])
    required, known = standin.SHAPES[standin.CALLS[f"PUT {path}"]]

    assert "`surprise`" in fault_of(vm, "PUT", filled(path), {**body, "surprise": 1})
    for field in known:
        assert vm.call("PUT", filled(path), {**body, field: [{}]}).status == 400, field
    for field in required:
        without = {name: value for name, value in body.items() if name != field}
        assert f"Missing field `{field}`" in fault_of(vm, "PUT", filled(path), without)
        assert f"Missing field `{field}`" in fault_of(vm, "PUT", filled(path), {**body, field: None})

    optional = dict.fromkeys(known.keys() - body.keys() - {"socket"})
    vm.put(filled(path), {**body, **optional})


@pytest.mark.parametrize("path", PRE_BOOT_PATHS)
def test_configuration_is_refused_after_the_start(booted: Standin, bodies: dict[str, Any], path: str) -> None:
    assert "after starting" in fault_of(booted, "PUT", filled(path), bodies[path])


def test_a_second_start_is_refused(booted: Standin) -> None:
    assert "after starting" in fault_of(booted, "PUT", "/actions", {"action_type": "InstanceStart"})
    assert booted.state() == "Running"


def test_a_start_without_boot_source_is_refused(vm: Standin) -> None:
    assert "boot source" in fault_of(vm, "PUT", "/actions", {"action_type": "InstanceStart"})
    assert vm.state() == "Not started"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PATCH", "/vm", {"state": "Resumed"}),
        ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
        ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    ],
)
def test_run_time_calls_are_refused_before_the_start(vm: Standin, method: str, path: str, body: dict[str, str]) -> None:
    assert "before starting" in fault_of(vm, method, path, body)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/nowhere", None),
        ("GET", "/", {}),
        ("GET", "/balloon", None),
        ("PUT", "/", {}),
        ("PUT", "/drives", {}),
        ("PUT", "/drives/", {}),
        ("PUT", "/drives/with-hyphen", {}),
        ("PUT", "/drives/rootfs/more", {}),
        ("PUT", "/boot-source", None),
        ("PUT", "/boot-source", "{"),
        ("PUT", "/boot-source", '{"kernel_image_path": NaN}'),
        ("PUT", "/logger", '{"level": "Info"} {}'),
        ("PUT", "/balloon", {"amount_mib": -1, "deflate_on_oom": True}),
        ("PUT", "/boot-source", "[" * 40_000),
        ("PUT", "/boot-source", []),
        ("PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}),
        ("PUT", "/actions", {"action_type": "instancestart"}),
        ("PATCH", "/vm", {"state": "Running"}),
        ("POST", "/actions", {"action_type": "InstanceStart"}),
        ("DELETE", "/drives/rootfs", None),
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 128}),
        ("PUT", "/machine-config", {"vcpu_count": 0, "mem_size_mib": 128}),
        ("PUT", "/machine-config", {"vcpu_count": 3, "mem_size_mib": 128, "smt": True}),
        ("PUT", "/machine-config", {"vcpu_count": True, "mem_size_mib": 128}),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": -1}),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 0}),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 129, "huge_pages": "2M"}),
        ("PUT", "/entropy", {"rate_limiter": {"ops": {"size": 1}}}),
        ("PUT", "/logger", {"level": "loud"}),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "v.sock"}),
        ("PUT", "/metrics", {"metrics_path": "no/such/folder/metrics"}),
        ("PUT", "/metrics", {"metrics_path": "metrics", "properties": {"a": 1}}),
        ("PUT", "/mmds/config", {"network_interfaces": []}),
        ("PUT", "/mmds/config", {"network_interfaces": ["eth9"]}),
        ("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap0", "mtu": 67}),
        ("PUT", "/network-interfaces/eth0", {"iface_id": "eth1", "host_dev_name": "tap0"}),
    ],
)
def test_wrong_calls_are_answered_with_400_and_a_reason(vm: Standin, method: str, path: str, body: object) -> None:
    assert fault_of(vm, method, path, body)
    assert vm.state() == "Not started"


def test_files_that_are_not_there_are_refused(vm: Standin, kernel: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    boot = {"kernel_image_path": str(kernel)}

    assert "No such file" in fault_of(vm, "PUT", "/boot-source", {"kernel_image_path": str(gone)})
    assert "No such file" in fault_of(vm, "PUT", "/boot-source", {**boot, "initrd_path": str(gone)})
    assert "No such file" in fault_of(vm, "PUT", "/drives/rootfs", a_drive(gone))


def test_a_drive_is_one_kind_and_only_one_is_the_root(vm: Standin, disk: Path) -> None:
    vm.put("/drives/rootfs", a_drive(disk))

    assert "root device" in fault_of(vm, "PUT", "/drives/other", a_drive(disk, "other"))
    assert "path_on_host or socket" in fault_of(
        vm, "PUT", "/drives/both", {**a_drive(disk, "both", root=False), "socket": "s"}
    )
    vm.put("/drives/other", a_drive(disk, "other", root=False))


def test_metrics_can_be_set_up_once_and_are_flushed_as_json_lines(vm: Standin, kernel: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    vm.put("/metrics", {"metrics_path": str(metrics)})
    assert "already" in fault_of(vm, "PUT", "/metrics", {"metrics_path": str(metrics)})

    vm.boot(kernel)
    vm.put("/actions", {"action_type": "FlushMetrics"})

    assert [json.loads(line) for line in metrics.read_text().splitlines()]


@pytest.mark.skipif(not OPENAPI.exists(), reason="Firecracker's API description is not beside this repository")
def test_known_and_required_fields_are_those_of_the_api_description() -> None:
    description = yaml.safe_load(OPENAPI.read_text())
    ours = {call: shape for call, shape in standin.CALLS.items() if shape != "Faults"}

    for call, shape in ours.items():
        method, path = call.split()
        (body,) = [p for p in description["paths"][path][method.lower()]["parameters"] if p["in"] == "body"]
        assert body["schema"]["$ref"] == f"#/definitions/{shape}", call
    for shape in standin.SHAPES.keys() - {"Faults"}:
        definition = description["definitions"][shape]
        required, known = standin.SHAPES[shape]
        assert sorted(required) == sorted(definition.get("required", [])), shape
        assert known.keys() == definition["properties"].keys(), shape
        for field, kind in known.items():
            if (shape, field) != ("Logger", "level"):  # its words are compared without regard to case
                assert kind == kind_in(description, definition["properties"][field]), (shape, field)


def kind_in(description: dict[str, Any], prop: dict[str, Any]) -> object:
    if "$ref" in prop:
        name = prop["$ref"].rpartition("/")[2]
        definition = description["definitions"][name]
        return name if definition["type"] == "object" else kind_in(description, definition)
    if "enum" in prop:
        return tuple(prop["enum"])
    return {"string": str, "integer": int, "boolean": bool, "array": list, "object": dict}[prop["type"]]


# --- HTTP


def test_a_connection_is_kept_for_further_requests(vm: Standin) -> None:
    with connect(vm.socket_path) as client:
        for _ in range(3):
            send_request(client, "GET", "/")
            reply = read_reply(client)
            assert (reply.status, reply.headers["Connection"]) == (200, "keep-alive")


def test_requests_may_come_byte_by_byte(vm: Standin, kernel: Path) -> None:
    body = json.dumps({"kernel_image_path": str(kernel)})
    request = f"PUT /boot-source HTTP/1.1\r\nHost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}"

    with connect(vm.socket_path) as client:
        for byte in request.encode():
            client.sendall(bytes([byte]))
        assert read_reply(client).status == 204


def test_requests_may_come_all_at_once(vm: Standin) -> None:
    get = b"GET / HTTP/1.1\r\n\r\n"

    with connect(vm.socket_path) as client:
        client.sendall(get * 3 + get[:7])
        first_bytes = read_bytes(client, 3)
        client.sendall(get[7:])
        last_bytes = read_bytes(client, 1)

    assert first_bytes.count(b'"Not started"') == 3
    assert last_bytes.count(b'"Not started"') == 1


def read_bytes(client: socket.socket, answers: int) -> bytes:
    received = b""
    while received.count(b"}") < answers:
        received += client.recv(4096)
    return received


def test_answers_that_do_not_fit_into_the_socket_are_sent_once_there_is_room(vm: Standin) -> None:
    requests = 2000
    with connect(vm.socket_path) as client:
        client.sendall(b"GET /vm/config HTTP/1.1\r\n\r\n" * requests)
        # The other client is answered after the server has met a full socket, before anybody makes room in it.
        assert vm.state() == "Not started"

        received = b""
        while received.count(b"HTTP/1.1 200") < requests:
            received += client.recv(65536)


def test_a_client_that_never_reads_does_not_stop_the_others(vm: Standin) -> None:
    with connect(vm.socket_path) as deaf:
        send_until_refused(deaf, b"GET /vm/config HTTP/1.1\r\n\r\n" * 100)

        assert vm.state() == "Not started"


def send_until_refused(client: socket.socket, data: bytes) -> None:
    client.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            client.send(data)


def test_the_eleventh_connection_gets_503_and_is_closed(vm: Standin) -> None:
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(connect(vm.socket_path)) for _ in range(10)]
        for client in clients:
            send_request(client, "GET", "/")
            assert read_reply(client).status == 200

        with connect(vm.socket_path) as one_too_many:
            reply = read_reply(one_too_many)
            assert (reply.status, reply.headers["Connection"]) == (503, "close")
            assert "error" in reply.body
            assert one_too_many.recv(1) == b""

        clients[0].close()
        assert vm.state() == "Not started"


def test_a_payload_over_the_limit_is_refused(vm: Standin) -> None:
    assert "51201 bytes" in fault_of(vm, "PUT", "/boot-source", " " * 51_201)
    assert "cannot be read" in fault_of(vm, "PUT", "/boot-source", " " * 51_200)


def test_a_payload_over_the_limit_may_be_sent_to_its_end(vm: Standin) -> None:
    with connect(vm.socket_path) as client:
        client.sendall(b"PUT /boot-source HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert read_reply(client).status == 400
        client.sendall(b" " * 1_000_000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""

    assert vm.state() == "Not started"


def test_the_payload_limit_can_be_set(tmp_path: Path) -> None:
    with running_standin(tmp_path, "--http-api-max-payload-size", "10") as vm:
        assert "limit of 10 bytes" in fault_of(vm, "PUT", "/boot-source", " " * 11)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: alpha\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 2000,
    ],
)
def test_bytes_that_are_no_request_are_answered_with_400_and_a_goodbye(vm: Standin, request_bytes: bytes) -> None:
    with connect(vm.socket_path) as client:
        client.sendall(request_bytes)
        reply = read_reply(client)
        assert (reply.status, reply.headers["Connection"]) == (400, "close")

    assert vm.state() == "Not started"


# --- start and leftovers


@pytest.mark.parametrize(
    ("flags", "exit_code", "why"),
    [
        (["--no-such-flag"], 153, "not expected"),
        (["word"], 153, "not expected"),
        (["--id"], 153, "needs a value"),
        (["--id", "--no-api"], 153, "needs a value"),
        (["--id", "a", "--id", "b"], 153, "more than once"),
        (["--id", "under_score"], 153, "letters"),
        (["--id", "a" * 65], 153, "1-64"),
        (["--no-api"], 153, "--config-file"),
        (["--no-seccomp", "--seccomp-filter", "f"], 153, "excludes"),
        (["--http-api-max-payload-size", "many"], 153, "number"),
        (["--level", "loud"], 152, "--level"),
        (["--config-file", "no-such-file"], 152, "No such file"),
        (["--config-file", "broken.json"], 152, "cannot be read"),
        (["--config-file", "list.json"], 152, "object"),
        (["--config-file", "unknown.json"], 152, "surprise"),
        (["--config-file", "no-kernel.json"], 152, "boot source"),
        (["--log-path", "no/such/folder/log"], 1, "the log"),
        (["--api-sock", "no/such/folder/sock"], 1, "No such file"),
        (["--api-sock", "a" * 200], 1, "too long"),
        (["--version"], 0, ""),
        (["--help"], 0, ""),
    ],
)
def test_exit_codes_of_a_bad_start(tmp_path: Path, flags: list[str], exit_code: int, why: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "unknown.json").write_text('{"surprise": {}}')
    (tmp_path / "no-kernel.json").write_text('{"machine-config": {"vcpu_count": 1, "mem_size_mib": 128}}')
    own_socket = [] if "--api-sock" in flags else ["--api-sock", "api.sock"]

    done = run_to_its_end(tmp_path, *own_socket, *flags)

    assert done.returncode == exit_code, done.stderr
    assert why in done.stderr.decode()
    assert bool(done.stderr) == (exit_code != 0)


def test_every_flag_that_firecracker_takes_is_taken(tmp_path: Path) -> None:
    flags = (
        "--log-path fc.log --level Debug --module api --show-level --show-log-origin --metrics-path metrics"
        " --no-seccomp --boot-timer --enable-pci --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3"
        " --http-api-max-payload-size 51200 --mmds-size-limit 51200 -- anything"
    )
    with running_standin(tmp_path, *flags.split()) as vm:
        assert vm.state() == "Not started"
        assert (tmp_path / "fc.log").exists()
        assert (tmp_path / "metrics").exists()


def test_the_log_tells_of_boot_and_reboot(tmp_path: Path, kernel: Path) -> None:
    with running_standin(tmp_path, "--log-path", "fc.log") as vm:
        vm.boot(kernel)
        vm.put("/actions", {"action_type": "SendCtrlAltDel"})
        vm.wait_for_exit()

    lines = (tmp_path / "fc.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["runs", "reboots"]


def test_a_configuration_file_is_applied_and_started(tmp_path: Path, bodies: dict[str, Any]) -> None:
    config = {
        "mmds-config": bodies["/mmds/config"],
        "boot-source": bodies["/boot-source"],
        "drives": [bodies["/drives/{drive_id}"]],
        "network-interfaces": [bodies["/network-interfaces/{iface_id}"]],
        "cpu-config": None,
        "pmem": [],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    with running_standin(tmp_path, "--config-file", "config.json") as vm:
        assert vm.state() == "Running"
        assert vm.get("/vm/config")["drives"] == config["drives"]


def test_without_api_it_runs_and_has_no_socket(tmp_path: Path, kernel: Path) -> None:
    config = {"boot-source": {"kernel_image_path": str(kernel)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ("--api-sock", "api.sock", "--id", "vm-1", "--config-file", "config.json", "--no-api")

    with subprocess.Popen(command(*flags), cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"vm-1 booted\n"
        assert not (tmp_path / "api.sock").exists()
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM


def test_its_socket_is_left_behind_and_stops_the_next_start(tmp_path: Path) -> None:
    with running_standin(tmp_path) as vm:
        vm.process.popen.kill()
        vm.wait_for_exit()

    done = run_to_its_end(tmp_path, "--api-sock", "api.sock")

    assert (tmp_path / "api.sock").is_socket()
    assert (done.returncode, b"Address already in use" in done.stderr) == (1, True)
    (tmp_path / "api.sock").unlink()
    with running_standin(tmp_path) as successor:
        assert successor.state() == "Not started"


def test_a_second_process_cannot_take_the_socket_of_a_live_one(vm: Standin, tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path, "--api-sock", "api.sock")

    assert done.returncode == 1
    assert vm.state() == "Not started"


def test_the_vsock_socket_is_left_behind_and_refused_by_the_next(tmp_path: Path) -> None:
    vsock = {"guest_cid": 3, "uds_path": "v.sock"}
    with running_standin(tmp_path) as vm:
        vm.put("/vsock", vsock)
        vm.put("/vsock", vsock)
        connect(tmp_path / "v.sock").close()
    (tmp_path / "api.sock").unlink()

    with running_standin(tmp_path) as successor:
        assert "Address already in use" in fault_of(successor, "PUT", "/vsock", vsock)


def test_standard_input_stays_open_because_a_lock_may_live_on_it(vm: Standin) -> None:
    assert Path(f"/proc/{vm.pid}/fd/0").readlink() == Path("/dev/null")


def test_it_starts_from_compiled_code_too(tmp_path: Path) -> None:
    compiled = Path(py_compile.compile(standin.__file__, cfile=str(tmp_path / "standin.pyc"), doraise=True) or "")

    with running_standin(tmp_path, executable=compiled) as vm:
        assert vm.state() == "Not started"


def test_it_loads_no_costly_module_at_start(tmp_path: Path) -> None:
    interpreter, *rest = command("--config-file", "no-such-file", "--api-sock", "api.sock")
    done = subprocess.run(
        [interpreter, "-X", "importtime", *rest], cwd=tmp_path, capture_output=True, timeout=20, check=False, text=True
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}

    assert "_json" in loaded
    assert not loaded & {"os", "re", "enum", "json", "socket", "signal", "argparse", "typing", "pathlib", "workers"}


# --- faults


def with_faults(folder: Path, asked: dict[str, Any], vm_id: str = "vm-1") -> Path:
    faults = folder / "faults"
    faults.mkdir(exist_ok=True)
    (faults / f"{vm_id}.json").write_text(json.dumps(asked))
    return faults


def test_starts_are_refused_as_often_as_asked(tmp_path: Path) -> None:
    faults = with_faults(tmp_path, {"refuse_starts": 2, "exit_code": 7, "report_id": "vm-99"})

    for left in (1, 0):
        assert run_to_its_end(tmp_path, "--api-sock", "api.sock", faults=faults).returncode == 7
        assert not (tmp_path / "api.sock").exists()
        assert json.loads((faults / "vm-1.json").read_text())["refuse_starts"] == left

    with running_standin(tmp_path, faults=faults) as vm:
        assert vm.get("/")["id"] == "vm-99"
    assert [file.name for file in faults.iterdir()] == ["vm-1.json"]


def test_faults_of_another_vm_do_not_count(tmp_path: Path) -> None:
    faults = with_faults(tmp_path, {"refuse_starts": 1}, vm_id="vm-2")

    with running_standin(tmp_path, faults=faults) as vm:
        assert vm.state() == "Not started"


@pytest.mark.parametrize("text", ["{", "[]", '{"surprise": 1}', '{"hang": 1}', '{"exit_code": 256}'])
def test_a_wrong_faults_file_is_an_error_not_a_silent_start(tmp_path: Path, text: str) -> None:
    faults = with_faults(tmp_path, {})
    (faults / "vm-1.json").write_text(text)

    done = run_to_its_end(tmp_path, "--api-sock", "api.sock", faults=faults)

    assert done.returncode == 152
    assert not (tmp_path / "api.sock").exists()


@pytest.mark.parametrize("body", [{"surprise": 1}, {"hang": "yes"}, {"refuse_starts": 1}, {"exit_code": 256}])
def test_wrong_faults_are_refused_on_the_live_process(vm: Standin, body: dict[str, Any]) -> None:
    assert fault_of(vm, "PUT", "/faults", body)
    assert vm.state() == "Not started"


def test_a_slow_boot_holds_up_every_other_call_without_burning_cpu(tmp_path: Path, kernel: Path) -> None:
    delay_s = 0.4
    with running_standin(tmp_path, faults=with_faults(tmp_path, {"boot_delay_ms": int(delay_s * 1000)})) as vm:
        vm.put("/boot-source", {"kernel_image_path": str(kernel)})
        with connect(vm.socket_path) as starter, connect(vm.socket_path) as other:
            cpu_before = cpu_seconds(vm.pid)
            began = time.monotonic()
            send_request(starter, "PUT", "/actions", {"action_type": "InstanceStart"})
            send_request(other, "GET", "/")
            assert read_reply(other).body["state"] == "Running"
            assert read_reply(starter).status == 204
            assert time.monotonic() - began >= delay_s
            assert cpu_seconds(vm.pid) - cpu_before < delay_s / 4


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_slow_answers_are_slow_and_faults_can_still_be_cleared(vm: Standin) -> None:
    vm.put("/faults", {"slow_ms": 200})
    began = time.monotonic()
    assert vm.state() == "Not started"
    assert time.monotonic() - began >= 0.2

    vm.put("/faults", {"slow_ms": 60_000})
    vm.put("/faults", {})
    assert vm.state() == "Not started"


@pytest.mark.parametrize("from_start", [True, False])
def test_a_hung_process_takes_connections_until_the_backlog_is_full_and_never_answers(
    tmp_path: Path, *, from_start: bool
) -> None:
    hang = {"hang": True}
    with (
        running_standin(tmp_path, faults=with_faults(tmp_path, hang if from_start else {})) as vm,
        ExitStack() as queue,
    ):
        if not from_start:
            vm.put("/faults", hang)
        with pytest.raises(TimeoutError):
            vm.call("GET", "/", timeout_s=NO_ANSWER_S)

        reached = fill_backlog(vm.socket_path, queue)

        assert reached == errno.EAGAIN
        assert vm.process.stop() == -signal.SIGTERM


def fill_backlog(path: Path, queue: ExitStack) -> int:
    for _ in range(MAX_BACKLOG + 1):
        client = queue.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(0)
        if code := client.connect_ex(str(path)):
            return code
    return 0


def test_another_name_and_state_are_reported_until_cleared(vm: Standin) -> None:
    vm.put("/faults", {"report_id": "vm-99", "report_state": "Melting"})
    assert (vm.get("/")["id"], vm.get("/")["state"]) == ("vm-99", "Melting")

    vm.put("/faults", {})
    assert (vm.get("/")["id"], vm.get("/")["state"]) == ("vm-1", "Not started")


def test_every_call_gets_the_status_asked_for(vm: Standin) -> None:
    vm.put("/faults", {"answer_status": 500})
    assert vm.call("GET", "/").status == 500

    vm.put("/faults", {})
    assert vm.call("GET", "/").status == 200


def test_an_exit_code_on_the_live_process_ends_it_at_once(vm: Standin) -> None:
    vm.put("/faults", {"exit_code": 3})

    assert vm.wait_for_exit() == 3


@pytest.mark.parametrize(
    ("asked", "exit_code"),
    [({"exit_after_ms": 50, "exit_code": 148}, 148), ({"exit_after_ms": 50}, 1), ({"exit_after_ms": 0}, 1)],
)
@pytest.mark.parametrize("hang", [True, False])
def test_a_process_ends_after_the_time_asked_for_even_if_it_hangs(
    vm: Standin, asked: dict[str, Any], exit_code: int, *, hang: bool
) -> None:
    vm.put("/faults", {**asked, "hang": hang})

    assert vm.wait_for_exit() == exit_code


def test_a_process_may_die_during_its_boot(vm: Standin, kernel: Path) -> None:
    vm.put("/boot-source", {"kernel_image_path": str(kernel)})
    vm.put("/faults", {"exit_after_ms": 100, "exit_code": 9, "boot_delay_ms": 60_000})

    with pytest.raises(ConnectionError):
        vm.call("PUT", "/actions", {"action_type": "InstanceStart"})

    assert vm.wait_for_exit() == 9


def test_a_process_may_be_started_to_die_young(tmp_path: Path) -> None:
    faults = with_faults(tmp_path, {"exit_after_ms": 50, "exit_code": 9})

    assert run_to_its_end(tmp_path, "--api-sock", "api.sock", faults=faults).returncode == 9


@pytest.mark.parametrize("from_start", [True, False])
def test_sigterm_is_ignored_until_cleared(tmp_path: Path, *, from_start: bool) -> None:
    asked = {"ignore_sigterm": True}
    with running_standin(tmp_path, faults=with_faults(tmp_path, asked if from_start else {})) as vm:
        if not from_start:
            vm.put("/faults", asked)
        vm.process.popen.terminate()
        assert vm.state() == "Not started"

        vm.put("/faults", {})
        assert vm.process.stop() == -signal.SIGTERM


def test_a_closed_socket_refuses_connections_while_the_process_lives(vm: Standin) -> None:
    vm.put("/faults", {"close_socket": True})

    with pytest.raises(ConnectionRefusedError):
        wait_until(lambda: connect(vm.socket_path).close(), what="the refusal")
    assert vm.process.is_alive
    assert vm.socket_path.is_socket()
