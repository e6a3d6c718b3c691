"""Requests of HTTP/3 to one edge, on aioquic: as `web.Http`, all on one connection, another one when that has ended."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from .dispatch import Edge
from .quic import CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S
from .web import NUMBER, POLL, POLL_PATH, STEP_TIMEOUT_S, WAIT_MS, Answer

NO_ERROR, REQUEST_REJECTED, REQUEST_CANCELLED = 0x100, 0x10B, 0x10C


class NotLookedAt(ConnectionError):
    """The server ended the connection in order, before it looked at this request. aioquic does not tell of GOAWAY."""


class _Coming:
    """An answer that is on its way."""

    def __init__(self) -> None:
        self.headers: Dict[str, str] = {}
        self.body = bytearray()
        self.whole: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def fail(self, code: int, why: str) -> None:
        if not self.whole.done():
            kind = NotLookedAt if code in (NO_ERROR, REQUEST_REJECTED) else ConnectionError
            self.whole.set_exception(kind(f"{why}: {code:#x}"))


class Client(QuicConnectionProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self._coming: Dict[int, _Coming] = {}
        self.ended: Optional[events.ConnectionTerminated] = None

    async def ask(self, headers: List[Tuple[bytes, bytes]], body: bytes) -> Answer:
        """Safe to cancel: the server is told."""
        if self.ended is not None:
            raise ConnectionError("the connection has ended")
        stream, coming = self._quic.get_next_available_stream_id(), _Coming()
        self._coming[stream] = coming
        self.http.send_headers(stream, headers, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        try:
            await coming.whole
        except asyncio.CancelledError:
            self._quic.reset_stream(stream, REQUEST_CANCELLED)
            self._quic.stop_stream(stream, REQUEST_CANCELLED)
            self.transmit()
            raise
        finally:
            self._coming.pop(stream, None)
        return Answer(int(coming.headers[":status"]), coming.headers, bytes(coming.body), "HTTP/3")

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.ended = event
            for coming in self._coming.values():
                coming.fail(event.error_code, f"the connection ended {event.reason_phrase}")
        elif isinstance(event, events.StreamReset) and event.stream_id in self._coming:
            self._coming[event.stream_id].fail(event.error_code, "the request was reset")
        for said in self.http.handle_event(event):
            self._said(said)

    def _said(self, event: H3Event) -> None:
        if not isinstance(event, (HeadersReceived, DataReceived)):
            return
        coming = self._coming.get(event.stream_id)
        if coming is None:
            return
        if isinstance(event, HeadersReceived):
            coming.headers.update((name.decode(), value.decode()) for name, value in event.headers)
        else:
            coming.body += event.data
        if event.stream_ended and not coming.whole.done():
            coming.whole.set_result(None)


class Http3:
    """One edge's, whose certificate is for `edge.tls_name` and signed by the CA in the file `ca`."""

    def __init__(self, edge: Edge, ca: str) -> None:
        self._edge = edge
        self._ca = ca
        self._stack = AsyncExitStack()
        self._client: Optional[Client] = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> "Http3":
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def client(self) -> Client:
        """The connection of now. ConnectionError if there is none to be had."""
        async with self._connecting:
            if self._client is None or self._client.ended is not None:
                configuration = QuicConfiguration(
                    alpn_protocols=H3_ALPN, is_client=True, server_name=self._edge.tls_name, idle_timeout=IDLE_TIMEOUT_S
                )
                configuration.load_verify_locations(self._ca)
                configuration.verify_mode = ssl.CERT_REQUIRED
                opening = connect(
                    self._edge.host, self._edge.port, configuration=configuration, create_protocol=Client
                )
                client = await asyncio.wait_for(self._stack.enter_async_context(opening), CONNECT_TIMEOUT_S)
                assert isinstance(client, Client)
                self._client = client
            return self._client

    async def ask(
        self, body: bytes = b"", headers: Optional[Dict[str, str]] = None, method: str = "POST", path: str = POLL_PATH
    ) -> Answer:
        """One request and its answer. ConnectionError if there was none; safe to cancel, as if it were lost."""
        headers = headers or {}
        wait_s = int(headers[WAIT_MS]) / 1000 if headers.get(WAIT_MS, "").isdigit() else 0.0
        host = f"[{self._edge.host}]" if ":" in self._edge.host else self._edge.host
        said = {":method": method, ":scheme": "https", ":authority": f"{host}:{self._edge.port}", ":path": path}
        said.update({name.lower(): value for name, value in headers.items()})
        fields = [(name.encode(), value.encode()) for name, value in said.items()]
        try:
            client = await self.client()
            try:
                return await asyncio.wait_for(client.ask(fields, body), STEP_TIMEOUT_S + wait_s)
            except NotLookedAt:
                await client.wait_closed()
                client = await self.client()
                return await asyncio.wait_for(client.ask(fields, body), STEP_TIMEOUT_S + wait_s)
        except asyncio.TimeoutError as error:
            raise ConnectionError("no answer in time") from error

    async def poll(self, name: str, number: int, body: bytes = b"", wait_ms: int = 0) -> Answer:
        """A later request of the session `name`."""
        return await self.ask(body, {POLL: name, NUMBER: str(number), WAIT_MS: str(wait_ms)})

    async def close(self) -> None:
        await self._stack.aclose()
