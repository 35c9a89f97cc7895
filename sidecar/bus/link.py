"""One client of the library, and how it is waited for and left.

The library's own waits do not end when their connection does, and a refused subject ends none of them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client

T = TypeVar("T")


class BusDenied(Exception):
    """The broker refuses that subject to this node. Never leaves this package."""


class Link:
    """One client of the library, and whether anything is wrong with it. Its late callbacks concern it alone."""

    def __init__(self) -> None:
        self.client = Client()
        self.is_broken = asyncio.Event()
        self.error: Exception | None = None  # the newest that the library told of, and did not raise
        self.denials: list[str] = []  # what the broker refused on it, in the broker's words; the last of them
        self.is_denied = asyncio.Event()  # anything of that is new


async def settled(client: Client, within_s: float) -> None:
    """Round trips until one began with nothing left in the client."""
    is_settled = False
    while not is_settled:
        is_settled = client.pending_data_size == 0
        await client.flush(timeout=max(1, math.ceil(within_s)))
        if not client.is_connected:  # a client that is closing reports a flush as done, at once
            raise nats.errors.ConnectionClosedError
        await asyncio.sleep(0)  # such a report gives no turn to the task that would write


async def first(
    wanted: Coroutine[Any, Any, object], spoiler: Coroutine[Any, Any, object], within_s: float | None
) -> bool:
    """Whether `wanted` ended, before `spoiler` and in time. Raises what it raised. Leaves nothing running.

    The library's own waits do not end when their connection does; this is how they are left.
    """
    first, second = asyncio.ensure_future(wanted), asyncio.ensure_future(spoiler)
    try:
        await asyncio.wait({first, second}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            return False
        first.result()
        return True
    finally:
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def until_broken(wanted: Coroutine[Any, Any, T], link: Link, within_s: float, subject: str) -> T:
    """What `wanted` returns or raises; else BusDenied, ConnectionClosedError where the link broke, TimeoutError."""
    running = asyncio.ensure_future(wanted)
    breaking = asyncio.ensure_future(link.is_broken.wait())
    denial = asyncio.ensure_future(_denied(link, subject.lower()))  # the broker's words are in lower case
    try:
        done, _ = await asyncio.wait({running, breaking, denial}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if running in done:
            return running.result()
        if denial in done:
            raise BusDenied(denial.result())
        raise nats.errors.ConnectionClosedError if breaking in done else TimeoutError
    finally:
        for task in (running, breaking, denial):
            task.cancel()
        await asyncio.gather(running, breaking, denial, return_exceptions=True)


async def _denied(link: Link, subject: str) -> str:
    """Return once the broker refuses what has `subject` in it; its words. Never, without a subject."""
    link.denials.clear()
    while True:
        link.is_denied.clear()
        found = next((words for words in link.denials if subject and subject in words), None)
        if found is not None:
            return found
        await link.is_denied.wait()


def abort(client: Client) -> None:
    """Cut a client's socket. The library has no call for it, and `close` waits for bytes that nobody will take."""
    transport = getattr(client, "_transport", None)
    for name in ("_io_writer", "_bare_io_writer"):
        writer = getattr(transport, name, None)
        if writer is not None:
            writer.transport.abort()
