"""Every event of every transfer, copied to the bus: subjects of `subjects.py`, JSON bodies, CloudEvents headers.

Transfers never wait for the broker: the mirror consumes the engine's events at once into a bounded store and publishes
from there. What is kept when not everything can be:

- with a connection: up to `MAX_QUEUED` events; the oldest progress goes first, then the oldest log lines. Statuses that
  alone exceed the bound are reduced to the newest of each transfer.
- without one: the newest status of each transfer, published as soon as there is a connection again. Log lines and
  progress of that time are lost, and the gap in `seq` shows it.

So the guarantee is "at most once", with one exception: a status whose arrival the broker did not confirm is published
again after the connection is back, under the same `ce-id`; consumers drop repeats by it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from sidecar.bus.connection import BusConnection, BusDown
from sidecar.bus.subjects import Subjects
from sidecar.views import EventKind, TransferEvent

_log = logging.getLogger(__name__)

MAX_QUEUED: Final = 4_096  # events of about 1 KiB: some 4 MiB
MAX_KEPT_STATUSES: Final = 10_000  # transfers that ended while the broker was away
MAX_BODY_BYTES: Final = 64 * 1024  # far below a broker's usual 1 MiB; a larger one would close the connection for good
WINDOW: Final = 64  # unconfirmed messages; measured to be as fast as any larger one
SETTLE_S: Final = 5.0
RESUBSCRIBE_S: Final = 1.0

_encode = msgspec.json.Encoder().encode


class Mirror:
    """Args: events, the engine's stream of all events from now on; connection; subjects; epoch, a word that differs
    from run to run (progress events have no number of their own that outlives a run)."""

    def __init__(
        self,
        *,
        events: Callable[[], AsyncIterator[TransferEvent]],
        connection: BusConnection,
        subjects: Subjects,
        epoch: str,
    ) -> None:
        self._events = events
        self._connection = connection
        self._subjects = subjects
        self._epoch = epoch
        self._store = Store()
        self._progress_number = 0
        self._dropped_at = 0

    async def run(self) -> None:
        """Until cancelled. If cancelled, what is unsent is lost; `flush` first to avoid that."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._consume(), name="bus mirror: consume")
            group.create_task(self._publish(), name="bus mirror: publish")

    async def flush(self, within_s: float) -> bool:
        """Wait until everything taken so far is with the broker, at most `within_s`; whether it is."""
        try:
            async with asyncio.timeout(within_s):
                await self._store.wait_empty()
        except TimeoutError:
            return False
        return True

    async def _consume(self) -> None:
        while True:
            # The contract's iterators are generators; the cast says so to `aclosing`.
            async with aclosing(cast("AsyncGenerator[TransferEvent, None]", self._events())) as events:
                async for event in events:
                    self._store.put(event, is_connected=self._connection.is_connected)
            _log.warning("bus mirror: the event stream ended because this process was too busy; listening anew")
            await asyncio.sleep(RESUBSCRIBE_S)

    async def _publish(self) -> None:
        while True:
            await self._store.wait_ready()
            try:
                await self._connection.wait_connected()
            except BusDown:
                return  # closed for good: the program is ending
            self._store.bring_back()
            try:
                await self._publish_window()
            except BusDown:
                self._store.shrink()  # what was not confirmed counts as not sent
                if self._store.dropped > self._dropped_at:
                    _log.warning("bus mirror: %d log lines and progress events lost so far", self._store.dropped)
                    self._dropped_at = self._store.dropped

    async def _publish_window(self) -> None:
        for event in self._store.window(WINDOW):
            try:
                await self._connection.publish(*self._message(event))
            except ValueError as error:  # ids that are no UUIDs, text that is no Unicode, a body above the bound
                _log.error("bus mirror: an event cannot be published: %s", error, extra={"transfer": event.transfer})
        await self._connection.settle(SETTLE_S)
        self._store.confirm()

    def _message(self, event: TransferEvent) -> tuple[str, bytes, dict[str, str]]:
        number = str(event.seq)
        if event.kind is EventKind.PROGRESS:
            self._progress_number += 1
            number = f"{event.seq}-{self._epoch}-{self._progress_number}"
        event_id = f"{event.node}-{event.transfer}-{event.role.value}-{number}"
        body = _encode(body_of(event))
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"its body has {len(body)} bytes")
        return self._subjects.event(event), body, headers_of(event, event_id)


class Store:
    """What waits to be published. Plain decisions, made at once; only the waiting awaits.

    Memory: `MAX_QUEUED` + `WINDOW` events and `MAX_KEPT_STATUSES` statuses.
    """

    def __init__(self) -> None:
        self._queue: deque[TransferEvent] = deque()
        self._window: list[TransferEvent] = []
        self._kept: OrderedDict[str, TransferEvent] = OrderedDict()
        self._queued: Counter[EventKind] = Counter()
        self._ready = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._window) + len(self._kept)

    def put(self, event: TransferEvent, *, is_connected: bool) -> None:
        if is_connected:
            self._queue.append(event)
            self._queued[event.kind] += 1
            if len(self._queue) > MAX_QUEUED:
                self._make_room()
        elif event.kind is EventKind.STATUS:
            self._keep(event)
        else:
            self.dropped += 1
        self._tell()

    def window(self, size: int) -> list[TransferEvent]:
        """The next events to publish, in order. They stay here until `confirm` or `shrink`."""
        while self._queue and len(self._window) < size:
            event = self._queue.popleft()
            self._queued[event.kind] -= 1
            self._window.append(event)
        return list(self._window)

    def confirm(self) -> None:
        """The window is with the broker."""
        self._window.clear()
        self._tell()

    def shrink(self) -> None:
        """There is no connection: keep the newest status of each transfer."""
        pending = [*self._window, *self._queue]
        self._window.clear()
        self._queue.clear()
        self._queued.clear()
        for event in pending:
            if event.kind is EventKind.STATUS:
                self._keep(event)
            else:
                self.dropped += 1
        self._tell()

    def bring_back(self) -> None:
        """There is a connection: the kept statuses go first, the longest kept before the others."""
        self._queue.extendleft(reversed(self._kept.values()))
        self._queued[EventKind.STATUS] += len(self._kept)
        self._kept.clear()
        self._tell()

    async def wait_ready(self) -> None:
        """Return once there is anything to publish."""
        await self._ready.wait()

    async def wait_empty(self) -> None:
        """Return once everything was confirmed."""
        await self._empty.wait()

    def _keep(self, event: TransferEvent) -> None:
        known = self._kept.pop(event.transfer + event.role.value, None)
        newest = event if known is None or event.seq >= known.seq else known
        self._kept[event.transfer + event.role.value] = newest
        if len(self._kept) > MAX_KEPT_STATUSES:
            self._kept.popitem(last=False)
            self.dropped += 1

    def _make_room(self) -> None:
        """Drop the oldest event of the least kind that there is."""
        for kind in (EventKind.PROGRESS, EventKind.LOGS):
            if self._queued[kind]:
                del self._queue[next(index for index, event in enumerate(self._queue) if event.kind is kind)]
                self._queued[kind] -= 1
                self.dropped += 1
                return
        newest: dict[str, TransferEvent] = {}
        for event in self._queue:
            key = event.transfer + event.role.value
            newest.pop(key, None)
            newest[key] = event
        self._queue = deque(list(newest.values())[-MAX_QUEUED:])
        self._queued[EventKind.STATUS] = len(self._queue)

    def _tell(self) -> None:
        if len(self):
            self._ready.set()
            self._empty.clear()
        else:
            self._ready.clear()
            self._empty.set()


def body_of(event: TransferEvent) -> dict[str, Any]:
    """The JSON body: the WebSocket envelope (`event`, `args`) and the facts. `docs/PROTOCOL.md` is the authority."""
    match event.kind:
        case EventKind.STATUS:
            args = [event.status.value]
        case EventKind.LOGS:
            args = [event.line or event.message or ""]
        case EventKind.PROGRESS:
            args = []
    progress: dict[str, Any] | None = None
    if event.progress is not None:
        progress = msgspec.to_builtins(event.progress)
        percent = event.progress.percent
        progress["percent"] = None if percent is None else round(percent, 2)
    return {
        "event": f"transfer.{event.kind.value}",
        "args": args,
        "transfer": event.transfer,
        "server": event.server,
        "node": event.node,
        "role": event.role.value,
        "direction": event.role.direction,
        "status": event.status.value,
        "stage": event.stage,
        "seq": event.seq,
        "time": event.time,
        "reason": event.reason,
        "message": event.message,
        "progress": progress,
    }


def headers_of(event: TransferEvent, event_id: str) -> dict[str, str]:
    """CloudEvents, binary mode (NATS protocol binding), and the broker's own key for dropping repeats."""
    at = datetime.fromtimestamp(event.time, UTC)
    return {
        "Nats-Msg-Id": event_id,
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": f"/transfer-sidecar/{event.node}",
        "ce-type": f"transfer.v1.{event.kind.value}",
        "ce-subject": event.server,
        "ce-time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "ce-datacontenttype": "application/json",
    }
