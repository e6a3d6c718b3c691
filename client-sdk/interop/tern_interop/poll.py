"""Polls over HTTP as a transport: `POST /v1/poll`, long polls or short ones. No state of TCP or TLS is the session's.

A long poll waits at the edge for something to tell; what is to be sent meanwhile goes in a second request, which ends
the first. Short ones ask now and then. A request whose answer is lost is made again: the same number, the same body.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Deque, Optional, Union

from .dispatch import Edge
from .frames import Lane
from .http3 import Http3
from .transport import Closed, Received
from .web import POLL, Answer, Http

BODY_BYTES_LIMIT = 262_144
LONG_MS = 25_000
"""How long an answer may wait, at most."""
SHORT_S = 0.2
"""Between short polls without anything to send. A real client would ask less often."""
FLYING_MAX = 2
TRIES_MAX = 10
"""Of one request, before the connection counts as dead."""
AGAIN_S = 0.1
OK, CONFLICT, GONE, UNAVAILABLE = 200, 409, 410, 503


class Poll:
    """A session on polls; see `connect`. Like TCP it tells codes by Error frames, so `Closed` has none."""

    def __init__(self, http: Union[Http, Http3], wait_ms: int) -> None:
        self._http = http
        self._wait_ms = wait_ms
        self._waiting: Deque[bytes] = deque()
        self._queue: "asyncio.Queue[Union[Received, Closed]]" = asyncio.Queue()
        self._ended: Optional[Closed] = None
        self._poke = asyncio.Event()
        self.name = ""
        """The session's, secret; empty before the first answer and where there is none."""
        self.number = 0
        """Of the newest request; 0 is the first one, that says Hello."""
        self.lose_every = 0
        """While it is k > 0, every k-th request loses its first answer, and is made again."""
        self.lost = 0
        self.conflicts = 0
        """Answers with 409. The request is made again."""
        self.differed = 0
        """Repeated answers that were not the same. They are taken like the others."""
        self._run = asyncio.create_task(self._poll())
        self._dropping: "Optional[asyncio.Task[None]]" = None

    @classmethod
    async def connect(
        cls, edge: Edge, ca: str, short: bool = False, http2: bool = True, http3: bool = False
    ) -> "Poll":
        """Nothing happens before Hello is sent. `short`: answers never wait."""
        http = Http3(edge, ca) if http3 else Http(edge, ca, http2)
        return cls(http, 0 if short else LONG_MS)

    def send(self, lane: Lane, data: bytes) -> None:
        self._waiting.append(data)
        self._poke.set()

    async def receive(self) -> Union[Received, Closed]:
        if self._ended is not None and self._queue.empty():
            return self._ended
        return await self._queue.get()

    async def close(self, code: int = 0) -> None:
        self._run.cancel()
        if self.name and self._ended is None:
            try:
                await self._http.ask(headers={POLL: self.name}, method="DELETE")
            except ConnectionError:
                """It ends by itself."""
        await self._end("closed")

    def drop(self) -> None:
        self._run.cancel()
        self._dropping = asyncio.create_task(self._end("dropped"))

    # ---- inside

    async def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = Closed(-1, reason)
            self._queue.put_nowait(self._ended)
            await self._http.close()

    async def _poll(self) -> None:
        flying: "Deque[asyncio.Task[Answer]]" = deque()
        try:
            await self._hello()
            while self._ended is None:
                # A request waits at the edge; a second one only with something to send.
                if not flying or (self._waiting and len(flying) < FLYING_MAX):
                    self.number += 1
                    flying.append(asyncio.create_task(self._ask(self.number, self._body())))
                self._poke.clear()
                poke = asyncio.create_task(self._poke.wait())
                try:
                    await asyncio.wait({flying[0], poke}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    poke.cancel()
                # In the order of their numbers.
                while flying and flying[0].done():
                    await self._take(flying.popleft().result())
                if self._wait_ms == 0 and not flying and not self._waiting:
                    await self._pause()
        except ConnectionError as error:
            await self._end(str(error))
        finally:
            for task in flying:
                task.cancel()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._poke.wait(), SHORT_S)
        except asyncio.TimeoutError:
            """Time to ask again."""

    async def _hello(self) -> None:
        await self._poke.wait()
        answer = await self._http.ask(self._waiting.popleft())
        self.name = answer.headers.get("tern-poll", "")
        await self._take(answer)
        if not self.name:
            await self._end("there is no session")

    def _body(self) -> bytes:
        body = bytearray()
        while self._waiting and len(body) + len(self._waiting[0]) <= BODY_BYTES_LIMIT:
            body += self._waiting.popleft()
        return bytes(body)

    async def _take(self, answer: Answer) -> None:
        if answer.status != OK:
            await self._end(f"{answer.status} {answer.error}")
        elif answer.body:
            self._queue.put_nowait(Received(Lane.CONTROL, answer.body))

    async def _ask(self, number: int, body: bytes) -> Answer:
        """Until there is an answer. ConnectionError after `TRIES_MAX` without one."""
        lost: Optional[Answer] = None
        for again in range(TRIES_MAX):
            try:
                answer = await self._http.poll(self.name, number, body, self._wait_ms)
            except ConnectionError:
                if again == TRIES_MAX - 1:
                    raise
                await asyncio.sleep(AGAIN_S)
                continue
            if answer.status in (CONFLICT, UNAVAILABLE):
                # Number k + 1 may overtake k, and edges end it when k is repeated: again, as if it were lost.
                self.conflicts += answer.status == CONFLICT
                await asyncio.sleep(AGAIN_S)
            elif lost is None and self.lose_every and number % self.lose_every == 0:
                lost, self.lost = answer, self.lost + 1
            else:
                self.differed += lost is not None and (lost.status, lost.body) != (answer.status, answer.body)
                return answer
        raise ConnectionError(f"no answer to number {number}")
