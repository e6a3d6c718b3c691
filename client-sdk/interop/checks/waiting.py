"""What checks wait for."""

from __future__ import annotations

from typing import List

from tern_interop.client import Client


class Skipped(Exception):
    """A check can't be run here, and why. Where CI=true that is a failure."""


async def shows(client: Client, conversation: bytes, texts: List[str]) -> None:
    """Waits for these of others, in this order, each shown once. More may come between."""

    def of_others() -> List[str]:
        wanted = set(texts)
        return [t for t in client.texts(conversation) if t in wanted]

    await client.until(lambda: len(of_others()) >= len(texts), f"for {len(texts)} messages")
    assert of_others() == texts, (of_others(), texts)
    shown = [s.body for s in client.shown if s.conversation == conversation]
    assert len(shown) == len(set(shown)), f"{client.me.user} was shown a message twice"


async def acked(client: Client) -> None:
    await client.until(lambda: not client.outbox.conversations(), "for acks")


async def stable(client: Client, conversation: bytes) -> None:
    await client.until(lambda: not client.outbox.acked(conversation), "for its messages to be stable")


async def shows_the_same(one: Client, other: Client, conversation: bytes) -> None:
    """Both at last show the same messages at the same places."""

    def places(client: Client) -> List[object]:
        return [(m.key, m.identity, m.body) for m in client.timeline(conversation)]

    await one.until(lambda: len(places(one)) >= len(places(other)), "to show what the other shows")
    try:
        await other.until(lambda: places(one) == places(other), "to show what the other shows")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {places(one)} {places(other)}") from error


async def quiet(client: Client) -> None:
    """Until all that the server had for this client before now is here: a Pong's rev is the cursor."""
    session = client.session
    assert session is not None
    pongs = session.pongs
    client.ping()
    await client.until(lambda: session.pongs > pongs and session.receiving.is_up_to_date(), "to be up to date")
