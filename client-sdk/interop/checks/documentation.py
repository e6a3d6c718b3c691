"""The worked session of docs/PROTOCOL.md: its bytes are frames, and a client's own come out the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Dict, List, Tuple

from tern_interop.compare import row_hash
from tern_interop.frames import Reader, encode, lane_of
from tern_interop.ids import Origin, direct_id
from tern_interop.proto import wire
from tern_interop.store import Store

from .deployment import Deployment

PROTOCOL = Path(__file__).resolve().parents[3] / "docs" / "PROTOCOL.md"
_BLOCK = re.compile(r"^(client|server), (control|message|bulk): .*\n((?:  (?:[0-9a-f]{2} ?)+\n)+)", re.MULTILINE)


def blocks() -> List[Tuple[str, str, bytes]]:
    """Side, lane and bytes of each block."""
    return [(m[1], m[2], bytes.fromhex(m[3])) for m in _BLOCK.finditer(PROTOCOL.read_text())]


async def the_worked_session_reads_and_writes_the_same(at: Deployment) -> str:
    seen: Dict[str, wire.Frame] = {}
    for side, lane, data in blocks():
        # Byte by byte: a frame is told only once it is whole.
        reader = Reader()
        frames = [frame for byte in data for frame in reader.feed(bytes([byte]))]
        assert b"".join(encode(frame) for frame in frames) == data, (side, lane, data.hex(" "))
        for frame in frames:
            if side == "client":
                assert lane_of(frame).name.lower() == lane, frame
            seen.setdefault(str(frame.WhichOneof("body")), frame)
    assert {"hello", "welcome", "commit", "send", "ack", "push", "stable", "page", "pong"} <= set(seen), sorted(seen)
    salt = seen["welcome"].welcome.direct_salt
    assert seen["pull"].pull.conversation == direct_id(salt, "bob", "alice")
    return f"{len(seen)} kinds of frames"


async def the_example_of_a_row_hash_is_right(at: Deployment) -> str:
    wanted = re.search(r"Conversation 16 x `09`, state 0, generation 1, .*?: `([0-9a-f]{16})`", PROTOCOL.read_text())
    assert wanted, "the example is gone from docs/PROTOCOL.md"
    store, conversation = Store(), b"\x09" * 16
    with store.transaction():
        store.tell(conversation, "heads", {Origin(1, 7): 5, Origin(2, 7): 1})
    found = f"{row_hash(store, conversation, state=0, generation=1):016x}"
    assert found == wanted[1], found
    return found
