"""All settings: names, defaults, limits, and which of them contradict each other.

Values come from defaults, over them a TOML file, over that the environment; each keeps its source, so that every
complaint and `reliability config` can say where it was set. What the values mean is left to the parts that get them:
they are handed single values or a policy, never `Settings`.
"""

import json
import os
import pwd
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from workers.complaints import Complaint, Loc, SeveralComplaints, complaints_in, place, shown
from workers.crashpoints import CRASH_FILE_ENV
from workers.domain.exits import ExitAction
from workers.domain.strays import StrayPolicy
from workers.durations import Duration, between, format_duration
from workers.redis_url import RedisUrl, same_database
from workers.setting_types import (
    Address,
    BasicAuth,
    BrokerUrl,
    CollectorUrl,
    Devices,
    Environment,
    Exits,
    Folder,
    GroupName,
    Interval,
    Lowered,
    Number,
    Prefix,
    Program,
    ProviderName,
    Retention,
    Roots,
    StoreUrl,
    ThirdPartyDrivers,
    Timeout,
    Whole,
)
from workers.specs import HostId

ENV_PREFIX = "RELIABILITY_"
CONFIG_ENV = "RELIABILITY_CONFIG"
# Read elsewhere: the settings file, and what the tests and the demo look for.
_NO_SETTINGS = frozenset({CONFIG_ENV, CRASH_FILE_ENV, "RELIABILITY_TESTS", "RELIABILITY_GUEST_KERNEL"})
LOCAL_FILE = "reliability.toml"
SYSTEM_FILE = Path("/etc/metald-reliability/reliability.toml")
_NESTED = "__"

JITTER_MAX = 0.1  # of a retry's wait; it only adds, see domain.backoff
BOOKKEEPING = timedelta(seconds=10)  # of an attempt, beside stopping and starting: verify, commit, Redis timeouts
CLOCK_SKEW = timedelta(seconds=30)  # between the clocks of two workers
_LEASE_SLACK = timedelta(seconds=5)  # for a renewal that comes late

STANDIN = "standin"  # as a driver's binary: the project's own stand-in VMM

PROFILES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "fast": {"health_check.interval": "5s", "health_check.timeout": "2s", "health_check.failing_interval": "500ms"},
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Redis(_Section):
    url: StoreUrl = RedisUrl("redis://127.0.0.1:6379/0")
    prefix: Prefix = "rel"
    timeout: Timeout = timedelta(seconds=3)
    connect_timeout: Timeout = timedelta(seconds=2)
    # The schema version that records are written in; both are read. The older one while a way back is wanted.
    record_version: Annotated[Whole, Field(ge=1, le=2)] = 2


class Broker(_Section):
    url: BrokerUrl = RedisUrl("redis://127.0.0.1:6379/1")
    polling_interval: Annotated[Duration, between("10ms", "1m")] = timedelta(seconds=1)


class HealthCheck(_Section):
    enabled: bool = True
    interval: Interval = timedelta(seconds=30)
    timeout: Timeout = timedelta(seconds=5)
    failure_threshold: Annotated[Whole, Field(ge=1, le=100)] = 3
    recovery_threshold: Annotated[Whole, Field(ge=1, le=100)] = 2
    failing_interval: Interval = timedelta(seconds=2)
    start_period: Annotated[Duration, between("0s", "1d")] = timedelta(seconds=60)
    batch_size: Annotated[Whole, Field(ge=1, le=5000)] = 500


class Recovery(_Section):
    enabled: bool = True
    max_retries: Annotated[Whole, Field(ge=1, le=100)] = 3
    retry_interval: Interval = timedelta(seconds=30)
    backoff_factor: Annotated[Number, Field(ge=1, le=100)] = 2.0
    max_retry_interval: Interval = timedelta(minutes=5)
    recovery_timeout: Interval = timedelta(minutes=10)
    detection_interval: Interval = timedelta(seconds=60)
    stable_period: Interval = timedelta(minutes=10)
    per_host: Annotated[Whole, Field(ge=1, le=1000)] = 4
    per_fleet: Annotated[Whole, Field(ge=1, le=100_000)] = 64
    lease: Annotated[Duration, between("1s", "1h")] = timedelta(seconds=30)
    stop_grace: Timeout = timedelta(seconds=5)
    start_timeout: Timeout = timedelta(seconds=30)
    # A slot is kept for so long for the VM that was called for it; it comes at once unless its message got lost.
    call_timeout: Timeout = timedelta(seconds=10)
    # Restarts in a row, each within stable_period, for ends that are no failure (the guest rebooted).
    restart_burst: Annotated[Whole, Field(ge=0, le=1000)] = 5


class Breaker(_Section):
    """Circuit breakers of images, drivers, hosts and the fleet."""

    enabled: bool = True
    window: Interval = timedelta(minutes=2)
    min_calls: Annotated[Whole, Field(ge=1, le=10_000)] = 5
    failure_rate: Annotated[Number, Field(ge=0.01, le=1)] = 0.5
    cooldown: Interval = timedelta(seconds=30)
    max_cooldown: Interval = timedelta(minutes=10)
    probes: Annotated[Whole, Field(ge=1, le=100)] = 1
    successes: Annotated[Whole, Field(ge=1, le=100)] = 2


class Storm(_Section):
    """When so many VMs are lost at once that recovery starts slowly."""

    window: Interval = timedelta(minutes=1)
    at_least: Annotated[Whole, Field(ge=1, le=100_000)] = 5
    host_share: Annotated[Number, Field(ge=0.01, le=1)] = 0.3
    fleet_share: Annotated[Number, Field(ge=0.01, le=1)] = 0.1


class Strays(_Section):
    """VMMs that no record names, and what VMs at rest leave behind."""

    policy: StrayPolicy = StrayPolicy.REPORT
    min_age: Interval = timedelta(minutes=5)
    reaped_per_hour: Annotated[Whole, Field(ge=1, le=100_000)] = 10
    leftovers_after: Annotated[Duration, between("10ms", "365d")] = timedelta(hours=24)


class Worker(_Section):
    concurrency: Annotated[Whole, Field(ge=2, le=1024)] = 8
    host_lease: Annotated[Duration, between("1s", "1h")] = timedelta(seconds=15)


class Beat(_Section):
    max_interval: Annotated[Duration, between("10ms", "1m")] = timedelta(milliseconds=250)
    claim_limit: Annotated[Whole, Field(ge=1, le=100_000)] = 500


class Events(_Section):
    max_length: Annotated[Whole, Field(ge=100, le=100_000_000)] = 100_000
    # 0s: only the length counts.
    max_age: Retention = timedelta(0)


class Hooks(_Section):
    """What VM managers tell this host. `group`: who may do so beside root and the worker's own account.

    `http`: also over HTTP, on a Unix socket of the worker: `hooks.sock` in state_dir, where no other is set.
    """

    group: GroupName | None = None
    http: bool = True
    socket: Folder | None = None


class Log(_Section):
    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], Lowered] = "info"
    format: Annotated[Literal["auto", "logfmt", "json", "console"], Lowered] = "auto"


class Telemetry(_Section):
    """What each worker and beat serves over HTTP, and where metrics and traces are pushed to.

    Port 0: any free one. Without `otlp_endpoint` the usual OTEL_... variables decide whether anything is pushed.
    """

    endpoints: bool = True
    address: Address = "127.0.0.1"
    worker_port: Annotated[Whole, Field(ge=0, le=65535)] = 9808
    beat_port: Annotated[Whole, Field(ge=0, le=65535)] = 9809
    per_vm: bool = False
    otlp_endpoint: CollectorUrl | None = None
    # How long what should go on may stand still, beyond its own interval, before /healthz turns red.
    stalled_after: Annotated[Duration, between("1s", "1h")] = timedelta(seconds=30)


class Flower(_Section):
    address: Address = "127.0.0.1"
    port: Annotated[Whole, Field(ge=1, le=65535)] = 5555
    basic_auth: BasicAuth | None = None
    names: tuple[Address, ...] = ()


class Registry(_Section):
    """Where the VM manager keeps its VMs, for reconciliation to compare with: a class, a folder, or both."""

    provider: ProviderName | None = None
    folder: Folder | None = None
    # At most so often, in a reconciliation; and how long the list may take.
    interval: Interval = timedelta(minutes=5)
    timeout: Timeout = timedelta(seconds=10)
    # Forget VMs that are gone from it (their VMMs run on), instead of only reporting them.
    forget_missing: bool = False


class FirecrackerDriver(_Section):
    binary: Program = "firecracker"  # or STANDIN
    environment: Environment = Field(default_factory=dict, repr=False)
    exits: Exits = Field(default_factory=dict)


class QemuDriver(_Section):
    binary: Program = "qemu-system-x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    environment: Environment = Field(default_factory=dict, repr=False)
    exits: Exits = Field(default_factory=dict)


class Drivers(_Section):
    firecracker: FirecrackerDriver = FirecrackerDriver()
    qemu: QemuDriver = QemuDriver()
    # Tables by the names of drivers that other packages bring; what may stand in one is up to the driver.
    third_party: ThirdPartyDrivers = Field(default_factory=dict, repr=False)


class Settings(_Section):
    """Every setting. `load` is the way to get one: it knows the host, the profiles and the sources."""

    host: HostId
    state_dir: Folder
    enabled: bool = True
    image_roots: Roots = Field(default_factory=lambda so_far: (so_far["state_dir"] / "images",))
    # Block devices that disks may be, beside files below image_roots. A * stays within one name.
    image_devices: Devices = ()
    # A cgroup v2 folder that VMMs are moved to, so that a service manager which ends the worker's cgroup spares them.
    vm_cgroup: Folder | None = None
    profile: Literal["default", "fast"] = "default"
    reconcile_interval: Interval = timedelta(minutes=5)
    allow_data_loss: bool = False
    redis: Redis = Redis()
    broker: Broker = Broker()
    health_check: HealthCheck = HealthCheck()
    recovery: Recovery = Recovery()
    breaker: Breaker = Breaker()
    storm: Storm = Storm()
    strays: Strays = Strays()
    worker: Worker = Worker()
    beat: Beat = Beat()
    events: Events = Events()
    hooks: Hooks = Hooks()
    log: Log = Log()
    telemetry: Telemetry = Telemetry()
    flower: Flower = Flower()
    drivers: Drivers = Drivers()
    registry: Registry = Registry()

    @property
    def hooks_socket(self) -> Path:
        return self.hooks.socket or self.state_dir / "hooks.sock"

    @property
    def attempt_deadline(self) -> timedelta:
        """The longest one recovery attempt may take: stop, kill, start, and the bookkeeping around."""
        return 2 * self.recovery.stop_grace + self.recovery.start_timeout + BOOKKEEPING

    @property
    def visibility_timeout(self) -> timedelta:
        """How long the broker waits for an acknowledgement: any shorter, and a waiting retry would run twice."""
        longest_countdown = self.recovery.max_retry_interval * (1 + JITTER_MAX)
        return longest_countdown + self.attempt_deadline + CLOCK_SKEW

    @model_validator(mode="after")
    def _do_not_contradict(self) -> Self:
        found = [*(each for order in _ORDERS for each in order.broken_by(self)), *_other_contradictions(self)]
        if found:
            raise SeveralComplaints(found)
        return self


@dataclass(frozen=True, slots=True)
class _Order:
    """Two settings of which the first may not exceed, or not even reach, the second."""

    small: str
    large: str
    why: str
    may_equal: bool = True

    def broken_by(self, settings: Settings) -> Iterator[Complaint]:
        small, large = value_of(settings, self.small), value_of(settings, self.large)
        if small < large or (self.may_equal and small == large):
            return
        relation = "at most" if self.may_equal else "less than"
        text = f"must be {relation} {self.large}, which is {text_of(large)}: {self.why}; lower it or raise {self.large}"
        yield Complaint(tuple(self.small.split(".")), text, text_of(small))


_ORDERS = (
    _Order("health_check.timeout", "health_check.interval", "a check has to end before the next one", may_equal=False),
    _Order("health_check.failing_interval", "health_check.interval", "a VM in doubt is looked at sooner, not later"),
    _Order("recovery.retry_interval", "recovery.max_retry_interval", "the first wait is the shortest"),
    _Order("recovery.detection_interval", "recovery.recovery_timeout", "else a loss outlasts the time to mend it"),
    _Order(
        "recovery.start_timeout", "recovery.recovery_timeout", "one start has to fit into the time for all attempts"
    ),
    _Order("recovery.per_host", "recovery.per_fleet", "the fleet's limit holds for every host"),
    _Order("recovery.per_host", "worker.concurrency", "some threads must stay free for checks", may_equal=False),
    _Order("breaker.cooldown", "breaker.max_cooldown", "the first cool-down is the shortest"),
    _Order("breaker.probes", "recovery.per_fleet", "a probe needs a slot"),
)


def _other_contradictions(settings: Settings) -> Iterator[Complaint]:
    recovery = settings.recovery
    needed = 2 * recovery.stop_grace + min(_LEASE_SLACK, recovery.lease / 2)
    if recovery.lease <= needed:
        text = (
            f"must be more than {format_duration(needed)}: the lease has to outlast stopping and killing a VMM, twice "
            f"recovery.stop_grace ({format_duration(recovery.stop_grace)}), and one late renewal; "
            "raise it or lower recovery.stop_grace"
        )
        yield Complaint(("recovery", "lease"), text, format_duration(recovery.lease))
    if same_database(settings.redis.url, settings.broker.url):
        text = (
            f"must not be the database of redis.url ({settings.redis.url}): emptying the queues would wipe "
            "the records of all VMs; use another number, such as /1"
        )
        yield Complaint(("broker", "url"), text)


def value_of(settings: Settings, key: str) -> Any:
    return reduce(getattr, key.split("."), settings)


def text_of(value: object) -> str:
    """Write a value for people, secrets left out."""
    match value:
        case None:
            text = "none"
        case timedelta():
            text = format_duration(value)
        case bool():
            text = str(value).lower()
        case tuple():
            text = ", ".join(map(str, value))
        case dict() if all(isinstance(each, ExitAction) for each in value.values()):
            text = ", ".join(f"{cause}={action}" for cause, action in value.items()) or "none"
        case dict():  # environments: names help, values may be anything
            text = ", ".join(f"{name}=***" for name in value) or "none"
        case SecretStr() if not isinstance(value, RedisUrl):
            text = "***"
        case _:
            text = str(value)
    return text


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


KEYS = tuple(_keys(Settings))
_SECRET_MAX = 64 * 1024  # bytes: so large is no password, but a wrong file
_IN_FILES = ("redis.url", "broker.url", "flower.basic_auth")  # may stand in a file that the environment names
_FILE_KEYS = {f"{key}_file": key for key in _IN_FILES}
_SECRET_KEYS = (*_IN_FILES, *(key for key in KEYS if key.endswith((".environment", ".third_party"))))


class SettingsError(ValueError):
    """Settings that cannot be used; `lines` say which, why, and where each was set."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class Loaded:
    """`sources` says for every key where its value comes from."""

    settings: Settings
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    value_text: str
    source: str


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str


_Layer = dict[Loc, _Given]


def load(environ: Mapping[str, str], cwd: Path) -> Loaded:
    """Read settings from the environment and the first settings file; raises SettingsError with all that is wrong."""
    chosen = _from_file(environ, cwd) | _from_environment(environ)
    given = _from_host(environ) | _from_profile(chosen) | chosen
    try:
        settings = Settings.model_validate(_nested(given))
    except ValidationError as error:
        # The cause is left out: it would show the values, secrets among them, in every traceback.
        raise SettingsError([_line(each, given) for each in complaints_in(error, Settings)]) from None
    return Loaded(settings, {key: _source(tuple(key.split(".")), given) for key in KEYS})


def effective(loaded: Loaded) -> list[Setting]:
    """List every setting as it is in force, without secrets."""
    return [Setting(key, text_of(value_of(loaded.settings, key)), source) for key, source in loaded.sources.items()]


def default_state_dir(environ: Mapping[str, str], uid: int) -> Path:
    if uid == 0:
        return Path("/var/lib/metald-reliability")
    base = environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # the specification says to ignore a relative one
        base = (environ.get("HOME") or pwd.getpwuid(uid).pw_dir) + "/.local/state"
    return Path(base) / "metald-reliability"


def _from_host(environ: Mapping[str, str]) -> _Layer:
    name = socket.gethostname().partition(".")[0].lower()
    layer: _Layer = {("host",): _Given(name, "default")}
    with suppress(KeyError):  # an account without HOME and without an entry in passwd has to say it
        layer["state_dir",] = _Given(default_state_dir(environ, os.geteuid()), "default")
    return layer


def _from_profile(chosen: _Layer) -> _Layer:
    profile = chosen.get(("profile",))
    name = profile.value if profile else "default"
    values = PROFILES.get(name, {}) if isinstance(name, str) else {}
    return {tuple(key.split(".")): _Given(value, f"profile {name}") for key, value in values.items()}


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    files: dict[str, Loc] = {}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in _NO_SETTINGS:
            path = _env_path(name.removeprefix(ENV_PREFIX).split(_NESTED))
            if place(path) in _FILE_KEYS:
                files[name] = tuple(_FILE_KEYS[place(path)].split("."))
            else:
                layer |= _flat(path, _decoded(environ[name]), f"env {name}")
    return layer | _from_secret_files(files, layer, environ)


def _from_secret_files(files: dict[str, Loc], layer: _Layer, environ: Mapping[str, str]) -> _Layer:
    found: _Layer = {}
    wrong: list[str] = []
    for name, loc in files.items():
        if loc in layer:
            wrong.append(f"{place(loc)}: is set by {layer[loc].source} and by env {name}: unset one of them")
            continue
        try:
            found[loc] = _Given(_secret_in(environ[name]), f"file {environ[name]} ({name})")
        except OSError as error:
            wrong.append(f"{place(loc)}: {environ[name]} cannot be read: {error.strerror} (from env {name})")
        except ValueError as error:  # never quotes the content
            wrong.append(f"{place(loc)}: {error} (from env {name})")
    if wrong:
        raise SettingsError(wrong)
    return found


def _secret_in(path: str) -> str:
    """Read a file of one line, such as a credential of systemd or a secret of Docker."""
    if not path.startswith("/"):  # not shown: it may be the secret itself
        raise ValueError("must be in a file that is named by its absolute path")
    with Path(path).open("rb") as file:
        content = file.read(_SECRET_MAX + 1)
    if len(content) > _SECRET_MAX:
        raise ValueError(f"{path} is larger than {_SECRET_MAX // 1024} KiB")
    text = content.decode(errors="replace").removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError(f"{path} is empty")
    if not text.isprintable() or "\ufffd" in text:
        raise ValueError(f"{path} must hold one line of text in UTF-8, and nothing else")
    return text


def _env_path(parts: list[str]) -> Loc:
    """Names are lower-case, but the variables set for a VMM keep their case, and may hold `__` themselves."""
    lowered = [part.lower() for part in parts]
    if "environment" in lowered[:-1]:
        own = lowered.index("environment") + 1
        return (*lowered[:own], _NESTED.join(parts[own:]))
    return tuple(lowered)


def _decoded(text: str) -> object:
    """Take a JSON object for a whole table; all else is text."""
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def _from_file(environ: Mapping[str, str], cwd: Path) -> _Layer:
    asked = environ.get(CONFIG_ENV)
    if asked == "":
        raise SettingsError([f"{CONFIG_ENV} is empty: give the path of a settings file, or unset it"])
    for path in [cwd / asked] if asked else [cwd / LOCAL_FILE, SYSTEM_FILE]:
        try:
            return _flat((), tomllib.loads(path.read_text("utf-8")), f"file {path}")
        except FileNotFoundError as error:
            if asked:
                raise SettingsError([f"{path}: there is no such file (from env {CONFIG_ENV})"]) from error
        except OSError as error:
            raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from error
        except ValueError as error:  # also what is not UTF-8
            raise SettingsError([f"{path}: is not TOML: {error}"]) from error
    return {}


def _flat(path: Loc, value: object, source: str) -> _Layer:
    if not isinstance(value, dict) or not value:
        return {path: _Given(value, source)} if path else {}
    return {loc: given for name, each in value.items() for loc, given in _flat((*path, name), each, source).items()}


def _nested(given: _Layer) -> dict[str | int, Any]:
    tree: dict[str | int, Any] = {}
    for path in sorted(given, key=len):
        *above, name = path
        node: Any = tree
        for part in above:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):  # else a value stands where a table belongs, which is an error of its own
            value = given[path].value
            node[name] = dict(value) if isinstance(value, dict) else value
    return tree


def _source(loc: Loc, given: _Layer) -> str:
    """Find who set a value: itself, something inside it, or what it is a part of."""
    inside = [path for path in given if path[: len(loc)] == loc]
    around = [loc[:length] for length in range(len(loc), 0, -1) if loc[:length] in given]
    found = [*around[:1], *inside[-1:]]
    return given[found[0]].source if found else "default"


def _line(complaint: Complaint, given: _Layer) -> str:
    key = place(complaint.loc)
    source = _source(complaint.loc, given)
    text = _suggestion(key, source) or complaint.text if complaint.unknown else complaint.text
    secret = any(key.startswith(each) or each.startswith(key) for each in _SECRET_KEYS)
    got = None if secret else _bare(complaint.value)
    return f"{key}: {text} ({f'got {got}, ' if got else ''}from {source})"


def _bare(value: object) -> str | None:
    """Values from the environment are all text: quotes would only mislead."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:@+-]{1,60}", value) else shown(value)


def _suggestion(key: str, source: str) -> str | None:
    """Name the setting that was probably meant, also when it stands in another section."""
    leaf = key.rpartition(".")[2]
    same_name = [each for each in KEYS if each.rpartition(".")[2] == leaf]
    meant = same_name or get_close_matches(key, [*KEYS, *Settings.model_fields], n=1)
    if not meant:
        return None
    names = [f"{each} ({ENV_PREFIX}{each.upper().replace('.', _NESTED)})" for each in meant]
    return f"is unknown; did you mean {' or '.join(names if source.startswith('env ') else meant)}?"
