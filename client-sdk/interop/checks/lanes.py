"""On which lanes and over which transports the same session runs."""

from __future__ import annotations

from typing import List, Tuple

from tern_interop.frames import FRAME_BYTES_LIMIT, Lane, Reader, encode, varint
from tern_interop.proto import wire
from tern_interop.tcp import Tcp
from tern_interop.transport import Closed

from .deployment import Deployment, direct_of
from .errors import FRAME_TOO_LARGE, TOKEN_INVALID
from .waiting import acked, quiet, shows, shows_the_same


async def pushes_come_on_the_control_lane_until_the_message_lane_is_used(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await acked(bob)  # the cell that names his device: this connection has nothing more to send
    await quiet(bob)
    await bob.disconnect()
    await at.connect(bob)
    session = bob.session
    assert session is not None
    await alice.send(conversation, "on control", bob.me.user)
    await shows(bob, conversation, ["on control"])
    assert session.pushes[Lane.CONTROL] == 1 and session.pushes[Lane.MESSAGE] == 0, session.pushes
    await bob.send(conversation, "opens the lane", alice.me.user)
    await acked(bob)
    await alice.send(conversation, "on message", bob.me.user)
    await shows(bob, conversation, ["on control", "on message"])
    assert session.pushes[Lane.MESSAGE] >= 1, session.pushes
    return "references are of each lane"


async def tcp_carries_the_same_session(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await alice.connect(Tcp.connect(at.edge("eu"), at.public_ca))
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    texts = [f"over TCP {i}" for i in range(10)]
    for text in texts:
        await alice.send(conversation, text, bob.me.user)
    await bob.send(conversation, "over QUIC", alice.me.user)
    await shows(bob, conversation, texts)
    await shows(alice, conversation, ["over QUIC"])
    await acked(alice)
    await shows_the_same(alice, bob, conversation)
    await alice.disconnect(drop=True)
    await bob.send(conversation, "missed", alice.me.user)
    await at.connect(alice)
    await shows(alice, conversation, ["over QUIC", "missed"])
    return "and the next connection is QUIC again"


async def over_tcp_an_error_comes_before_the_close(at: Deployment) -> str:
    hello = wire.Hello(versions=[1], token="no token", install="py-eve")
    errors = await _told(at, encode(wire.Frame(req=7, hello=hello)))
    assert [(req, e.code, e.retry) for req, e in errors] == [(0, TOKEN_INVALID, wire.Error.NEW_TOKEN)], errors
    errors = await _told(at, varint(FRAME_BYTES_LIMIT + 1))
    assert [(req, e.code, e.retry) for req, e in errors] == [(0, FRAME_TOO_LARGE, wire.Error.NEVER)], errors
    return f"codes {TOKEN_INVALID} and {FRAME_TOO_LARGE}"


async def _told(at: Deployment, data: bytes) -> List[Tuple[int, wire.Error]]:
    """Says this first on a new TCP connection: the Errors that come before its end, each behind its req."""
    transport = await Tcp.connect(at.edge("eu"), at.public_ca)
    transport.send(Lane.CONTROL, data)
    errors: List[Tuple[int, wire.Error]] = []
    reader = Reader()
    while not isinstance(came := await transport.receive(), Closed):
        errors += [(frame.req, frame.error) for frame in reader.feed(came.data) if frame.WhichOneof("body") == "error"]
    return errors
