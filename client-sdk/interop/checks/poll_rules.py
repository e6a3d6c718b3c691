"""The rules of polls, by hand: numbers, repetitions, two at once, the end, and what is refused with which status."""

from __future__ import annotations

import asyncio
import secrets
from typing import Dict, List, Tuple, Union

from tern_interop.frames import FRAME_BYTES_LIMIT, encode, varint
from tern_interop.http3 import Http3
from tern_interop.ids import direct_id
from tern_interop.poll import BODY_BYTES_LIMIT, LONG_MS
from tern_interop.proto import wire
from tern_interop.web import NUMBER, POLL, WAIT_MS, Answer, Http

from .deployment import Deployment
from .errors import BAD_FRAME, BAD_REFERENCE, FRAME_TOO_LARGE, TOKEN_INVALID, WRONG_MOMENT
from .transports import codes, commit, hello, kinds, ping, read
from .waiting import shows

NAME_DIGITS = 48


async def a_repeated_request_gets_the_same_answer_and_is_done_once(at: Deployment) -> str:
    bob, alice = at.device(at.user("bob")), at.user("alice")
    await at.connect(bob)
    async with Http(at.edge("eu"), at.public_ca) as http:
        name, welcome = await begin(at, http, alice)
        conversation = direct_id(welcome.direct_salt, alice, bob.me.user)
        send = wire.Send(conversation_id=conversation, n=1, body=b"said twice", peer=bob.me.user)
        body = commit() + encode(wire.Frame(req=2, send=send))
        # Its answer is lost: bob has the message, so that it was taken.
        lost = asyncio.create_task(http.poll(name, 1, body, LONG_MS))
        await shows(bob, conversation, ["said twice"])
        lost.cancel()
        first = await http.poll(name, 1, body, LONG_MS)
        again = await http.poll(name, 1, body, LONG_MS)
        assert (first.status, again.status, again.body) == (200, 200, first.body), (first, again)
        acks = [frame.ack for frame in read(first.body) if frame.WhichOneof("body") == "ack"]
        number = 1
        while not acks:
            number += 1
            answer = await http.poll(name, number, wait_ms=LONG_MS)
            acks = [frame.ack for frame in read(answer.body) if frame.WhichOneof("body") == "ack"]
        # Of the last two numbers both can be had.
        newest = await http.poll(name, number + 1, ping(3), LONG_MS)
        for at_number in (number, number + 1):
            twice = [await http.poll(name, at_number, wait_ms=LONG_MS) for _ in range(2)]
            assert twice[0] == twice[1], twice
        assert (await http.poll(name, number + 1, ping(3))).body == newest.body
    entries = [e for e in bob.store.entries(conversation) if e.body == b"said twice"]
    assert len(entries) == 1 and len(acks) == 1, (entries, acks)
    return "one ack, one copy"


async def the_next_poll_ends_the_one_that_waits_with_an_empty_answer(at: Deployment) -> str:
    for http2 in (True, False):
        async with Http(at.edge("eu"), at.public_ca, http2) as http:
            name, number = await begin_quiet(at, http)
            waiting = asyncio.create_task(http.poll(name, number, wait_ms=LONG_MS))
            newer = await http.poll(name, number + 1, ping(900), LONG_MS)
            while newer.error == "wrong_number":
                # It overtook the first one.
                newer = await http.poll(name, number + 1, ping(900), LONG_MS)
            older = await waiting
            assert (older.status, older.body) == (200, b""), older
            assert kinds(newer.body) == ["pong"], kinds(newer.body)
    return "over HTTP/2 and HTTP/1.1"


async def a_wrong_number_is_refused_and_changes_nothing(at: Deployment) -> str:
    async with Http(at.edge("eu"), at.public_ca) as http:
        name, number = await begin_quiet(at, http)
        for number in range(number, number + 4):
            await http.poll(name, number)
        number += 1
        for wrong in (number + 1, number + 100, number - 3, 1):
            answer = await http.poll(name, wrong, ping(7))
            assert (answer.status, answer.error) == (409, "wrong_number"), (wrong, answer)
        answer = await http.poll(name, number, ping(8), LONG_MS)
        assert [f.req for f in read(answer.body)] == [8], read(answer.body)
    return "409 wrong_number, and the session lives on"


async def a_session_of_polls_ends_by_delete_and_is_over_then(at: Deployment) -> str:
    async with Http(at.edge("eu"), at.public_ca) as http:
        name, number = await begin_quiet(at, http)
        waiting = asyncio.create_task(http.poll(name, number, wait_ms=LONG_MS))
        await asyncio.sleep(0.2)  # most likely it waits by then
        ended = await http.ask(headers={POLL: name}, method="DELETE")
        older, after = await waiting, await http.poll(name, number + 1)
        assert (after.status, after.error) == (410, "session_over"), after
        unknown = [await http.poll(secrets.token_hex(NAME_DIGITS // 2), 1, ping(1)) for _ in range(2)]
        assert all((a.status, a.error) == (410, "session_over") for a in unknown), unknown
    waited = f"{older.status} {older.error}".strip()
    return f"DELETE {ended.status}, the one that waited {waited}, then 410; a name that nobody has 410"


async def an_error_ends_a_session_of_polls(at: Deployment) -> str:
    undefined = encode(wire.Frame(req=9, send=wire.Send(conversation=500, n=1, peer="bob")))
    wrongs: List[Tuple[str, bytes, int]] = [
        ("bytes that are no frame", varint(3) + b"\xff\xff\xff", BAD_FRAME),
        ("Hello again", hello(at, at.user("eve")), WRONG_MOMENT),
        ("an undefined reference", undefined, BAD_REFERENCE),
        ("a frame above the limit", varint(FRAME_BYTES_LIMIT + 1) + b"\0" * (FRAME_BYTES_LIMIT + 1), FRAME_TOO_LARGE),
    ]
    for what, body, code in wrongs:
        async with Http(at.edge("eu"), at.public_ca) as http:
            name, number = await begin_quiet(at, http)
            answer = await http.poll(name, number, body, LONG_MS)
            assert answer.status == 200 and codes(answer.body) == [(0, code)], f"{what}: {answer}"
            again, after = await http.poll(name, number, body, LONG_MS), await http.poll(name, number + 1)
            assert (again.status, again.body) == (200, answer.body), f"{what}: {again}"
            assert (after.status, after.error) == (410, "session_over"), f"{what}: {after}"
    return f"{len(wrongs)} ways: Error with req 0, the same again, then 410"


async def a_hello_that_is_refused_begins_no_session(at: Deployment) -> str:
    user = at.user("eve")
    wrongs: List[Tuple[str, bytes, int]] = [
        ("a bad token", hello(at, user, token="no token"), TOKEN_INVALID),
        ("no Hello", ping(1), WRONG_MOMENT),
        ("bytes that are no frame", varint(3) + b"\xff\xff\xff", BAD_FRAME),
    ]
    for http2 in (False, True):
        for what, body, code in wrongs:
            # Each on a connection of its own: that of a refused Hello is closed, behind its answer.
            async with Http(at.edge("eu"), at.public_ca, http2=http2) as http:
                answer = await http.ask(body)
                assert answer.status == 200 and codes(answer.body) == [(0, code)], f"{what}: {answer}"
                assert POLL.lower() not in answer.headers, f"{what}: {answer}"
    return f"{len(wrongs)} ways"


async def what_polls_refuse_has_the_documented_status(at: Deployment) -> str:
    good = hello(at, at.user("eve"))
    async with Http(at.edge("eu"), at.public_ca, http2=False) as http:
        name, number = await begin_quiet(at, http)
        here: Dict[str, str] = {POLL: name, NUMBER: str(number)}
        half, large = ping(5)[:-1], b"\0" * (BODY_BYTES_LIMIT + 1)
        wanted: List[Tuple[str, Answer, int, str]] = [
            ("half a frame", await http.ask(half, here), 400, "bad_body"),
            ("half a Hello", await http.ask(good[:-1]), 400, "bad_body"),
            ("no body and no session", await http.ask(b""), 400, "bad_body"),
            ("too large", await http.ask(large, here), 413, "body_too_large"),
            ("too large a Hello", await http.ask(b"\0" * (FRAME_BYTES_LIMIT + 6)), 413, "body_too_large"),
            ("no number", await http.ask(ping(5), {POLL: name}), 400, "bad_header"),
            ("a number that is none", await http.ask(ping(5), {POLL: name, NUMBER: "one"}), 400, "bad_header"),
            ("a name that is none", await http.ask(ping(5), {POLL: "xyz", NUMBER: "1"}), 410, "session_over"),
            ("a wait that is none", await http.ask(ping(5), {**here, WAIT_MS: "soon"}), 400, "bad_header"),
            ("number 0", await http.ask(ping(5), {POLL: name, NUMBER: "0"}), 400, "bad_header"),
            ("GET", await http.ask(method="GET"), 405, "method_not_allowed"),
            ("another path", await http.ask(good, path="/v1/other"), 404, "not_found"),
        ]
        found = [(what, a.status, a.error) for what, a, _, _ in wanted]
        assert found == [(what, status, code) for what, _, status, code in wanted], found
        # The number is still free.
        answer = await http.poll(name, number, ping(6), LONG_MS)
        assert [f.req for f in read(answer.body)] == [6], read(answer.body)
    return f"{len(wanted)} refusals, and the session lives on"


async def begin(at: Deployment, http: Union[Http, Http3], user: str) -> Tuple[str, wire.Welcome]:
    """A new session: its name, and the Welcome."""
    answer = await http.ask(hello(at, user, install="py-" + secrets.token_hex(4)))
    assert answer.status == 200, answer
    name = answer.headers[POLL.lower()]
    assert len(name) == NAME_DIGITS and int(name, 16) >= 0, name
    frames = read(answer.body)
    assert frames[0].req == 1 and frames[0].WhichOneof("body") == "welcome", frames
    return name, frames[0].welcome


async def begin_quiet(at: Deployment, http: Union[Http, Http3]) -> Tuple[str, int]:
    """A new session of a new user that is live and has nothing to be told: its name and the next number."""
    name, _ = await begin(at, http, at.user("eve"))
    answer = await http.poll(name, 1, commit() + ping(2), LONG_MS)
    assert kinds(answer.body) == ["pong"], kinds(answer.body)
    return name, 2
