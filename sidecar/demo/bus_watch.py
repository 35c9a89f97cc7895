"""Hears every event on the bus, for what the demo shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg


@contextlib.asynccontextmanager
async def watching(nats_url: str, feed: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
    """Every event goes to `feed`; what was published before the end of the scope is fed before its end.

    The client library swallows a cancellation that meets it while it sends, and Ctrl-C would be lost. So its calls,
    all of them short, run in tasks that are never cancelled.
    """

    async def begin() -> Client:
        client = await nats.connect(nats_url, connect_timeout=5, max_reconnect_attempts=1)
        await client.subscribe("transfer.v1.event.>", cb=feed)
        await client.flush()
        return client

    async def end() -> None:
        client = await beginning
        with contextlib.suppress(nats.errors.Error, OSError):  # the transfer's own end says more
            await client.flush()
        await client.close()

    beginning = asyncio.ensure_future(begin())
    try:
        await asyncio.shield(beginning)
        yield
    finally:
        await asyncio.shield(asyncio.ensure_future(end()))
