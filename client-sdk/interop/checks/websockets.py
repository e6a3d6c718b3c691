"""The same session over WebSockets, and how the edge ends those that do what is not allowed."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tern_interop.frames import FRAME_BYTES_LIMIT, encode, varint
from tern_interop.proto import wire
from tern_interop.transport import Closed
from tern_interop.websocket import CLOSE_CODE_FIRST, MESSAGE_BYTES_LIMIT, SUBPROTOCOL, WebSocket, closed_by, open_socket

from .deployment import Deployment, direct_of
from .errors import BAD_FRAME, FRAME_TOO_LARGE, REPLACED, TOKEN_INVALID, WRONG_MOMENT
from .transports import both_ways, codes, hello, kinds, ping, read, resends, resumes
from .waiting import acked, shows

NORMAL, PROTOCOL_ERROR, UNSUPPORTED, INVALID_DATA, TOO_BIG = 1000, 1002, 1003, 1007, 1009
ERROR_BEFORE = {
    PROTOCOL_ERROR: BAD_FRAME,
    UNSUPPORTED: BAD_FRAME,
    INVALID_DATA: BAD_FRAME,
    TOO_BIG: FRAME_TOO_LARGE,
}
"""What the Error says that comes before these."""


async def websockets_carry_messages_both_ways(at: Deployment) -> str:
    one, other = await both_ways(at, WebSocket.connect)
    assert isinstance(one, WebSocket) and isinstance(other, WebSocket)
    return f"20 messages of text in {one.messages_sent} and {other.messages_sent} messages of the socket"


async def websockets_resume_by_cursor_after_a_cut(at: Deployment) -> str:
    await resumes(at, WebSocket.connect)
    return "what was missed, then nothing"


async def websockets_resend_after_a_lost_ack_and_it_is_shown_once(at: Deployment) -> str:
    await resends(at, WebSocket.connect)
    return "one copy"


async def a_websocket_is_offered_by_dispatch_and_takes_the_place_of_quic(at: Deployment) -> str:
    edge = at.edge("eu")
    assert edge.transports == ("quic", "tcp", "ws", "poll"), edge.transports
    client, other = at.device(at.user("alice")), at.device(at.user("bob"))
    older = await at.connect(client)
    client.leave()
    await client.connect(WebSocket.connect(edge, at.public_ca))
    while not isinstance(closed := await older.receive(), Closed):
        pass
    assert closed.code == REPLACED, closed
    await at.connect(other)
    await other.send(direct_of(client, other), "over QUIC", client.me.user)
    await shows(client, direct_of(client, other), ["over QUIC"])
    socket = client.transport
    client.leave()
    await at.connect(client)
    assert socket is not None
    while not isinstance(closed := await socket.receive(), Closed):
        pass
    assert closed.code == REPLACED, closed
    return f"and QUIC its, each ended with code {REPLACED}"


async def a_websocket_takes_parts_and_many_frames_in_a_message(at: Deployment) -> str:
    socket = await open_socket(at.edge("eu"), at.public_ca)
    assert socket.subprotocol == SUBPROTOCOL
    said = hello(at, at.user("alice"))
    # One message in as many parts as it has bytes.
    await socket.send(bytes([byte]) for byte in said)
    assert kinds(await message(socket))[0] == "welcome"
    await socket.send(ping(2) + ping(3) + ping(4))
    answered: List[int] = []
    while len(answered) < 3:
        answered += [frame.req for frame in read(await message(socket)) if frame.WhichOneof("body") == "pong"]
    assert answered == [2, 3, 4], answered
    pong = await socket.ping(b"of RFC 6455")
    await pong
    await socket.close()
    assert socket.close_code == NORMAL, socket.close_code
    return f"{len(said)} parts, 3 frames, a ping"


async def a_websocket_without_the_subprotocol_is_refused(at: Deployment) -> str:
    told = []
    for subprotocols, path in (((), "/v1/ws"), (("tern.2", "chat"), "/v1/ws"), ((SUBPROTOCOL,), "/v1/other")):
        try:
            await open_socket(at.edge("eu"), at.public_ca, subprotocols, path)
        except InvalidStatus as refused:
            told.append((refused.response.status_code, b'"error"' in (refused.response.body or b"")))
    assert told == [(400, True), (400, True), (404, True)], told
    # Among others it is chosen.
    socket = await open_socket(at.edge("eu"), at.public_ca, ("chat", SUBPROTOCOL))
    assert socket.subprotocol == SUBPROTOCOL
    await socket.close()
    return "400, for another path 404"


async def a_websocket_is_closed_with_what_was_wrong(at: Deployment) -> str:
    user = at.user("eve")
    good = hello(at, user)
    too_large = varint(FRAME_BYTES_LIMIT + 1)
    wrongs: Sequence[Tuple[str, Sequence["bytes | str"], int]] = [
        ("a text message", ["hello"], UNSUPPORTED),
        ("half a frame", [good[:-1]], INVALID_DATA),
        ("a message above the limit", [b"\0" * (MESSAGE_BYTES_LIMIT + 1)], TOO_BIG),
        ("bytes that are no frame", [varint(3) + b"\xff\xff\xff"], CLOSE_CODE_FIRST + BAD_FRAME),
        (
            "a frame above the limit",
            [too_large + b"\0" * (MESSAGE_BYTES_LIMIT - 3)],
            CLOSE_CODE_FIRST + FRAME_TOO_LARGE,
        ),
        ("a length of 0", [b"\0"], CLOSE_CODE_FIRST + BAD_FRAME),
        ("a frame before Hello", [ping(1)], CLOSE_CODE_FIRST + WRONG_MOMENT),
        ("a bad token", [hello(at, user, token="no token")], CLOSE_CODE_FIRST + TOKEN_INVALID),
        ("a text message behind Hello", [good, "hello"], UNSUPPORTED),
        ("no frame behind Hello", [good, varint(3) + b"\xff\xff\xff"], CLOSE_CODE_FIRST + BAD_FRAME),
        ("Hello again", [good, good], CLOSE_CODE_FIRST + WRONG_MOMENT),
    ]
    for what, messages, wanted in wrongs:
        socket = await open_socket(at.edge("eu"), at.public_ca)
        errors, code = await end_of(socket, messages)
        assert code == wanted, f"{what}: closed with {code}, not with {wanted}"
        expected = ERROR_BEFORE.get(wanted, wanted - CLOSE_CODE_FIRST)
        assert errors == [(0, expected)], f"{what}: {errors} before the close"
    socket = await open_socket(at.edge("eu"), at.public_ca)
    socket.transport.write(bytes([0x82, 1, 0]))  # not masked
    assert await end_of(socket, []) == ([(0, BAD_FRAME)], PROTOCOL_ERROR)
    return f"{len(wrongs) + 1} ways"


async def a_largest_message_is_taken(at: Deployment) -> str:
    """As large as they may be: a frame of the limit, of fields that nobody knows, in one message."""
    socket = await open_socket(at.edge("eu"), at.public_ca)
    await socket.send(hello(at, at.user("alice")))
    assert kinds(await message(socket))[0] == "welcome"
    unknown = varint(1000 << 3 | 2)
    room = FRAME_BYTES_LIMIT - len(encode(wire.Frame(req=5, ping=wire.Ping(echo=5)))) + 1 - len(unknown) - 3
    frame = ping(5)[1:] + unknown + varint(room) + b"\0" * room
    assert len(frame) == FRAME_BYTES_LIMIT, len(frame)
    await socket.send(varint(len(frame)) + frame)
    while not (answers := [f for f in read(await message(socket)) if f.req == 5]):
        pass
    assert answers[0].WhichOneof("body") == "pong", answers
    await socket.close()
    return f"{len(frame)} bytes"


async def a_websocket_refuses_what_a_connection_refuses_and_lives_on(at: Deployment) -> str:
    client, other = at.device(at.user("eve")), at.device(at.user("bob"))
    await client.connect(WebSocket.connect(at.edge("eu"), at.public_ca))
    conversation = direct_of(client, other)
    answer = await client.ask(
        wire.Frame(send=wire.Send(conversation_id=conversation, n=1, peer=other.me.user, kind=23))
    )
    assert answer.WhichOneof("body") == "error" and answer.error.code, answer
    await client.send(conversation, "the connection lives on", other.me.user)
    await acked(client)
    return f"code {answer.error.code}, and it lives on"


async def message(socket: ClientConnection) -> bytes:
    came = await socket.recv()
    assert isinstance(came, bytes), "the server sends binary messages"
    return came


async def end_of(socket: ClientConnection, messages: Sequence["bytes | str"]) -> Tuple[List[Tuple[int, int]], int]:
    """Says these, each when the former was answered: the Errors that came, and the code of the close."""
    errors: List[Tuple[int, int]] = []
    try:
        for at, one in enumerate(messages):
            await socket.send(one)
            if at < len(messages) - 1:
                errors += codes(await message(socket))
        while True:
            errors += codes(await message(socket))
    except ConnectionClosed as closed:
        assert closed.rcvd is not None, f"ended without a Close: {closed_by(closed)}"
        return errors, int(closed.rcvd.code)
