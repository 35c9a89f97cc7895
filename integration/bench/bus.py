"""What the bus costs: events through the outbox, and moves without a bus, with one, and with a dead one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from sidecar.bus.connection import BusConnection
from sidecar.bus.mirror import Mirror
from sidecar.bus.outbox import Outbox
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import DEFAULT_STREAM, EventStream
from sidecar.bus.subjects import Subjects
from sidecar.demo.nats import run_nats
from sidecar.demo.node import free_port
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import EventKind, TransferEvent

MAX_APART: Final = 0.03  # of the time without a bus: what a bus, up or down, may cost a transfer
_PATIENCE_S: Final = 120.0
_SERVER: Final = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
_EPOCH: Final = "bench"


class BusIs(StrEnum):
    OFF = "off"
    ON = "on"
    DOWN = "down"


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Events per second."""

    written: float  # taken and on disk, synced, while there is no broker
    flushed: float  # from then on: read, sent, acknowledged by a stream on disk
    through: float  # all of it at once, with a broker


def bus_section(bus: BusIs, url: str) -> dict[str, Any]:
    """Settings of `[nats]` for one way. A dead broker is a port where nobody listens."""
    match bus:
        case BusIs.OFF:
            return {}
        case BusIs.ON:
            return {"url": url, "manage_stream": "create"}
        case BusIs.DOWN:
            return {"url": f"nats://127.0.0.1:{free_port()}"}


async def rates(directory: Path, count: int) -> Rates:
    """Args: directory, an empty one, for the outbox and the broker. Raises TimeoutError."""
    async with asyncio.timeout(_PATIENCE_S):
        (directory / "nats").mkdir(parents=True)
        async with run_nats(directory / "nats", jetstream=True) as broker:
            written, flushed = await _later(directory / "later", broker.url, count)
            return Rates(
                written=written, flushed=flushed, through=await _at_once(directory / "once", broker.url, count)
            )


async def _later(directory: Path, url: str, count: int) -> tuple[float, float]:
    async with _outbox(directory) as outbox:
        began = time.monotonic()
        await _take(outbox, count)
        await outbox.wait_written()
        written_s = time.monotonic() - began
        began = time.monotonic()
        await _sent(outbox, url)
        return count / written_s, count / (time.monotonic() - began)


async def _at_once(directory: Path, url: str, count: int) -> float:
    async with _outbox(directory) as outbox:
        began = time.monotonic()
        taking = asyncio.create_task(_take(outbox, count))
        await _sent(outbox, url, taking.done)
        await taking
        return count / (time.monotonic() - began)


def _outbox(directory: Path) -> Outbox:
    path = directory / "outbox.sqlite"
    return Outbox(path, node="bench", epoch=_EPOCH, budget_bytes=1 << 30, keep_s=600.0)


async def _take(outbox: Outbox, count: int) -> None:
    """As fast as the disk takes them: the engine drops what does not fit in memory, a bench must not."""
    for number in range(count):
        outbox.take(_event(number))
        if number % 512 == 511:
            while outbox.queued > 2048:  # noqa: ASYNC110 - the engine never waits, so there is nothing to wait for
                await asyncio.sleep(0.001)


async def _sent(outbox: Outbox, url: str, is_all: Callable[[], bool] = lambda: True) -> None:
    subjects = Subjects("bench")
    async with BusConnection(BusSettings(urls=(url,))) as connection:
        stream = EventStream(connection, subjects, name=DEFAULT_STREAM, may_create=True)
        mirror = Mirror(outbox=outbox, connection=connection, subjects=subjects, stream=stream)
        running = asyncio.create_task(mirror.run())
        try:
            while not is_all() or outbox.facts().waiting:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.002)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _event(number: int) -> TransferEvent:
    return TransferEvent(
        kind=EventKind.LOGS,
        transfer=_SERVER,
        server=_SERVER,
        node="bench",
        role=Role.SOURCE,
        time=1_772_663_415.25,
        status=Status.PROCESSING,
        stage="sending",
        message=f"Streaming {number} of many bytes to the destination, as a line of the log says it",
        line=f"[yellow][bold]Mar 04 2026 22:30:15 [Transfer System] [Source Node]:[default] Streaming {number} of many",
    )
