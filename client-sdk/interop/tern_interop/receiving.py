"""The receiver's rules on one connection: pushes, rows, and what they tell of that is not held."""

from __future__ import annotations

from functools import partial
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from .compare import buckets
from .frames import Tables
from .ids import Cursor, Identity, Origin, Place
from .proto import wire
from .requests import Requests
from .store import Entry, Store

PULL_ENTRIES = 200
"""Asked for at a time; the server gives fewer where its limit is lower."""
AGAIN_MS = 1_000
"""Before what was not there is asked for again."""

PLAIN_ROW = (0, 1)
"""State and generation of a member's row, until a server says otherwise: direct conversations have them too."""


class Shown(NamedTuple):
    """A message that was shown for the first time."""

    conversation: bytes
    identity: Identity
    body: bytes


class Receiving:
    """One connection's; what it knows for longer is in the store."""

    def __init__(self, store: Store, requests: Requests, me: Tuple[str, str], shown: List[Shown]) -> None:
        self._store = store
        self._requests = requests
        self._me = me
        self._shown = shown
        self._region = Origin(0, 0)
        self._newest_rev = 0
        self._pulling_rows = False
        self._pulling: Set[Tuple[bytes, Origin]] = set()
        self._again: Dict[bytes, int] = {}
        self.caught_up = False
        """Whether all rows were told of once."""
        self.gaps: List[wire.Gap] = []
        self.entries_told = 0
        """Entries that came on this connection, those held already included."""
        self.compared: Set[bytes] = set()
        """Conversations whose rows differed from those here."""

    def handle_welcome(self, welcome: wire.Welcome, compared: bool) -> None:
        """`compared`: whether Hello said `compare`."""
        self._region = Origin(welcome.cursor.region, welcome.cursor.era)
        self._newest_rev = welcome.cursor.rev
        if compared and not welcome.rows.rows and not welcome.rows.HasField("upto"):
            self._compare(0, None)
            return
        self._rows(welcome.rows)
        if welcome.rows.preview or not welcome.rows.last:
            self.pull_rows()

    def next_deadline_ms(self) -> Optional[int]:
        return min(self._again.values(), default=None)

    def handle_time(self, now_ms: int) -> None:
        for conversation in [c for c, at in self._again.items() if at <= now_ms]:
            del self._again[conversation]
            self._pull_missing(conversation)

    def handle_newest(self, rev: int) -> None:
        """Pong and Advance: the user's newest rev, from elsewhere."""
        self._newest_rev = max(self._newest_rev, rev)
        if self._rev() < self._newest_rev:
            self.pull_rows()

    def is_up_to_date(self) -> bool:
        """Whether all that was told of is held, as far as it can be had now."""
        return self._rev() >= self._newest_rev and not self._pulling and not self._again

    def handle_push(self, push: wire.Push, tables: Tables) -> None:
        conversation = tables.conversations[push.conversation]
        heads = {tables.origins[head.origin]: head.seq for head in push.heads}
        before = push.rev - push.rev_back
        with self._store.transaction():
            self._entries(conversation, push.entries, tables)
            known = self._store.rows().get(conversation, PLAIN_ROW)
            state, generation = (push.row.state, push.row.generation) if push.HasField("row") else known
            self._store.set_row(conversation, state, generation, push.peer)
            if push.HasField("row"):
                for what in ("from", "read", "peer_read"):
                    told = {Origin.from_wire(h.origin): h.seq for h in getattr(push.row, what)}
                    self._store.tell(conversation, what, told, replace=True)
            for origin in heads:
                if origin.is_fold:
                    self._store.drop_heads_of(conversation, origin.region)
            self._store.tell(conversation, "heads", heads)
            self._store.tell(conversation, "top", heads)
            moved = self._store.cursor(self._region.region) == Cursor(*self._region, before)
            if moved:
                self._store.set_cursor(Cursor(*self._region, push.rev))
        if moved:
            self._acknowledge()
        self.handle_newest(push.rev)
        self._pull_missing(conversation)

    # ---- rows

    def pull_rows(self) -> None:
        """Asks for rows above the cursor, unless it is asking already."""
        if self._pulling_rows:
            return
        self._pulling_rows = True
        pull = wire.PullRows()
        cursor = self._store.cursor(self._region.region)
        if cursor is not None:
            pull.above.CopyFrom(cursor.to_wire())
        self._requests.ask(wire.Frame(pull_rows=pull), self._rows_answer)

    def _rows_answer(self, now_ms: int, frame: wire.Frame, tables: Tables) -> bool:
        self._pulling_rows = False
        if frame.WhichOneof("body") == "rows":
            self._rows(frame.rows)
            if not frame.rows.last or self._rev() < self._newest_rev:
                self.pull_rows()
        return True

    def _compare(self, first: int, at: Optional[wire.Cursor]) -> None:
        self._pulling_rows = True
        hashes = buckets(self._store)
        question = wire.RowHashes(buckets=hashes[first:], total=len(hashes), first_bucket=first, at=at)

        def answer(now_ms: int, frame: wire.Frame, tables: Tables) -> bool:
            self._pulling_rows = False
            if frame.WhichOneof("body") != "rows":
                self.pull_rows()
                return True
            self.compared.update(row.conversation for row in frame.rows.rows)
            if frame.rows.next_bucket:
                self._rows(frame.rows, move=False)
                self._compare(frame.rows.next_bucket, at or frame.rows.upto)
            else:
                self._rows(frame.rows)
                self.handle_newest(self._newest_rev)
            return True

        self._requests.ask(wire.Frame(row_hashes=question), answer)

    def _rows(self, rows: wire.Rows, move: bool = True) -> None:
        tables = Tables.of(rows)
        with self._store.transaction():
            if rows.reset != wire.NONE:
                self._store.forget_cursor(self._region.region)
            for row in rows.rows:
                self._row(row, tables, rows.preview)
            moved = move and not rows.preview and rows.HasField("upto") and self._move(rows)
        if moved:
            self._acknowledge()
        for row in rows.rows:
            if not rows.preview:
                self._pull_missing(row.conversation)
        # An answer to RowHashes is whole with its last part.
        self.caught_up = self.caught_up or (moved and (rows.last or self._rev() >= self._newest_rev))

    def _row(self, row: wire.Row, tables: Tables, preview: bool) -> None:
        conversation = row.conversation
        self._entries(conversation, row.inline, tables)
        heads = {tables.origins[head.origin]: head.seq for head in row.heads}
        self._store.tell(conversation, "top", heads)
        if preview:
            return
        self._store.set_row(conversation, row.state, row.generation, row.peer)
        self._store.tell(conversation, "heads", heads, replace=True)
        for what in ("read", "peer_read", "from"):
            told = {tables.origins[head.origin]: head.seq for head in getattr(row, what)}
            self._store.tell(conversation, what, told, replace=True)

    def _move(self, rows: wire.Rows) -> bool:
        """The cursor, if it is still at `base` or above it."""
        cursor = self._store.cursor(rows.upto.region)
        rev = cursor.rev if cursor is not None and cursor.era == rows.upto.era else 0
        if rows.HasField("base") and rev < rows.base.rev:
            return False
        self._store.set_cursor(Cursor(rows.upto.region, rows.upto.era, max(rev, rows.upto.rev)))
        return True

    def _rev(self) -> int:
        cursor = self._store.cursor(self._region.region)
        return cursor.rev if cursor is not None and cursor.era == self._region.era else 0

    def _acknowledge(self) -> None:
        self._requests.tell(wire.Frame(push_ack=wire.PushAck(rev=self._rev())))

    # ---- entries

    def _entries(self, conversation: bytes, entries: Iterable[wire.Entry], tables: Tables) -> None:
        for entry in entries:
            self.entries_told += 1
            place = Place(entry.hlc, *tables.origins[entry.origin], entry.seq)
            key = Place.from_wire(entry.first) if entry.HasField("first") else place
            identity = Identity(*tables.senders[entry.sender], entry.n)
            wall_ms = (entry.hlc >> 16) + entry.wall_delta_ms
            stamp = entry.stamp.SerializeToString()
            new = self._store.add_entry(
                conversation, Entry(place, key, identity, entry.kind, entry.body, wall_ms, stamp)
            )
            if new and identity[:2] != self._me:
                self._shown.append(Shown(conversation, identity, entry.body))

    def _pull_missing(self, conversation: bytes) -> None:
        for origin, first, last in self._store.missing(conversation):
            if (conversation, origin) in self._pulling or conversation in self._again:
                continue
            self._pulling.add((conversation, origin))
            # "from" is a keyword of Python.
            pull = wire.PullEntries(conversation=conversation, origin=origin.to_wire(), to=last, **{"from": first})
            pull.limit = PULL_ENTRIES
            self._requests.ask(wire.Frame(pull=pull), partial(self._page, pull))

    def _page(self, pull: wire.PullEntries, now_ms: int, frame: wire.Frame, _: Tables) -> bool:
        conversation, origin = pull.conversation, Origin.from_wire(pull.origin)
        if frame.WhichOneof("body") != "page":
            self._pulling.discard((conversation, origin))
            self._again[conversation] = now_ms + max(AGAIN_MS, frame.error.retry_after_ms)
            return True
        page = frame.page
        with self._store.transaction():
            self._entries(conversation, page.entries, Tables.of(page))
            for gap in page.gaps:
                self.gaps.append(gap)
                if gap.reason in (wire.Gap.LOST, wire.Gap.TRIMMED, wire.Gap.NO_ACCESS):
                    self._store.add_gap(conversation, origin, getattr(gap, "from"), gap.to)
                else:
                    self._again[conversation] = now_ms + AGAIN_MS
        if page.last:
            self._pulling.discard((conversation, origin))
            self._pull_missing(conversation)
        return bool(page.last)
