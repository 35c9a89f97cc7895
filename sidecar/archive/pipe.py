"""A bounded queue from one thread to another, with an end and with errors in both directions.

`queue.Queue` can say neither "this was the last" nor "the other side is gone"; a pipe says both, so no thread of a
pipeline can be left waiting for a partner that has failed.

Memory: at most `slots` items wait in the pipe; with the one in each partner's hands, slots + 2 are alive.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class PipeClosed(Exception):
    """The partner went away without an error; the rest of the work is pointless."""


class Pipe(Generic[T]):
    """One producer thread puts, one consumer thread iterates. `break_` may be called from any thread."""

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a pipe needs at least one slot, not {slots}")
        self._slots = slots
        self._items: deque[T] = deque()
        self._ended = False
        self._broken: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Wait for a free slot and hand `item` over. Raises what the pipe was broken with."""
        with self._changed:
            while len(self._items) >= self._slots and self._broken is None:
                self._changed.wait()
            if self._broken is not None:
                raise self._broken
            if self._ended:
                raise RuntimeError("put() after end()")
            self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """The producer has no more; the consumer still gets what waits."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def break_(self, error: BaseException | None = None) -> None:
        """Give up: both partners' next call raises `error` (default `PipeClosed`); what waits is dropped."""
        with self._changed:
            if self._broken is None:
                self._broken = error if error is not None else PipeClosed()
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and not self._ended and self._broken is None:
                    self._changed.wait()
                if self._broken is not None:
                    raise self._broken
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
