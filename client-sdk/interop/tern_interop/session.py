"""One connection's life, from Hello to its end, without input or output: frames and times in, frames out.

    Hello sent -> Welcome -> Commit sent = live -> ended (by an Error, a Kick, a close, or silence)

The same session runs over any transport that carries bytes of streams in order.
"""

from __future__ import annotations

from typing import Callable, List, NamedTuple, Optional, Tuple

from .frames import Lane, Reader, Tables, encode
from .ids import direct_id, own_log_id
from .outbox import Outbox
from .proto import wire
from .receiving import Receiving, Shown
from .requests import Requests
from .sending import Sending
from .store import Store

AGENT = "tern-interop/1"
VERSION = 1
PING_UNACKED_MS = 250
"""While something is un-acked and nothing is heard."""
SILENCE_MS = 10_000
"""Then the connection counts as dead. Longer than a phone would wait: test machines are slow."""
UNSTABLE_AGAIN_MS = 3_000
UNSTABLE_LOGS_MAX = 200
ORIGINS_MAX = 16
KIND_CELL = 20


class Login(NamedTuple):
    """Who connects. `token` is a JWT."""

    user: str
    install: str
    token: str


class Session:
    """See the module's text. `order` grows with each connection of this install."""

    def __init__(self, me: Login, store: Store, outbox: Outbox, order: int, shown: List[Shown]) -> None:
        self._me = me
        self._store = store
        self._outbox = outbox
        self._order = order
        self._requests = Requests()
        self._readers = {lane: Reader() for lane in Lane}
        self._tables = {lane: Tables() for lane in Lane}
        self._compared = False
        self._pinged_ms = 0
        self._heard_ms = 0
        self._told_ms = 0
        self._unstable_ms = 0
        self.sending = Sending(store, outbox, self._requests)
        self.receiving = Receiving(store, self._requests, (me.user, me.install), shown)
        self.welcome: Optional[wire.Welcome] = None
        self.errors: List[wire.Error] = []
        """Those that concern the connection, Hello's included."""
        self.go_away: Optional[wire.GoAway] = None
        self.kick: Optional[wire.Kick] = None
        self.signals: List[wire.Signal] = []
        self.pushes = {lane: 0 for lane in Lane}
        """How many came on which stream."""
        self.hellos = 0
        self.pongs = 0
        self.seen_address = ""
        """This client's address as the edge sees it."""

    # ---- what goes in

    def start(self, now_ms: int) -> None:
        """The transport is up."""
        self._heard_ms = self._told_ms = now_ms
        self._compared = bool(self._store.rows())
        self.hellos += 1
        hello = wire.Hello(versions=[VERSION], token=self._me.token, install=self._me.install, agent=AGENT)
        hello.foreground = True
        hello.compare = self._compared
        hello.cursors.extend(cursor.to_wire() for cursor in self._store.cursors())
        hello.unstable.extend(self._unstable())
        self._requests.ask(wire.Frame(hello=hello), self._welcome)

    def handle_bytes(self, now_ms: int, stream: Lane, data: bytes) -> None:
        """What came on a stream. FrameError: close the connection with its code."""
        for frame in self._readers[stream].feed(data):
            self._heard_ms = now_ms
            self._frame(now_ms, stream, frame)

    def handle_time(self, now_ms: int) -> None:
        """To be called when `next_deadline_ms` has come, or earlier."""
        if self.welcome is None:
            return
        self.sending.push_out(now_ms)
        self.receiving.handle_time(now_ms)
        if now_ms >= self._unstable_ms + UNSTABLE_AGAIN_MS:
            self._unstable_ms = now_ms
            logs = self._unstable()
            if logs:
                self._requests.tell(wire.Frame(unstable=wire.Unstable(logs=logs)))
        if now_ms >= self._ping_due_ms():
            self.ping(now_ms)

    def next_deadline_ms(self, now_ms: int) -> int:
        """When `handle_time` is to be called next."""
        dues = [self._ping_due_ms(), self._unstable_ms + UNSTABLE_AGAIN_MS]
        dues += [d for d in (self.sending.next_deadline_ms(), self.receiving.next_deadline_ms()) if d is not None]
        return max(now_ms + 1, min(dues))

    def is_silent(self, now_ms: int) -> bool:
        """Whether it is time to connect elsewhere: a ping was sent and nothing came since, for `SILENCE_MS`."""
        return self._pinged_ms > self._heard_ms and now_ms - self._heard_ms > SILENCE_MS

    def ping(self, now_ms: int) -> None:
        """The answer says whether anything was missed."""
        self._pinged_ms = now_ms
        ping = wire.Ping(echo=now_ms & 0xFFFF_FFFF, foreground=True)
        self._requests.ask(wire.Frame(ping=ping), self._pong)

    def tell(self, frame: wire.Frame) -> None:
        """Any frame that has no answer."""
        self._requests.tell(frame)

    def ask(self, frame: wire.Frame, tell: Callable[[wire.Frame], None]) -> None:
        """Any request that has one answer, which is told."""

        def answer(now_ms: int, frame: wire.Frame, _: Tables) -> bool:
            tell(frame)
            return True

        self._requests.ask(frame, answer)

    # ---- what comes out

    def poll_output(self, now_ms: int) -> Optional[Tuple[Lane, bytes]]:
        output = self._requests.poll_output()
        if output is None:
            return None
        self._told_ms = now_ms
        return output[0], encode(output[1])

    def direct(self, peer: str) -> bytes:
        """The id of the direct conversation with a user. The session must be live."""
        assert self.welcome is not None, "the salt comes with Welcome"
        return direct_id(self.welcome.direct_salt, self._me.user, peer)

    # ---- inside

    def _frame(self, now_ms: int, stream: Lane, frame: wire.Frame) -> None:
        tables = self._tables[stream]
        what = frame.WhichOneof("body")
        if frame.req and self._requests.handle_answer(now_ms, frame, tables):
            return
        if what == "define":
            tables.define(frame.define)
        elif what == "push":
            self.pushes[stream] += 1
            self.receiving.handle_push(frame.push, tables)
        elif what == "advance":
            self.receiving.handle_newest(frame.advance.rev)
        elif what == "stable":
            self.sending.handle_stable(now_ms, frame.stable)
        elif what == "error":
            self.errors.append(frame.error)
        elif what == "go_away":
            self.go_away = frame.go_away
        elif what == "kick":
            self.kick = frame.kick
        elif what == "signal":
            self.signals.append(frame.signal)
        # What is not known is ignored.

    def _welcome(self, now_ms: int, frame: wire.Frame, _: Tables) -> bool:
        if frame.WhichOneof("body") == "error":
            self.errors.append(frame.error)
            return True
        welcome = frame.welcome
        self.welcome = welcome
        self.seen_address = welcome.seen_address
        self._requests.in_flight_limit = welcome.limits.in_flight
        for reader in self._readers.values():
            reader.limit = welcome.limits.frame_bytes
        self._requests.tell(wire.Frame(commit=wire.Commit(order=self._order)))
        self._unstable_ms = now_ms
        self.receiving.handle_welcome(welcome, self._compared)
        self.sending.push_out(now_ms)
        return True

    def _pong(self, now_ms: int, frame: wire.Frame, _: Tables) -> bool:
        if frame.WhichOneof("body") == "pong":
            self.seen_address = frame.pong.seen_address or self.seen_address
            if not frame.pong.rev_unknown:
                self.pongs += 1
                self.receiving.handle_newest(frame.pong.rev)
        return True

    def write_device_cell(self, name: str) -> None:
        """Tells the user's other devices of this install; to be called once, when it is up to date."""
        assert self.welcome is not None, "the salt comes with Welcome"
        wall_ms = self.welcome.wall_ms
        value = wire.DeviceCell(name=name, since_ms=wall_ms).SerializeToString()
        cell = wire.Cell(key="device/" + self._me.install, value=value)
        log = own_log_id(self.welcome.direct_salt, self._me.user)
        with self._store.transaction():
            self._outbox.add(log, KIND_CELL, cell.SerializeToString(), wall_ms, peer=self._me.user)

    def _unstable(self) -> List[wire.UnstableLog]:
        return [
            wire.UnstableLog(conversation=c, origins=[o.to_wire() for o in sorted(origins)[:ORIGINS_MAX]])
            for c, origins in self._outbox.unstable()
        ][:UNSTABLE_LOGS_MAX]

    def _ping_due_ms(self) -> int:
        if self.welcome is None:
            return 1 << 62
        last = max(self._pinged_ms, self._heard_ms)
        if self._outbox.conversations():
            return last + PING_UNACKED_MS
        # A fifth earlier than the edge would miss it.
        heartbeat_ms: int = self.welcome.heartbeat.foreground_ms
        return max(self._told_ms, self._heard_ms) + heartbeat_ms * 4 // 5
