"""What the archive reports of single files, as log lines: the first of each kind by name, then only counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from sidecar.archive.entries import Notice

SHOWN_EACH = 20  # lines of one kind; a volume may hold a million sockets


class NoticeLines:
    """Lives in the event loop; `from_thread` may be called from the archive's threads."""

    def __init__(self, say: Callable[[str], None], loop: asyncio.AbstractEventLoop) -> None:
        self._say = say
        self._loop = loop
        self._seen: Counter[str] = Counter()

    def from_thread(self, notice: Notice) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.add, notice)

    def say_from_thread(self, line: str) -> None:
        """Any other line, from such a thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._say, line)

    def add(self, notice: Notice) -> None:
        self._seen[notice.kind.value] += 1
        if self._seen[notice.kind.value] <= SHOWN_EACH:
            self._say(notice.text)

    def summary(self) -> None:
        """Say how many were not shown."""
        for kind, count in sorted(self._seen.items()):
            if count > SHOWN_EACH:
                self._say(f"... and {count - SHOWN_EACH} more like it ({kind.replace('_', ' ')}).")
