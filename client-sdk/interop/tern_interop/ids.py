"""Names and places: ids of conversations, origins of logs, and the display key that orders messages."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Optional

from .proto import wire

CONVERSATION_BYTES = 16
FOLD_ERA_FIRST = 0xFFFFFFFF00000000
"""Eras from here on, in rows, are folds: they stand for sealed logs."""


class Origin(NamedTuple):
    """Who wrote a log. Orders by region, then era, both unsigned."""

    region: int
    era: int

    @property
    def is_fold(self) -> bool:
        return self.era >= FOLD_ERA_FIRST

    def to_wire(self) -> wire.Origin:
        return wire.Origin(region=self.region, era=self.era)

    @classmethod
    def from_wire(cls, origin: wire.Origin) -> "Origin":
        return cls(origin.region, origin.era)


class Place(NamedTuple):
    """Where an entry stands. Tuples order as display keys do: (hlc, region, era, seq)."""

    hlc: int
    region: int
    era: int
    seq: int

    @property
    def origin(self) -> Origin:
        return Origin(self.region, self.era)

    def to_wire(self) -> wire.Place:
        return wire.Place(hlc=self.hlc, origin=self.origin.to_wire(), seq=self.seq)

    @classmethod
    def from_wire(cls, place: wire.Place) -> "Place":
        return cls(place.hlc, place.origin.region, place.origin.era, place.seq)


class Cursor(NamedTuple):
    """How far this client has heard of its rows in one region's store."""

    region: int
    era: int
    rev: int

    def to_wire(self) -> wire.Cursor:
        return wire.Cursor(region=self.region, era=self.era, rev=self.rev)

    @classmethod
    def from_wire(cls, cursor: wire.Cursor) -> "Cursor":
        return cls(cursor.region, cursor.era, cursor.rev)


class Identity(NamedTuple):
    """Of a message within its conversation. `n` counts from 1."""

    user: str
    install: str
    n: int


class Message(NamedTuple):
    """A message as it is displayed. `key` is None until it was acked; `wall_ms` is milliseconds since 1970."""

    key: Optional[Place]
    identity: Identity
    kind: int
    body: bytes
    wall_ms: int


def _hash_parts(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()[:CONVERSATION_BYTES]


def direct_id(salt: bytes, one: str, other: str) -> bytes:
    """The id of the direct conversation of two users; `salt` is `Welcome.direct_salt`."""
    lesser, greater = sorted((one.encode(), other.encode()))
    return _hash_parts(salt, lesser, greater)


def group_id(creator: str, nonce: bytes) -> bytes:
    """The id of a group; `nonce` is the 16 bytes of its `GroupCreate`."""
    return _hash_parts(b"group", creator.encode(), nonce)


def own_log_id(salt: bytes, user: str) -> bytes:
    """The id of a user's own log; `salt` is `Welcome.direct_salt`."""
    return _hash_parts(b"own log", salt, user.encode())
