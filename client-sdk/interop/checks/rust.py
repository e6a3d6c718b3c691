"""The Rust client, `tern chat`, as the other party, driven by pipes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Dict, List, Optional

from .deployment import Deployment
from .waiting import acked, shows

WAIT_S = 60.0


class Chat:
    """A `tern chat --json`. What it says is kept in `said`, one object a line."""

    def __init__(self) -> None:
        self.said: List[Dict[str, Any]] = []
        self._process: Optional["asyncio.subprocess.Process"] = None

    async def start(self, at: Deployment, user: str, to: str) -> None:
        pipe = asyncio.subprocess.PIPE
        command = [at.tern, "chat", "--json", "--user", user, "--to", to, "--data", str(at.data)]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

    async def say(self, line: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def hears(self, *texts: str) -> None:
        """Waits for these messages, in this order."""
        assert self._process is not None and self._process.stdout is not None
        while self.messages(texts) != list(texts):
            line = await asyncio.wait_for(self._process.stdout.readline(), WAIT_S)
            assert line, f"tern chat ended; it said {self.said}"
            self.said.append(json.loads(line))

    def messages(self, among: "tuple[str, ...]") -> List[str]:
        """Texts that it was shown as new, of these."""
        return [s["text"] for s in self.said if s["event"] == "message" and s["text"] in among]

    async def stop(self) -> None:
        """Ends its input, so that it ends, or kills it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.communicate(), WAIT_S)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            self._process.kill()
            await self._process.wait()
            raise


async def python_and_rust_talk(at: Deployment) -> str:
    alice, bob = at.device(at.user("alice")), at.user("rust-bob")
    await at.connect(alice)
    chat = Chat()
    await chat.start(at, bob, alice.me.user)
    try:
        assert alice.session is not None
        conversation = alice.session.direct(bob)
        await chat.say("hello from rust")
        await shows(alice, conversation, ["hello from rust"])
        answers = [f"hello from python {i}" for i in range(5)]
        for text in answers:
            await alice.send(conversation, text, bob)
        await acked(alice)
        await chat.hears(*answers)
        await chat.say("and again")
        await shows(alice, conversation, ["hello from rust", "and again"])
    finally:
        await chat.stop()
    return "both ways"


async def a_group_that_rust_makes_is_used_by_python(at: Deployment) -> str:
    alice, bob, carol = at.device(at.user("alice")), at.user("rust-bob"), at.device(at.user("carol"))
    await at.connect(alice)
    chat = Chat()
    await chat.start(at, bob, alice.me.user)
    try:
        await chat.say(f"/group lunch {alice.me.user}")
        await chat.say("made by rust")
        await alice.until(
            lambda: [s for s in alice.shown if s.body == b"made by rust"], "for the group's first message"
        )
        group = next(s.conversation for s in alice.shown if s.body == b"made by rust")
        await shows(alice, group, ["made by rust"])
        await alice.send(group, "seen by python")
        await chat.hears("seen by python")
        await at.connect(carol)
        await chat.say(f"/add {carol.me.user}")
        await chat.say("carol is here")
        await shows(carol, group, ["carol is here"])
        await carol.send(group, "hello all")
        await chat.hears("seen by python", "hello all")
        await shows(alice, group, ["carol is here", "hello all"])
    finally:
        await chat.stop()
    return "with a member added by rust"
