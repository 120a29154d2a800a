"""Durations as people write them (`30s`, `250ms`, `1h30m`); which lengths make sense is said by each field."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

# Microseconds, the resolution of timedelta.
_UNITS_US = {
    "d": 86_400_000_000,
    "h": 3_600_000_000,
    "m": 60_000_000,
    "s": 1_000_000,
    "ms": 1_000,
    "us": 1,
}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_PATTERN = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in _UNITS_US))
_HINT = "write it with a unit, such as 30s, 5m, 250ms or 1h30m"


def parse_duration(text: str) -> timedelta:
    """Read a duration: numbers with units d, h, m, s, ms, us, each at most once and from large to small."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None or match.lastindex is None:
        raise ValueError(f"must be a duration: {_HINT}")
    parts = zip(match.groups(), _UNITS_US.values(), strict=True)
    exact = sum((Decimal(number) * unit for number, unit in parts if number), Decimal(0))
    if exact != int(exact):
        raise ValueError("must be a duration in steps of 1us: leave out the finer digits")
    try:
        return timedelta(microseconds=int(exact))
    except OverflowError:
        raise ValueError(f"must be a duration of at most {format_duration(timedelta.max)}") from None


def format_duration(value: timedelta) -> str:
    """Write a duration in the shortest usual form; `parse_duration` gives the same value back."""
    micros = value // timedelta(microseconds=1)
    if micros < 0:
        return f"-{format_duration(-value)}"  # no setting may be negative, but a log line must not fail over one
    if 0 < micros < _UNITS_US["s"]:
        unit = "us" if micros % _UNITS_US["ms"] else "ms"
        return f"{micros // _UNITS_US[unit]}{unit}"
    text = ""
    for unit in ("d", "h", "m"):
        count, micros = divmod(micros, _UNITS_US[unit])
        text += f"{count}{unit}" if count else ""
    seconds = f"{Decimal(micros) / _UNITS_US['s']:f}s"
    return text + seconds if micros or not text else text


def _accept(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(f"must be a duration: {_HINT}")


Duration = Annotated[timedelta, BeforeValidator(_accept), PlainSerializer(format_duration, return_type=str)]


def between(low: str, high: str) -> AfterValidator:
    """Return a check, for use in `Annotated[Duration, …]`, that refuses what lies outside both ends."""
    least, most = parse_duration(low), parse_duration(high)

    def check(value: timedelta) -> timedelta:
        if value < least:
            raise ValueError(f"must be at least {low}")
        if value > most:
            raise ValueError(f"must be at most {high}")
        return value

    return AfterValidator(check)
