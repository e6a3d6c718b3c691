"""A device: its store, and a task that ties one session after the other to a transport. All of asyncio is here."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Awaitable, Callable, List, Optional, TypeVar, Union

from .frames import FrameError, Lane
from .ids import Message
from .outbox import Outbox
from .proto import wire
from .receiving import Shown
from .session import Login, Session
from .store import Store
from .transport import Closed, Received, Transport

HANG_S = 60.0
"""Waits end after this long, as failures: only to end hangs."""
WAIT_S_MAX = 1.0
"""How long at most nothing is looked at."""
KIND_TEXT = 0

T = TypeVar("T")


class Client:
    """One install of one user. Not connected until `connect`."""

    def __init__(self, me: Login, path: str = ":memory:") -> None:
        self.me = me
        self.store = Store(path)
        self.outbox = Outbox(self.store, me.user, me.install)
        self.shown: List[Shown] = []
        """Messages of others in the order in which they were first shown."""
        self.session: Optional[Session] = None
        self.transport: Optional[Transport] = None
        self.closed: Optional[Closed] = None
        self.deaf = False
        """While set, what comes is thrown away unread: as if it were lost."""
        self._task: Optional["asyncio.Task[None]"] = None
        self._news = asyncio.Condition()
        self._poke = asyncio.Event()

    async def connect(self, opening: Awaitable[Transport]) -> Session:
        """Logs in over a transport, until rows were told. ConnectionError with the code if the server refuses."""
        self.transport = await opening
        self.closed, self.deaf = None, False
        with self.store.transaction():
            order = self.store.count("connections")
        self.session = Session(self.me, self.store, self.outbox, order, self.shown)
        self.session.start(_now_ms())
        self._task = asyncio.create_task(self._run(self.session, self.transport))
        session = self.session
        await self.until(lambda: session.receiving.caught_up or self.closed, "to be logged in")
        if self.closed is not None:
            code = session.errors[0].code if session.errors else self.closed.code
            raise ConnectionRefusedError(code, self.closed.reason)
        with self.store.transaction():
            first = self.store.count("logins") == 1
        if first:
            session.write_device_cell("interop")
            self._poke.set()
        return session

    def leave(self) -> None:
        """Stops to listen to the connection, and leaves it open."""
        if self._task is not None:
            self._task.cancel()
        self._task = self.session = self.transport = None

    async def move(self, opening: Awaitable[Transport]) -> Session:
        """Connects elsewhere, then closes this connection. What still comes on it meanwhile is not read: whatever that
        was, the new session asks for it or sends it again."""
        left = self.transport
        self.leave()
        session = await self.connect(opening)
        if left is not None:
            await left.close()
        return session

    async def disconnect(self, drop: bool = False) -> None:
        """Ends the connection, in order or (`drop`) without a word."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self.transport is not None:
            if drop:
                self.transport.drop()
            else:
                await self.transport.close()
        self.session = self.transport = None

    async def send(self, conversation: bytes, text: str, peer: str = "") -> int:
        """A text, to the outbox, and out when there is a connection. Its n. `peer`: direct conversations."""
        return await self.send_kind(conversation, KIND_TEXT, text.encode(), peer)

    async def send_kind(self, conversation: bytes, kind: int, body: bytes, peer: str = "") -> int:
        """Any kind; see `send`."""
        with self.store.transaction():
            n = self.outbox.add(conversation, kind, body, int(time.time() * 1000), peer)
        self._poke.set()
        return n

    def send_raw(self, lane: Lane, data: bytes) -> None:
        """Bytes on a lane, whatever they are."""
        assert self.transport is not None, "not connected"
        self.transport.send(lane, data)

    def ping(self) -> None:
        """Asks whether anything was missed."""
        assert self.session is not None, "not connected"
        self.session.ping(_now_ms())
        self._poke.set()

    async def ask(self, frame: wire.Frame) -> wire.Frame:
        """Any request, and the one frame that answers it, an Error too."""
        assert self.session is not None, "not connected"
        answers: List[wire.Frame] = []
        self.session.ask(frame, answers.append)
        self._poke.set()
        await self.until(lambda: answers, "for an answer")
        return answers[0]

    def tell(self, frame: wire.Frame) -> None:
        """Any frame that has no answer."""
        assert self.session is not None, "not connected"
        self.session.tell(frame)
        self._poke.set()

    def timeline(self, conversation: bytes) -> List[Message]:
        return self.store.timeline(conversation)

    def texts(self, conversation: bytes) -> List[str]:
        """Bodies of the texts of a conversation, in the order of display."""
        return [m.body.decode() for m in self.timeline(conversation) if m.kind == KIND_TEXT]

    async def until(self, condition: Callable[[], T], what: str) -> T:
        """Waits until it holds, looking whenever something happened. TimeoutError after `HANG_S`, saying `what`."""

        async def wait() -> T:
            async with self._news:
                while not (met := condition()):
                    await self._news.wait()
                return met

        try:
            return await asyncio.wait_for(wait(), HANG_S)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{self.me.user} waited {HANG_S} s {what}") from None

    async def _run(self, session: Session, transport: Transport) -> None:
        receive: "asyncio.Future[Union[Received, Closed]]" = asyncio.ensure_future(transport.receive())
        poke: "asyncio.Future[Any]" = asyncio.ensure_future(self._poke.wait())
        try:
            while self.closed is None:
                now_ms = _now_ms()
                session.handle_time(now_ms)
                while (output := session.poll_output(now_ms)) is not None:
                    transport.send(*output)
                await self._tell()
                wait_s = min((session.next_deadline_ms(now_ms) - now_ms) / 1000, WAIT_S_MAX)
                await asyncio.wait({receive, poke}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if poke.done():
                    self._poke.clear()
                    poke = asyncio.ensure_future(self._poke.wait())
                if receive.done():
                    self._came(session, receive.result())
                    receive = asyncio.ensure_future(transport.receive())
                elif session.is_silent(_now_ms()):
                    self.closed = Closed(-1, "silence")
        except FrameError as error:
            await transport.close(error.code)
            self.closed = Closed(-1, str(error))
        except Exception as error:
            self.closed = Closed(-1, repr(error))
            raise
        finally:
            receive.cancel()
            poke.cancel()
            await asyncio.gather(receive, poke, return_exceptions=True)
            await self._tell()

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _came(self, session: Session, came: Union[Received, Closed]) -> None:
        if isinstance(came, Closed):
            self.closed = came
        elif not self.deaf:
            session.handle_bytes(_now_ms(), came.stream, came.data)


def _now_ms() -> int:
    return int(time.monotonic() * 1000)
