"""Hashes of rows as last told: a region that this client was never in answers with those that differ."""

from __future__ import annotations

import hashlib
from typing import Dict, List

from .ids import Origin
from .store import Store

BUCKETS_FEW = 64
BUCKETS_MANY = 512
ROWS_FEW_MAX = 500


def row_hash(store: Store, conversation: bytes, state: int, generation: int) -> int:
    """One row's, as docs/PROTOCOL.md says under "Comparing"."""
    digest = hashlib.sha256(b"tern row 1" + conversation + state.to_bytes(4, "big") + generation.to_bytes(8, "big"))
    for what in ("heads", "read", "peer_read", "from"):
        heads: Dict[Origin, int] = store.told(conversation, what)
        digest.update(len(heads).to_bytes(8, "big"))
        for origin, seq in heads.items():
            digest.update(origin.region.to_bytes(1, "big") + origin.era.to_bytes(8, "big") + seq.to_bytes(8, "big"))
    return int.from_bytes(digest.digest()[:8], "big")


def bucket_of(conversation: bytes, total: int) -> int:
    """In which bucket a conversation's row is counted."""
    return int.from_bytes(conversation[:2], "big") % total


def buckets(store: Store) -> List[int]:
    """64 of them, or 512 above 500 rows."""
    rows = store.rows()
    sums = [0] * (BUCKETS_FEW if len(rows) <= ROWS_FEW_MAX else BUCKETS_MANY)
    for conversation, (state, generation) in rows.items():
        at = bucket_of(conversation, len(sums))
        sums[at] = (sums[at] + row_hash(store, conversation, state, generation)) % (1 << 64)
    return sums
