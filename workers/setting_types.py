"""Kinds of values a setting can have, each with a check against nonsense; which setting has which is in `settings`."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from workers.domain.exits import ExitAction
from workers.durations import Duration, between
from workers.redis_url import BROKER_SCHEMES, STORE_SCHEMES, RedisUrl, checked
from workers.specs import matching

_PREFIX = re.compile(r"[a-z0-9-]{1,16}")
_GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_DEVICE = re.compile(r"/dev/[A-Za-z0-9._+:@*?/-]{1,250}")
_PROGRAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")
_ADDRESS = re.compile(r"[A-Za-z0-9:._-]{1,253}")
# Below it, each signal has its own path; passwords go by OTEL_EXPORTER_OTLP_HEADERS.
_COLLECTOR_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,260}(/[A-Za-z0-9._/-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
EXIT_CAUSE = re.compile(r"(exit|signal) [0-9]{1,3}")
_PROVIDER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_BASIC_AUTH = re.compile(r"[^:\s,]+:[^\s,]+")


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic takes ValueError
    return value


def _absolute(value: object) -> Path:
    text = str(value) if isinstance(value, str | Path) else ""
    if not text.startswith("/") or not text.isprintable() or ".." in Path(text).parts:
        raise ValueError('must be an absolute path without ".."')
    return Path("/" + text.lstrip("/"))


def _split_roots(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.startswith("[") else value.split(":")
    except json.JSONDecodeError:
        raise ValueError('must be folders separated by ":", or a list') from None


def _split_devices(value: object) -> object:
    if not isinstance(value, str):
        return value
    # Names of devices may hold a colon (/dev/disk/by-path), so there is no list but JSON's.
    try:
        return json.loads(value) if value.startswith("[") else ([value] if value else [])
    except json.JSONDecodeError:
        raise ValueError('must be one path, or a list such as ["/dev/vg0/vm-*", "/dev/vg1/vm-*"]') from None


def _check_roots(roots: tuple[Path, ...]) -> tuple[Path, ...]:
    if not roots:
        raise ValueError("must name at least one folder")
    if Path("/") in roots:
        raise ValueError("must not contain /: it would let a spec use every file of the host")
    return roots


def _check_device(pattern: str) -> str:
    parts = pattern.split("/")[2:]
    if not _DEVICE.fullmatch(pattern) or {"", ".", ".."} & set(parts):
        raise ValueError("must be the path of block devices, such as /dev/vg0/vm-*")
    if parts[0].strip("*?") == "":
        raise ValueError("must say which devices: it would let a spec use every disk of the host")
    return pattern


def _check_program(text: str) -> str:
    if not _PROGRAM.fullmatch(text) and not (text.startswith("/") and text.isprintable()):
        raise ValueError("must be the name of a program, or its absolute path")
    return text


def _check_environment(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise ValueError(f"{name!r} cannot be set in an environment")
    return variables


def _check_exits(actions: dict[str, ExitAction]) -> dict[str, ExitAction]:
    for cause in actions:
        if not EXIT_CAUSE.fullmatch(cause):
            raise ValueError(f'{cause!r} must be like "exit 152" or "signal 9"')
    return actions


def _check_retention(value: timedelta) -> timedelta:
    if timedelta(0) < value < timedelta(hours=1):
        raise ValueError("must be 0s, for no limit by age, or at least 1h: hosts tell lost data by the events they saw")
    return value


def _check_basic_auth(value: SecretStr) -> SecretStr:
    if not _BASIC_AUTH.fullmatch(value.get_secret_value()):
        raise ValueError('must be "user:password", without spaces and commas')
    return value


StoreUrl = Annotated[RedisUrl, AfterValidator(checked(STORE_SCHEMES))]
BrokerUrl = Annotated[RedisUrl, AfterValidator(checked(BROKER_SCHEMES))]
CollectorUrl = Annotated[
    str, matching(_COLLECTOR_URL, 'must be like "http://collector:4318", without a password or a query')
]
GroupName = Annotated[str, matching(_GROUP, "must be the name of a group of this host, such as metald")]
Prefix = Annotated[str, matching(_PREFIX, "must be 1 to 16 of a-z, 0-9 and -")]
Address = Annotated[str, matching(_ADDRESS, "must be an IP address or a host name")]
BasicAuth = Annotated[SecretStr, AfterValidator(_check_basic_auth)]
Whole = Annotated[int, BeforeValidator(_no_switch)]
Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False)]
Lowered = BeforeValidator(lambda text: text.lower() if isinstance(text, str) else text)
Folder = Annotated[Path, BeforeValidator(_absolute)]
Roots = Annotated[tuple[Folder, ...], BeforeValidator(_split_roots), AfterValidator(_check_roots)]
Devices = Annotated[tuple[Annotated[str, AfterValidator(_check_device)], ...], BeforeValidator(_split_devices)]
Program = Annotated[str, AfterValidator(_check_program)]
Exits = Annotated[dict[str, ExitAction], AfterValidator(_check_exits)]
Environment = Annotated[dict[str, str], AfterValidator(_check_environment)]
ProviderName = Annotated[str, matching(_PROVIDER, 'must be like "package.module:Class"')]
ThirdPartyDrivers = dict[str, dict[str, Any]]
# Short enough for demonstrations and tests, long enough to be no mistake.
Interval = Annotated[Duration, between("10ms", "1d")]
Timeout = Annotated[Duration, between("10ms", "10m")]
Retention = Annotated[Duration, between("0s", "3650d"), AfterValidator(_check_retention)]
