"""The deployment under test, as its `endpoints.json` tells of it, and devices of its users."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Dict, List, Sequence

from tern_interop import dispatch
from tern_interop.client import Client
from tern_interop.dispatch import Edge
from tern_interop.ids import direct_id
from tern_interop.quic import Quic
from tern_interop.session import Login

COMMAND_TIMEOUT_S = 60


class Deployment:
    """A `tern dev` that runs on `data`, and the program that tokens and chats come from."""

    def __init__(self, data: Path, tern: str) -> None:
        self.data = data
        self.tern = tern
        endpoints = json.loads((data / "endpoints.json").read_text())
        self.public_ca: str = endpoints["public_ca"]
        self.dispatches: Dict[str, str] = dict(endpoints["dispatch"])
        self._users = 0
        self._run = secrets.token_hex(4)
        self._open: List[Client] = []

    def user(self, name: str) -> str:
        """A name that no other check uses, in this run or another on the same deployment."""
        self._users += 1
        return f"{name}-{self._users}-{self._run}"

    def token(self, user: str, audience: str = "", ttl: str = "1h") -> str:
        """Of `tern token`; `audience` other than this deployment's makes one that is refused."""
        command = [self.tern, "token", "--user", user, "--data", str(self.data), "--ttl", ttl]
        command += ["--audience", audience] if audience else []
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
        return done.stdout.strip()

    def ask(self, region: str, protobuf: bool = False) -> dispatch.Edges:
        """What the dispatch of a region says."""
        return dispatch.ask(self.dispatches[region], self.public_ca, protobuf=protobuf)

    def edge(self, region: str) -> Edge:
        """An edge of a region that dispatch lists."""
        return next(edge for edge in self.ask(region).edges if edge.region == region)

    def device(self, user: str, token: str = "", path: str = ":memory:", install: str = "") -> Client:
        """An install, a new one unless it is named, not connected. It is closed with the check that made it."""
        install = install or "py-" + secrets.token_hex(8)
        client = Client(Login(user, install, token or self.token(user)), path)
        self._open.append(client)
        return client

    async def connect(self, client: Client, region: str = "eu") -> Quic:
        """Connects a device over QUIC; the transport is returned to be moved or dropped."""
        await client.connect(Quic.connect(self.edge(region), self.public_ca))
        assert isinstance(client.transport, Quic)
        return client.transport

    async def move(self, client: Client, addresses: Sequence[str], region: str) -> Edge:
        """Moves a device to the first of these addresses ("ip:port") that the dispatch of a region lists."""
        listed = {f"{edge.host}:{edge.port}": edge for edge in self.ask(region).edges}
        edge = next(listed[address] for address in addresses if address in listed)
        await client.move(Quic.connect(edge, self.public_ca))
        return edge

    async def close(self) -> None:
        """Closes all devices."""
        while self._open:
            await self._open.pop().disconnect()


def direct_of(one: Client, other: Client) -> bytes:
    """The direct conversation of two users, one of whom is connected."""
    session = one.session or other.session
    assert session is not None and session.welcome is not None, "one of them is live"
    return direct_id(session.welcome.direct_salt, one.me.user, other.me.user)


def env() -> Deployment:
    """From INTEROP_DATA and INTEROP_TERN, which `check` sets."""
    return Deployment(Path(os.environ["INTEROP_DATA"]), os.environ["INTEROP_TERN"])
