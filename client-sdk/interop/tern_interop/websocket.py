"""WebSockets as a transport, on `websockets`: one stream of binary messages, `GET /v1/ws`, subprotocol `tern.1`."""

from __future__ import annotations

import asyncio
import ssl
from typing import Optional, Sequence, Union

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .dispatch import Edge
from .frames import Lane
from .quic import CONNECT_TIMEOUT_S
from .transport import Closed, Received

PATH = "/v1/ws"
SUBPROTOCOL = "tern.1"
MESSAGE_BYTES_LIMIT = 131_077
CLOSE_CODE_FIRST = 4_000
"""Codes of docs/PROTOCOL.md are told as this + the code; those below are of RFC 6455."""
CLOSE_TIMEOUT_S = 10.0


async def open_socket(
    edge: Edge, ca: str, subprotocols: Sequence[str] = (SUBPROTOCOL,), path: str = PATH
) -> ClientConnection:
    """A WebSocket to an edge whose certificate is for `edge.tls_name` and signed by the CA in the file `ca`.

    InvalidHandshake if the edge refuses, OSError if it can't be reached, TimeoutError after `CONNECT_TIMEOUT_S`.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return await connect(
        f"wss://{edge.tls_name}:{edge.port}{path}",
        host=edge.host,
        ssl=context,
        subprotocols=list(subprotocols) or None,  # type: ignore[arg-type]
        compression=None,
        proxy=None,
        open_timeout=CONNECT_TIMEOUT_S,
        close_timeout=CLOSE_TIMEOUT_S,
        # Heartbeats are the session's.
        ping_interval=None,
        max_size=MESSAGE_BYTES_LIMIT,
    )


class WebSocket:
    """An established connection; see `connect`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._queue: "asyncio.Queue[Optional[bytes]]" = asyncio.Queue()
        self._sender = asyncio.create_task(self._send_all())
        self.messages_sent = 0

    @classmethod
    async def connect(cls, edge: Edge, ca: str) -> "WebSocket":
        """See `open_socket`; ConnectionError for whatever goes wrong."""
        try:
            return cls(await open_socket(edge, ca))
        except (InvalidHandshake, asyncio.TimeoutError) as error:
            raise ConnectionError(f"no WebSocket to {edge.id}: {error!r}") from error

    def send(self, lane: Lane, data: bytes) -> None:
        self._queue.put_nowait(data)

    async def receive(self) -> Union[Received, Closed]:
        try:
            message = await self._socket.recv()
        except ConnectionClosed as error:
            self._sender.cancel()
            return closed_by(error)
        if isinstance(message, str):
            return Closed(-1, "a text message")
        return Received(Lane.CONTROL, message)

    async def close(self, code: int = 0) -> None:
        """Sends what waits, then closes. The code is not told: a client says 1000."""
        self._queue.put_nowait(None)
        await asyncio.wait({self._sender})
        await self._socket.close()

    def drop(self) -> None:
        self._sender.cancel()
        self._socket.transport.abort()

    async def _send_all(self) -> None:
        """What waits goes out together, as many whole frames to a message as it may hold."""
        rest: Optional[bytes] = b""
        try:
            while rest is not None:
                message, rest = rest or await self._queue.get(), b""
                if message is None:
                    return
                while not rest and not self._queue.empty():
                    rest = self._queue.get_nowait()
                    if rest is None:
                        break
                    if len(message) + len(rest) <= MESSAGE_BYTES_LIMIT:
                        message, rest = message + rest, b""
                await self._socket.send(message)
                self.messages_sent += 1
        except ConnectionClosed:
            """`receive` tells of it."""


def closed_by(error: ConnectionClosed) -> Closed:
    """How a WebSocket ended: a code of docs/PROTOCOL.md where the server said one, -1 where it did not."""
    if error.rcvd is None:
        return Closed(-1, "ended without a Close")
    code = error.rcvd.code - CLOSE_CODE_FIRST
    return Closed(code if code >= 0 else -1, f"{error.rcvd.code} {error.rcvd.reason}")
