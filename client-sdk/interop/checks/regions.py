"""Regions that die: what one acked and no other has is offered by the device that sent it. Runs last: it leaves the
deployment with one region that `tern dev` did not start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import List, Optional

from tern_interop.client import Client

from .deployment import Deployment, direct_of
from .groups import create
from .waiting import acked, quiet, shows, shows_the_same, stable

READY_S = 60.0


def pid_of(at: Deployment, node: str) -> int:
    """The process of a node of this deployment, known by its configuration file."""
    config = str(at.data / node / "tern.toml")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it has ended
            if config in arguments:
                return int(entry.name)
    raise LookupError(f"no process of {node}")


class Region:
    """A region that is started again. It ends with its standard input, so never later than this process."""

    def __init__(self) -> None:
        self._process: Optional["asyncio.subprocess.Process"] = None

    async def start(self, at: Deployment, node: str) -> None:
        """Returns when it is ready. Offers are asked for after a second of silence, not after half a minute."""
        pipe = asyncio.subprocess.PIPE
        options = ["--json", "--log", "error", "--stop-with-stdin", "--set", "reoffer_after=1s"]
        command = [at.tern, "region", "--config", str(at.data / node / "tern.toml"), *options]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
        assert line and json.loads(line)["ready"] == node, line

    async def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            await asyncio.wait_for(self._process.communicate(), READY_S)


async def running(at: Deployment, node: str) -> Region:
    """A node of the deployment, started again if another check has ended it."""
    region = Region()
    try:
        pid_of(at, node)
    except LookupError:
        await region.start(at, node)
    return region


async def a_draining_region_sends_its_clients_elsewhere(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    us = await running(at, "us-e1")
    await at.connect(alice, "us")
    await at.connect(bob)
    conversation = direct_of(alice, bob)
    await alice.send(conversation, "from us", bob.me.user)
    await shows(bob, conversation, ["from us"])
    session = alice.session
    assert session is not None
    os.kill(pid_of(at, "us-e1"), signal.SIGTERM)
    go_away = await alice.until(lambda: session.go_away, "to be sent elsewhere")
    assert go_away is not None and go_away.alternates and go_away.window_ms, go_away
    edge = await at.move(alice, go_away.alternates, "eu")
    await alice.send(conversation, "from elsewhere", bob.me.user)
    await bob.send(conversation, "heard", alice.me.user)
    await shows(bob, conversation, ["from us", "from elsewhere"])
    await shows(alice, conversation, ["heard"])
    await shows_the_same(alice, bob, conversation)
    await us.stop()
    return f"to {edge.id} within {go_away.window_ms} ms"


async def what_a_lost_region_acked_is_offered_to_another(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.device(at.user("bob"))
    eu, us = pid_of(at, "eu-e1"), Region()
    killed = await running(at, "us-e1")
    await at.connect(alice)
    conversation = direct_of(alice, bob)
    await acked(alice)
    os.kill(pid_of(at, "us-e1"), signal.SIGKILL)
    await killed.stop()
    texts = [f"only eu has {i}" for i in range(5)]
    for text in texts:
        await alice.send(conversation, text, bob.me.user)
    # One group is waited for until it was offered again; in the other something new is sent at once.
    quiet_group, busy_group = [await create(alice, "at risk", bob.me.user) for _ in range(2)]
    for group in (quiet_group, busy_group):
        await alice.send(group, "only eu has this too")
    await acked(alice)
    conversations = [conversation, quiet_group, busy_group]
    before = [alice.timeline(c) for c in conversations]
    # From now on eu is silent, as if it were gone.
    os.kill(eu, signal.SIGSTOP)
    try:
        await alice.disconnect(drop=True)
        await us.start(at, "us-e1")
        await at.connect(alice, "us")
        session = alice.session
        assert session is not None
        await alice.send(conversation, "new in us", bob.me.user)
        await alice.send(busy_group, "new in us too")
        await at.connect(bob, "us")
        await shows(bob, quiet_group, ["only eu has this too"])
        await bob.send(quiet_group, "I have it")
        await shows(alice, quiet_group, ["I have it"])
        await shows(bob, conversation, [*texts, "new in us"])
        await shows(bob, busy_group, ["only eu has this too", "new in us too"])
        assert session.sending.receipts_refused == 0
        for c, were in zip(conversations, before):
            await shows_the_same(alice, bob, c)
            assert bob.timeline(c)[: len(were)] == were, "offered messages keep their places"
    finally:
        os.kill(eu, signal.SIGCONT)
    await _both_regions_agree(at, alice, bob, conversations)
    await us.stop()
    return f"{sum(map(len, before))} messages, at the places that eu gave them"


async def _both_regions_agree(at: Deployment, alice: Client, bob: Client, conversations: List[bytes]) -> None:
    """Now that the silent one is back: nothing is doubled, and all is stable."""
    for conversation in conversations:
        await stable(alice, conversation)
    shown = len(bob.shown)
    await bob.disconnect()
    await at.connect(bob, "eu")
    await quiet(bob)
    for conversation in conversations:
        await shows_the_same(alice, bob, conversation)
    assert len(bob.shown) == shown, "copies are not shown again"
