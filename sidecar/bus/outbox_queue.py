"""Events that the outbox's disk has not taken yet. Plain decisions, made at once; not for two threads at a time.

Memory: `MAX_QUEUED` events of about 1 KiB, and of statuses, which are not dropped, up to `MAX_QUEUED_STATUSES`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from sidecar.views import EventKind, TransferEvent

MAX_QUEUED: Final = 4_096
MAX_QUEUED_STATUSES: Final = 16_384  # the disk has been away for very long: the newest of each transfer are left
ROOM: Final = 256  # progress is dropped in such portions: each costs a walk through the queue
PROGRESS: Final = ""  # in `skipped`, in the place of a transfer
DROPPABLE: Final = (EventKind.PROGRESS, EventKind.LOGS)

Item = TransferEvent | tuple[TransferEvent, ...]  # an event, or all statuses of one transfer as its journal has them


class EventQueue:
    """skipped: what was dropped, log lines by transfer, until somebody takes note of it."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._counts: Counter[EventKind] = Counter()
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        self._items.append(item)
        self._counts[_kind(item)] += 1
        self._make_room()

    def take(self, at_most: int) -> tuple[list[Item], Counter[str]]:
        """The oldest, and what was dropped so far."""
        batch = [self._items.popleft() for _ in range(min(at_most, len(self._items)))]
        self._counts.subtract(_kind(item) for item in batch)
        skipped, self.skipped = self.skipped, Counter()
        return batch, skipped

    def give_back(self, batch: Sequence[Item], skipped: Counter[str]) -> None:
        """Nothing has become of what was taken."""
        self.skipped += skipped
        self._items.extendleft(reversed(batch))
        self._counts.update(_kind(item) for item in batch)
        self._make_room()

    def _make_room(self) -> None:
        for kind in DROPPABLE:
            excess = len(self._items) - MAX_QUEUED
            if excess <= 0:
                return
            if self._counts[kind] > 0:
                self._drop(kind, max(excess, ROOM) if kind is EventKind.PROGRESS else excess)
        if len(self._items) > MAX_QUEUED_STATUSES:
            newest: dict[str, Item] = {}
            for item in self._items:
                transfer = (item if isinstance(item, TransferEvent) else item[-1]).transfer
                newest.pop(transfer, None)
                newest[transfer] = item
            self._items = deque(newest.values())
            self._counts = Counter({EventKind.STATUS: len(self._items)})

    def _drop(self, kind: EventKind, count: int) -> None:
        """The oldest of a kind, in one walk: the event loop may be waiting for it."""
        kept: deque[Item] = deque()
        for item in self._items:
            if count and isinstance(item, TransferEvent) and item.kind is kind:
                count -= 1
                self._counts[kind] -= 1
                self.skipped[item.transfer if kind is EventKind.LOGS else PROGRESS] += 1
            else:
                kept.append(item)
        self._items = kept


def _kind(item: Item) -> EventKind:
    return item.kind if isinstance(item, TransferEvent) else EventKind.STATUS
