"""Addresses of Redis databases: which are usable, which two are the same, how to show them without secrets, and TLS."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pydantic import SecretStr

STORE_SCHEMES = ("redis://", "rediss://", "unix://")  # what redis-py reads
BROKER_SCHEMES = ("redis://", "rediss://", "redis+socket://")  # what kombu reads
_DEFAULT_PORT = 6379
_LOOPBACK = frozenset({"", "localhost", "::1", "0.0.0.0", "::"})  # noqa: S104 - as a target these mean this host, too
# The query option that names the database, by scheme; the client libraries ignore or refuse any other.
_DB_OPTION = {"unix": "db", "redis+socket": "virtual_host"}
_TLS_SCHEME = "rediss"
_TLS_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_TLS_FILES, "ssl_password", "ssl_cert_reqs", "ssl_check_hostname")  # what both clients read
_TLS_REQUIREMENTS = ("required", "optional", "none")
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&#]*", re.IGNORECASE)


def redacted(url: str) -> str:
    """Show a URL without its password: `redis://user:***@host:6379/0`."""
    scheme, separator, rest = url.partition("://")
    if not separator or "@" in scheme:
        scheme, separator, rest = "", "", url
    login, at, where = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    # A login without a colon may be a password put in the wrong place.
    hidden = f"{user if colon else ''}{colon}***@" if at else ""
    return _SECRET_OPTION.sub(r"\1***", f"{scheme}{separator}{hidden}{where}")


class RedisUrl(SecretStr):
    """A URL that shows itself without its password; `get_secret_value()` gives all of it."""

    def _display(self) -> str:
        return redacted(self.get_secret_value()) if self.get_secret_value() else ""


def checked(schemes: tuple[str, ...]) -> Callable[[RedisUrl], RedisUrl]:
    """Return a check that a URL has one of the schemes and names a database in the way its client reads."""

    def check(url: RedisUrl) -> RedisUrl:
        text = url.get_secret_value()
        if not text.startswith(schemes):
            raise ValueError(f"must begin with {', '.join(schemes[:-1])} or {schemes[-1]}")
        try:
            parts = urlsplit(text)
            _ = parts.port
        except ValueError:
            raise ValueError("must be like redis://user:password@host:6379/0") from None
        _check_database(parts)
        _check_tls(parts)
        return url

    return check


def _check_database(parts: SplitResult) -> None:
    option = _DB_OPTION.get(parts.scheme)
    query = parse_qs(parts.query)
    if option is None and not re.fullmatch(r"/?|/[0-9]{1,4}", parts.path):
        raise ValueError("must end in the number of a database, such as /0")
    if option and not parts.path.startswith("/"):
        raise ValueError(f"must be like {parts.scheme}:///run/redis.sock?{option}=0")
    if option and not re.fullmatch(r"[0-9]{1,4}", query.get(option, ["0"])[0]):
        raise ValueError(f"must name the database by its number, such as ?{option}=0")
    misplaced = {"db", "virtual_host"} & query.keys() - {option}
    if misplaced:
        where = f"?{option}=0" if option else "/0 at the end"
        raise ValueError(f"must name the database by {where}: {misplaced.pop()} is not read here")


def _check_tls(parts: SplitResult) -> None:
    """What is wrong here would otherwise be an exception of the client library, or no check of the server at all."""
    query = parse_qs(parts.query)
    for option in (each for each in query if each.startswith("ssl_")):
        if parts.scheme != _TLS_SCHEME:
            raise ValueError(f"must begin with {_TLS_SCHEME}:// to have {option}")
        if option not in _TLS_OPTIONS:
            raise ValueError(f"has an unknown option {option}: there are {', '.join(_TLS_OPTIONS)}")
    if (asked := query.get("ssl_cert_reqs", ["required"])[0]) not in _TLS_REQUIREMENTS:
        raise ValueError(f"must have ssl_cert_reqs={' or '.join(_TLS_REQUIREMENTS)}, not {asked}")
    for option in _TLS_FILES:
        path = query.get(option, [""])[0]
        if path and not (Path(path).is_absolute() and os.access(path, os.R_OK)):
            raise ValueError(f"must name in {option} the absolute path of what this user can read, not {path}")


def verified(url: str) -> str:
    """Demand the server's certificate also from kombu: where no option is given, it would take any without a word."""
    parts = urlsplit(url)
    if parts.scheme != _TLS_SCHEME or "ssl_cert_reqs" in parse_qs(parts.query):
        return url
    return parts._replace(query=f"{parts.query}{'&' if parts.query else ''}ssl_cert_reqs=required").geturl()


def same_database(one: RedisUrl, other: RedisUrl) -> bool:
    """Tell whether two checked URLs lead to the same database, however they are written."""
    return _database(one) == _database(other)


def _database(url: RedisUrl) -> tuple[str, int, int]:
    parts = urlsplit(url.get_secret_value())
    option = _DB_OPTION.get(parts.scheme)
    if option:
        return unquote(parts.path), 0, int(parse_qs(parts.query).get(option, ["0"])[0])
    host = (parts.hostname or "").lower()
    return "127.0.0.1" if host in _LOOPBACK else host, parts.port or _DEFAULT_PORT, int(parts.path.strip("/") or 0)
