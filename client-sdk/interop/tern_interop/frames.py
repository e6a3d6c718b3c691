"""Frames on lanes: each is preceded by its length as a protobuf varint. And references, by which frames are short."""

from __future__ import annotations

from enum import IntEnum
from typing import Dict, Generic, Iterable, List, Tuple, TypeVar, Union

from .ids import Origin
from .proto import wire

FRAME_BYTES_LIMIT = 131_072
"""Until `Welcome.limits.frame_bytes` says otherwise."""
REFERENCES_MAX = 1023
LENGTH_BYTES_MAX = 5


class Lane(IntEnum):
    """A lane, by its place in the order in which the client opens them."""

    CONTROL = 0
    MESSAGE = 1
    BULK = 2


_LANE_OF = {
    "hello": Lane.CONTROL,
    "commit": Lane.CONTROL,
    "ping": Lane.CONTROL,
    "push_ack": Lane.CONTROL,
    "token": Lane.CONTROL,
    "network": Lane.CONTROL,
    "unstable": Lane.CONTROL,
    "pull_devices": Lane.CONTROL,
    "define": Lane.MESSAGE,
    "send": Lane.MESSAGE,
    "mark": Lane.MESSAGE,
    "signal": Lane.MESSAGE,
    "pull_rows": Lane.BULK,
    "row_hashes": Lane.BULK,
    "pull": Lane.BULK,
    "pull_cells": Lane.BULK,
    "pull_eras": Lane.BULK,
}


class FrameError(Exception):
    """What came is no frame; the connection is of no further use. `code` is the one of docs/PROTOCOL.md."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def lane_of(frame: wire.Frame) -> Lane:
    """The lane of a frame that a client may send. KeyError for any other."""
    return _LANE_OF[frame.WhichOneof("body")]


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(frame: wire.Frame) -> bytes:
    """A frame with its length. FrameError if it is above the limit."""
    data: bytes = frame.SerializeToString()
    if len(data) > FRAME_BYTES_LIMIT:
        raise FrameError(2, f"a frame of {len(data)} bytes")
    return varint(len(data)) + data


class Reader:
    """Cuts the bytes of one stream into frames."""

    def __init__(self, limit: int = FRAME_BYTES_LIMIT) -> None:
        self.limit = limit
        self._held = bytearray()

    def feed(self, data: bytes) -> List[wire.Frame]:
        """The frames that `data` completes. FrameError if a length is above the limit or a frame can't be read."""
        self._held += data
        frames: List[wire.Frame] = []
        while True:
            length, start = self._length()
            if start == 0 or len(self._held) < start + length:
                return frames
            body = bytes(self._held[start : start + length])
            del self._held[: start + length]
            frame = wire.Frame()
            try:
                frame.ParseFromString(body)
            except Exception as error:  # protobuf's DecodeError has moved between releases
                raise FrameError(1, str(error)) from error
            frames.append(frame)

    def _length(self) -> Tuple[int, int]:
        value = 0
        for at, byte in enumerate(self._held[:LENGTH_BYTES_MAX]):
            value |= (byte & 0x7F) << (7 * at)
            if byte < 0x80:
                if value > self.limit:
                    raise FrameError(2, f"a frame of {value} bytes")
                return value, at + 1
        if len(self._held) >= LENGTH_BYTES_MAX:
            raise FrameError(1, "a length of more than 5 bytes")
        return 0, 0


T = TypeVar("T")


class Heard(Generic[T]):
    """References of one kind that the server has defined on one stream, or that a table of a frame holds."""

    def __init__(self, table: Iterable[T] = ()) -> None:
        self._bound: Dict[int, T] = dict(enumerate(table, start=1))

    def bind(self, ref: int, what: T) -> None:
        """FrameError if the number is out of range."""
        if not 1 <= ref <= REFERENCES_MAX:
            raise FrameError(26, f"reference {ref}")
        self._bound[ref] = what

    def __getitem__(self, ref: int) -> T:
        if ref not in self._bound:
            raise FrameError(26, f"reference {ref} was never defined")
        return self._bound[ref]


class Tables:
    """What the server's references mean, on one stream or in one frame."""

    def __init__(
        self,
        conversations: Iterable[bytes] = (),
        origins: Iterable[Origin] = (),
        senders: Iterable[Tuple[str, str]] = (),
    ) -> None:
        self.conversations = Heard(conversations)
        self.origins = Heard(origins)
        self.senders = Heard(senders)

    def define(self, define: wire.Define) -> None:
        what = define.WhichOneof("what")
        if what == "conversation":
            self.conversations.bind(define.ref, define.conversation)
        elif what == "origin":
            self.origins.bind(define.ref, Origin.from_wire(define.origin))
        elif what == "sender":
            self.senders.bind(define.ref, (define.sender.user, define.sender.install))

    @classmethod
    def of(cls, frame: Union[wire.Rows, wire.Page]) -> "Tables":
        """The tables that a frame carries."""
        senders = [(sender.user, sender.install) for sender in frame.senders]
        return cls(origins=map(Origin.from_wire, frame.origins), senders=senders)


class Told:
    """References to conversations that this client has defined on its message lane."""

    def __init__(self) -> None:
        self._refs: Dict[bytes, int] = {}
        self._given = 0

    def ref(self, conversation: bytes) -> Tuple[int, bool]:
        """The number of a conversation, and whether it has to be defined first."""
        if conversation in self._refs:
            return self._refs[conversation], False
        number = self._given % REFERENCES_MAX + 1
        self._given += 1
        self._refs = {c: r for c, r in self._refs.items() if r != number}
        self._refs[conversation] = number
        return number, True
