"""Requests of HTTP to one edge, on `httpx`: over HTTP/2 or HTTP/1.1, as many connections as needed."""

from __future__ import annotations

import json
import ssl
from types import TracebackType
from typing import Dict, Mapping, NamedTuple, Optional, Type

import httpx

from .dispatch import Edge
from .quic import CONNECT_TIMEOUT_S

POLL_PATH = "/v1/poll"
POLL, NUMBER, WAIT_MS = "Tern-Poll", "Tern-Number", "Tern-Wait-Ms"
STEP_TIMEOUT_S = 20.0
"""For each step of a request beyond the time that the server was told to wait."""


class Answer(NamedTuple):
    """`headers` has names in lower case; `version` is "HTTP/2" or "HTTP/1.1"."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    version: str

    @property
    def error(self) -> str:
        """The code of a refusal, "" in what has none."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Http:
    """One edge's, whose certificate is for `edge.tls_name` and signed by the CA in the file `ca`."""

    def __init__(self, edge: Edge, ca: str, http2: bool = True) -> None:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        host = f"[{edge.host}]" if ":" in edge.host else edge.host
        self._base = f"https://{host}:{edge.port}"
        self._tls_name = edge.tls_name
        # The environment may name proxies.
        self._client = httpx.AsyncClient(verify=context, http2=http2, trust_env=False)

    async def __aenter__(self) -> "Http":
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def ask(
        self, body: bytes = b"", headers: Optional[Dict[str, str]] = None, method: str = "POST", path: str = POLL_PATH
    ) -> Answer:
        """One request and its answer. ConnectionError if there was none; safe to cancel, as if it were lost."""
        headers = headers or {}
        wait_s = int(headers.get(WAIT_MS) or 0) / 1000 if (headers.get(WAIT_MS) or "0").isdigit() else 0.0
        timeout = httpx.Timeout(STEP_TIMEOUT_S + wait_s, connect=CONNECT_TIMEOUT_S)
        extensions = {"sni_hostname": self._tls_name, "timeout": timeout.as_dict()}
        try:
            answer = await self._client.request(
                method, self._base + path, content=body, headers=headers, extensions=extensions
            )
        except httpx.TransportError as error:
            raise ConnectionError(f"no answer: {error!r}") from error
        return Answer(answer.status_code, answer.headers, answer.content, answer.http_version)

    async def poll(self, name: str, number: int, body: bytes = b"", wait_ms: int = 0) -> Answer:
        """A later request of the session `name`."""
        return await self.ask(body, {POLL: name, NUMBER: str(number), WAIT_MS: str(wait_ms)})

    async def close(self) -> None:
        await self._client.aclose()
