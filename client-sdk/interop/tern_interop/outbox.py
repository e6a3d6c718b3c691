"""What this install has sent: every message is here, with its identity, from before its first transmission until it is
stable. Then it is only an entry like others.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .ids import Identity, Origin, Place
from .proto import wire
from .store import Entry, Store, era_text

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (conversation BLOB, n INTEGER, kind INTEGER NOT NULL, body BLOB NOT NULL,
    wall_ms INTEGER NOT NULL, peer TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (conversation, n));
CREATE TABLE IF NOT EXISTS acked (conversation BLOB, n INTEGER, region INTEGER, era TEXT, seq INTEGER,
    key_hlc INTEGER, key_region INTEGER, key_era TEXT, key_seq INTEGER, receipt BLOB NOT NULL, stamp BLOB NOT NULL,
    PRIMARY KEY (conversation, n, region, era, seq));
"""


class Letter(NamedTuple):
    """A message of the outbox. `state` is waiting, acked or failed; `wall_ms` is milliseconds since 1970."""

    conversation: bytes
    n: int
    kind: int
    body: bytes
    wall_ms: int
    peer: str
    state: str


class Proof(NamedTuple):
    """A place that a message was acked at, its display key, and what proves it."""

    place: Place
    key: Place
    receipt: bytes
    stamp: bytes


class Outbox:
    """Shares the store's database and transactions."""

    def __init__(self, store: Store, user: str, install: str) -> None:
        self._store = store
        self._db = store.db
        self._db.executescript(_SCHEMA)
        self.user = user
        self.install = install

    def add(self, conversation: bytes, kind: int, body: bytes, wall_ms: int, peer: str = "") -> int:
        """Stores a message and draws its n. `peer` is the other user of a direct conversation."""
        n = self._store.count("n/" + conversation.hex())
        self._db.execute(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, 'waiting')", (conversation, n, kind, body, wall_ms, peer)
        )
        return n

    def conversations(self) -> List[bytes]:
        """Those with messages that wait for their ack."""
        found = self._db.execute("SELECT DISTINCT conversation FROM outbox WHERE state = 'waiting' ORDER BY 1")
        return [conversation for (conversation,) in found]

    def waiting(self, conversation: bytes) -> List[Letter]:
        """Not acked yet, by n; none behind one that failed: what follows it is held back."""
        found = self._db.execute(
            "SELECT * FROM outbox WHERE conversation = ? AND state != 'acked' ORDER BY n", (conversation,)
        )
        out: List[Letter] = []
        for values in found:
            letter = Letter(*values)
            if letter.state == "failed":
                break
            out.append(letter)
        return out

    def acked(self, conversation: bytes) -> List[Letter]:
        """Acked and not stable, by n."""
        found = self._db.execute(
            "SELECT * FROM outbox WHERE conversation = ? AND state = 'acked' ORDER BY n", (conversation,)
        )
        return [Letter(*values) for values in found]

    def letter(self, conversation: bytes, n: int) -> Optional[Letter]:
        found = self._db.execute("SELECT * FROM outbox WHERE conversation = ? AND n = ?", (conversation, n)).fetchone()
        return Letter(*found) if found else None

    def fail(self, conversation: bytes, n: int) -> None:
        """Refused for good."""
        self._db.execute("UPDATE outbox SET state = 'failed' WHERE conversation = ? AND n = ?", (conversation, n))

    def ack(self, conversation: bytes, n: int, proof: Proof) -> None:
        """The message stands at a place; it may have others already. It is an entry from now on."""
        letter = self.letter(conversation, n)
        if letter is None:
            return  # stable and forgotten: this is a late answer
        place, key = proof.place, proof.key
        self._db.execute("UPDATE outbox SET state = 'acked' WHERE conversation = ? AND n = ?", (conversation, n))
        self._db.execute(
            "INSERT OR IGNORE INTO acked VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (conversation, n, place.region, era_text(place.era), place.seq)
            + (key.hlc, key.region, era_text(key.era), key.seq, proof.receipt, proof.stamp),
        )
        identity = Identity(self.user, self.install, n)
        entry = Entry(place, key, identity, letter.kind, letter.body, letter.wall_ms, proof.stamp)
        self._store.add_entry(conversation, entry)

    def proofs(self, conversation: bytes, n: int) -> List[Proof]:
        """Lowest display key first."""
        found = self._db.execute(
            "SELECT e.hlc, a.region, a.era, a.seq, a.key_hlc, a.key_region, a.key_era, a.key_seq, a.receipt, a.stamp"
            " FROM acked a JOIN entry e USING (conversation, region, era, seq) WHERE a.conversation = ? AND a.n = ?",
            (conversation, n),
        )
        proofs = [
            Proof(Place(v[0], v[1], int(v[2], 16), v[3]), Place(v[4], v[5], int(v[6], 16), v[7]), v[8], v[9])
            for v in found
        ]
        return sorted(proofs, key=lambda proof: proof.key)

    def unstable(self) -> Iterator[Tuple[bytes, Set[Origin]]]:
        """Conversations and the origins in which their unstable messages were acked."""
        found = self._db.execute(
            "SELECT o.conversation, a.region, a.era FROM outbox o JOIN acked a USING (conversation, n)"
            " WHERE o.state = 'acked'"
        )
        logs: Dict[bytes, Set[Origin]] = {}
        for conversation, region, era in found:
            logs.setdefault(conversation, set()).add(Origin(region, int(era, 16)))
        yield from sorted(logs.items())

    def stable(self, conversation: bytes, origin: Origin, upto: int) -> List[int]:
        """Forgets what is held by a second region, and says which n. The place with the lowest key counts."""
        gone = []
        for letter in self.acked(conversation):
            proofs = self.proofs(conversation, letter.n)
            counting = [p.place for p in proofs if p.key == proofs[0].key]
            if any(place.origin == origin and place.seq <= upto for place in counting):
                gone.append(letter.n)
                for table in ("outbox", "acked"):
                    self._db.execute(f"DELETE FROM {table} WHERE conversation = ? AND n = ?", (conversation, letter.n))
        return gone

    def to_offer(self, conversation: bytes, origin: Origin, above: int) -> List[Tuple[Letter, Proof]]:
        """Acked messages of an origin that a region lacks, by n."""
        found = []
        for letter in self.acked(conversation):
            for proof in self.proofs(conversation, letter.n):
                if proof.place.origin == origin and proof.place.seq > above:
                    found.append((letter, proof))
                    break
        return found


def stamp_of(cut: "list[wire.OriginHead]", receipt: bytes) -> bytes:
    """What is kept with a membership entry of one's own, as others get it in `Entry.stamp`."""
    return wire.Stamp(cut=cut, receipt=receipt).SerializeToString() if cut else b""
