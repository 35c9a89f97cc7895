"""Events on their way to whoever listens. A listener that is slow loses its own events, never a transfer's time.

A ledger is a listener that must not lose any: it is called, in the order of the events, and only remembers.

Memory: at most `SLOTS` events a listener, about 1 KiB each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from sidecar.views import EventKind, TransferEvent

SLOTS = 1024  # a transfer makes some dozens of status and log events; progress is dropped first


class Ledger(Protocol):
    """Keeps every event. Its methods never wait and never raise."""

    def take(self, event: TransferEvent) -> None: ...

    def retake(self, statuses: Sequence[TransferEvent]) -> None:
        """The statuses of one transfer as the journal has them, oldest first; some or all may be known already."""


class _Listener:
    def __init__(self, server: str | None) -> None:
        self.server = server
        self.waiting: deque[TransferEvent] = deque()
        self.arrived = asyncio.Event()
        self.overflowed = False

    def take(self, event: TransferEvent) -> None:
        if self.overflowed or self.server not in (None, event.server):
            return
        if len(self.waiting) >= SLOTS:
            progress = next((e for e in self.waiting if e.kind is EventKind.PROGRESS), None)
            if progress is not None:
                self.waiting.remove(progress)
            elif event.kind is EventKind.PROGRESS:
                return
            else:
                self.overflowed = True
        self.waiting.append(event)
        self.arrived.set()


class EventHub:
    """One publisher, any number of listeners, all in one event loop."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._ledgers: list[Ledger] = []

    def attach(self, ledger: Ledger) -> None:
        """Tell it every event from now on."""
        self._ledgers.append(ledger)

    def republish(self, statuses: Sequence[TransferEvent]) -> None:
        """Tell the ledgers what they may have missed: statuses of one transfer, oldest first."""
        for ledger in self._ledgers:
            ledger.retake(statuses)

    def publish(self, event: TransferEvent) -> None:
        """Hand `event` to every listener. Never waits."""
        for ledger in self._ledgers:
            ledger.take(event)
        for listener in self._listeners:
            listener.take(event)

    async def listen(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        """Events from the first `__anext__` on; ends when this listener lost a status or log event by being slow."""
        listener = _Listener(server)
        self._listeners.add(listener)
        try:
            while True:
                while listener.waiting:
                    yield listener.waiting.popleft()
                if listener.overflowed:
                    return
                listener.arrived.clear()
                await listener.arrived.wait()
        finally:
            self._listeners.discard(listener)
