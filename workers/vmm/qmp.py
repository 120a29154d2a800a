"""QMP as a conversation: how QEMU is asked for its version, the name of its VM and its run state.

What an answer means for the VM is up to the driver; sockets and deadlines are up to whoever drives the conversation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.vmm.conversation import Conversation

# What we ask for is answered in a few hundred bytes.
MAX_LINE_BYTES = 1 << 16

# Commands are answered in the order in which they came, so all can be sent at once.
_QUESTIONS = b"".join(
    b'{"execute": "%b"}\r\n' % command for command in (b"qmp_capabilities", b"query-name", b"query-status")
)
_QUOTED = 200


class QmpError(ValueError):
    """The peer closed early, refused a command, or does not speak QMP."""


@dataclass(frozen=True, slots=True)
class QmpStatus:
    """What QEMU says about itself; `status` is its RunState, `name` what `-name` gave, None without one."""

    version: str
    name: str | None
    status: str
    running: bool


def status_conversation() -> Conversation[QmpStatus]:
    """Greet, ask and return the answers. QEMU speaks first. Raises QmpError."""
    incoming = _Incoming()
    version = _version((yield from incoming.message()))
    incoming.feed((yield _QUESTIONS))
    yield from incoming.answer("qmp_capabilities")
    name = _name((yield from incoming.answer("query-name")))
    status, running = _run_state((yield from incoming.answer("query-status")))
    return QmpStatus(version, name, status, running)


def ask_all(questions: Mapping[str, Mapping[str, Any]]) -> Conversation[dict[str, Any]]:
    """Greet and ask each command with its arguments; returns what those returned that were not refused.

    QEMU speaks first. Raises QmpError.
    """
    incoming = _Incoming()
    _version((yield from incoming.message()))
    incoming.feed((yield b"".join(_question(*each) for each in (("qmp_capabilities", {}), *questions.items()))))
    yield from incoming.answer("qmp_capabilities")
    answers: dict[str, Any] = {}
    for command in questions:
        message = yield from incoming.reply()
        if "return" in message:
            answers[command] = message["return"]
    return answers


def _question(command: str, arguments: Mapping[str, Any]) -> bytes:
    return json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})}).encode() + b"\r\n"


@dataclass(slots=True)
class _Incoming:
    """What came in and was not yet looked at, cut into lines."""

    _rest: bytes = field(default=b"")

    def feed(self, chunk: bytes) -> None:
        if not chunk:
            raise QmpError("connection closed before QMP's answer was complete")
        self._rest += chunk

    def answer(self, command: str) -> Conversation[dict[str, Any]]:
        """Return what this command returned."""
        message = yield from self.reply()
        answer = message.get("return")
        if isinstance(answer, dict):
            return answer
        raise QmpError(f"{command} answered {_quoted(message.get('error', message))}")

    def reply(self) -> Conversation[dict[str, Any]]:
        """Return the answer to the next command; events may come before it."""
        while "event" in (message := (yield from self.message())):
            pass
        return message

    def message(self) -> Conversation[dict[str, Any]]:
        while not (line := (yield from self._line()).strip()):
            pass
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QmpError(f"not JSON: {_quoted(line)}") from error
        if not isinstance(message, dict):
            raise QmpError(f"not a QMP message: {_quoted(line)}")
        return message

    def _line(self) -> Conversation[bytes]:
        while (end := self._rest.find(b"\n")) < 0 and len(self._rest) <= MAX_LINE_BYTES:
            self.feed((yield b""))
        if not 0 <= end <= MAX_LINE_BYTES:
            raise QmpError(f"line longer than {MAX_LINE_BYTES} bytes")
        line, self._rest = self._rest[:end], self._rest[end + 1 :]
        return line


def _version(greeting: dict[str, Any]) -> str:
    try:
        version = greeting["QMP"]["version"]["qemu"]
        return f"{version['major']:d}.{version['minor']:d}.{version['micro']:d}"
    except (LookupError, TypeError, ValueError) as error:
        raise QmpError(f"no QMP greeting: {_quoted(greeting)}") from error


def _name(answer: dict[str, Any]) -> str | None:
    name = answer.get("name")
    if name is None or isinstance(name, str):
        return name
    raise QmpError(f"query-name answered {_quoted(answer)}")


def _run_state(answer: dict[str, Any]) -> tuple[str, bool]:
    status, running = answer.get("status"), answer.get("running")
    if isinstance(status, str) and isinstance(running, bool):
        return status, running
    raise QmpError(f"query-status answered {_quoted(answer)}")


def _quoted(what: object) -> str:
    try:
        text = json.dumps(what) if isinstance(what, dict) else repr(what)
    except RecursionError:
        return "something nested too deeply"
    return text[:_QUOTED]
