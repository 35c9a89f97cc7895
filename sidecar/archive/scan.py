"""What a volume holds, in archive order; and what differs between two such looks.

Archive order: a directory before its content, the names of a directory sorted as bytes. It depends on nothing but the
volume, so two scans can be merged like two sorted lists, and two tars of the same volume are the same bytes.

The walk goes by directory descriptor and opens directories only: nothing else is opened to look at it, least of all a
FIFO or a device. Mount points below the root are walked like any directory; names at the top that begin with
`.sidecar-` are this program's own (staging and trash inside a volume that is a mount point) and no part of the volume.

What moves while the walk looks at it may be seen half. That is no harm: the caller scans again until two looks agree.

Memory: the packed list (`spool.py`) and the names of one directory per level of the way down, each about 60 bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Final

from sidecar.archive.descent import MAX_PATH_BYTES, Descent
from sidecar.archive.entries import Entry, EntryType, Notice, NoticeKind, readable
from sidecar.archive.pipe import PipeClosed
from sidecar.archive.spool import Spool
from sidecar.errors import HostFailed

OWN_PREFIX: Final = b".sidecar-"
MAX_SKIPPED: Final = 100  # named; the rest is counted

# What an entry that was there a moment ago may answer: it is gone, or has become something else.
MOVED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

_SPECIAL: Final = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_ENCODING: Final = sys.getfilesystemencoding()  # what os.fsencode looks up for every name
_ERRORS: Final = sys.getfilesystemencodeerrors()
_NS_MIN: Final = -(1 << 63)
_NS_MAX: Final = (1 << 64) - 1


def is_own(name: bytes) -> bool:
    """Whether a name at the top of a volume is this program's own."""
    return name.startswith(OWN_PREFIX)


def unreadable(path: bytes, error: OSError) -> HostFailed:
    """`volume.unreadable`, naming the path: an archive without it would be a loss that nobody notices."""
    name = readable(path) or "the volume"
    return HostFailed(
        "volume.unreadable", f"{name} cannot be read: {error.strerror}", path=name, errno=error.errno or 0
    )


class Scan:
    """One look at a volume. Iterating yields the entries in archive order, as often as wanted.

    files, directories, symlinks: how many; size_bytes: of the files together, each name counted
    skipped: sockets, FIFOs and devices, and names that were listed but not there, the first `MAX_SKIPPED` of them;
        skipped_count: all of them
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.entries: Spool[Entry] = Spool(Entry, directory)
        self.files = 0
        self.directories = 0
        self.symlinks = 0
        self.size_bytes = 0
        self.skipped: list[Notice] = []
        self.skipped_count = 0

    @property
    def count(self) -> int:
        """How many entries there are."""
        return self.entries.count

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def close(self) -> None:
        """Drop the list. Idempotent."""
        self.entries.close()

    def skip(self, notice: Notice) -> None:
        """An entry is left out."""
        self.skipped_count += 1
        if len(self.skipped) < MAX_SKIPPED:
            self.skipped.append(notice)


def scan(
    volume: Path,
    *,
    max_entries: int,
    exclude_top: Callable[[bytes], bool] = is_own,
    spool_dir: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Scan:
    """Look at every entry of `volume`. The caller closes the result.

    Args: max_entries: skipped specials count too. exclude_top: which names at the top are left out. is_stopped: asked
    once per directory and every 512 entries; once it says yes, the scan gives up.
    Raises HostFailed: `volume.missing`; `volume.unreadable` for a directory or entry that cannot be read;
    `archive.limit` for too many entries or a path over `MAX_PATH_BYTES`; `disk.failed`. PipeClosed when stopped.
    """
    try:
        descent = Descent(volume)
    except OSError as error:
        if error.errno in MOVED:
            raise HostFailed("volume.missing", "the server's volume does not exist", path=str(volume)) from error
        raise unreadable(b"", error) from error
    result = Scan(spool_dir)
    try:
        _walk(descent, result, max_entries, exclude_top, is_stopped)
        result.entries.done()
    except BaseException:
        result.close()
        raise
    finally:
        descent.close()
    return result


def _walk(
    descent: Descent,
    result: Scan,
    max_entries: int,
    exclude_top: Callable[[bytes], bool],
    is_stopped: Callable[[], bool],
) -> None:
    room = [max_entries]
    names = _names(descent, b"", room, max_entries)
    # One iterator of sorted names per level; a path of names, not recursion, so depth costs no stack.
    levels: list[tuple[bytes, Iterator[bytes]]] = [(b"", iter([name for name in names if not exclude_top(name)]))]
    looked_at = 0
    while levels:
        if is_stopped():
            raise PipeClosed
        prefix, siblings = levels[-1]
        directory = prefix[:-1]
        for name in siblings:
            looked_at += 1
            if not looked_at & 511 and is_stopped():
                raise PipeClosed
            path = prefix + name
            if len(path) > MAX_PATH_BYTES:
                raise HostFailed(
                    "archive.limit",
                    f"a path of the volume is longer than {MAX_PATH_BYTES} bytes",
                    limit="path_bytes",
                    path=readable(path[:200]),
                )
            try:
                entry = _look(descent.directory(directory), name, path, result)
            except OSError as error:
                if error.errno not in MOVED:
                    raise unreadable(path, error) from error
                result.skip(Notice(NoticeKind.VANISHED, path))
                continue
            if entry is None:
                continue
            result.entries.add(entry)
            if entry.type is EntryType.DIRECTORY:
                levels.append((path + b"/", iter(_names(descent, path, room, max_entries))))
                break
        else:
            levels.pop()


def _names(descent: Descent, path: bytes, room: list[int], max_entries: int) -> list[bytes]:
    """The names in a directory, sorted; none where it has gone. Counts them against the limit while listing."""
    names: list[bytes] = []
    try:
        with os.scandir(descent.directory(path)) as listing:
            for item in listing:
                names.append(item.name.encode(_ENCODING, _ERRORS))
                if len(names) > room[0]:
                    raise HostFailed(
                        "archive.limit",
                        f"the volume has more than {max_entries} files",
                        limit="entries",
                        entries=max_entries,
                    )
    except OSError as error:
        if error.errno not in MOVED or _is_directory(descent, path):
            raise unreadable(path, error) from error
        return []
    room[0] -= len(names)
    names.sort()
    return names


def _is_directory(descent: Descent, path: bytes) -> bool:
    """Whether a directory that could not be opened is there all the same: then its content must not be passed over."""
    parent, _, name = path.rpartition(b"/")
    try:
        return stat.S_ISDIR(os.stat(name or b".", dir_fd=descent.directory(parent), follow_symlinks=False).st_mode)
    except OSError:
        return False


def _look(fd: int, name: bytes, path: bytes, result: Scan) -> Entry | None:
    """The entry `name` in the directory `fd`; None for what does not travel. Raises OSError."""
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    mode = status.st_mode
    size = 0
    target = b""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFREG:
        type_ = EntryType.FILE
        size = status.st_size
        result.files += 1
        result.size_bytes += size
    elif kind == stat.S_IFDIR:
        type_ = EntryType.DIRECTORY
        result.directories += 1
    elif kind == stat.S_IFLNK:
        type_ = EntryType.SYMLINK
        try:
            target = os.readlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno == errno.EINVAL:  # no link any more
                return None
            raise
        result.symlinks += 1
    else:
        result.skip(Notice(NoticeKind.SKIPPED_SPECIAL, path, _SPECIAL.get(kind, "not a file")))
        return None
    mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
    if not (
        _NS_MIN <= mtime_ns <= _NS_MAX and _NS_MIN <= ctime_ns <= _NS_MAX
    ):  # some filesystems keep 64 bits of seconds
        mtime_ns, ctime_ns = max(_NS_MIN, min(_NS_MAX, mtime_ns)), max(_NS_MIN, min(_NS_MAX, ctime_ns))
    return Entry(
        path, type_, size, mode & 0o7777, mtime_ns, ctime_ns, status.st_ino, status.st_dev, target, status.st_nlink
    )


class Changes:
    """What is different in a later scan.

    changed: entries of the later scan that are new or not as they were, in archive order
    removed: paths that are gone, or are of another type now (then the new one is in `changed`), in archive order;
        iterate it reversed to come to the content of a directory before the directory
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.changed: Spool[Entry] = Spool(Entry, directory)
        self.removed: Spool[bytes] = Spool(bytes, directory)

    @property
    def is_empty(self) -> bool:
        return not self.changed.count and not self.removed.count

    def close(self) -> None:
        """Drop both lists. Idempotent."""
        self.changed.close()
        self.removed.close()


def changes(before: Scan, after: Scan, *, also: Set[bytes] = frozenset(), spool_dir: Path | None = None) -> Changes:
    """Compare two scans of one volume. The caller closes the result.

    Args: also: paths that count as changed if they are in `after`, whatever they look like.
    Raises HostFailed (`disk.failed`). Memory: one block of each scan, and the packed result.
    """
    result = Changes(spool_dir)
    try:
        _merge(before, after, also, result)
        result.changed.done()
        result.removed.done()
    except BaseException:
        result.close()
        raise
    return result


def _merge(before: Scan, after: Scan, also: Set[bytes], result: Changes) -> None:
    same = 0
    blocks = 0 if also else min(before.entries.blocks, after.entries.blocks)
    while same < blocks and before.entries.block(same) == after.entries.block(same):
        same += 1
    olds, news = before.entries.items(same), after.entries.items(same)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if old is not None and new is not None and old.path == new.path:
            if old != new or new.path in also:
                result.changed.add(new)
                if old.type is not new.type:
                    result.removed.add(old.path)
            old, new = next(olds, None), next(news, None)
        elif new is None or (old is not None and _position(old.path) < _position(new.path)):
            assert old is not None
            result.removed.add(old.path)
            old = next(olds, None)
        else:
            result.changed.add(new)
            new = next(news, None)


def _position(path: bytes) -> bytes:
    """A key that sorts paths in archive order: the slash comes before any byte that a name may hold."""
    return path.replace(b"/", b"\0")
