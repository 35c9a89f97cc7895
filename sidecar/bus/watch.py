"""Listening to transfers on the bus, for consumers: the demo's progress bar, `watch` on the command line, a panel.

    async with Watch(settings, event_filter()) as events:
        async for happened in events: ...

Survives restarts of the broker; what happened meanwhile is missing, which a gap in `seq` shows.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from sidecar.bus.connection import BusConnection
from sidecar.bus.settings import BusSettings
from sidecar.lifecycle.statuses import Role, Status
from sidecar.views import Progress

_log = logging.getLogger(__name__)

MAX_WAITING: Final = 8_192  # events between the broker and a consumer; the oldest go first


class BusEvent(msgspec.Struct, frozen=True):
    """One event as it came from the bus: the body of `docs/PROTOCOL.md`, and what its headers add."""

    event: str
    args: list[str]
    transfer: str
    server: str
    node: str
    role: Role
    direction: str
    status: Status
    stage: str
    seq: int
    time: float
    reason: str | None = None
    message: str | None = None
    progress: Progress | None = None


class Watch:
    """A subscription. Args: settings of the broker; subject, see `subjects.event_filter`."""

    def __init__(self, settings: BusSettings, subject: str) -> None:
        self._subject = subject
        self._waiting: asyncio.Queue[tuple[BusEvent, dict[str, str]]] = asyncio.Queue(MAX_WAITING)
        self._connection = BusConnection(settings, on_connected=self._subscribe)

    @property
    def is_connected(self) -> bool:
        return self._connection.is_connected

    async def wait_connected(self) -> None:
        """Return once events published from now on arrive here."""
        await self._connection.wait_connected()

    async def __aenter__(self) -> Self:
        await self._connection.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BusEvent:
        return (await self._waiting.get())[0]

    async def next_with_headers(self) -> tuple[BusEvent, dict[str, str]]:
        """The next event and its headers, names in lower case."""
        return await self._waiting.get()

    async def _subscribe(self, client: Client) -> None:
        await client.subscribe(self._subject, cb=self._take)

    async def _take(self, message: Msg) -> None:
        try:
            event = msgspec.json.decode(message.data, type=BusEvent)
        except (msgspec.DecodeError, UnicodeDecodeError):
            _log.warning("bus watch: a message is no event of this protocol")  # anyone may publish here
            return
        headers: dict[str, Any] = message.headers or {}
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait((event, {name.lower(): str(value) for name, value in headers.items()}))
