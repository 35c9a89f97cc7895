"""Events that the outbox's disk has not taken yet. Plain decisions, made at once; not for two threads at a time.

Memory: `MAX_QUEUED` events of about 1 KiB, and of statuses, which are not dropped, up to `MAX_QUEUED_STATUSES`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from typing import Final

from sidecar.views import EventKind, TransferEvent

MAX_QUEUED: Final = 4_096
MAX_QUEUED_STATUSES: Final = 16_384  # the disk has been away for very long: the newest of each transfer are left
PROGRESS: Final = ""  # in `skipped`, in the place of a transfer
DROPPABLE: Final = (EventKind.PROGRESS, EventKind.LOGS)

Item = TransferEvent | tuple[TransferEvent, ...]  # an event, or all statuses of one transfer as its journal has them


class EventQueue:
    """Every step costs the same however much waits. skipped: what was dropped, log lines by transfer, until somebody
    takes note of it."""

    def __init__(self) -> None:
        self._items: OrderedDict[int, Item] = OrderedDict()  # by place, the oldest first
        self._places: dict[EventKind, deque[int]] = {kind: deque() for kind in EventKind}
        self._first = 0
        self._next = 0
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        self._items[self._next] = item
        self._places[_kind(item)].append(self._next)
        self._next += 1
        self._make_room()

    def take(self, at_most: int) -> tuple[list[Item], Counter[str]]:
        """The oldest, and what was dropped so far."""
        batch = [self._items.popitem(last=False)[1] for _ in range(min(at_most, len(self._items)))]
        for item in batch:
            self._places[_kind(item)].popleft()
        skipped, self.skipped = self.skipped, Counter()
        return batch, skipped

    def give_back(self, batch: Sequence[Item], skipped: Counter[str]) -> None:
        """Nothing has become of what was taken."""
        self.skipped += skipped
        for item in reversed(batch):
            self._first -= 1
            self._items[self._first] = item
            self._items.move_to_end(self._first, last=False)
            self._places[_kind(item)].appendleft(self._first)
        self._make_room()

    def _make_room(self) -> None:
        for kind in DROPPABLE:
            while len(self._items) > MAX_QUEUED and self._places[kind]:
                item = self._items.pop(self._places[kind].popleft())
                if isinstance(item, TransferEvent):
                    self.skipped[item.transfer if kind is EventKind.LOGS else PROGRESS] += 1
        if len(self._items) > MAX_QUEUED_STATUSES:
            newest: dict[str, tuple[int, Item]] = {}
            for place, item in self._items.items():
                transfer = (item if isinstance(item, TransferEvent) else item[-1]).transfer
                newest.pop(transfer, None)
                newest[transfer] = (place, item)
            self._items = OrderedDict(newest.values())
            self._places[EventKind.STATUS] = deque(self._items)


def _kind(item: Item) -> EventKind:
    return item.kind if isinstance(item, TransferEvent) else EventKind.STATUS
