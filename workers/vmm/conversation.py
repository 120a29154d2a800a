"""What is said on a control socket, without the socket: generators that a prober or a blocking caller can drive."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

# Yields bytes to send (empty: only wait for more), is sent each chunk read (empty: the peer closed), returns a result.
Conversation = Generator[bytes, bytes, T]
