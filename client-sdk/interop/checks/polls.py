"""The same session over polls, long and short, over HTTP/2 and HTTP/1.1."""

from __future__ import annotations

from functools import partial
from typing import Awaitable

from tern_interop.client import Client
from tern_interop.dispatch import Edge
from tern_interop.poll import Poll
from tern_interop.transport import Transport

from .deployment import Deployment, direct_of
from .errors import REPLACED
from .transports import both_ways, connect, resends, resumes
from .waiting import acked, shows, shows_the_same

LOSE_EVERY = 3
MESSAGES = 30


def long_http2(edge: Edge, ca: str) -> Awaitable[Transport]:
    return Poll.connect(edge, ca)


def long_http1(edge: Edge, ca: str) -> Awaitable[Transport]:
    return Poll.connect(edge, ca, http2=False)


def short(edge: Edge, ca: str) -> Awaitable[Transport]:
    return Poll.connect(edge, ca, short=True)


async def long_polls_carry_messages_both_ways(at: Deployment) -> str:
    told = []
    for open_to in (long_http2, long_http1):
        one, other = await both_ways(at, open_to)
        assert isinstance(one, Poll) and isinstance(other, Poll)
        told.append(f"{one.number} and {other.number}")
    return f"20 messages in {told[0]} requests over HTTP/2, in {told[1]} over HTTP/1.1"


async def short_polls_carry_messages_both_ways(at: Deployment) -> str:
    one, other = await both_ways(at, short)
    assert isinstance(one, Poll) and isinstance(other, Poll)
    return f"20 messages in {one.number} and {other.number} requests"


async def polls_resume_by_cursor_after_a_cut(at: Deployment) -> str:
    await resumes(at, long_http2)
    await resumes(at, short)
    return "what was missed, then nothing, by long and by short ones"


async def polls_resend_after_a_lost_ack_and_it_is_shown_once(at: Deployment) -> str:
    await resends(at, long_http1)
    await resends(at, short)
    return "one copy, by long and by short ones"


async def lost_answers_of_polls_are_given_again(at: Deployment) -> str:
    """Each third answer is lost: no session ends, nothing is lost or doubled."""
    lost = 0
    for open_to in (long_http2, long_http1, short):
        alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
        polls = [await connect(at, client, open_to) for client in (alice, bob)]
        for poll in polls:
            assert isinstance(poll, Poll)
            poll.lose_every = LOSE_EVERY
        conversation = direct_of(alice, bob)
        for i in range(MESSAGES):
            await alice.send(conversation, f"alice {i}", bob.me.user)
            await bob.send(conversation, f"bob {i}", alice.me.user)
            if i % LOSE_EVERY == 0:
                # So that there are answers to lose.
                await acked(alice)
        await shows(bob, conversation, [f"alice {i}" for i in range(MESSAGES)])
        await shows(alice, conversation, [f"bob {i}" for i in range(MESSAGES)])
        await acked(alice)
        await acked(bob)
        await shows_the_same(alice, bob, conversation)
        for client, poll in zip((alice, bob), polls):
            assert isinstance(poll, Poll)
            assert client.session is not None and client.session.hellos == 1 and client.closed is None
            assert poll.differed == 0, f"{poll.differed} repeated answers differed"
            lost += poll.lost
    assert lost
    return f"{lost} answers, each the same the second time"


async def a_poll_and_a_quic_connection_of_an_install_replace_each_other(at: Deployment) -> str:
    client, other = at.device(at.user("alice")), at.device(at.user("bob"))
    await connect(at, client, long_http2)
    session, poll = client.session, client.transport
    assert session is not None and poll is not None
    again = await _open_elsewhere(at, client)
    await client.until(lambda: client.closed, "to be replaced")
    assert [e.code for e in session.errors] == [REPLACED], session.errors
    assert client.closed is not None and client.closed.reason == "410 session_over", client.closed
    again.drop()
    await client.disconnect()
    await connect(at, client, partial(Poll.connect, short=True))
    await at.connect(other)
    await other.send(direct_of(client, other), "over QUIC", client.me.user)
    await shows(client, direct_of(client, other), ["over QUIC"])
    return f"code {REPLACED}, then 410"


async def _open_elsewhere(at: Deployment, client: Client) -> Transport:
    """The same install on QUIC, whose count of connections is taken over before and after."""
    twin = at.device(client.me.user, install=client.me.install)
    with twin.store.transaction(), client.store.transaction():
        for _ in range(client.store.count("connections")):
            twin.store.count("connections")
        client.store.count("connections")
    return await at.connect(twin)
