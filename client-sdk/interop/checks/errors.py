"""What is not allowed is answered with the documented code. Over QUIC the same code closes the connection."""

from __future__ import annotations

from typing import List, Tuple

from tern_interop.client import Client
from tern_interop.frames import FRAME_BYTES_LIMIT, Lane, Reader, encode, varint
from tern_interop.proto import wire
from tern_interop.quic import Quic
from tern_interop.transport import Closed

from .deployment import Deployment, direct_of

FRAME_TOO_LARGE, UNSUPPORTED_VERSION, WRONG_MOMENT, TOKEN_INVALID, TOKEN_AUDIENCE = 2, 3, 4, 6, 9
BAD_FRAME, BODY_TOO_LARGE, BAD_REFERENCE, REPLACED = 1, 10, 26, 22


async def bad_tokens_are_refused(at: Deployment) -> str:
    head, claims, signature = at.token(at.user("eve")).split(".")
    elsewhere = at.token(at.user("eve"), audience="elsewhere")
    for token, code in (
        ("no token", TOKEN_INVALID),
        (f"{head}.{claims}.{signature[::-1]}", TOKEN_INVALID),
        (elsewhere, TOKEN_AUDIENCE),
    ):
        hello = wire.Hello(versions=[1], token=token, install="py-eve")
        errors, closed = await _told(at, Lane.CONTROL, encode(wire.Frame(req=7, hello=hello)))
        assert all(e.code == code and e.retry == wire.Error.NEW_TOKEN for e in errors), errors
        assert closed.code == code, closed
    return f"codes {TOKEN_INVALID}, {TOKEN_INVALID} and {TOKEN_AUDIENCE}"


async def a_version_that_is_not_known_is_refused(at: Deployment) -> str:
    hello = wire.Hello(versions=[99], token=at.token(at.user("eve")), install="py-eve")
    _, closed = await _told(at, Lane.CONTROL, encode(wire.Frame(req=7, hello=hello)))
    assert closed.code == UNSUPPORTED_VERSION, closed
    return f"code {UNSUPPORTED_VERSION}"


async def a_frame_before_hello_closes_the_connection(at: Deployment) -> str:
    _, closed = await _told(at, Lane.CONTROL, encode(wire.Frame(req=7, ping=wire.Ping(echo=1))))
    assert closed.code == WRONG_MOMENT, closed
    return f"code {WRONG_MOMENT}"


async def a_frame_on_the_wrong_lane_closes_the_connection(at: Deployment) -> str:
    client = at.device(at.user("eve"))
    await at.connect(client)
    client.send_raw(Lane.BULK, encode(wire.Frame(req=900, ping=wire.Ping(echo=1))))
    return await _closed_with(client, WRONG_MOMENT)


async def a_frame_above_the_limit_closes_the_connection(at: Deployment) -> str:
    client = at.device(at.user("eve"))
    await at.connect(client)
    session = client.session
    assert session is not None and session.welcome is not None
    assert session.welcome.limits.frame_bytes == FRAME_BYTES_LIMIT
    client.send_raw(Lane.MESSAGE, varint(FRAME_BYTES_LIMIT + 1))
    return await _closed_with(client, FRAME_TOO_LARGE)


async def a_frame_that_is_none_closes_the_connection(at: Deployment) -> str:
    client = at.device(at.user("eve"))
    await at.connect(client)
    client.send_raw(Lane.CONTROL, varint(3) + b"\xff\xff\xff")
    return await _closed_with(client, BAD_FRAME)


async def an_undefined_reference_closes_the_connection(at: Deployment) -> str:
    client = at.device(at.user("eve"))
    await at.connect(client)
    client.send_raw(Lane.MESSAGE, encode(wire.Frame(req=900, send=wire.Send(conversation=500, n=1, peer="bob"))))
    return await _closed_with(client, BAD_REFERENCE)


async def a_body_above_the_limit_is_refused_for_good(at: Deployment) -> str:
    client, other = at.device(at.user("eve")), at.device(at.user("bob"))
    await at.connect(client)
    assert client.session is not None and client.session.welcome is not None
    conversation = direct_of(client, other)
    body = b"x" * (client.session.welcome.limits.body_bytes + 1)
    send = wire.Send(conversation_id=conversation, n=1, body=body, peer=other.me.user)
    code = await _answered(client, wire.Frame(send=send))
    assert code == BODY_TOO_LARGE, code
    await client.send(conversation, "the connection lives on", other.me.user)
    await client.until(lambda: not client.outbox.conversations(), "for the ack")
    return f"code {BODY_TOO_LARGE}, and the connection lives on"


async def the_newer_connection_of_an_install_replaces_the_older(at: Deployment) -> str:
    client = at.device(at.user("eve"))
    older = await at.connect(client)
    client.leave()
    await at.connect(client)
    while not isinstance(closed := await older.receive(), Closed):
        pass
    assert closed.code == REPLACED, closed
    return f"code {REPLACED}"


async def _told(at: Deployment, lane: Lane, data: bytes) -> Tuple[List[wire.Error], Closed]:
    """Says this first on a new connection: the Errors that come, and how it ends."""
    transport = await Quic.connect(at.edge("eu"), at.public_ca)
    transport.send(lane, data)
    errors: List[wire.Error] = []
    reader = Reader()
    while not isinstance(came := await transport.receive(), Closed):
        errors += [frame.error for frame in reader.feed(came.data) if frame.WhichOneof("body") == "error"]
    return errors, came


async def _closed_with(client: Client, code: int) -> str:
    closed = await client.until(lambda: client.closed, "to be closed")
    assert closed is not None and closed.code == code, f"closed with {closed}, not with {code}"
    return f"code {code}"


async def _answered(client: Client, frame: wire.Frame) -> int:
    """The code of the Error that answers a request; 0 where it was no Error."""
    answer = await client.ask(frame)
    return int(answer.error.code)
