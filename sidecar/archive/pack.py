"""From entries to a tar: a selection of a volume's entries, opened one by one and written in the receiver's dialect.

Our own nodes get everything: symlinks verbatim, the second and later names of a file as hard links, nanoseconds, and
what was removed since as an empty member with the record `SIDECAR.removed=1`. Strangers get what all of them
understand: files and directories in whole seconds, hard links as full copies, a symlink to a file of the volume as a
copy of it.

Nothing is trusted to be what the scan saw. A file is opened by the descriptor of its directory, without following links
and without waiting for anything (a FIFO put in its place), and what was opened decides:
- gone, another inode or no longer a file: left out and remembered in `unsent`, for the next round to send;
- another size: the header says the present one; what happens while it is read, `tar_write.py` says.

A file that changed a moment ago is read a moment later. Filesystems stamp times from a clock that ticks every few
milliseconds, some every second or two: a write after the read could leave the same ctime as one before it, and the
rescan would see nothing. Once the clock has ticked, it cannot.

Memory: the names of hard-linked files, at most `MAX_LINK_BYTES`; `unsent`, at most `MAX_UNSENT_BYTES`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

from sidecar.archive.descent import Descent
from sidecar.archive.entries import Entry, EntryType, Notice, NoticeKind
from sidecar.archive.links import NoTarget, resolve
from sidecar.archive.meter import Meter
from sidecar.archive.scan import MOVED, unreadable
from sidecar.archive.tar_write import (
    DIRECTORY,
    FILE,
    HARD_LINK,
    SPARSE_FROM_BYTES,
    SYMLINK,
    TarWriter,
    header,
)
from sidecar.errors import HostFailed

MAX_LINK_BYTES: Final = 8 << 20  # names of hard-linked files kept; what goes beyond travels as copies
MAX_UNSENT_BYTES: Final = 4 << 20
MAX_COPIES_REMEMBERED: Final = 65_536  # 16 bytes each, and the set around them
_LINK_OVERHEAD_BYTES: Final = 250  # of a name in the map, as measured

_TICK_NS: Final = 20_000_000  # twice the slowest kernel tick
_COARSE_TICK_NS: Final = 2_000_000_000  # filesystems that keep no fractions
_SECOND_NS: Final = 1_000_000_000

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Dialect(StrEnum):
    """For whom the archive is."""

    SIDECAR = "sidecar"
    STRANGER = "stranger"


class Packer:
    """Writes entries into `tar`. One thread; call `pack` once per round."""

    def __init__(
        self,
        volume: Path,
        tar: TarWriter,
        *,
        dialect: Dialect,
        meter: Meter,
        notice: Callable[[Notice], None],
        wait: Callable[[float], object],
    ) -> None:
        """wait: waits for so many seconds, or less when the archive is given up."""
        self._volume = volume
        self._tar = tar
        self._is_ours = dialect is Dialect.SIDECAR
        self._meter = meter
        self._notice = notice
        self._wait = wait
        self.unsent: set[bytes] = set()
        self._unsent_bytes = 0
        self._descent: Descent | None = None
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._link_bytes = 0
        self._copies: set[bytes] = set()
        self._copy_budget = 0
        self._empty_directories = 0
        self._first_empty = b""

    def pack(
        self,
        entries: Iterable[Entry],
        *,
        removed: Iterable[bytes] = (),
        links: Iterable[Entry] = (),
        again: bool = False,
    ) -> None:
        """Write what was removed, then `entries`, then copies of the `links` whose files are not as they were sent.

        Args: removed: content before its directory. links: symlinks, for strangers, after something changed. again: the
        entries are not part of the meter's totals yet.
        Raises HostFailed: `volume.unreadable`, `volume.missing`; `volume.changed` when so many files came and went that
        they cannot be remembered. What the writer's buffers raise.
        """
        try:
            self._descent = Descent(self._volume)
        except OSError as error:
            if error.errno in MOVED:
                raise HostFailed("volume.missing", "the server's volume is gone", path=str(self._volume)) from error
            raise unreadable(b"", error) from error
        try:
            self.unsent = set()
            self._unsent_bytes = 0
            self._first_names.clear()
            self._link_bytes = 0
            # Copies of linked files may at most double the archive: a thousand links to one large file are not a
            # volume.
            self._copy_budget = max(self._meter.total_bytes or 0, SPARSE_FROM_BYTES)
            for path in removed:
                self._remove(path)
            self._pack(self._descent, entries, again)
            for entry in links:
                if entry.type is EntryType.SYMLINK:
                    self._copy(self._descent, entry)
        finally:
            self._descent.close()

    def _pack(self, descent: Descent, entries: Iterable[Entry], again: bool) -> None:
        childless: bytes | None = None  # the directory seen last, while nothing of it was
        for entry in entries:
            kind = entry.type
            if kind is EntryType.FILE:
                if again:
                    self._raise_totals(entry.size_bytes)
                if childless is not None:
                    self._leave(childless, entry.path)
                    childless = None
                if entry.links > 1:
                    self._linked_file(descent, entry)
                else:
                    self._file(descent, entry)
            elif kind is EntryType.DIRECTORY:
                if childless is not None:
                    self._leave(childless, entry.path)
                childless = entry.path
                self._bare(entry, DIRECTORY)
            elif self._is_ours:
                self._bare(entry, SYMLINK)
            elif not again and self._copy(descent, entry):
                childless = None
        if childless is not None:
            self._leave(childless, b"")
        if self._empty_directories and not self._is_ours and not again:
            detail = f"{self._empty_directories} in all"
            self._notice(Notice(NoticeKind.EMPTY_DIRECTORY_MAYBE_LOST, self._first_empty, detail))

    def _leave(self, directory: bytes, path: bytes) -> None:
        """The walk is at `path` and has seen nothing in `directory` that every receiver makes."""
        if not path.startswith(directory + b"/"):
            self._empty_directories += 1
            self._first_empty = self._first_empty or directory

    def _bare(self, entry: Entry, typeflag: bytes) -> None:
        self._tar.write(
            header(
                entry.path,
                typeflag,
                mode=entry.mode,
                mtime_ns=entry.mtime_ns,
                link=entry.link_target,
                has_fractions=self._is_ours,
            )
        )

    def _remove(self, path: bytes) -> None:
        if self._is_ours:
            self._tar.write(header(path, FILE, mode=0, mtime_ns=0, is_removed=True))
        else:
            self._notice(Notice(NoticeKind.REMOVED, path))

    def _linked_file(self, descent: Descent, entry: Entry) -> None:
        """A file of several names: after the first one a link, where the receiver knows links."""
        if not self._is_ours:
            self._notice(Notice(NoticeKind.LINK_AS_COPY, entry.path, f"hard link, {entry.links} names"))
            self._file(descent, entry)
            return
        inode = (entry.device, entry.inode)
        first = self._first_names.get(inode)
        if first is not None:
            self._tar.write(
                header(entry.path, HARD_LINK, mode=entry.mode, mtime_ns=entry.mtime_ns, link=first, has_fractions=True)
            )
            self._meter.content_bytes += entry.size_bytes
            self._meter.files += 1
        elif self._file(descent, entry):
            cost = len(entry.path) + _LINK_OVERHEAD_BYTES
            if self._link_bytes + cost <= MAX_LINK_BYTES:
                self._link_bytes += cost
                self._first_names[inode] = entry.path
            else:
                self._notice(Notice(NoticeKind.LINK_AS_COPY, entry.path, "too many hard links"))

    def _file(self, descent: Descent, entry: Entry) -> bool:
        """A regular file with its content; whether it went into the archive."""
        path = entry.path
        parent, _, name = path.rpartition(b"/")
        try:
            fd = os.open(name, _OPEN, dir_fd=descent.directory(parent))
        except OSError as error:
            if error.errno not in MOVED:
                raise unreadable(path, error) from error
            self._leave_unsent(entry, NoticeKind.VANISHED, "")
            return False
        try:
            status = os.fstat(fd)
            if status.st_ino != entry.inode or not stat.S_ISREG(status.st_mode):
                self._leave_unsent(entry, NoticeKind.CHANGED, "another file has its name")
                return False
            if status.st_size != entry.size_bytes:
                self._resized(entry, status.st_size)
            self._content(path, fd, status)
        except OSError as error:
            raise unreadable(path, error) from error
        finally:
            os.close(fd)
        return True

    def _content(self, path: bytes, fd: int, status: os.stat_result) -> None:
        size = status.st_size
        age_ns = time.time_ns() - status.st_ctime_ns
        if age_ns < _COARSE_TICK_NS:
            self._settle(status.st_ctime_ns, age_ns)
        self._tar.write(
            header(
                path,
                FILE,
                mode=status.st_mode & 0o7777,
                mtime_ns=status.st_mtime_ns,
                size=size,
                has_fractions=self._is_ours,
            )
        )
        is_sparse = size >= SPARSE_FROM_BYTES and status.st_blocks * 512 < size
        content = self._tar.content(fd, size, is_sparse, self._count)
        self._meter.files += 1
        if content.read_bytes < size:
            self._count(size - content.read_bytes)
            detail = f"{content.read_bytes} of {size} bytes, the rest is zeros for now"
            self._notice(Notice(NoticeKind.SHRANK, path, detail))
        elif content.has_more:
            self._notice(Notice(NoticeKind.GREW, path, f"beyond {size} bytes"))

    def _count(self, size: int) -> None:
        self._meter.content_bytes += size

    def _settle(self, ctime_ns: int, age_ns: int) -> None:
        """Wait until a further write would leave another ctime; not for one in the future (a clock set back)."""
        tick_ns = _TICK_NS if ctime_ns % _SECOND_NS else _COARSE_TICK_NS
        if 0 <= age_ns < tick_ns:
            self._wait((tick_ns - age_ns) / _SECOND_NS)

    def _resized(self, entry: Entry, size: int) -> None:
        kind = NoticeKind.GREW if size > entry.size_bytes else NoticeKind.SHRANK
        self._notice(Notice(kind, entry.path, f"{entry.size_bytes} to {size} bytes"))
        self._raise_totals(size - entry.size_bytes, 0)

    def _raise_totals(self, size: int, files: int = 1) -> None:
        meter = self._meter
        meter.total_bytes = (meter.total_bytes or 0) + size
        meter.total_files = (meter.total_files or 0) + files

    def _leave_unsent(self, entry: Entry, kind: NoticeKind, detail: str) -> None:
        self._notice(Notice(kind, entry.path, detail))
        self._raise_totals(-entry.size_bytes, -1)
        self._unsent_bytes += len(entry.path) + 100
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            raise HostFailed("volume.changed", "too many files of the server came and went while they were read")
        self.unsent.add(entry.path)

    def _copy(self, descent: Descent, link: Entry) -> bool:
        """The file behind a symlink, under the symlink's name, unless it was sent as it is; whether there is one."""
        target = resolve(descent, link.path)
        if isinstance(target, NoTarget):
            self._notice(Notice(NoticeKind.LINK_DROPPED, link.path, target.value))
            return False
        parent, _, name = target.rpartition(b"/")
        try:
            fd = os.open(name, _OPEN, dir_fd=descent.directory(parent))
        except OSError as error:
            if error.errno not in MOVED:
                raise unreadable(link.path, error) from error
            self._notice(Notice(NoticeKind.LINK_DROPPED, link.path, NoTarget.DANGLING.value))
            return False
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._notice(Notice(NoticeKind.LINK_DROPPED, link.path, NoTarget.SPECIAL.value))
                return False
            signature = _signature(link.path, status)
            if signature in self._copies:
                return True
            if status.st_size > self._copy_budget:
                self._notice(Notice(NoticeKind.LINK_DROPPED, link.path, "copies would more than double the archive"))
                return False
            self._copy_budget -= status.st_size
            self._notice(Notice(NoticeKind.LINK_AS_COPY, link.path, "symlink"))
            self._raise_totals(status.st_size)
            self._content(link.path, fd, status)
            if len(self._copies) < MAX_COPIES_REMEMBERED:
                self._copies.add(signature)
        except OSError as error:
            raise unreadable(link.path, error) from error
        finally:
            os.close(fd)
        return True


def _signature(path: bytes, status: os.stat_result) -> bytes:
    """Says that this file, as it is now, was sent under that name."""
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode)
    return hashlib.blake2b(path + repr(facts).encode(), digest_size=16).digest()
