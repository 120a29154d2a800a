"""What is done about a VMM of ours that no record names."""

from dataclasses import dataclass
from enum import StrEnum


class StrayPolicy(StrEnum):
    REPORT = "report"
    ADOPT = "adopt"
    REAP = "reap"


@dataclass(frozen=True, slots=True)
class StrayRules:
    """`sightings` in as many reconciliations, and as old as `min_age_s`, before anything is done."""

    policy: StrayPolicy
    min_age_s: float
    sightings: int = 2


@dataclass(frozen=True, slots=True)
class Stray:
    """A VMM process that no record names. `has_spec`: its run directory tells what it was started from.

    `beside`: a record of this VM names another process. `forgotten`: its record was dropped on purpose.
    """

    guarded: bool
    age_s: float
    sightings: int
    has_spec: bool
    beside: bool
    forgotten: bool


def decide(stray: Stray, rules: StrayRules) -> tuple[StrayPolicy, str]:
    """Say what to do about it, and why not more than that."""
    if rules.policy is StrayPolicy.REPORT:
        return StrayPolicy.REPORT, "policy"
    if refusal := _refusal(stray, rules):
        return StrayPolicy.REPORT, refusal
    return rules.policy, f"seen {stray.sightings} times, {stray.age_s:.0f} s old"


def _refusal(stray: Stray, rules: StrayRules) -> str | None:
    if stray.beside:
        return "a record of this vm names another process"
    if stray.forgotten:
        return "its record was forgotten, which lets the vm run on"
    if not stray.guarded:
        return "it does not hold our lock, so it may be somebody else's"
    if stray.sightings < rules.sightings or stray.age_s < rules.min_age_s:
        return "too young, or seen too few times"
    if rules.policy is StrayPolicy.ADOPT and not stray.has_spec:
        return "nothing tells what it was started from; apply a spec for it"
    return None
