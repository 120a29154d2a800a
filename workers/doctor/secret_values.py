"""Which texts must not leave this host: every secret of the settings, of the environment, and of the VMs' specs."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from workers.settings import Settings
from workers.specs import VmSpec
from workers.telemetry.redaction import header_values, passwords_in

_NAME = re.compile(r"passw|secret|token|basic_?auth|api_?key|private_?key|cookie|credential", re.IGNORECASE)
_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS")
_FILE = "_FILE"  # of a variable that names the file with the secret


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> set[str]:
    found = {
        value for url in (settings.redis.url, settings.broker.url) for value in passwords_in(url.get_secret_value())
    }
    if settings.flower.basic_auth is not None:
        login = settings.flower.basic_auth.get_secret_value()
        found |= {login, login.partition(":")[2]}
    # What a driver's VMMs get may be anything.
    found |= set(_texts_in_tables(settings.drivers.model_dump(mode="json")))
    return found | set(_in_environment(environ))


def _texts_in_tables(value: object, *, inside: bool = False) -> Iterator[str]:
    """Every value below `environment`, and below the tables of drivers that are not ours."""
    match value:
        case Mapping():
            for name, each in value.items():
                yield from _texts_in_tables(each, inside=inside or name in ("environment", "third_party"))
        case list():
            for each in value:
                yield from _texts_in_tables(each, inside=inside)
        case str() if inside:
            yield value


def _in_environment(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if _HEADERS.fullmatch(name):
            yield from header_values(value)
        elif _NAME.search(name) and not name.endswith(_FILE):
            yield value
        elif "://" in value:
            yield from passwords_in(value)


def secrets_of_spec(spec: VmSpec) -> set[str]:
    """The kernel command line as a whole, which guests print when they boot, and what in it is called a secret."""
    line: Any = getattr(spec, "kernel_args", None)
    if not isinstance(line, str) or not line:
        return set()
    words = (word.partition("=") for word in line.split())
    return {line} | {value.strip("\"'") for name, _, value in words if _NAME.search(name)}
