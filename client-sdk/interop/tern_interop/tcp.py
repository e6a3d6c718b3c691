"""TCP with TLS 1.3 as a transport: one stream that carries all lanes, ALPN `tern/1`."""

from __future__ import annotations

import asyncio
import ssl
from typing import Union

from .dispatch import Edge
from .frames import Lane
from .quic import ALPN, CONNECT_TIMEOUT_S
from .transport import Closed, Received

READ_BYTES = 65_536


class Tcp:
    """An established connection; see `connect`. The code of a close comes as an Error frame, so `Closed` has none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, edge: Edge, ca: str) -> "Tcp":
        """Connects to an edge whose certificate is for `edge.tls_name` and signed by the CA in the file `ca`.

        OSError if that fails or takes more than `CONNECT_TIMEOUT_S`.
        """
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([ALPN])
        opening = asyncio.open_connection(edge.host, edge.port, ssl=context, server_hostname=edge.tls_name)
        try:
            return cls(*await asyncio.wait_for(opening, CONNECT_TIMEOUT_S))
        except asyncio.TimeoutError:
            raise ConnectionError(f"no handshake with {edge.id} within {CONNECT_TIMEOUT_S} s") from None

    def send(self, lane: Lane, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    async def receive(self) -> Union[Received, Closed]:
        try:
            data = await self._reader.read(READ_BYTES)
        except OSError as error:
            return Closed(-1, str(error))
        return Received(Lane.CONTROL, data) if data else Closed(-1, "end of the stream")

    async def close(self, code: int = 0) -> None:
        self._writer.close()

    def drop(self) -> None:
        self._writer.transport.abort()
