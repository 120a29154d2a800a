"""Kinds of values a setting can have, each with a check against nonsense; which setting has which is in `settings`."""

import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from workers.domain.exits import ExitAction
from workers.durations import Duration, between
from workers.redis_url import BROKER_SCHEMES, STORE_SCHEMES, RedisUrl, checked
from workers.specs import matching

_PREFIX = re.compile(r"[a-z0-9-]{1,16}")
_PROGRAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}")
_ADDRESS = re.compile(r"[A-Za-z0-9:._-]{1,253}")
# Below it, each signal has its own path; passwords go by OTEL_EXPORTER_OTLP_HEADERS.
_COLLECTOR_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,260}(/[A-Za-z0-9._/-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_EXIT_CAUSE = re.compile(r"(exit|signal) [0-9]{1,3}")
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


def _check_roots(roots: tuple[Path, ...]) -> tuple[Path, ...]:
    if not roots:
        raise ValueError("must name at least one folder")
    if Path("/") in roots:
        raise ValueError("must not contain /: it would let a spec use every file of the host")
    return roots


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
        if not _EXIT_CAUSE.fullmatch(cause):
            raise ValueError(f'{cause!r} must be like "exit 152" or "signal 9"')
    return actions


def _check_basic_auth(value: SecretStr) -> SecretStr:
    if not _BASIC_AUTH.fullmatch(value.get_secret_value()):
        raise ValueError('must be "user:password", without spaces and commas')
    return value


StoreUrl = Annotated[RedisUrl, AfterValidator(checked(STORE_SCHEMES))]
BrokerUrl = Annotated[RedisUrl, AfterValidator(checked(BROKER_SCHEMES))]
CollectorUrl = Annotated[
    str, matching(_COLLECTOR_URL, 'must be like "http://collector:4318", without a password or a query')
]
Prefix = Annotated[str, matching(_PREFIX, "must be 1 to 16 of a-z, 0-9 and -")]
Address = Annotated[str, matching(_ADDRESS, "must be an IP address or a host name")]
BasicAuth = Annotated[SecretStr, AfterValidator(_check_basic_auth)]
Whole = Annotated[int, BeforeValidator(_no_switch)]
Number = Annotated[float, BeforeValidator(_no_switch), Field(allow_inf_nan=False)]
Lowered = BeforeValidator(lambda text: text.lower() if isinstance(text, str) else text)
Folder = Annotated[Path, BeforeValidator(_absolute)]
Roots = Annotated[tuple[Folder, ...], BeforeValidator(_split_roots), AfterValidator(_check_roots)]
Program = Annotated[str, AfterValidator(_check_program)]
Exits = Annotated[dict[str, ExitAction], AfterValidator(_check_exits)]
Environment = Annotated[dict[str, str], AfterValidator(_check_environment)]
# Short enough for demonstrations and tests, long enough to be no mistake.
Interval = Annotated[Duration, between("10ms", "1d")]
Timeout = Annotated[Duration, between("10ms", "10m")]
