"""The sender's rules on one connection: what is sent when, again when, and what an answer means.

Of each conversation messages fly in order, `WINDOW` of them. When one is refused, the rest of the flight is of no use:
once all of it was answered, sending goes on from the lowest that is not acked, with the same identities.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Set

from .frames import Tables, Told
from .ids import Origin, Place
from .outbox import Letter, Outbox, Proof, stamp_of
from .proto import wire
from .requests import Requests
from .store import Store

WINDOW = 16
BACKOFF_FIRST_MS = 200
BACKOFF_MAX_MS = 5_000
KIND_GROUP_CREATE = 16
MEMBERSHIP_KINDS = range(16, 20)
OUT_OF_ORDER, BEHIND, UNKNOWN_CONVERSATION, OVERLOADED = 14, 16, 12, 19


class _Line:
    """One conversation on this connection."""

    def __init__(self) -> None:
        self.flying: Set[int] = set()
        self.offering: Set[int] = set()
        self.refused = False
        self.probing = False
        self.acked_here = False
        self.wait_until_ms = 0
        self.backoff_ms = BACKOFF_FIRST_MS


class Sending:
    """One connection's; what it knows for longer is in the outbox."""

    def __init__(self, store: Store, outbox: Outbox, requests: Requests) -> None:
        self._store = store
        self._outbox = outbox
        self._requests = requests
        self._told = Told()
        self._lines: Dict[bytes, _Line] = {}
        self.refusals: List[wire.Error] = []
        self.receipts_refused = 0
        """Offers that got fresh places."""

    def push_out(self, now_ms: int) -> None:
        """Sends all that may be sent now."""
        for conversation in self._outbox.conversations():
            line = self._lines.setdefault(conversation, _Line())
            if now_ms < line.wait_until_ms or (line.refused and line.flying):
                continue
            line.refused = False
            letters = self._outbox.waiting(conversation)
            for letter in letters:
                if letter.n in line.flying:
                    continue
                if len(line.flying) >= (1 if line.probing else WINDOW):
                    break
                self._send(letter, letters[0].n, line)

    def next_deadline_ms(self) -> Optional[int]:
        """When something is to be sent again."""
        waits = [self._lines[c].wait_until_ms for c in self._outbox.conversations() if c in self._lines]
        return min((wait for wait in waits if wait), default=None)

    def handle_stable(self, now_ms: int, stable: wire.Stable) -> None:
        conversation, origin = stable.conversation, Origin.from_wire(stable.origin)
        with self._store.transaction():
            self._outbox.stable(conversation, origin, stable.upto)
        if stable.offer:
            line = self._lines.setdefault(conversation, _Line())
            for letter, proof in self._outbox.to_offer(conversation, origin, stable.upto):
                self._offer_own(letter, proof, line)

    def _send(self, letter: Letter, floor: int, line: _Line) -> None:
        send = wire.Send(conversation=self._ref(letter.conversation), n=letter.n, floor_back=letter.n - floor)
        send.seen_hlc = self._store.seen_hlc(letter.conversation)
        send.kind, send.body, send.wall_ms = letter.kind, letter.body, letter.wall_ms
        if not line.acked_here:
            if letter.peer:
                send.peer = letter.peer
            elif letter.kind != KIND_GROUP_CREATE:
                self._name_newest(letter.conversation, send)
        line.flying.add(letter.n)
        self._requests.ask(wire.Frame(send=send), lambda now, frame, tables: self._answer(now, frame, tables, letter))

    def _name_newest(self, conversation: bytes, send: wire.Send) -> None:
        """Groups: the newest membership entry held."""
        held = [e for e in self._store.entries(conversation) if e.kind in MEMBERSHIP_KINDS]
        if held:
            newest = held[-1]
            author = wire.Author(user=newest.identity.user, install=newest.identity.install)
            send.named.CopyFrom(wire.Named(place=newest.place.to_wire(), author=author, n=newest.identity.n))

    def _ref(self, conversation: bytes) -> int:
        ref, new = self._told.ref(conversation)
        if new:
            self._requests.tell(wire.Frame(define=wire.Define(ref=ref, conversation=conversation)))
        return ref

    def _answer(self, now_ms: int, frame: wire.Frame, tables: Tables, letter: Letter) -> bool:
        line = self._lines[letter.conversation]
        line.flying.discard(letter.n)
        if frame.WhichOneof("body") == "ack":
            self._acked(frame.ack, tables, letter)
            line.acked_here, line.probing, line.backoff_ms = True, False, BACKOFF_FIRST_MS
        else:
            self._refused(now_ms, frame.error, letter, line)
        self.push_out(now_ms)
        return True

    def _acked(self, ack: wire.Ack, tables: Tables, letter: Letter) -> None:
        origin = tables.origins[ack.origin]
        place = Place(ack.hlc, *origin, ack.seq)
        key = Place.from_wire(ack.first) if ack.HasField("first") else place
        with self._store.transaction():
            for held in ack.also:
                at = Place.from_wire(held.place)
                first = Place.from_wire(held.first) if held.HasField("first") else at
                stamp = stamp_of(list(held.cut), held.receipt)
                self._outbox.ack(letter.conversation, held.n, Proof(at, first, held.receipt, stamp))
            stamp = stamp_of(list(ack.cut), ack.receipt)
            self._outbox.ack(letter.conversation, letter.n, Proof(place, key, ack.receipt, stamp))

    def _refused(self, now_ms: int, error: wire.Error, letter: Letter, line: _Line) -> None:
        self.refusals.append(error)
        line.refused = True
        if error.retry == wire.Error.NEVER:
            with self._store.transaction():
                self._outbox.fail(letter.conversation, letter.n)
            return
        if error.code == OUT_OF_ORDER:
            return  # from the floor, once the whole flight was answered
        if error.code in (BEHIND, UNKNOWN_CONVERSATION):
            line.acked_here = False
            self._offer_all(letter, line)
        line.probing = line.probing or error.code == OVERLOADED
        line.wait_until_ms = now_ms + max(error.retry_after_ms, line.backoff_ms)
        line.backoff_ms = min(2 * line.backoff_ms, BACKOFF_MAX_MS)

    # ---- offers

    def _offer_all(self, letter: Letter, line: _Line) -> None:
        """What this region may lack of a conversation: of a group its membership, else one's own acked messages."""
        conversation = letter.conversation
        if letter.peer:
            for own in self._outbox.acked(conversation):
                self._offer_own(own, self._outbox.proofs(conversation, own.n)[0], line)
            return
        entries = [e for e in self._store.entries(conversation) if e.kind in MEMBERSHIP_KINDS and e.stamp]
        # The creation has the lowest display key of all.
        for entry in entries:
            stamp = wire.Stamp.FromString(entry.stamp)
            send = wire.Send(conversation=self._ref(conversation), n=entry.identity.n, kind=entry.kind)
            send.body, send.wall_ms, send.receipt = entry.body, entry.wall_ms, stamp.receipt
            send.was.CopyFrom(entry.key.to_wire())
            send.cut.extend(stamp.cut)
            send.author.CopyFrom(wire.Author(user=entry.identity.user, install=entry.identity.install))
            self._requests.ask(wire.Frame(send=send), self._offered)

    def _offered(self, now_ms: int, frame: wire.Frame, tables: Tables) -> bool:
        self.receipts_refused += frame.ack.receipt_refused
        return True

    def _offer_own(self, letter: Letter, proof: Proof, line: _Line) -> None:
        if letter.n in line.offering:
            return
        line.offering.add(letter.n)
        send = wire.Send(conversation=self._ref(letter.conversation), n=letter.n, kind=letter.kind)
        send.body, send.wall_ms, send.peer = letter.body, letter.wall_ms, letter.peer
        send.receipt = proof.receipt
        send.was.CopyFrom(proof.key.to_wire())
        if proof.stamp:
            send.cut.extend(wire.Stamp.FromString(proof.stamp).cut)
            # The receipt of a membership entry proves nothing without its author, oneself too.
            send.author.CopyFrom(wire.Author(user=self._outbox.user, install=self._outbox.install))

        def answer(now_ms: int, frame: wire.Frame, tables: Tables) -> bool:
            line.offering.discard(letter.n)
            if frame.WhichOneof("body") == "ack":
                self._acked(frame.ack, tables, letter)
            return self._offered(now_ms, frame, tables)

        self._requests.ask(wire.Frame(send=send), answer)
