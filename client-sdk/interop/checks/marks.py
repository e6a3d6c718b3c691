"""What there is beside messages: read marks, signals, erasure, and which logs a conversation has."""

from __future__ import annotations

from hashlib import sha256

from tern_interop.client import Client
from tern_interop.ids import Origin
from tern_interop.proto import wire

from .deployment import Deployment, direct_of
from .waiting import acked, shows

KIND_ERASE = 21
TYPING_TTL_MS = 8_000


async def a_read_mark_is_told_to_the_other_and_to_own_devices(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    tablet = at.device(bob.me.user)
    for client in (alice, bob, tablet):
        await at.connect(client)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "read me", bob.me.user)
    await shows(bob, conversation, ["read me"])
    heads = bob.store.told(conversation, "heads")
    read = [wire.OriginHead(origin=origin.to_wire(), seq=seq) for origin, seq in heads.items()]
    answer = await bob.ask(wire.Frame(mark=wire.Mark(conversation=conversation, read=read)))
    assert answer.WhichOneof("body") == "marked", answer
    await alice.until(lambda: alice.store.told(conversation, "peer_read") == heads, "to be told that bob has read it")
    await tablet.until(lambda: tablet.store.told(conversation, "read") == heads, "to be told that it was read")
    return "Mark, Marked, read and peer_read"


async def a_signal_reaches_the_other_members_live_devices(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "hello", bob.me.user)
    await shows(bob, conversation, ["hello"])
    alice.tell(wire.Frame(signal=wire.Signal(conversation=conversation, ttl_ms=TYPING_TTL_MS)))
    session = bob.session
    assert session is not None
    signals = await bob.until(lambda: session.signals, "for a signal")
    told = signals[0]
    assert (told.conversation, told.kind, told.ttl_ms) == (conversation, 0, TYPING_TTL_MS), told
    assert getattr(told, "from").user == alice.me.user, told
    return "typing"


async def an_erased_body_is_not_given_any_more(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    n = await alice.send(conversation, "a slip", bob.me.user)
    await shows(bob, conversation, ["a slip"])
    author = wire.Author(user=alice.me.user, install=alice.me.install)
    erase = wire.Erase(author=author, n=n).SerializeToString()
    await alice.send_kind(conversation, KIND_ERASE, erase, bob.me.user)
    await acked(alice)
    await bob.until(lambda: [s for s in bob.shown if s.body == erase], "for the erasure")
    place = bob.timeline(conversation)[0].key
    assert place is not None
    # A pull right behind the erasure may still bring the body: clients drop it by themselves.
    while not (entry := (await pull(bob, conversation, place.origin, place.seq)).entries[0]).erased:
        assert entry.body == b"a slip", entry
    assert not entry.body, entry
    assert entry.body_hash == sha256(b"a slip").digest(), entry
    return "its hash is"


async def the_logs_of_a_conversation_are_told(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(alice)
    await at.connect(bob, "us")
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "in eu", bob.me.user)
    await shows(bob, conversation, ["in eu"])
    await bob.send(conversation, "in us", alice.me.user)
    await shows(alice, conversation, ["in us"])
    answer = await alice.ask(wire.Frame(pull_eras=wire.PullEras(conversation=conversation)))
    logs = {Origin.from_wire(log.origin): log.head for log in answer.eras.logs}
    assert logs == alice.store.told(conversation, "top"), (logs, alice.store.told(conversation, "top"))
    assert not any(log.sealed for log in answer.eras.logs), "both go on"
    return f"{len(logs)} logs"


async def pull(client: Client, conversation: bytes, origin: Origin, seq: int) -> wire.Page:
    """One entry."""
    # "from" is a keyword of Python.
    pull = wire.PullEntries(conversation=conversation, origin=origin.to_wire(), to=seq, **{"from": seq})
    answer = await client.ask(wire.Frame(pull=pull))
    assert answer.page.last, answer
    return answer.page
