"""Groups: made by one, used by others, in two regions."""

from __future__ import annotations

import secrets

from tern_interop.client import Client
from tern_interop.ids import group_id
from tern_interop.proto import wire

from .deployment import Deployment
from .waiting import acked, shows, shows_the_same

KIND_CREATE, KIND_ADD, KIND_REMOVE = 16, 17, 18
NOT_MEMBER = 13
ADMIN = 1


async def create(client: Client, title: str, *others: str) -> bytes:
    """Makes a group; messages may follow at once. Its id."""
    me, nonce = client.me.user, secrets.token_bytes(16)
    members = [wire.GroupMember(user=me, role=ADMIN, generation=1)]
    members += [wire.GroupMember(user=other, generation=1) for other in others]
    body = wire.GroupCreate(members=members, title=title, nonce=nonce).SerializeToString()
    group = group_id(me, nonce)
    assert await client.send_kind(group, KIND_CREATE, body) == 1
    return group


async def a_group_of_one_is_used_by_the_others(at: Deployment) -> str:
    alice, bob, carol = (at.device(at.user(name)) for name in ("alice", "bob", "carol"))
    await at.connect(alice)
    await at.connect(bob)
    group = await create(alice, "lunch", bob.me.user)
    await alice.send(group, "welcome")
    await shows(bob, group, ["welcome"])
    await bob.send(group, "thanks")
    await shows(alice, group, ["thanks"])

    await at.connect(carol)
    added = wire.GroupAdd(members=[wire.GroupMember(user=carol.me.user, generation=1)], history=False)
    await alice.send_kind(group, KIND_ADD, added.SerializeToString())
    await alice.send(group, "carol is here")
    await shows(carol, group, ["carol is here"])
    assert "welcome" not in carol.texts(group), "from before her membership"
    await carol.send(group, "hello all")
    await shows(bob, group, ["carol is here", "hello all"])
    await shows_the_same(alice, bob, group)

    cells = await members(carol, group)
    assert cells == {alice.me.user: 1, bob.me.user: 0, carol.me.user: 0}, cells
    removed = wire.GroupRemove(members=[wire.GroupMember(user=bob.me.user, generation=1)])
    await alice.send_kind(group, KIND_REMOVE, removed.SerializeToString())
    await acked(alice)
    await bob.until(lambda: bob.store.rows()[group][0] == 1, "for a row with state 1, left")
    await bob.send(group, "too late")
    session = bob.session
    assert session is not None
    await bob.until(lambda: [e for e in session.sending.refusals if e.code == NOT_MEMBER], "to be refused")
    return "create, add, write, members, remove"


async def a_group_is_taken_to_a_region_that_may_not_know_it(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    await at.connect(bob, "us")
    await at.connect(alice)
    group = await create(alice, "moving", bob.me.user)
    await acked(alice)
    # At once, so that eu may or may not have told us of it.
    await alice.disconnect()
    await at.connect(alice, "us")
    await alice.send(group, "in us now")
    await acked(alice)
    await shows(bob, group, ["in us now"])
    await bob.send(group, "me too")
    await shows(alice, group, ["me too"])
    await shows_the_same(alice, bob, group)
    return "one copy of each"


async def members(client: Client, group: bytes) -> "dict[str, int]":
    """Members and their roles, as the region has folded them."""
    answer = await client.ask(wire.Frame(pull_cells=wire.PullCells(conversation=group)))
    return {member.user: member.role for member in answer.cells.members}
