"""What the writers of one tree have in common: what it has cost so far, and what its directories are to become.

An archive that is dealt out over several streams is written by one writer each, in threads of their own, into the same
directory. The limits hold for the sum, a directory that one stream announces and another only fills gets the announced
mode and time, and all are set once, when every stream has ended (`extract.seal`).

Between streams nothing says which came first, so with several of them nothing may replace anything: two members of one
name are refused, whichever stream they came on. Within one archive the later member replaces the earlier one.

Memory: path and two integers of each directory, about 250 bytes, bounded by `max_directories` for all streams together.
"""

from __future__ import annotations

import threading
from typing import Final

import msgspec

IMPLICIT: Final = 0o1000  # in a packed mode: no member has announced this directory


class ExtractLimits(msgspec.Struct, frozen=True):
    """What one transfer may cost this node. Reaching a limit fails it with `archive.limit`."""

    max_entries: int = 4_000_000  # members of any type: an inode each
    max_directories: int = 200_000  # they alone cost memory until the end; see `tree_writer`
    max_bytes: int = 1 << 40  # of all files, holes included
    max_path_bytes: int = 16 << 10  # four times what Linux takes in one call
    max_depth: int = 256  # components of a path
    max_expansion: float = 1100.0  # tar bytes per archive byte: gzip cannot exceed 1032, only bombs in zstd or xz do
    expansion_free_bytes: int = 1 << 30  # up to this size any expansion is fine


class TreeState:
    """Shared by the writers of one tree; every method may be called in any of their threads."""

    def __init__(self, *, streams: int = 1) -> None:
        self.is_shared = streams > 1
        self.streams = streams
        self.directories: dict[bytes, int] = {}  # path -> packed mode and mtime
        self._entries = 0
        self._announced_bytes = 0
        self._lock = threading.Lock()

    def count_entry(self) -> int:
        """One member more; how many there are now."""
        with self._lock:
            self._entries += 1
            return self._entries

    def count_bytes(self, size: int) -> int:
        """A file of `size` bytes more; the bytes of all files now."""
        with self._lock:
            self._announced_bytes += size
            return self._announced_bytes

    def remember(self, path: bytes, packed: int) -> int:
        """What a directory is to become; an announced one stays so. How many directories there are now."""
        with self._lock:
            if not (packed & IMPLICIT and path in self.directories):
                self.directories[path] = packed
            return len(self.directories)
