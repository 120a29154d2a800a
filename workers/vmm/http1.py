"""One HTTP/1.1 exchange as a conversation: as much of the protocol as a VMM's API server speaks (RFC 9112)."""

from dataclasses import dataclass

from workers.vmm.conversation import Conversation

MAX_RESPONSE_BYTES = 1 << 20


class BrokenAnswer(ValueError):
    """The peer closed early, or what it said is not HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode("ascii") + b"\r\n" + body


def exchange(sent: bytes) -> Conversation[Response]:
    """Send one request and return its response; the connection may serve another one. Raises BrokenAnswer."""
    received = yield sent
    if not received:
        raise BrokenAnswer("connection closed without an answer")
    while (end := received.find(b"\r\n\r\n")) < 0:
        received += yield from _more(len(received))
    status, length = _head(received[:end])
    body = received[end + 4 :]
    while len(body) < length:
        body += yield from _more(len(body))
    return Response(status, body[:length])


def _more(so_far: int) -> Conversation[bytes]:
    if so_far > MAX_RESPONSE_BYTES:
        raise BrokenAnswer(f"answer longer than {MAX_RESPONSE_BYTES} bytes")
    got = yield b""
    if not got:
        raise BrokenAnswer("connection closed in the middle of an answer")
    return got


def _head(head: bytes) -> tuple[int, int]:
    """Return status and length of the body."""
    first, *fields = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():  # noqa: PLR2004 - version, code
        raise BrokenAnswer(f"no HTTP status line: {first[:80]!r}")
    for field in fields:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(words[1]), _length(value)
    return int(words[1]), 0


def _length(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or int(text) > MAX_RESPONSE_BYTES:
        raise BrokenAnswer(f"content-length {text[:20]!r}")
    return int(text)
