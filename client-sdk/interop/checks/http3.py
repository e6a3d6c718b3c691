"""Polls over HTTP/3, by a stock stack (aioquic): the same session, the same rules, and what that stack is told by hand."""

from __future__ import annotations

import asyncio
from typing import Awaitable, List, Tuple

from aioquic.buffer import encode_uint_var

from tern_interop.dispatch import Edge
from tern_interop.http3 import Http3
from tern_interop.poll import BODY_BYTES_LIMIT, LONG_MS, Poll
from tern_interop.transport import Transport
from tern_interop.web import NUMBER, POLL, WAIT_MS, Answer, Http

from .deployment import Deployment, direct_of
from .poll_rules import begin, begin_quiet
from .transports import both_ways, commit, connect, hello, kinds, ping, read, resends, resumes
from .waiting import acked, shows

NO_ERROR, FRAME_UNEXPECTED = 0x100, 0x105


def long_http3(edge: Edge, ca: str) -> Awaitable[Transport]:
    return Poll.connect(edge, ca, http3=True)


def short_http3(edge: Edge, ca: str) -> Awaitable[Transport]:
    return Poll.connect(edge, ca, short=True, http3=True)


async def http3_polls_carry_messages_both_ways(at: Deployment) -> str:
    told = []
    for open_to in (long_http3, short_http3):
        one, other = await both_ways(at, open_to)
        assert isinstance(one, Poll) and isinstance(other, Poll)
        told.append(f"{one.number} and {other.number}")
    return f"20 messages in {told[0]} long requests, in {told[1]} short ones"


async def http3_polls_resume_and_resend(at: Deployment) -> str:
    await resumes(at, long_http3)
    await resends(at, long_http3)
    return "what was missed, then nothing; one copy of what was sent twice"


async def http3_answers_that_are_lost_are_given_again(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    polls = [await connect(at, client, long_http3) for client in (alice, bob)]
    for poll in polls:
        assert isinstance(poll, Poll)
        poll.lose_every = 3
    conversation = direct_of(alice, bob)
    for i in range(15):
        await alice.send(conversation, f"alice {i}", bob.me.user)
        await acked(alice)
    await shows(bob, conversation, [f"alice {i}" for i in range(15)])
    lost = 0
    for client, poll in zip((alice, bob), polls):
        assert isinstance(poll, Poll) and poll.differed == 0
        assert client.session is not None and client.session.hellos == 1 and client.closed is None
        lost += poll.lost
    assert lost
    return f"{lost} answers, each the same the second time"


async def one_session_is_polled_over_http3_and_over_tcp_by_turns(at: Deployment) -> str:
    edge = at.edge("eu")
    async with Http3(edge, at.public_ca) as udp, Http(edge, at.public_ca) as tcp:
        name, number = await begin_quiet(at, udp)
        for i in range(6):
            asked, other = (tcp, udp) if i % 2 == 0 else (udp, tcp)
            answer = await asked.poll(name, number + i, ping(100 + i), LONG_MS)
            assert [f.req for f in read(answer.body)] == [100 + i], answer
            again = await other.poll(name, number + i)
            assert (again.status, again.body) == (200, answer.body), again
    return "6 requests, each answered the same the other way"


async def the_next_poll_over_http3_ends_the_one_that_waits(at: Deployment) -> str:
    async with Http3(at.edge("eu"), at.public_ca) as http:
        name, number = await begin_quiet(at, http)
        waiting = asyncio.create_task(http.poll(name, number, wait_ms=LONG_MS))
        newer = await http.poll(name, number + 1, ping(900), LONG_MS)
        while newer.error == "wrong_number":
            # It overtook the first one.
            newer = await http.poll(name, number + 1, ping(900), LONG_MS)
        older = await waiting
        assert (older.status, older.body) == (200, b""), older
        assert kinds(newer.body) == ["pong"], kinds(newer.body)
        ended = await http.ask(headers={POLL: name}, method="DELETE")
        after = await http.poll(name, number + 2)
        assert (ended.status, after.status, after.error) == (200, 410, "session_over"), (ended, after)
    return "with an empty answer, on one connection; then DELETE and 410"


async def what_is_refused_over_http3_has_the_documented_status(at: Deployment) -> str:
    good = hello(at, at.user("eve"))
    async with Http3(at.edge("eu"), at.public_ca) as http:
        name, number = await begin_quiet(at, http)
        here = {POLL: name, NUMBER: str(number)}
        wanted: List[Tuple[str, Answer, int, str]] = [
            ("half a frame", await http.ask(ping(5)[:-1], here), 400, "bad_body"),
            ("no body and no session", await http.ask(b""), 400, "bad_body"),
            ("too large", await http.ask(b"\0" * (BODY_BYTES_LIMIT + 1), here), 413, "body_too_large"),
            ("no number", await http.ask(ping(5), {POLL: name}), 400, "bad_header"),
            ("a wait that is none", await http.ask(ping(5), {**here, WAIT_MS: "soon"}), 400, "bad_header"),
            ("GET", await http.ask(method="GET"), 405, "method_not_allowed"),
            ("another path", await http.ask(good, path="/v1/other"), 404, "not_found"),
            ("a header above 16 KiB", await http.ask(good, {"x-long": "y" * 20_000}), 431, ""),
        ]
        found = [(what, a.status, a.error) for what, a, _, _ in wanted]
        assert found == [(what, status, code) for what, _, status, code in wanted], found
        answer = await http.poll(name, number, ping(6), LONG_MS)
        assert [f.req for f in read(answer.body)] == [6], read(answer.body)
    return f"{len(wanted)} refusals, and the session lives on"


async def tcp_tells_where_http3_is(at: Deployment) -> str:
    edge = at.edge("eu")
    async with Http(edge, at.public_ca) as http:
        told = (await http.ask(method="GET", path="/")).headers["alt-svc"]
    assert told.startswith(f'h3=":{edge.port}"; ma='), told
    return told


async def a_client_of_http3_that_breaks_its_rules_is_told_so(at: Deployment) -> str:
    async with Http3(at.edge("eu"), at.public_ca) as honest:
        name, _ = await begin(at, honest, at.user("eve"))
        async with Http3(at.edge("eu"), at.public_ca) as http:
            client = await http.client()
            # DATA on the control stream, which has settings alone.
            stream = client.http._local_control_stream_id
            assert stream is not None
            client._quic.send_stream_data(stream, encode_uint_var(0) + encode_uint_var(1) + b"x")
            client.transmit()
            await asyncio.wait_for(client.wait_closed(), 30)
            assert client.ended is not None and client.ended.error_code == FRAME_UNEXPECTED, client.ended
        answer = await honest.poll(name, 1, commit() + ping(2), LONG_MS)
        assert kinds(answer.body) == ["pong"], answer
    return f"closed with {FRAME_UNEXPECTED:#x}; others live on"
