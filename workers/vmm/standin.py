"""Stand-in for the Firecracker binary: its flags, its API on a real Unix socket, a real process, and no guest.

It decides what Firecracker would answer, and plays the faults a test asks for. It boots nothing, opens no TAP device,
takes no snapshot, and knows nothing of the rest of this project: it runs as `python -S -I standin.py …`, once per VM,
so it imports only modules compiled into the interpreter (importing `json` alone would double its start-up time), and
it is one file, because under -I nothing beside it can be imported.
Like Firecracker it has one API thread (a slow call holds up all others), never unlinks its sockets and ignores a
request's `Connection: close`. Exit codes: 0 guest reboot, 1 cannot bind, or a fault, 152 bad configuration, 153 flags.

Faults come from `<id>.json` in the folder that the environment variable STANDIN_FAULTS names, read at start, and from
`PUT /faults`, answered before it takes effect. Each PUT replaces the whole set, so `{}` clears it. The keys:
  refuse_starts   file only: so many starts end with exit_code before the socket exists; counted down in the file
  exit_code       code for the exits asked for (else 1); alone in a PUT it ends the process at once
  exit_after_ms   end after this time, even if hanging    boot_delay_ms   InstanceStart takes so long
  slow_ms         every answer takes so long              hang            never answer again, also not PUT /faults
  ignore_sigterm  SIGTERM does nothing                    answer_status   every call gets this status
  report_id, report_state   what GET / says instead       close_socket    stop listening but keep the file; for good
"""

from __future__ import annotations

import _json
import _signal  # type: ignore[import-not-found] # what `signal` wraps in enums; no stubs
import _socket
import posix
import sys
from select import EPOLLIN, EPOLLOUT, epoll
from time import monotonic, sleep, strftime

TYPE_CHECKING = False  # type checkers know the name; importing typing would cost more than all imports above
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Body = dict[str, Any]
    Kind = type | str | tuple[str, ...]

VERSION = "1.17.0"
NOT_STARTED, RUNNING, PAUSED = "Not started", "Running", "Paused"
GENERIC_ERROR, BAD_CONFIGURATION, BAD_ARGUMENTS, MAX_EXIT_CODE = 1, 152, 153, 255
OK, NO_CONTENT, BAD_REQUEST, UNAVAILABLE = 200, 204, 400, 503
MAX_CONNECTIONS, BACKLOG, READ_BYTES, MAX_HEAD_BYTES = 10, 128, 65536, 8192
MAX_LENGTH_DIGITS = 10  # a longer Content-Length is nonsense, and int() refuses the longest
MAX_ID_LENGTH, MAX_VCPUS, MIN_GUEST_CID, MTUS = 64, 32, 3, range(68, 65536)
STDOUT = 1
FOREVER_S = 1e9
LEVELS = ("error", "warn", "warning", "info", "debug", "trace", "off")

# Names, required and known fields of Firecracker's OpenAPI description; a kind that is a string names another shape.
# One value per line would bury these tables:
# fmt: off
VALUE_FLAGS = (
    "--api-sock", "--id", "--seccomp-filter", "--start-time-us", "--start-time-cpu-us", "--parent-cpu-time-us",
    "--config-file", "--metadata", "--log-path", "--level", "--module", "--metrics-path", "--mmds-size-limit",
    "--http-api-max-payload-size")
BARE_FLAGS = ("--no-seccomp", "--no-api", "--show-level", "--show-log-origin", "--boot-timer", "--enable-pci")
DEFAULTS = {
    "--api-sock": "/run/firecracker.socket", "--id": "anonymous-instance", "--http-api-max-payload-size": "51200"}
SHAPES: dict[str, tuple[tuple[str, ...], dict[str, Kind]]] = {
    "Balloon": (("amount_mib", "deflate_on_oom"), {
        "amount_mib": int, "deflate_on_oom": bool, "stats_polling_interval_s": int, "free_page_hinting": bool,
        "free_page_reporting": bool}),
    "BootSource": (("kernel_image_path",), {"kernel_image_path": str, "boot_args": str, "initrd_path": str}),
    "Drive": (("drive_id", "is_root_device"), {
        "drive_id": str, "partuuid": str, "is_root_device": bool, "cache_type": ("Unsafe", "Writeback"),
        "is_read_only": bool, "path_on_host": str, "rate_limiter": "RateLimiter", "io_engine": ("Sync", "Async"),
        "socket": str}),
    "EntropyDevice": ((), {"rate_limiter": "RateLimiter"}),
    "Faults": ((), {
        "refuse_starts": int, "exit_code": int, "exit_after_ms": int, "boot_delay_ms": int, "slow_ms": int,
        "hang": bool, "ignore_sigterm": bool, "answer_status": int, "report_id": str, "report_state": str,
        "close_socket": bool}),
    "InstanceActionInfo": (("action_type",), {"action_type": ("FlushMetrics", "InstanceStart", "SendCtrlAltDel")}),
    "Logger": ((), {"level": str, "log_path": str, "show_level": bool, "show_log_origin": bool, "module": str}),
    "MachineConfiguration": (("mem_size_mib", "vcpu_count"), {
        "cpu_template": ("C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"), "smt": bool, "mem_size_mib": int,
        "track_dirty_pages": bool, "vcpu_count": int, "huge_pages": ("None", "Transparent", "2M")}),
    "Metrics": (("metrics_path",), {"metrics_path": str, "emit_id": bool, "properties": dict}),
    "MmdsConfig": (("network_interfaces",), {
        "version": ("V1", "V2"), "network_interfaces": list, "ipv4_address": str, "imds_compat": bool}),
    "NetworkInterface": (("host_dev_name", "iface_id"), {
        "guest_mac": str, "host_dev_name": str, "iface_id": str, "mtu": int, "rx_rate_limiter": "RateLimiter",
        "tx_rate_limiter": "RateLimiter"}),
    "RateLimiter": ((), {"bandwidth": "TokenBucket", "ops": "TokenBucket"}),
    "TokenBucket": (("refill_time", "size"), {"one_time_burst": int, "refill_time": int, "size": int}),
    "Vm": (("state",), {"state": ("Paused", "Resumed")}),
    "Vsock": (("guest_cid", "uds_path"), {"guest_cid": int, "uds_path": str, "vsock_id": str}),
}
CALLS = {
    "PUT /actions": "InstanceActionInfo", "PUT /balloon": "Balloon", "PUT /boot-source": "BootSource",
    "PUT /drives/{drive_id}": "Drive", "PUT /entropy": "EntropyDevice", "PUT /faults": "Faults",
    "PUT /logger": "Logger", "PUT /machine-config": "MachineConfiguration", "PUT /metrics": "Metrics",
    "PUT /mmds/config": "MmdsConfig", "PUT /network-interfaces/{iface_id}": "NetworkInterface",
    "PUT /vsock": "Vsock", "PATCH /vm": "Vm",
}
UNSET: Body = {
    "balloon": None, "boot-source": {"kernel_image_path": ""}, "cpu-config": None, "drives": [], "entropy": None,
    "logger": None, "memory-hotplug": None, "metrics": None, "mmds-config": None, "network-interfaces": [],
    "pmem": [], "vsock": None,
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False},
}
# fmt: on
MEMBERS = {"drives": "drive_id", "network-interfaces": "iface_id"}
POST_BOOT = "The requested operation is not supported after starting the microVM."
PRE_BOOT = "The requested operation is not supported before starting the microVM."


class RefusedError(Exception):
    """A call is answered with 400 and this text; a start with such a configuration ends."""


def end(exit_code: int, why: str) -> NoReturn:
    sys.stderr.write(f"Error: {why}\n")
    raise SystemExit(exit_code)


class _ScanRules:
    # NaN and the like become floats, which no field takes.
    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int, parse_constant = float, int, float


def parse_json(raw: bytes) -> object:
    try:
        text = raw.decode().strip(" \t\r\n")
        value, stop = _json.make_scanner(_ScanRules())(text, 0)  # type: ignore[arg-type] # only reads its attributes
    except (StopIteration, SystemError, ValueError, RecursionError) as error:
        # SystemError: to say what is wrong the scanner looks for json.decoder, which is not loaded.
        raise RefusedError("The JSON cannot be read.") from error
    if stop != len(text):
        raise RefusedError(f"The JSON cannot be read: trailing characters at {stop}.")
    return value


def to_json(value: object) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return _json.encode_basestring_ascii(value)
        case dict():
            return "{" + ",".join(f"{to_json(key)}:{to_json(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(to_json, value)) + "]"
        case _:
            return repr(value)


def check_shape(name: str, body: object) -> Body:
    required, known = SHAPES[name]
    if not isinstance(body, dict):
        raise RefusedError(f"Expected an object ({name}).")
    for field in required:
        if body.get(field) is None:
            raise RefusedError(f"Missing field `{field}`.")
    for field, value in body.items():
        if field not in known:
            raise RefusedError(f"Unknown field `{field}`, expected one of: {', '.join(known)}.")
        if value is not None:
            check_kind(field, known[field], value)
    return {field: value for field, value in body.items() if value is not None}


def check_kind(field: str, kind: Kind, value: object) -> None:
    if isinstance(kind, str):
        check_shape(kind, value)
    elif isinstance(kind, tuple):
        if value not in kind:
            raise RefusedError(f"Invalid `{field}`: expected one of: {', '.join(kind)}.")
    elif type(value) is not kind or (isinstance(value, int) and value < 0):
        raise RefusedError(f"Invalid `{field}`: expected {kind.__name__}, not negative.")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_kind(field, str, item)


def must(holds: object, else_say: str) -> None:
    if not holds:
        raise RefusedError(else_say)


def open_file(what: str, path: str, flags: int) -> int:
    try:
        return posix.open(path, flags | posix.O_CLOEXEC | posix.O_NONBLOCK, 0o644)
    except (OSError, ValueError) as error:
        raise RefusedError(f"Cannot open the {what}: {error}") from error


def open_log(what: str, path: str) -> int:
    return open_file(what, path, posix.O_RDWR | posix.O_CREAT | posix.O_APPEND)


def must_open(what: str, path: str | None, flags: int = posix.O_RDONLY) -> None:
    if path is not None:
        posix.close(open_file(what, path, flags))


def write_line(fd: int | None, line: str) -> None:
    try:
        if fd is not None:
            posix.write(fd, f"{line}\n".encode())
    except OSError:
        pass  # neither a full disk nor a closed console stops a guest


def read_file(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 # importing pathlib costs more than a whole start
        return file.read()


def listen(path: str) -> _socket.socket:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(BACKLOG)
    return listener


class Faults:
    """What this process was asked to do wrong, and when it is to end."""

    def __init__(self) -> None:
        self.asked: Body = {}
        self.ends_at: float | None = None
        self.exit_code = GENERIC_ERROR

    def read(self, path: str) -> None:
        """Take the set from the file, if there is one; end here while starts are to be refused."""
        try:
            asked = check_shape("Faults", parse_json(read_file(path)))
        except FileNotFoundError:
            return
        refused = asked.pop("refuse_starts", 0)
        if refused:
            left = to_json({**asked, "refuse_starts": refused - 1})
            draft = f"{path}.{posix.getpid()}"
            fd = posix.open(draft, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o644)
            posix.write(fd, left.encode())
            posix.rename(draft, path)
            end(asked.get("exit_code", GENERIC_ERROR), f"the start is refused, as {path} asks")
        self.replace(asked)

    def replace(self, asked: Body) -> None:
        must("refuse_starts" not in asked, "refuse_starts counts only in the file that is read at start.")
        must(asked.get("exit_code", 0) <= MAX_EXIT_CODE, f"exit_code is at most {MAX_EXIT_CODE}.")
        self.asked = asked
        self.exit_code = asked.get("exit_code", GENERIC_ERROR)
        after_ms = asked.get("exit_after_ms")
        self.ends_at = None if after_ms is None else monotonic() + after_ms / 1000
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN if asked.get("ignore_sigterm") else _signal.SIG_DFL)

    def end_soon(self, exit_code: int) -> None:
        """Let the process end once the answer to this call is out."""
        self.ends_at, self.exit_code = monotonic(), exit_code

    def seconds_left(self) -> float | None:
        return None if self.ends_at is None else max(self.ends_at - monotonic(), 0)

    def hold(self, seconds: float) -> None:
        """Stop the one API thread for so long; end the process where its end comes first."""
        left = self.seconds_left()
        if left is not None and left <= seconds:
            sleep(left)
            raise SystemExit(self.exit_code)
        if seconds:
            sleep(seconds)

    def hold_as_asked(self, name: str) -> None:
        self.hold(self.asked.get(name, 0) / 1000)

    def take_effect(self) -> None:
        self.hold(FOREVER_S if self.asked.get("hang") else 0)


class Vm:
    """What was configured, the state that GET / names, and what each call does to them."""

    def __init__(self, vm_id: str, faults: Faults) -> None:
        self.id, self.faults, self.state = vm_id, faults, NOT_STARTED
        self.config: Body = {**UNSET, **{section: {} for section in MEMBERS}}
        self.vsock: _socket.socket | None = None
        self.log_fd: int | None = None
        self.metrics_fd: int | None = None

    def log(self, line: str) -> None:
        write_line(self.log_fd, f"{strftime('%Y-%m-%dT%H:%M:%S')} [{self.id}:main] {line}")

    def call(self, method: str, path: str, raw: bytes) -> object:
        """Do what the call asks and return the body of the answer, None for 204."""
        if method == "GET" and not raw:
            return self.look(path)
        section, _, member = path[1:].partition("/")
        id_field = MEMBERS.get(section, "")
        name = f"/{section}/{{{id_field}}}" if id_field else path
        shape = CALLS.get(f"{method} {name}")
        if shape is None:
            raise RefusedError(f"Invalid request method and/or path, or not simulated: {method} {path}.")
        must(not id_field or member.replace("_", "").isalnum(), "The id has letters, digits and underscores only.")
        body = check_shape(shape, parse_json(raw))
        must(body.get(id_field, member) == member, "The id from the path does not match the id from the body.")
        self.change(name, body)
        return None

    def look(self, path: str) -> object:
        if path == "/":
            asked = self.faults.asked
            named, state = asked.get("report_id", self.id), asked.get("report_state", self.state)
            return {"id": named, "state": state, "vmm_version": VERSION, "app_name": "Firecracker"}
        if path == "/version":
            return {"firecracker_version": VERSION}
        if path == "/vm/config":
            return {**self.config, **{section: list(self.config[section].values()) for section in MEMBERS}}
        section = path[1:]
        must(section in ("machine-config", "balloon"), f"Invalid request method and/or path: GET {path}.")
        must(self.config[section], f"There is no {section}.")
        return self.config[section]

    def change(self, name: str, body: Body) -> None:
        match name:
            case "/faults":
                self.faults.replace(body)
                if "exit_code" in body and "exit_after_ms" not in body:
                    self.faults.end_soon(body["exit_code"])
            case "/actions":
                self.act(body["action_type"])
            case "/vm":
                must(self.state != NOT_STARTED, PRE_BOOT)
                self.state = PAUSED if body["state"] == "Paused" else RUNNING
            case _:
                self.configure("mmds-config" if name == "/mmds/config" else name.split("/")[1], body)

    def configure(self, section: str, body: Body) -> None:
        must(self.state == NOT_STARTED, POST_BOOT)
        self.prepare(section, body)
        if section in MEMBERS:
            self.config[section][body[MEMBERS[section]]] = body
        else:
            self.config[section] = body

    def prepare(self, section: str, body: Body) -> None:
        """Do what Firecracker does at once with such a configuration; refuse what it refuses."""
        match section:
            case "boot-source":
                must_open("kernel image", body["kernel_image_path"])
                must_open("initrd", body.get("initrd_path"))
            case "drives":
                self.prepare_drive(body)
            case "machine-config":
                self.check_machine(body)
            case "network-interfaces":
                must(body.get("mtu", MTUS[0]) in MTUS, f"The mtu is {MTUS[0]} to {MTUS[-1]}.")
            case "mmds-config":
                named = set(body["network_interfaces"])
                must(named and named <= self.config["network-interfaces"].keys(), "Name configured interfaces.")
            case "vsock":
                self.prepare_vsock(body)
            case "logger":
                must(body.get("level", "info").lower() in LEVELS, f"The level is one of: {', '.join(LEVELS)}.")
                self.log_fd = open_log("log", body["log_path"]) if "log_path" in body else self.log_fd
            case "metrics":
                must(self.metrics_fd is None, "The metrics are set up already.")
                self.metrics_fd = open_log("metrics file", body["metrics_path"])

    def prepare_drive(self, body: Body) -> None:
        must(("path_on_host" in body) != ("socket" in body), "A drive has either path_on_host or socket.")
        others = {**self.config["drives"], body["drive_id"]: {"is_root_device": False}}
        two_roots = body["is_root_device"] and any(each["is_root_device"] for each in others.values())
        must(not two_roots, "A root device exists already.")
        must_open("drive", body.get("path_on_host"), posix.O_RDONLY if body.get("is_read_only") else posix.O_RDWR)

    def check_machine(self, body: Body) -> None:
        cpus, memory = body["vcpu_count"], body["mem_size_mib"]
        must(cpus == 1 or (cpus in range(2, MAX_VCPUS + 1) and not (body.get("smt") and cpus % 2)), "Bad vcpu_count.")
        must(memory > 0 and not (body.get("huge_pages") == "2M" and memory % 2), "Bad mem_size_mib.")

    def prepare_vsock(self, body: Body) -> None:
        must(body["guest_cid"] >= MIN_GUEST_CID, f"guest_cid is at least {MIN_GUEST_CID}.")
        if self.vsock is not None:
            self.vsock.close()
            posix.unlink(self.config["vsock"]["uds_path"])
        try:
            self.vsock = listen(body["uds_path"])
        except OSError as error:
            raise RefusedError(f"Cannot bind the vsock socket: {error}") from error

    def act(self, action: str) -> None:
        if action == "InstanceStart":
            must(self.state == NOT_STARTED, POST_BOOT)
            self.start()
            return
        must(self.state != NOT_STARTED, PRE_BOOT)
        if action == "FlushMetrics":
            write_line(self.metrics_fd, to_json({"vmm": {"panic_count": 0}}))
        elif self.state == RUNNING:  # a paused guest does not see the keys
            self.log("the guest reboots")
            self.faults.end_soon(0)

    def start(self) -> None:
        must(self.config["boot-source"]["kernel_image_path"], "Cannot start the microVM without a boot source.")
        self.faults.hold_as_asked("boot_delay_ms")
        self.state = RUNNING
        self.log("the guest runs")
        write_line(STDOUT, f"{self.id} booted")

    def load(self, sections: object) -> None:
        """Take a whole configuration file and start; mmds-config names interfaces, so it comes last."""
        if not isinstance(sections, dict):
            raise RefusedError("The configuration must be an object.")
        for section, value in sorted(sections.items(), key=lambda item: item[0] == "mmds-config"):
            must(section in UNSET, f"Unknown section {section}.")
            for body in value if isinstance(value, list) else [value] if value else []:
                member = body.get(MEMBERS.get(section)) if isinstance(body, dict) else None
                path = f"{section}/{member}" if member else section.replace("mmds-config", "mmds/config")
                self.call("PUT", f"/{path}", to_json(body).encode())
        self.start()


class Link:
    """One connection of a client."""

    __slots__ = ("inbox", "is_deaf", "is_last", "outbox")

    def __init__(self) -> None:
        self.inbox, self.outbox = bytearray(), bytearray()
        self.is_last = False  # close it once everything is out
        self.is_deaf = False  # what comes is thrown away until the client hangs up, else it could not send to the end


def answer(status: object, body: object, connection: str = "keep-alive") -> bytes:
    head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n"
    if status == NO_CONTENT:
        return f"{head}\r\n".encode()
    content = to_json(body)
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode()


def take_request(inbox: bytearray, limit: int) -> tuple[str, str, bytes] | None:
    """Cut the first whole request off; RefusedError where it can never become one."""
    head_end = inbox.find(b"\r\n\r\n")
    if head_end < 0:
        must(len(inbox) <= MAX_HEAD_BYTES, "The head of the request is too long.")
        return None
    line, *fields = inbox[:head_end].decode("latin-1").split("\r\n")
    length = content_length(fields)
    must(length <= limit, f"A payload of {length} bytes is larger than the limit of {limit} bytes.")
    begin, stop = head_end + 4, head_end + 4 + length
    match line.split(" "):
        case [method, path, "HTTP/1.1" | "HTTP/1.0"] if len(inbox) >= stop:
            raw = bytes(inbox[begin:stop])
            del inbox[:stop]
            return method, path, raw
        case [_, _, "HTTP/1.1" | "HTTP/1.0"]:
            return None
        case _:
            raise RefusedError(f"Invalid request line: {line!r}.")


def content_length(fields: list[str]) -> int:
    length = "0"
    for field in fields:
        name, _, value = field.partition(":")
        must(name.lower() != "transfer-encoding", "Transfer-Encoding is not taken; send a Content-Length.")
        length = value.strip() if name.lower() == "content-length" else length
    must(length.isascii() and length.isdigit() and len(length) <= MAX_LENGTH_DIGITS, "Invalid Content-Length.")
    return int(length)


class Server:
    """The one API thread: few connections, one call after the other."""

    def __init__(self, vm: Vm, path: str, payload_limit: int) -> None:
        self.vm, self.payload_limit = vm, payload_limit
        self.links: dict[int, Link] = {}
        self.poller = epoll()
        self.listener = listen(path)
        self.door = self.listener.fileno()
        self.poller.register(self.door, EPOLLIN)

    def serve(self) -> NoReturn:
        while True:
            self.take_effect()
            events = self.poller.poll(self.vm.faults.seconds_left())
            # New connections last: one that was closed meanwhile makes room for one that waits.
            for fd, mask in sorted(events, key=lambda event: event[0] == self.door):
                if fd == self.door:
                    self.accept()
                elif mask & EPOLLOUT:
                    self.write(fd)
                else:
                    self.read(fd)

    def take_effect(self) -> None:
        self.vm.faults.take_effect()
        if self.vm.faults.asked.get("close_socket"):
            self.listener.close()

    def accept(self) -> None:
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined] # noqa: SLF001 # the public one is in `socket`
        except OSError:
            return  # the client is gone, or there are no more file descriptors
        posix.set_blocking(fd, False)
        self.links[fd] = Link()
        self.poller.register(fd, EPOLLIN)
        if len(self.links) > MAX_CONNECTIONS:
            self.links[fd].is_last = True
            self.send(fd, answer(UNAVAILABLE, {"error": "Too many open connections"}, "close"))

    def read(self, fd: int) -> None:
        try:
            received = posix.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.close(fd)
            return
        if not self.links[fd].is_deaf:
            self.links[fd].inbox += received
            self.serve_requests(fd)

    def serve_requests(self, fd: int) -> None:
        try:
            while fd in self.links and (request := take_request(self.links[fd].inbox, self.payload_limit)):
                self.send(fd, self.respond(*request))
                self.take_effect()
        except RefusedError as error:
            self.links[fd].is_deaf = True
            self.send(fd, answer(BAD_REQUEST, {"fault_message": str(error)}, "close"))

    def respond(self, method: str, path: str, raw: bytes) -> bytes:
        asked = self.vm.faults.asked
        if (method, path) != ("PUT", "/faults"):
            self.vm.faults.hold_as_asked("slow_ms")
            if "answer_status" in asked:
                return answer(asked["answer_status"], {"fault_message": "A fault asks for this status."})
        try:
            body = self.vm.call(method, path, raw)
        except RefusedError as error:
            return answer(BAD_REQUEST, {"fault_message": str(error)})
        return answer(NO_CONTENT if body is None else OK, body)

    def send(self, fd: int, data: bytes) -> None:
        self.links[fd].outbox += data
        self.write(fd)

    def write(self, fd: int) -> None:
        link = self.links[fd]
        try:
            while link.outbox:
                del link.outbox[: posix.write(fd, link.outbox)]
        except BlockingIOError:
            self.poller.modify(fd, EPOLLOUT)
            return
        except OSError:
            link.is_last = True
        if link.is_last:
            self.close(fd)
        else:
            self.poller.modify(fd, EPOLLIN)

    def close(self, fd: int) -> None:
        del self.links[fd]
        posix.close(fd)


def parse_flags(words: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    rest = iter(words[: words.index("--")] if "--" in words else words)
    for word in rest:
        must(word in VALUE_FLAGS or word in BARE_FLAGS, f"Found argument {word!r} which is not expected.")
        must(word not in given, f"The argument {word} was given more than once.")
        given[word] = next(rest, "--") if word in VALUE_FLAGS else ""
        must(not given[word].startswith("--"), f"The argument {word} needs a value.")
    must("--no-api" not in given or "--config-file" in given, "The argument --no-api needs --config-file.")
    must(not {"--no-seccomp", "--seccomp-filter"} <= given.keys(), "--no-seccomp excludes --seccomp-filter.")
    flags = {**DEFAULTS, **given}
    vm_id = flags["--id"]
    must(vm_id.replace("-", "").isalnum() and len(vm_id) <= MAX_ID_LENGTH, "An id is 1-64 letters, digits, hyphens.")
    must(flags["--http-api-max-payload-size"].isdigit(), "The --http-api-max-payload-size must be a number.")
    return flags


def main(words: list[str], faults_folder: str) -> NoReturn:
    if "--version" in words or "--help" in words:
        write_line(STDOUT, f"Firecracker v{VERSION} (stand-in)\n\n{' '.join((*VALUE_FLAGS, *BARE_FLAGS))}")
        raise SystemExit(0)
    try:
        flags = parse_flags(words)
    except RefusedError as error:
        end(BAD_ARGUMENTS, f"Arguments parsing error: {error}")
    try:
        vm, server = prepare(flags, faults_folder)
    except (RefusedError, OSError) as error:
        end(BAD_CONFIGURATION, str(error))
    if server:
        server.serve()
    while True:
        vm.faults.hold(FOREVER_S)


def prepare(flags: dict[str, str], faults_folder: str) -> tuple[Vm, Server | None]:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    vm = Vm(flags["--id"], Faults())
    if faults_folder:
        vm.faults.read(f"{faults_folder}/{vm.id}.json")
    must(flags.get("--level", "info").lower() in LEVELS, f"The --level is one of: {', '.join(LEVELS)}.")
    server = open_outside(vm, flags)
    if "--config-file" in flags:
        vm.load(parse_json(read_file(flags["--config-file"])))
    return vm, server


def open_outside(vm: Vm, flags: dict[str, str]) -> Server | None:
    try:
        if "--log-path" in flags:
            vm.configure("logger", {"log_path": flags["--log-path"]})
        if "--metrics-path" in flags:
            vm.configure("metrics", {"metrics_path": flags["--metrics-path"]})
        if "--no-api" in flags:
            return None
        return Server(vm, flags["--api-sock"], int(flags["--http-api-max-payload-size"]))
    except (OSError, RefusedError) as error:
        end(GENERIC_ERROR, f"Cannot open the log, the metrics file or the API socket: {error}")


if __name__ == "__main__":
    main(sys.argv[1:], posix.environ.get(b"STANDIN_FAULTS", b"").decode())
