"""Whether the data in Redis are those this host last saw: other or older ones freeze everything that destroys.

An epoch is one unbroken life of the data. A host remembers it with the id of the newest event it has seen; an event
that is gone although nothing newer was trimmed away means that the data were rolled back.
"""

from dataclasses import dataclass

NO_EVENT = "0-0"


@dataclass(frozen=True, slots=True)
class Known:
    """What a host remembers of the data."""

    epoch: str
    last_event: str = NO_EVENT

    def seeing(self, event_id: str | None) -> "Known":
        """The newest event is the one to remember."""
        if event_id is None or order(event_id) <= order(self.last_event):
            return self
        return Known(self.epoch, event_id)


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis holds now: its epoch, None if it has none, the last event, and whether the host's own are there.

    `follows`: an operator has confirmed that this epoch succeeds the one the host knows.
    """

    epoch: str | None
    last_event: str
    has_last_known: bool
    follows: bool


@dataclass(frozen=True, slots=True)
class Trusted:
    """`known` is what to remember from now on."""

    known: Known


@dataclass(frozen=True, slots=True)
class Frozen:
    why: str


def judge_data(known: Known | None, found: Found) -> Trusted | Frozen:
    """Say whether this host may trust what Redis holds. A host without a memory trusts any epoch there is."""
    if found.epoch is None:
        return Frozen("redis holds no epoch: its data are gone")
    if known is None or found.follows:
        return Trusted(Known(found.epoch, found.last_event))
    if found.epoch != known.epoch:
        return Frozen(f"redis holds other data (epoch {found.epoch[:8]}, this host knows {known.epoch[:8]})")
    if not found.has_last_known:
        return Frozen(f"redis was rolled back: event {known.last_event}, which this host has seen, is gone")
    return Trusted(known.seeing(found.last_event))


def order(event_id: str) -> tuple[int, int]:
    """The ids of a Redis stream, `<ms>-<number>`, in their order."""
    ms, _, number = event_id.partition("-")
    return int(ms), int(number or 0)
