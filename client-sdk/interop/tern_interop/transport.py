"""What a session's bytes travel by. QUIC is one; others put all lanes on one stream."""

from __future__ import annotations

from typing import NamedTuple, Protocol, Union

from .frames import Lane


class Received(NamedTuple):
    """Bytes of one stream, in order. Streams other than lanes do not exist."""

    stream: Lane
    data: bytes


class Closed(NamedTuple):
    """The last thing that comes. `code` is one of docs/PROTOCOL.md where the server closed with one, -1 otherwise."""

    code: int
    reason: str


class Transport(Protocol):
    """One connection, established."""

    def send(self, lane: Lane, data: bytes) -> None:
        """Takes bytes of a lane for sending. Nothing happens after the connection has ended."""

    async def receive(self) -> Union[Received, Closed]:
        """The next thing that came. Safe to cancel."""

    async def close(self, code: int = 0) -> None:
        """Closes in order, with a code of docs/PROTOCOL.md."""

    def drop(self) -> None:
        """Ends at once without a word: the server is not told."""
