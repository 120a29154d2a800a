"""What the Firecracker driver says to the VMM, held against Firecracker's own API description where it is at hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import require
from tests.support.builders import a_firecracker_spec, a_spec
from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.vmm.conversation import Conversation, T
from workers.vmm.driver import Claim
from workers.vmm.firecracker import FirecrackerDriver, program, setup_requests

OPENAPI = Path(__file__).parents[2].parent / "shared" / "reference" / "firecracker-openapi.yaml"
DRIVER = FirecrackerDriver("firecracker", {})
FULL = a_firecracker_spec(
    vcpus=2,
    memory_mib=256,
    smt=True,
    initrd="/images/initrd",
    rootfs="/images/root.ext4",
    kernel_args="console=ttyS0 reboot=k",
    drives=[{"id": "data", "path": "/images/data.raw", "read_only": True}],
    network_interfaces=[{"id": "eth0", "tap": "tap0", "mac": "02:00:00:00:00:01"}],
    vsock_cid=3,
)


def drive(conversation: Conversation[T], *answers: bytes) -> tuple[list[bytes], T]:
    """Play the VMM: return what was sent, and the result."""
    sent = [next(conversation)]
    for answer in answers:
        try:
            sent.append(conversation.send(answer))
        except StopIteration as end:
            return sent, end.value
    raise AssertionError("the conversation wants more answers")


def answer(status: int, body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content)


def test_a_full_spec_is_configured_in_order_and_started_last() -> None:
    assert [path for path, _ in setup_requests(FULL)] == [
        "/logger",
        "/machine-config",
        "/boot-source",
        "/drives/rootfs",
        "/drives/data",
        "/network-interfaces/eth0",
        "/vsock",
        "/actions",
    ]


@pytest.mark.parametrize("spec", [FULL, a_firecracker_spec()])
def test_every_request_body_is_what_the_api_description_asks_for(spec: Any) -> None:
    require("Firecracker's API description", OPENAPI.exists() or not OPENAPI.parent.exists(), "shared/reference")
    if not OPENAPI.exists():
        pytest.skip("Firecracker's API description is not beside this checkout")
    api = yaml.safe_load(OPENAPI.read_text())

    for path, body in setup_requests(spec):
        schema = _schema(api, path)
        assert body.keys() <= schema["properties"].keys(), path
        assert set(schema.get("required", [])) <= body.keys(), path
        for name, value in json.loads(json.dumps(body, default=str)).items():
            _check_type(api, schema["properties"][name], value, f"{path} {name}")


def _schema(api: dict[str, Any], path: str) -> dict[str, Any]:
    """The body of PUT on the path, with templates like /drives/{drive_id} matched by their first part."""
    first = path.split("/")[1]
    (found,) = [each for each in api["paths"] if each.split("/")[1] == first and each.count("/") == path.count("/")]
    (parameter,) = [each for each in api["paths"][found]["put"]["parameters"] if each["in"] == "body"]
    return _resolved(api, parameter["schema"])


def _resolved(api: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return _resolved(api, api["definitions"][reference.rsplit("/", 1)[1]]) if reference else schema


def _check_type(api: dict[str, Any], schema: dict[str, Any], value: object, where: str) -> None:
    wanted = _resolved(api, schema)
    types: dict[str, type] = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}
    assert isinstance(value, types[wanted.get("type", "object")]), where
    assert value in wanted.get("enum", [value]), where


def test_a_refusal_fails_the_start_with_the_vmms_own_words() -> None:
    fault = answer(400, {"fault_message": "The kernel file cannot be opened"})
    with pytest.raises(StartFailed, match=r"PUT /boot-source: 400 The kernel file cannot be opened"):
        drive(DRIVER.configure(a_spec()), answer(204), answer(204), fault)


def test_a_connection_closed_during_configuration_fails_the_start() -> None:
    with pytest.raises(StartFailed, match="PUT /logger: connection closed"):
        drive(DRIVER.configure(a_spec()), b"")


def test_a_spec_of_another_driver_is_refused() -> None:
    with pytest.raises(StartFailed, match="driver qemu"):
        drive(DRIVER.configure(a_spec(driver="qemu")))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, {"id": "vm-1", "state": "Running"}, Evidence.ANSWERS),
        (200, {"id": "vm-2", "state": "Running"}, Evidence.OTHER_VM),
        (200, {"id": "vm-1", "state": "Paused"}, Evidence.DRIFT),
        (200, {"id": "vm-1", "state": "Not started"}, Evidence.DRIFT),
        (200, {"id": "vm-1", "state": "Levitating"}, Evidence.UNKNOWN_STATE),
        (200, {"id": "vm-1"}, Evidence.BROKEN_ANSWER),
        (200, [], Evidence.BROKEN_ANSWER),
        (200, None, Evidence.BROKEN_ANSWER),
        (500, {}, Evidence.SERVER_ERROR),
        (503, {"error": "Too many open connections"}, Evidence.TOO_MANY_CONNECTIONS),
        (503, {"error": "something else"}, Evidence.SERVER_ERROR),
    ],
)
def test_each_answer_to_a_probe_is_told_apart(status: int, body: object, expected: Evidence) -> None:
    sent, (evidence, _) = drive(DRIVER.probe("vm-1"), answer(status, body))
    assert sent[0].startswith(b"GET / HTTP/1.1\r\n")
    assert evidence is expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["firecracker", "--api-sock", "/run/a.sock", "--id", "vm-1"], Claim("vm-1", "/run/a.sock")),
        (["firecracker", "--id=vm-1", "--api-sock=a.sock"], Claim("vm-1", "a.sock")),
        (["firecracker", "--id", "vm-1"], Claim("vm-1", "/run/firecracker.socket")),
        (["firecracker", "--id", "vm-1", "--no-api"], Claim("vm-1", None)),
        (["firecracker", "--api-sock", "a.sock"], Claim("", "a.sock")),
        (["firecracker", "--api-sock", "a.sock", "--id"], Claim("", "a.sock")),
    ],
)
def test_a_process_is_known_by_its_command_line(argv: list[str], expected: Claim | None) -> None:
    assert DRIVER.identify(argv, "/usr/bin/firecracker") == expected


def test_a_process_of_another_program_is_never_claimed() -> None:
    assert DRIVER.identify(["firecracker", "--id", "vm-1"], "/usr/bin/python3") is None


def test_a_binary_replaced_on_disk_is_still_known() -> None:
    claim = DRIVER.identify(["fc", "--id", "vm-1", "--no-api"], "/usr/bin/firecracker (deleted)")
    assert claim == Claim("vm-1", None)


def test_the_stand_in_is_known_by_its_script() -> None:
    standin = FirecrackerDriver("standin", {})
    words = list(program("standin").words)
    argv = [*words, "--id", "vm-1", "--api-sock", "api.sock"]
    assert standin.identify(argv, "/usr/bin/python3.11") == Claim("vm-1", "api.sock")
    assert standin.identify([words[0], "other.py", "--id", "vm-1"], "/usr/bin/python3.11") is None
