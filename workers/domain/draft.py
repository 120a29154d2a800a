"""What can be found out about a running VM that nobody described: a spec in the making, and what to know about it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.domain.vm import Incarnation

_DEVICE_ID = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


@dataclass(slots=True)
class Draft:
    """Filled while a VMM is looked at. Each text is one line for people.

    `fields` are those of a spec; `read` says where from; `guessed` why a field is not certain, by its name; `unread`
    what could not be asked; `lost` what the VM has and a spec cannot say, so that it is gone once the VM is started
    again; `obstacles` what keeps the VM from being taken over.
    """

    fields: dict[str, Any]
    read: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    guessed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)

    def take(self, name: str, value: object) -> None:
        if value not in (None, "", [], ()):
            self.fields[name] = value

    def guess(self, name: str, value: object, why: str) -> None:
        self.fields[name] = value
        self.note_guess(name, why)

    def note_guess(self, name: str, why: str) -> None:
        self.guessed[name] = f"{self.guessed[name]}; {why}" if name in self.guessed else why

    def lose(self, what: str, *values: object) -> None:
        """Any of these is set, and a spec has no place for it."""
        if any(values):
            self.lost.append(what)

    def path(self, name: str, value: object, cwd: str) -> str | None:
        """Return an absolute path for the field `name`; relative ones mean the folder the VMM runs in."""
        if not isinstance(value, str) or not value:
            return None
        if not value.startswith("/"):
            self.note_guess(name, f"{value} is taken as relative to {cwd}")
        return os.path.normpath(os.path.join(cwd, value))

    def device_id(self, name: str, given: object, otherwise: str) -> str:
        """Return the id of a device, or another one where a spec cannot take it."""
        if isinstance(given, str) and _DEVICE_ID.fullmatch(given):
            return given
        self.note_guess(name, f"the id {otherwise} stands for {given!r}" if given else f"the id {otherwise} is made up")
        return otherwise


@dataclass(frozen=True, slots=True)
class Look:
    """A VMM of this host, whoever started it. `vm_id` is what it says, and may be no id; `guarded`: it holds our lock.

    `draft` names no host yet.
    """

    vm_id: str
    driver: str
    process: Incarnation
    socket: str | None
    guarded: bool
    draft: Draft


def text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) and value else None


def mapping(value: object) -> Mapping[str, Any]:
    """Whatever an API answers: what is no object has no members."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    return [mapping(each) for each in value] if isinstance(value, list) else []
