"""The driver for Firecracker, which the stand-in VMM speaks too (API: firecracker.yaml of the project, v1.17)."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.domain.exits import ExitAction, ExitTable
from workers.host.rundir import SOCKET_NAME, VMM_LOG
from workers.specs import FirecrackerSpec, VmSpec
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Claim, Finding, Launch, Program
from workers.vmm.http1 import BrokenAnswer, Response, exchange, request

_DEFAULT_SOCKET = "/run/firecracker.socket"
_STATUS = request("GET", "/")
_KNOWN_STATES = frozenset({"Not started", "Running", "Paused"})
_OK = range(200, 300)
_TOO_MANY_CONNECTIONS = 503
_SERVER_ERRORS = range(500, 600)
STANDIN = "standin"
# Exit codes of src/vmm/src/lib.rs. 0: the guest rebooted, or panicked with reboot=k; Firecracker never boots it again
# itself. 152 and 153: configuration or arguments it will never take.
EXITS: ExitTable = {
    "exit 0": ExitAction.RESTART,
    "exit 152": ExitAction.NEVER,
    "exit 153": ExitAction.NEVER,
}


def program(binary: str) -> Program:
    """Return the program for the setting `drivers.firecracker.binary`; `standin` is this project's stand-in VMM."""
    if binary != STANDIN:
        return Program("firecracker", (binary,))
    script = Path(__file__).with_name("standin.py")
    return Program("firecracker", (sys.executable, "-S", "-I", str(script)))


class FirecrackerDriver:
    name = "firecracker"
    stateless_probe = True

    def __init__(self, binary: str, environment: Mapping[str, str], exits: ExitTable = EXITS) -> None:
        self._program = program(binary)
        self._environment = environment
        self.exits = exits

    def version(self) -> str:
        return self._program.version()

    def launch(self, spec: VmSpec) -> Launch:
        argv = [*self._program.resolve(), "--api-sock", SOCKET_NAME, "--id", spec.id]
        return Launch(argv, self._environment)

    def configure(self, spec: VmSpec) -> Conversation[None]:
        if not isinstance(spec, FirecrackerSpec):
            raise StartFailed(spec.id, f"spec is for driver {spec.driver}")
        for path, body in setup_requests(spec):
            response = yield from _put(spec.id, path, body)
            if response.status not in _OK:
                raise StartFailed(spec.id, f"PUT {path}: {response.status} {_fault(response)}")

    def probe(self, vm_id: str) -> Conversation[Finding]:
        try:
            response = yield from exchange(_STATUS)
        except BrokenAnswer as error:
            return Evidence.BROKEN_ANSWER, str(error)
        return _judge_status(vm_id, response)

    def identify(self, argv: Sequence[str], exe: str) -> Claim | None:
        if not self._program.is_run_by(argv, exe):
            return None
        options = dict(_options(argv))
        socket = None if "--no-api" in options else options.get("--api-sock") or _DEFAULT_SOCKET
        return Claim(options.get("--id", ""), socket)


def setup_requests(spec: FirecrackerSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every request that turns an empty VMM into this VM, in order, as (path, body)."""
    yield "/logger", {"log_path": VMM_LOG, "level": "Info", "show_level": True}
    yield "/machine-config", {"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib, "smt": spec.smt}
    boot = {"kernel_image_path": spec.kernel, "initrd_path": spec.initrd, "boot_args": spec.kernel_args}
    yield "/boot-source", _given(boot)
    if spec.rootfs:
        yield "/drives/rootfs", _drive("rootfs", spec.rootfs, is_root=True, read_only=False)
    for drive in spec.drives:
        yield f"/drives/{drive.id}", _drive(drive.id, drive.path, is_root=drive.root, read_only=drive.read_only)
    for nic in spec.network_interfaces:
        body = {"iface_id": nic.id, "host_dev_name": nic.tap, "guest_mac": nic.mac}
        yield f"/network-interfaces/{nic.id}", _given(body)
    if spec.vsock_cid is not None:
        yield "/vsock", {"guest_cid": spec.vsock_cid, "uds_path": "vsock.sock"}
    yield "/actions", {"action_type": "InstanceStart"}


def _drive(drive_id: str, path: Path, *, is_root: bool, read_only: bool) -> dict[str, Any]:
    return {"drive_id": drive_id, "path_on_host": path, "is_root_device": is_root, "is_read_only": read_only}


def _given(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in body.items() if value is not None}


def _put(vm_id: str, path: str, body: Mapping[str, Any]) -> Conversation[Response]:
    try:
        return (yield from exchange(request("PUT", path, json.dumps(_given(body)).encode())))
    except BrokenAnswer as error:
        raise StartFailed(vm_id, f"PUT {path}: {error}") from error


def _fault(response: Response) -> str:
    try:
        return str(json.loads(response.body)["fault_message"])
    except (ValueError, KeyError, TypeError):
        return response.body[:200].decode(errors="replace")


def _judge_status(vm_id: str, response: Response) -> Finding:
    if response.status == _TOO_MANY_CONNECTIONS and b"connections" in response.body:
        return Evidence.TOO_MANY_CONNECTIONS, "503, too many open connections"
    if response.status in _SERVER_ERRORS:
        return Evidence.SERVER_ERROR, f"GET /: {response.status}"
    try:
        body = json.loads(response.body)
        said, state = body["id"], body["state"]
    except (ValueError, KeyError, TypeError):
        return Evidence.BROKEN_ANSWER, f"GET /: {response.status} {response.body[:80]!r}"
    if said != vm_id:
        return Evidence.OTHER_VM, f"the API answers as {str(said)[:64]!r}"
    if state not in _KNOWN_STATES:
        return Evidence.UNKNOWN_STATE, f"state {str(state)[:64]!r}"
    return (Evidence.ANSWERS, "") if state == "Running" else (Evidence.DRIFT, f"state {state!r}, should be running")


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags with their values, written with a space or with `=`."""
    for position, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name, value if equals else next(iter(argv[position + 1 : position + 2]), "")
