"""What has to hold over any transport, and bytes said by hand. `OpenTo` makes one to an edge, with a CA."""

from __future__ import annotations

from typing import Awaitable, Callable, List, Tuple

from tern_interop.client import Client
from tern_interop.dispatch import Edge
from tern_interop.frames import Reader, encode
from tern_interop.proto import wire
from tern_interop.transport import Transport

from .deployment import Deployment, direct_of
from .waiting import acked, quiet, shows, shows_the_same

OpenTo = Callable[[Edge, str], Awaitable[Transport]]
BURST = 30


async def connect(at: Deployment, client: Client, open_to: OpenTo) -> Transport:
    await client.connect(open_to(at.edge("eu"), at.public_ca))
    assert client.transport is not None
    return client.transport


async def both_ways(at: Deployment, open_to: OpenTo) -> Tuple[Transport, Transport]:
    """Alice's and bob's, over which 20 messages went, acked, shown once and in order."""
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    transports = await connect(at, alice, open_to), await connect(at, bob, open_to)
    conversation = direct_of(alice, bob)
    for client, peer in ((alice, bob), (bob, alice)):
        for i in range(10):
            await client.send(conversation, f"{client.me.user} {i}", peer.me.user)
    for client, peer in ((alice, bob), (bob, alice)):
        await shows(client, conversation, [f"{peer.me.user} {i}" for i in range(10)])
        await acked(client)
    await shows_the_same(alice, bob, conversation)
    for client in (alice, bob):
        assert client.session is not None and client.session.hellos == 1 and client.closed is None
    return transports


async def resumes(at: Deployment, open_to: OpenTo) -> None:
    """Bob is cut off, misses messages and comes back, twice: he is given those, then nothing."""
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await connect(at, bob, open_to)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "before", bob.me.user)
    await shows(bob, conversation, ["before"])
    await acked(bob)
    await quiet(bob)
    await bob.disconnect(drop=True)
    texts = [f"while away {i}" for i in range(BURST)]
    for text in texts:
        await alice.send(conversation, text, bob.me.user)
    await acked(alice)
    await connect(at, bob, open_to)
    await shows(bob, conversation, ["before", *texts])
    assert bob.session is not None and bob.session.receiving.entries_told == BURST
    await bob.disconnect()
    await connect(at, bob, open_to)
    await quiet(bob)
    assert bob.session.receiving.entries_told == 0


async def resends(at: Deployment, open_to: OpenTo) -> None:
    """Alice loses an ack with her connection and sends again: bob, who is told over QUIC, is shown it once."""
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await connect(at, alice, open_to)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "first", bob.me.user)
    await acked(alice)
    alice.deaf = True
    n = await alice.send(conversation, "its ack is lost", bob.me.user)
    await shows(bob, conversation, ["first", "its ack is lost"])
    assert [letter.n for letter in alice.outbox.waiting(conversation)] == [n]
    await alice.disconnect(drop=True)
    await connect(at, alice, open_to)
    await alice.send(conversation, "after", bob.me.user)
    await acked(alice)
    await shows(bob, conversation, ["first", "its ack is lost", "after"])
    await quiet(bob)
    await shows_the_same(alice, bob, conversation)
    entries = [e for e in bob.store.entries(conversation) if e.identity.n == n]
    assert len(entries) == 1, entries


# ---- by hand


def hello(at: Deployment, user: str, install: str = "py-hand", token: str = "") -> bytes:
    """A Hello with req 1; `token` one that is refused."""
    said = wire.Hello(versions=[1], token=token or at.token(user), install=install)
    return encode(wire.Frame(req=1, hello=said))


def ping(req: int) -> bytes:
    return encode(wire.Frame(req=req, ping=wire.Ping(echo=req)))


def commit(order: int = 1) -> bytes:
    return encode(wire.Frame(commit=wire.Commit(order=order)))


def read(data: bytes) -> List[wire.Frame]:
    """The frames of a message or body; all of them are whole."""
    reader = Reader()
    frames = reader.feed(data)
    assert b"".join(map(encode, frames)) == data, "frames with their lengths, whole"
    return frames


def kinds(data: bytes) -> List[str]:
    return [str(frame.WhichOneof("body")) for frame in read(data)]


def codes(data: bytes) -> List[Tuple[int, int]]:
    """The req and the code of each Error."""
    return [(frame.req, frame.error.code) for frame in read(data) if frame.WhichOneof("body") == "error"]
