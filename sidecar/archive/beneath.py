"""Directories beneath one directory, found by name without ever following a link or leaving it.

Every path is walked one component at a time, each opened relative to its parent's descriptor with O_NOFOLLOW, and `..`
is refused before: so a path cannot leave the top whatever the archive has planted there, and may be longer than
PATH_MAX. `openat2(RESOLVE_BENEATH)` would say the same in one call, but only up to PATH_MAX, and some container
profiles forbid it; with the cache the walk is seldom longer than one step, so there is one way and not two.

Memory: `CACHED` descriptors and their paths.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sidecar.archive.entries import readable
from sidecar.errors import DataCorrupt

CACHED: Final = 64  # open descriptors; an archive is written directory by directory, so few are in use at a time
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def hostile(reason: str, name: bytes, at: int) -> DataCorrupt:
    """`archive.hostile` for the member `name` whose header stands at byte `at`."""
    shown = readable(name[:1024])
    return DataCorrupt("archive.hostile", f"the member {shown!r} {reason}", path=shown, at_byte=at)


def parts_of(name: bytes, at: int) -> list[bytes]:
    """The components of a member's name; none for the root. Leading `/` and `./` are dropped, as tar itself does.

    Raises DataCorrupt (`archive.hostile`) for `..` and NUL, which no honest writer produces.
    """
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in (b"", b".")]
    if b".." in parts:
        raise hostile("climbs out of its directory with '..'", name, at)
    if b"\0" in name:
        raise hostile("has a NUL in its name", name, at)
    return parts


class Beneath:
    """The directories below `top`, an open descriptor that stays the caller's."""

    def __init__(self, top: int, created: Callable[[bytes], None]) -> None:
        """`created` is told the path of each directory that `open` had to make."""
        self._top = top
        self._created = created
        self._cache: OrderedDict[bytes, int] = OrderedDict()

    def open(self, parts: list[bytes], at: int) -> int:
        """The directory at `parts`, made with its parents (mode 0700) where missing. Valid until the next call.

        Raises DataCorrupt (`archive.hostile`) when the way leads through something that is no directory; OSError.
        """
        path = b"/".join(parts)
        found = self._cache.get(path)
        if found is not None:
            self._cache.move_to_end(path)
            return found
        return self._walk(parts, path, at, create=True) if parts else self._top

    def find(self, parts: list[bytes], at: int) -> int | None:
        """As `open`, but None where it does not exist."""
        try:
            return self._walk(parts, b"/".join(parts), at, create=False) if parts else self._top
        except FileNotFoundError:
            return None

    def forget(self) -> None:
        """A directory was removed: close every descriptor, so that no removed directory is written into."""
        while self._cache:
            os.close(self._cache.popitem()[1])

    def _walk(self, parts: list[bytes], path: bytes, at: int, *, create: bool) -> int:
        descriptor, depth, cut = self._top, len(parts), len(path)
        while depth:
            known = self._cache.get(path[:cut])
            if known is not None:
                self._cache.move_to_end(path[:cut])
                descriptor = known
                break
            depth -= 1
            cut -= len(parts[depth]) + (depth > 0)
        for part in parts[depth:]:
            cut += len(part) + (cut > 0)
            descriptor = self._step(descriptor, part, path[:cut], at, create=create)
        return descriptor

    def _step(self, parent: int, part: bytes, path: bytes, at: int, *, create: bool) -> int:
        try:
            opened = os.open(part, _OPEN, dir_fd=parent)
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):  # another stream of the same transfer was a moment earlier
                os.mkdir(part, 0o700, dir_fd=parent)
                self._created(path)
            opened = os.open(part, _OPEN, dir_fd=parent)
        except OSError as error:
            is_link = _is_link(parent, part)
            if is_link is None:
                raise
            what = "a symbolic link" if is_link else "a file"
            raise hostile(f"leads through {what}", path, at) from error
        self._cache[path] = opened
        if len(self._cache) > CACHED:
            os.close(self._cache.popitem(last=False)[1])
        return opened


def _is_link(parent: int, part: bytes) -> bool | None:
    """None for a directory, or where nothing can be said."""
    try:
        mode = os.lstat(part, dir_fd=parent).st_mode
    except OSError:
        return None
    return None if stat.S_ISDIR(mode) else stat.S_ISLNK(mode)
