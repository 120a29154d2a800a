"""A driver as another package brings it: the smallest that does all it must, for a VMM that only tells its name."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.domain.exits import ExitAction, ExitTable
from workers.host.rundir import SOCKET_NAME
from workers.specs import ThirdPartySpec, VmSpec
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Claim, Driver, Finding, Launch

PROGRAM = str(Path(__file__).with_name("vmm.py"))
_LINE_MAX = 1024


class AcmeSpec(ThirdPartySpec):
    driver: Literal["acme"] = "acme"
    colour: Literal["red", "blue"] = "red"


class AcmeDriver:
    name = "acme"
    exits: ExitTable = MappingProxyType({"exit 7": ExitAction.NEVER})

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    def version(self) -> str:
        return "1.0"

    def launch(self, spec: VmSpec) -> Launch:
        if not isinstance(spec, AcmeSpec):
            raise StartFailed(spec.id, f"spec is for driver {spec.driver}")
        argv = [sys.executable, "-S", "-I", PROGRAM, "--name", spec.id, "--control", SOCKET_NAME]
        return Launch(argv, {"GREETING": self._greeting})

    def configure(self, spec: VmSpec) -> Conversation[None]:
        answer = yield from _line(f"colour {spec.colour}" if isinstance(spec, AcmeSpec) else "")
        if answer != "ok":
            raise StartFailed(spec.id, f"colour refused: {answer}")

    def probe(self, vm_id: str) -> Conversation[Finding]:
        name, _, state = (yield from _line("who")).partition(" ")
        if state != "running":
            return Evidence.BROKEN_ANSWER, f"{name[:40]!r}"
        return (Evidence.ANSWERS, "") if name == vm_id else (Evidence.OTHER_VM, f"it says that it is {name[:64]!r}")

    def identify(self, argv: Sequence[str], exe: str) -> Claim | None:
        del exe
        words = dict(itertools.pairwise(argv))
        return Claim(words.get("--name", ""), words.get("--control")) if PROGRAM in argv else None


def _line(question: str) -> Conversation[str]:
    """Return the one line of the answer, what came of it where the peer hung up."""
    received = yield f"{question}\n".encode()
    while b"\n" not in received and len(received) < _LINE_MAX:
        more = yield b""
        if not more:
            break
        received += more
    return received.partition(b"\n")[0].decode(errors="replace")


class Acme:
    """What the entry point names."""

    name = "acme"
    spec_class = AcmeSpec

    @staticmethod
    def make(settings: Mapping[str, Any]) -> Driver:
        unknown = settings.keys() - {"greeting"}
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: is unknown; known is greeting")
        return AcmeDriver(str(settings.get("greeting", "hello")))
