"""QUIC as a transport, on aioquic: three bidirectional streams (0 control, 4 message, 8 bulk), ALPN `tern/1`.

aioquic's own asyncio protocol binds a connection to one socket. Here a connection outlives its sockets, so that
`migrate` can move it to another local port (RFC 9000, section 9).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Any, Deque, Optional, Tuple, Union

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from .dispatch import Edge
from .frames import Lane
from .transport import Closed, Received

ALPN = "tern/1"
CONNECT_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 60.0
_STREAM_OF = {Lane.CONTROL: 0, Lane.MESSAGE: 4, Lane.BULK: 8}
_LANE_OF = {stream: lane for lane, stream in _STREAM_OF.items()}


class _Socket(asyncio.DatagramProtocol):
    """One local port. What comes is the connection's, also while it is about to be left."""

    def __init__(self, owner: "Quic") -> None:
        self._owner = owner

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._owner._datagram(data)

    def error_received(self, exc: Exception) -> None:
        """A loss, for QUIC."""


class Quic:
    """An established connection; see `connect`."""

    def __init__(self, edge: Edge, ca: str) -> None:
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN], is_client=True, server_name=edge.tls_name, idle_timeout=IDLE_TIMEOUT_S
        )
        configuration.load_verify_locations(ca)
        configuration.verify_mode = ssl.CERT_REQUIRED
        self._peer = (edge.host, edge.port)
        self._connection = QuicConnection(configuration=configuration)
        self._loop = asyncio.get_running_loop()
        self._socket: Optional[asyncio.DatagramTransport] = None
        self._timer: Optional[asyncio.TimerHandle] = None
        self._came: Deque[Union[Received, Closed]] = deque()
        self._news = asyncio.Event()
        self._up = self._loop.create_future()
        self._ended: Optional[Closed] = None

    @classmethod
    async def connect(cls, edge: Edge, ca: str) -> "Quic":
        """Connects to an edge whose certificate is for `edge.tls_name` and signed by the CA in the file `ca`.

        ConnectionError if that fails or takes more than `CONNECT_TIMEOUT_S`.
        """
        self = cls(edge, ca)
        self._socket = await self._bind()
        self._connection.connect(self._peer, now=self._loop.time())
        self._transmit()
        try:
            await asyncio.wait_for(self._up, CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            self.drop()
            raise ConnectionError(f"no handshake with {edge.id} within {CONNECT_TIMEOUT_S} s") from None
        # In this order, before one of them is used; on the wire nothing happens yet.
        for stream in _STREAM_OF.values():
            self._connection.send_stream_data(stream, b"")
        return self

    @property
    def local_port(self) -> int:
        """The UDP port that packets leave from."""
        assert self._socket is not None, "bound before it is handed out"
        return int(self._socket.get_extra_info("sockname")[1])

    def send(self, lane: Lane, data: bytes) -> None:
        if self._ended is None:
            self._connection.send_stream_data(_STREAM_OF[lane], data)
            self._transmit()

    async def receive(self) -> Union[Received, Closed]:
        while not self._came:
            if self._ended is not None:
                return self._ended
            self._news.clear()
            await self._news.wait()
        return self._came.popleft()

    async def migrate(self, new_id: bool = True) -> Tuple[int, int]:
        """Moves to another local port. Both ports, the old one first.

        With `new_id` as a client does that knows of it: with another connection id. Without, as a NAT does that forgot
        the connection. The old socket is closed at once, so what is on its way to it is lost, as when a phone leaves
        a network.
        """
        before, left = self.local_port, self._socket
        self._socket = await self._bind()
        if new_id:
            self._connection.change_connection_id()
        if left is not None:
            left.close()
        # The server learns of the new port by the first packet from there.
        self._connection.send_ping(before)
        self._transmit()
        return before, self.local_port

    async def close(self, code: int = 0) -> None:
        self._connection.close(error_code=code)
        self._transmit()
        self.drop()

    def drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
        self._end(Closed(-1, "dropped"))

    async def _bind(self) -> asyncio.DatagramTransport:
        local = "::" if ":" in self._peer[0] else "0.0.0.0"
        socket, _ = await self._loop.create_datagram_endpoint(lambda: _Socket(self), local_addr=(local, 0))
        return socket

    def _datagram(self, data: bytes) -> None:
        # Packets of a client's connection all come from the one address of its server.
        if self._ended is None:
            self._connection.receive_datagram(data, self._peer, now=self._loop.time())
            self._events()
            self._transmit()

    def _events(self) -> None:
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived) and event.stream_id in _LANE_OF:
                self._came.append(Received(_LANE_OF[event.stream_id], event.data))
                self._news.set()
            elif isinstance(event, events.HandshakeCompleted) and not self._up.done():
                self._up.set_result(None)
            elif isinstance(event, events.ConnectionTerminated):
                # Frame type None: the application closed, so that the code is one of tern's.
                code = event.error_code if event.frame_type is None else -1
                self._end(Closed(code, event.reason_phrase))

    def _end(self, closed: Closed) -> None:
        if self._ended is None:
            self._ended = closed
            self._news.set()
            if not self._up.done():
                self._up.set_exception(ConnectionError(f"{closed.code} {closed.reason}"))

    def _transmit(self) -> None:
        for data, _ in self._connection.datagrams_to_send(now=self._loop.time()):
            if self._socket is not None and not self._socket.is_closing():
                self._socket.sendto(data, self._peer)
        if self._timer is not None:
            self._timer.cancel()
        at = self._connection.get_timer()
        self._timer = None if at is None else self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._connection.handle_timer(now=self._loop.time())
        self._events()
        self._transmit()
