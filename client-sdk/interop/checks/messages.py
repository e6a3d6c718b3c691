"""Direct messages between two Python clients: once, in order, after losses, in another region, over moving ports."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import List

from tern_interop.proto import wire

from .deployment import Deployment, direct_of
from .waiting import acked, quiet, shows, shows_the_same, stable

BURST = 50
REGION_US = 2
TOKEN_INVALID, OUT_OF_ORDER, RATE_LIMITED = 6, 14, 17


async def dispatch_answers_the_same_as_json_and_as_protobuf(at: Deployment) -> str:
    as_json, as_protobuf = at.ask("eu"), at.ask("eu", protobuf=True)
    assert sorted(as_json.edges) == sorted(as_protobuf.edges), (as_json, as_protobuf)
    assert as_json.ttl_s > 0 and as_protobuf.ttl_s > 0
    assert {"quic", "tcp"} <= set(as_json.edges[0].transports)
    return f"{len(as_json.edges)} edges"


async def direct_messages_are_acked_shown_once_and_in_order_both_ways(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    sent: "dict[str, List[str]]" = {"alice": [], "bob": []}
    for i in range(10):
        for name, client, peer in (("alice", alice, bob), ("bob", bob, alice)):
            sent[name].append(f"{name} says {i}")
            await client.send(conversation, sent[name][-1], peer.me.user)
    for name, client in (("alice", bob), ("bob", alice)):
        await shows(client, conversation, sent[name])
    await acked(alice)
    await acked(bob)
    await shows_the_same(alice, bob, conversation)
    for client in (alice, bob):
        await stable(client, conversation)
    return "20 messages, stable in two regions"


async def away_bob_resumes_by_cursor_and_gets_what_he_missed_once(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "before", bob.me.user)
    await shows(bob, conversation, ["before"])
    await acked(bob)  # the cell that names his device
    await quiet(bob)
    await bob.disconnect()
    texts = [f"while away {i}" for i in range(BURST)]
    for text in texts:
        await alice.send(conversation, text, bob.me.user)
    await acked(alice)
    await at.connect(bob)
    await shows(bob, conversation, ["before", *texts])
    assert bob.texts(conversation) == ["before", *texts]
    assert bob.session is not None
    told = bob.session.receiving.entries_told
    assert told == BURST, f"{told} entries"

    await bob.disconnect()
    await at.connect(bob)
    assert bob.session is not None and bob.session.welcome is not None
    rows = bob.session.welcome.rows
    assert not rows.rows and not rows.preview and rows.last, rows
    await quiet(bob)
    assert bob.session.receiving.entries_told == 0
    # In whatever order they came: the newest ones come with the rows.
    assert sorted(shown.body.decode() for shown in bob.shown) == sorted(["before", *texts])
    return f"{BURST} missed messages, then none"


async def a_burst_above_the_rate_limit_arrives_whole_and_in_order(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    texts = [f"one of many {i}" for i in range(2 * BURST)]
    for text in texts:
        await alice.send(conversation, text, bob.me.user)
    await acked(alice)
    await shows(bob, conversation, texts)
    await shows_the_same(alice, bob, conversation)
    assert alice.session is not None
    refused = alice.session.sending.refusals
    assert {error.code for error in refused} <= {OUT_OF_ORDER, RATE_LIMITED}, refused
    return f"{len(texts)} messages, {len(refused)} of them refused at first"


async def a_restarted_device_sends_what_waited_and_gets_what_it_missed(at: Deployment) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "bob.sqlite")
        alice, bob = at.device(at.user("alice")), at.device(at.user("bob"), path=path)
        await at.connect(alice)
        await at.connect(bob)
        conversation = direct_of(alice, bob)
        await alice.send(conversation, "before", bob.me.user)
        await shows(bob, conversation, ["before"])
        await bob.disconnect()
        await bob.send(conversation, "written offline", alice.me.user)
        await alice.send(conversation, "missed", bob.me.user)
        await acked(alice)
        again = at.device(bob.me.user, path=path, install=bob.me.install)
        assert again.texts(conversation) == ["before"]
        await at.connect(again)
        await shows(alice, conversation, ["written offline"])
        await shows(again, conversation, ["missed"])
        await shows_the_same(alice, again, conversation)
        await again.disconnect()
    return "from its SQLite file"


async def a_token_is_renewed_in_a_living_session(at: Deployment) -> str:
    user = at.user("alice")
    alice = at.device(user, token=at.token(user, ttl="10m"))
    await at.connect(alice)
    assert alice.session is not None and alice.session.welcome is not None
    refused = await alice.ask(wire.Frame(token=wire.Token(token="no token")))
    assert refused.error.code == TOKEN_INVALID, refused
    taken = await alice.ask(wire.Frame(token=wire.Token(token=at.token(user))))
    assert taken.token_taken.token_expires_ms > alice.session.welcome.token_expires_ms, taken
    assert alice.closed is None
    return "after one that was refused"


async def another_region_gives_what_differs_and_takes_over(at: Deployment) -> str:
    alice, bob, carol = (at.device(at.user(name)) for name in ("alice", "bob", "carol"))
    await at.connect(alice)
    await at.connect(bob)
    conversation, with_carol = direct_of(alice, bob), direct_of(bob, carol)
    await alice.send(conversation, "in eu", bob.me.user)
    await bob.send(with_carol, "quiet since", carol.me.user)
    await shows(bob, conversation, ["in eu"])
    await acked(bob)
    await quiet(bob)
    await stable(bob, with_carol)
    await bob.disconnect()
    await alice.send(conversation, "on its way", bob.me.user)
    await acked(alice)
    await stable(alice, conversation)
    await at.connect(bob, "us")
    assert bob.session is not None
    differed = bob.session.receiving.compared
    await shows(bob, conversation, ["in eu", "on its way"])
    await bob.send(conversation, "from us", alice.me.user)
    await shows(alice, conversation, ["from us"])
    await shows_the_same(alice, bob, conversation)
    assert sorted(c.region for c in bob.store.cursors()) == [1, REGION_US]
    # Once all is quiet nothing differs.
    await acked(bob)
    await quiet(bob)
    with bob.store.transaction():
        bob.store.forget_cursor(REGION_US)
    await bob.disconnect()
    await at.connect(bob, "us")
    assert not bob.session.receiving.compared, bob.session.receiving.compared
    assert bob.session.receiving.entries_told == 0
    return f"{len(differed)} of {len(bob.store.rows())} rows differed, then none"


async def a_resend_after_a_lost_ack_is_shown_once(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    transport = await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "first", bob.me.user)
    await acked(alice)
    alice.deaf = True
    n = await alice.send(conversation, "its ack is lost", bob.me.user)
    # Bob has it, so it is stored; alice has heard nothing.
    await shows(bob, conversation, ["first", "its ack is lost"])
    assert [letter.n for letter in alice.outbox.waiting(conversation)] == [n]
    transport.drop()
    await alice.disconnect(drop=True)
    await at.connect(alice)
    await alice.send(conversation, "after", bob.me.user)
    await acked(alice)
    await shows(bob, conversation, ["first", "its ack is lost", "after"])
    await quiet(bob)
    await shows_the_same(alice, bob, conversation)
    entries = [e for e in bob.store.entries(conversation) if e.identity.n == n]
    assert len(entries) == 1, entries
    return "one copy, at the place of the first transmission"


async def a_connection_survives_new_local_ports_while_messages_flow(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    transport = await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    session = alice.session
    assert session is not None and session.welcome is not None
    seen = session.seen_address
    to_bob, to_alice, ports = [], [], []
    for i in range(24):
        to_bob.append(f"alice {i}")
        to_alice.append(f"bob {i}")
        await alice.send(conversation, to_bob[-1], bob.me.user)
        await bob.send(conversation, to_alice[-1], alice.me.user)
        if i in (6, 12, 18):
            # The second time as behind a NAT that gives out another port.
            ports.append(await transport.migrate(new_id=i != 12))
            # The next ones are on their way over the new port.
            await shows(alice, conversation, to_alice[:i])
    await shows(bob, conversation, to_bob)
    await shows(alice, conversation, to_alice)
    await acked(alice)
    await shows_the_same(alice, bob, conversation)
    assert alice.session is session and session.hellos == 1 and alice.closed is None
    assert all(before != after for before, after in ports)
    alice.ping()
    await alice.until(lambda: session.seen_address.endswith(f":{transport.local_port}"), "for a Pong with its address")
    assert session.seen_address != seen
    return f"{len(ports)} new ports in session {session.welcome.session:016x}"


async def a_device_is_told_of_the_others_of_its_user(at: Deployment) -> str:
    user = at.user("alice")
    phone, laptop = at.device(user), at.device(user)
    bob = at.device(at.user("bob"))
    for device in (phone, laptop, bob):
        await at.connect(device)
    conversation = direct_of(phone, bob)
    await phone.send(conversation, "from the phone", bob.me.user)
    await shows(laptop, conversation, ["from the phone"])
    await laptop.send(conversation, "from the laptop", bob.me.user)
    await shows(phone, conversation, ["from the laptop"])
    await shows(bob, conversation, ["from the phone", "from the laptop"])
    await shows_the_same(phone, laptop, conversation)
    return "both write in one conversation"
