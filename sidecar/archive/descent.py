"""Directories of a volume by descriptor: everything below its root is opened name by name, following no link.

A path is never handed to the kernel as a whole, so neither its length nor a link put in its way matters. The walk and
the reader ask for directories in archive order, where the next one is nearly always the last one, its child or an
ancestor: those are at hand.

Memory: one descriptor for each of the first `HOLD_EVERY` levels, then for the directory in hand, its parent and each
`HOLD_EVERY`-th ancestor; with paths of `MAX_PATH_BYTES` fewer than 200. Going up costs at most `HOLD_EVERY` openings,
however deep the tree.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# Four times what a single system call takes as a path, so everything that a server can have made in an ordinary way.
MAX_PATH_BYTES: Final = 16 * 1024 - 1  # with a slash behind a directory 16 KiB, which the destination takes
HOLD_EVERY: Final = 128

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """The directories of one volume. One thread at a time."""

    def __init__(self, root: Path) -> None:
        """Raises OSError where `root` is not a directory that can be opened. The root itself may be a symlink."""
        self._names: list[bytes] = []
        self._held: list[int] = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._path = b""

    def directory(self, path: bytes) -> int:
        """A descriptor of the directory `path` (b"": the root), valid until the next call.

        Raises OSError: ENOENT, ENOTDIR or ELOOP where it is not, or no longer, a directory of the volume.
        """
        if path == self._path:
            return self._held[-1]
        if not self._held:
            raise ValueError("the descent is closed")
        names = path.split(b"/") if path else []
        common = 0
        for wanted, present in zip(names, self._names, strict=False):
            if wanted != present:
                break
            common += 1
        self._up(common)
        for name in names[common:]:
            self._down(name)
        self._path = path
        return self._held[-1]

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        for fd in self._held:
            if fd >= 0:
                os.close(fd)
        self._held.clear()
        self._names.clear()
        self._path = b"\0"  # nobody's

    def _up(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            fd = self._held.pop()
            if fd >= 0:
                os.close(fd)
            self._path = b"\0"
        if self._held[-1] >= 0:
            return
        nearest = depth
        while self._held[nearest] < 0:
            nearest -= 1
        names = self._names[nearest:]
        del self._names[nearest:], self._held[nearest + 1 :]
        for name in names:
            self._down(name)

    def _down(self, name: bytes) -> None:
        self._path = b"\0"  # until the way down is complete
        fd = os.open(name, _DIRECTORY, dir_fd=self._held[-1])
        self._names.append(name)
        self._held.append(fd)
        grandparent = len(self._held) - 3
        if grandparent % HOLD_EVERY and grandparent > HOLD_EVERY and self._held[grandparent] >= 0:
            os.close(self._held[grandparent])
            self._held[grandparent] = -1
