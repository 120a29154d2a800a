"""What the user asked a bench for, and how much is measured for it. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Part(StrEnum):
    """What can be measured, in the order in which it is shown."""

    CHECK = "check"
    IDLE = "idle"
    RECOVERY = "recovery"
    HANG = "hang"
    REDIS = "redis"
    DISK = "disk"


OF_A_FLEET = frozenset({Part.CHECK, Part.IDLE, Part.RECOVERY, Part.HANG})


@dataclass(frozen=True, slots=True)
class Extent:
    """How often or how long each thing is done."""

    window_s: float
    deaths: int
    hangs: int
    round_trips: int
    syncs: int


WHOLE = Extent(window_s=6.0, deaths=40, hangs=4, round_trips=400, syncs=100)
QUICK = Extent(window_s=2.5, deaths=6, hangs=1, round_trips=100, syncs=30)
VMS, QUICK_VMS = 40, 8


@dataclass(frozen=True, slots=True)
class Wish:
    vms: int
    parts: frozenset[Part]
    extent: Extent
    json_file: Path | None
    keep: bool

    @property
    def needs_fleet(self) -> bool:
        return self.keep or bool(self.parts & OF_A_FLEET)


def parts_of(text: str) -> frozenset[Part]:
    """Read names with commas between them. Raises ValueError, which names those that there are."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Part)]
    if unknown or not names:
        what = f"there is no {unknown[0]!r}" if unknown else "names nothing"
        raise ValueError(f"{what}; choose from {', '.join(Part)}, with commas between them")
    return frozenset(map(Part, names))
