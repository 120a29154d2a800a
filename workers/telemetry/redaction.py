"""Takes secrets out of log records: by their place (URLs, headers), by the name of their field, and word by word.

Works on values, before they are rendered: a rendered line has quotes and escapes of its own.
"""

import re
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from structlog.types import EventDict, WrappedLogger

HIDDEN = "***"
_SHORTEST = 6  # characters: anything shorter is a part of innocent words

_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|token|authori[sz]ation|basic[_-]?auth|api[_-]?key|private[_-]?key|cookie|credential",
    re.IGNORECASE,
)
# Up to the last "@" of a word: better to hide too much than half of a password with an "@" in it. What follows a colon
# is a port if it is all digits, and no password.
_LOGIN = re.compile(r"""://([^\s"'<>/@:]*)(:(?!\d{1,5}(?:[/?#]|$))\S*)?@""")
_OPTION = re.compile(r"([?&][^=&\s]*(?:password|secret|token|api[_-]?key)[^=&\s]*=)[^&#\s]*", re.IGNORECASE)
_HEADER = re.compile(r"""((?:authorization|cookie)["']?\s*[:=]\s*["']?)[^"'\r\n]+""", re.IGNORECASE)


class Redaction:
    """A structlog processor. Afterwards every value is text, a number, or a list or dict of these."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= _SHORTEST for form in _forms(secret)}
        # The longest first: one secret may be a part of another.
        self._secrets = sorted(forms, key=lambda form: (-len(form), form))

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {name: self._value(name, value) for name, value in event.items()}

    def text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        if "://" in text and "@" in text:
            text = _LOGIN.sub(_without_password, text)
        if "?" in text:
            text = _OPTION.sub(rf"\1{HIDDEN}", text)
        if ":" in text or "=" in text:
            text = _HEADER.sub(rf"\1{HIDDEN}", text)
        return text

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, bool | None):
            return value
        if _is_secret(name):
            return HIDDEN
        if isinstance(value, int | float):
            return value
        return self._inside(value)

    def _inside(self, value: Any) -> Any:
        match value:
            case str():
                return self.text(str(value))
            case Mapping():
                return {str(name): self._value(str(name), each) for name, each in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._value("", each) for each in value]
            case _:
                return self.text(str(value))


@lru_cache(maxsize=1024)  # names of fields are few
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _forms(secret: str) -> Iterator[str]:
    """List how a secret may be written: as it is, in a URL, and in the header of a basic login."""
    yield from (secret, quote(secret, safe="", errors="replace"))
    yield b64encode(secret.encode(errors="replace")).decode()
    plain = unquote(secret)
    if len(plain) >= _SHORTEST:
        yield plain


def _without_password(found: re.Match[str]) -> str:
    # A login without a colon may be a password put in the wrong place.
    return f"://{found[1]}:{HIDDEN}@" if found[2] else f"://{HIDDEN}@"


def passwords_in(url: str) -> set[str]:
    """Find the passwords of a URL, as they are written there."""
    login = url.partition("://")[2].rpartition("@")[0]
    options = (each.partition("=") for each in url.partition("?")[2].partition("#")[0].split("&"))
    named = {value for name, _, value in options if _is_secret(name)}
    return {each for each in {login.partition(":")[2] or login, *named} if each}


def header_values(variable: str) -> set[str]:
    """Find the values in a variable like OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, percent-encoded."""
    values = {unquote(each.partition("=")[2].strip()) for each in variable.split(",")}
    # Of "Basic abc" the second word is the secret.
    return {word for value in values for word in (value, value.rpartition(" ")[2]) if word}
