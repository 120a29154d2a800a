"""What is to be done with each VMM that was found on this host, and the spec that would take it over."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import yaml

from workers.domain.draft import Draft, Look
from workers.domain.vm import VmRecord
from workers.specs import SpecError, VmSpec, is_vm_id, spec_from

_PERSISTENT = "that the disks keep what the guest wrote; say ephemeral if a new start begins with empty ones"
_OURS = "it holds our lock: `reliability state rebuild` makes its record again, without guesses"


class Finding(StrEnum):
    NEW = "new"
    KNOWN = "known"
    REGISTERED = "registered"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Candidate:
    """`spec` is None where the draft is none that can be applied; `note` is for people."""

    look: Look
    finding: Finding
    spec: VmSpec | None
    note: str

    @property
    def draft(self) -> Draft:
        return self.look.draft

    @property
    def file_name(self) -> str | None:
        """Where its spec is written to, if it is; only what can be applied as it is has a name that `apply` reads."""
        if self.finding in (Finding.KNOWN, Finding.REGISTERED) or not is_vm_id(self.look.vm_id):
            return None
        if self.finding is Finding.NEW:
            return f"{self.look.vm_id}.yaml"
        return f"{self.look.vm_id}.{self.look.process.pid}.draft"


def judge(
    looks: Sequence[Look],
    records: Mapping[str, VmRecord],
    unreadable: Mapping[str, str],
    *,
    host: str,
    images_refused: Callable[[VmSpec], str | None],
) -> list[Candidate]:
    """Decide about each VMM; `images_refused` says why a spec's images may not be used, None if they may."""
    twice = {vm_id for vm_id, number in Counter(look.vm_id for look in looks).items() if number > 1}
    judged = []
    for look in looks:
        draft, record = look.draft, records.get(look.vm_id)
        if record is not None and record.process == look.process:
            judged.append(Candidate(look, Finding.KNOWN, None, f"record: {record.state} on host {record.host}"))
            continue
        _complete(draft, host)
        spec = _spec(draft, images_refused)
        _look_for_others(look, record, unreadable.get(look.vm_id), host=host, is_double=look.vm_id in twice)
        if draft.obstacles:
            judged.append(Candidate(look, Finding.BLOCKED, spec, ""))
        elif record is not None:
            judged.append(Candidate(look, Finding.REGISTERED, spec, "applied already; its worker takes it over"))
        else:
            judged.append(Candidate(look, Finding.NEW, spec, _OURS if look.guarded else ""))
    return judged


def _complete(draft: Draft, host: str) -> None:
    draft.take("host", host)
    draft.take("desired", "running")
    if "rootfs" in draft.fields or "drives" in draft.fields:
        draft.guess("durability", {"disks": "persistent"}, _PERSISTENT)


def _spec(draft: Draft, images_refused: Callable[[VmSpec], str | None]) -> VmSpec | None:
    if not draft.fields["id"]:
        draft.obstacles.append("it has no id on its command line, by which it could be known again")
        return None
    try:
        spec = spec_from(draft.fields)
    except SpecError as error:
        draft.obstacles += [each.line for each in error.complaints]
        return None
    if refused := images_refused(spec):
        draft.obstacles.append(refused)
    return spec


def _look_for_others(
    look: Look, record: VmRecord | None, why_unreadable: str | None, *, host: str, is_double: bool
) -> None:
    obstacles = look.draft.obstacles
    if is_double:
        obstacles.append(f"more than one VMM says that it is {look.vm_id or 'nobody'}")
    if why_unreadable:
        obstacles.append(f"its record cannot be read: {why_unreadable}")
    if record is not None and record.host != host:
        obstacles.append(f"a record of this id is of host {record.host}")
    elif record is not None and record.process is not None:
        obstacles.append(f"a record of this id names pid {record.process.pid}: it is recovered under that record")


def draft_text(candidate: Candidate) -> str:
    """Write the spec as YAML, with what was read, guessed and not found out as comments."""
    draft, look = candidate.draft, candidate.look
    lines = [f"# Drafted from the running VMM pid {look.process.pid}. Read: {', '.join(draft.read)}."]
    lines += [f"# in the way: {each}" for each in draft.obstacles]
    lines += [f"# could not be read: {each}" for each in draft.unread]
    lines += [f"# lost when it is started again: {each}" for each in draft.lost]
    lines += [f"# guessed: {name}: {why}" for name, why in draft.guessed.items() if name not in draft.fields]
    lines = [_one_line(line) for line in lines]
    for name, value in draft.fields.items():
        if name in draft.guessed:
            lines.append(_one_line(f"# guessed: {draft.guessed[name]}"))
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=1000).rstrip())
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """What a VMM says must not end a comment."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
