"""Events, an outbox and a mirror on a real broker, for tests."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec
from uuid import UUID

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.js.api import RawStreamMsg

from sidecar.bus.connection import BusConnection
from sidecar.bus.mirror import Mirror
from sidecar.bus.outbox import Outbox
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import DEFAULT_STREAM, EventStream, stream_config
from sidecar.bus.subjects import Subjects
from sidecar.lifecycle.statuses import Status
from sidecar.views import TransferEvent
from tests.api.fake_transfers import status_event
from tests.bus.broker import Broker

P = ParamSpec("P")

BUDGET_BYTES = 8 * 1024 * 1024


def settings(url: str, **changes: object) -> BusSettings:
    quick: dict[str, object] = {
        "urls": (url,),
        "retry_min_s": 0.02,
        "retry_max_s": 0.1,
        "connect_s": 2.0,
        "drain_s": 1.0,
    }
    return msgspec.convert({**quick, **changes}, BusSettings)


def patiently(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, within 100 s: brokers start and stop, and the machine may be busy."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(100):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait for what another process does to a connection of ours."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)


def numbered(number: int) -> TransferEvent:
    """The status of a transfer of its own."""
    return msgspec.structs.replace(status_event(1, Status.PROCESSING), transfer=str(UUID(int=number)))


@dataclass(frozen=True)
class Mirrored:
    connection: BusConnection
    outbox: Outbox
    mirror: Mirror

    def take(self, *events: TransferEvent) -> None:
        for event in events:
            self.outbox.take(event)

    @property
    def acked(self) -> int:
        file = self.outbox._file
        return file.acked if file is not None else -1

    async def until_sent(self) -> None:
        await until(lambda: not self.outbox.facts().waiting)


@asynccontextmanager
async def outbox(directory: Path, *, epoch: str = "e1", **changes: Any) -> AsyncIterator[Outbox]:
    wanted: dict[str, Any] = {"budget_bytes": BUDGET_BYTES, "keep_s": 600.0, **changes}
    async with Outbox(directory / "outbox.sqlite", node="node-a", epoch=epoch, **wanted) as opened:
        yield opened


async def show_damage(box: Outbox) -> None:
    """To the outbox as it runs: it goes on with a new file."""

    def damaged(_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with pytest.raises(Exception, match="malformed"):
        await box.ask(damaged)


@asynccontextmanager
async def mirroring(
    settings: BusSettings,
    directory: Path,
    *,
    epoch: str = "e1",
    may_create: bool = True,
    is_wanted: bool = True,
    look_s: float = 30.0,
    **changes: Any,
) -> AsyncIterator[Mirrored]:
    subjects = Subjects("node-a")
    async with AsyncExitStack() as stack:
        box = await stack.enter_async_context(outbox(directory, epoch=epoch, **changes))
        connection = await stack.enter_async_context(BusConnection(settings))
        stream = EventStream(connection, subjects, name=DEFAULT_STREAM, may_create=may_create, is_wanted=is_wanted)
        mirror = Mirror(outbox=box, connection=connection, subjects=subjects, stream=stream, look_s=look_s)
        run = asyncio.create_task(mirror.run())
        try:
            yield Mirrored(connection, box, mirror)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


@asynccontextmanager
async def looking(server: Broker) -> AsyncIterator[Client]:
    client = await nats.connect(server.url, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def make_stream(client: Client, **changes: object) -> None:
    config = stream_config()
    for name, value in changes.items():
        setattr(config, name, value)
    await client.jsm().add_stream(config)


async def stored(client: Client, stream: str = DEFAULT_STREAM) -> list[RawStreamMsg]:
    """Everything in the stream, in order."""
    jsm = client.jsm()
    state = (await jsm.stream_info(stream)).state
    seqs = range(state.first_seq, state.last_seq + 1) if state.messages else ()
    return [await jsm.get_msg(stream, seq, direct=True) for seq in seqs]


async def replace_stream(client: Client) -> None:
    """Delete it, and make it anew at once."""
    await client.jsm().delete_stream(DEFAULT_STREAM)
    await make_stream(client)


def ids(messages: list[RawStreamMsg]) -> list[str]:
    return [(message.headers or {})["ce-id"] for message in messages]


def numbers(messages: list[RawStreamMsg]) -> list[int]:
    """The numbers of events after repeats have been dropped by their ids, as a consumer does."""
    return [int(name.rpartition("-")[2]) for name in dict.fromkeys(ids(messages))]
