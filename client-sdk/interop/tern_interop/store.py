"""What a client keeps of conversations: entries, what rows say, cursors. One SQLite file, or memory.

Every method that changes something expects to be called within `transaction`: a cursor moves only in the transaction
that stores what it stands for. Eras are unsigned 64-bit numbers, which SQLite has not: they are kept as hex.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from .ids import Cursor, Identity, Message, Origin, Place

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cursor (region INTEGER PRIMARY KEY, era TEXT NOT NULL, rev INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS row (conversation BLOB PRIMARY KEY, state INTEGER NOT NULL, generation INTEGER NOT NULL,
    peer TEXT NOT NULL);
-- what: 'heads', 'read', 'peer_read', 'from' as last told; 'top' the highest head ever told; 'had' what counts as held
CREATE TABLE IF NOT EXISTS told (conversation BLOB, what TEXT, region INTEGER, era TEXT, seq INTEGER NOT NULL,
    PRIMARY KEY (conversation, what, region, era));
CREATE TABLE IF NOT EXISTS gap (conversation BLOB, region INTEGER, era TEXT, seq_from INTEGER, seq_to INTEGER);
CREATE TABLE IF NOT EXISTS entry (conversation BLOB, region INTEGER, era TEXT, seq INTEGER, hlc INTEGER NOT NULL,
    key_hlc INTEGER NOT NULL, key_region INTEGER NOT NULL, key_era TEXT NOT NULL, key_seq INTEGER NOT NULL,
    user TEXT NOT NULL, install TEXT NOT NULL, n INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL,
    wall_ms INTEGER NOT NULL, stamp BLOB NOT NULL,
    PRIMARY KEY (conversation, region, era, seq));
CREATE INDEX IF NOT EXISTS entry_of ON entry (conversation, user, install, n);
"""


class Entry(NamedTuple):
    """One entry of a log. `key` is its display key; `stamp` a serialized `Stamp`, empty but for memberships."""

    place: Place
    key: Place
    identity: Identity
    kind: int
    body: bytes
    wall_ms: int
    stamp: bytes = b""


def era_text(era: int) -> str:
    return f"{era:016x}"


class Store:
    """See the module's text. `path` may be ":memory:"."""

    def __init__(self, path: str = ":memory:") -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Transactions do not nest."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def count(self, name: str) -> int:
        """Counts up, from 1, across restarts."""
        step = "INSERT INTO meta VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1"
        self.db.execute(step, (name,))
        return int(self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0])

    # ---- cursors and rows

    def cursors(self) -> List[Cursor]:
        rows = self.db.execute("SELECT region, era, rev FROM cursor ORDER BY region")
        return [Cursor(region, int(era, 16), rev) for region, era, rev in rows]

    def cursor(self, region: int) -> Optional[Cursor]:
        return next((c for c in self.cursors() if c.region == region), None)

    def set_cursor(self, cursor: Cursor) -> None:
        values = (cursor.region, era_text(cursor.era), cursor.rev)
        self.db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?)", values)

    def forget_cursor(self, region: int) -> None:
        self.db.execute("DELETE FROM cursor WHERE region = ?", (region,))

    def set_row(self, conversation: bytes, state: int, generation: int, peer: str) -> None:
        """An empty `peer` leaves the known one."""
        known = self.db.execute("SELECT peer FROM row WHERE conversation = ?", (conversation,)).fetchone()
        peer = peer or (known[0] if known else "")
        self.db.execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?)", (conversation, state, generation, peer))

    def rows(self) -> Dict[bytes, Tuple[int, int]]:
        """State and generation, by conversation."""
        found = self.db.execute("SELECT conversation, state, generation FROM row ORDER BY conversation")
        return {conversation: (state, generation) for conversation, state, generation in found}

    def told(self, conversation: bytes, what: str) -> Dict[Origin, int]:
        """Ascending by region and era. `what`: see the schema."""
        found = self.db.execute(
            "SELECT region, era, seq FROM told WHERE conversation = ? AND what = ? ORDER BY region, era",
            (conversation, what),
        )
        return {Origin(region, int(era, 16)): seq for region, era, seq in found}

    def tell(self, conversation: bytes, what: str, heads: Dict[Origin, int], replace: bool = False) -> None:
        """Merges by maximum, or replaces all that was told before."""
        if replace:
            self.db.execute("DELETE FROM told WHERE conversation = ? AND what = ?", (conversation, what))
        step = "INSERT INTO told VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)"
        for origin, seq in heads.items():
            self.db.execute(step, (conversation, what, origin.region, era_text(origin.era), seq))

    def drop_heads_of(self, conversation: bytes, region: int) -> None:
        """Heads as last told, of one region: a fold of it came."""
        step = "DELETE FROM told WHERE conversation = ? AND what = 'heads' AND region = ?"
        self.db.execute(step, (conversation, region))

    # ---- entries

    def add_entry(self, conversation: bytes, entry: Entry) -> bool:
        """Whether it is a message that is newly shown: no copy of it was held."""
        place, key, identity = entry.place, entry.key, entry.identity
        copies = self.db.execute(
            "SELECT body FROM entry WHERE conversation = ? AND user = ? AND install = ? AND n = ?",
            (conversation, *identity),
        ).fetchall()
        values = (conversation, place.region, era_text(place.era), place.seq, place.hlc)
        keys = (key.hlc, key.region, era_text(key.era), key.seq)
        rest = (*identity, entry.kind, entry.body, entry.wall_ms, entry.stamp)
        marks = ", ".join("?" * len(values + keys + rest))
        done = self.db.execute(f"INSERT OR IGNORE INTO entry VALUES ({marks})", values + keys + rest)
        return done.rowcount == 1 and entry.body not in [copy[0] for copy in copies]

    def entries(self, conversation: bytes) -> List[Entry]:
        """By display key, all copies."""
        found = self.db.execute(
            "SELECT hlc, region, era, seq, key_hlc, key_region, key_era, key_seq, user, install, n, kind, body,"
            " wall_ms, stamp FROM entry WHERE conversation = ? ORDER BY key_hlc, key_region, key_era, key_seq",
            (conversation,),
        )
        return [
            Entry(
                Place(v[0], v[1], int(v[2], 16), v[3]),
                Place(v[4], v[5], int(v[6], 16), v[7]),
                Identity(*v[8:11]),
                *v[11:],
            )
            for v in found
        ]

    def timeline(self, conversation: bytes) -> List[Message]:
        """Every message that was acked or received, once, in the order of display."""
        shown: Dict[Tuple[Identity, bytes], Message] = {}
        for entry in self.entries(conversation):
            message = Message(entry.key, entry.identity, entry.kind, entry.body, entry.wall_ms)
            shown.setdefault((entry.identity, entry.body), message)
        return list(shown.values())

    def seen_hlc(self, conversation: bytes) -> int:
        """The highest hlc held; 0 if none."""
        found = self.db.execute("SELECT max(hlc) FROM entry WHERE conversation = ?", (conversation,)).fetchone()
        return found[0] or 0

    def add_gap(self, conversation: bytes, origin: Origin, first: int, last: int) -> None:
        """These can't be had, ever: they count as held."""
        values = (conversation, origin.region, era_text(origin.era), first, last)
        self.db.execute("INSERT INTO gap VALUES (?, ?, ?, ?, ?)", values)

    def missing(self, conversation: bytes) -> List[Tuple[Origin, int, int]]:
        """(origin, first seq, last seq) of what heads tell of and is not held, folds left out."""
        before = self.told(conversation, "from")
        out: List[Tuple[Origin, int, int]] = []
        for origin, top in self.told(conversation, "top").items():
            if origin.is_fold:
                continue
            log = (conversation, origin.region, era_text(origin.era))
            where = "WHERE conversation = ? AND region = ? AND era = ?"
            held = [(seq, seq) for (seq,) in self.db.execute(f"SELECT seq FROM entry {where} ORDER BY seq", log)]
            held += list(self.db.execute(f"SELECT seq_from, seq_to FROM gap {where}", log))
            held += [(1, before[origin])] if origin in before else []
            wanted = 1
            for first, last in sorted(held) + [(top + 1, top + 1)]:
                if first > wanted and wanted <= top:
                    out.append((origin, wanted, min(first - 1, top)))
                wanted = max(wanted, last + 1)
        return out
