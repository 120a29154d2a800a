"""How times, ages and numbers read to people, wherever they are shown."""

from datetime import UTC, datetime

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000


def iso(ms: int | None) -> str | None:
    """Write a time as ISO 8601, UTC, with ms; 0 stands for never."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(ms: int) -> str:
    """Write how long something has lasted, roughly: people compare these, programs read the times."""
    for unit, length, enough in (("s", _SECOND, 2 * _MINUTE), ("m", _MINUTE, 2 * _HOUR), ("h", _HOUR, 2 * _DAY)):
        if ms < enough:
            return f"{max(0, ms) // length}{unit}"
    return f"{ms // _DAY}d"


def ago(ms: int | None, now_ms: int) -> str:
    return f"{age(now_ms - ms)} ago" if ms else "never"


def lasting(since_ms: int, now_ms: int) -> str:
    return age(now_ms - since_ms)


def at_time(ms: int, now_ms: int) -> str:
    """Write a time to come, both ways: people compare the first, and look up the second."""
    return f"in {age(ms - now_ms)} (at {clock(ms)})" if ms > now_ms else "now"


def clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
