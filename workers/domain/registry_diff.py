"""What a manager's registry lists, against the records of one host: who is new, who is gone, and when to do nothing.

A registry is somebody else's: one that is empty, or has lost half of what it had, is more likely broken than right.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Listed:
    """Ids by the host they are listed for. `whole`: every entry could be read, so whoever is absent is not listed."""

    here: frozenset[str]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Recorded:
    """Records of this host with the time each was made; which listed ids have one anywhere, and which were forgotten.

    `asked_ms`: when the registry was asked. What was recorded later it cannot have known.
    """

    here: Mapping[str, int]
    anywhere: Collection[str]
    forgotten: Collection[str]
    asked_ms: int


@dataclass(frozen=True, slots=True)
class Notes:
    """What is kept from one comparison to the next, and shown.

    `missing` are VMs that were not listed twice in a row, with the time of the second; `suspects` those that were not
    once. `trouble` is why nothing could be compared, `problems` what is wrong with single entries.
    """

    missing: Mapping[str, int] = field(default_factory=dict)
    suspects: Collection[str] = ()
    trouble: str = ""
    problems: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """`new` are to be registered; `gone` are not listed for the second time or more, `suspects` for the first.

    `forgotten` are listed, and were forgotten here on purpose; `moved` are listed for another host. With a `doubt`
    nothing is to be done, and all else is empty.
    """

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    doubt: str = ""


def compare(listed: Listed, recorded: Recorded, before: Notes) -> Difference:
    settled = recorded.here.keys() - before.missing.keys()
    if settled and not listed.here:
        return Difference(doubt=f"the registry lists no VM of this host, which has {len(settled)}: nothing is done")
    unlisted = _unlisted(listed, recorded)
    vanished = unlisted - before.missing.keys() - set(before.suspects)
    if len(vanished) * 2 > len(settled):
        return Difference(
            doubt=f"{len(vanished)} of {len(settled)} VMs of this host left the registry at once: nothing is done"
        )
    unknown = listed.here - set(recorded.anywhere)
    return Difference(
        new=tuple(sorted(unknown - set(recorded.forgotten))),
        gone=tuple(sorted(unlisted - vanished)),
        suspects=tuple(sorted(vanished)),
        forgotten=tuple(sorted(unknown & set(recorded.forgotten))),
        moved=tuple(sorted(recorded.here.keys() & listed.elsewhere.keys())),
    )


def _unlisted(listed: Listed, recorded: Recorded) -> set[str]:
    if not listed.whole:
        return set()
    absent = recorded.here.keys() - listed.here - listed.elsewhere.keys()
    return {vm_id for vm_id in absent if recorded.here[vm_id] < recorded.asked_ms}
