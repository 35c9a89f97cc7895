"""Members of an archive become files in one directory. The sink of a `TarReader`; runs in a single thread.

The rules for what a stranger's archive may do, beyond `beneath.py` (nothing outside, nothing through a link):

- A name at the top that begins with `.sidecar-` is refused: those are ours (staging and trash of a mounted volume).
- A later member replaces an earlier one of the same name; a directory over a directory only says its mode and mtime.
  With several streams at once nothing is later: there two members of one name are refused (`tree_state`).
- A hard link may point only to a regular file that is already there. Symlinks are made verbatim and never looked at.
- Devices and FIFOs are left out with a notice. GNU volume labels mean nothing. Unknown types are refused by the reader.
- Modes keep their lower nine bits: setuid, setgid and the sticky bit are dropped.
- Directories have mode 0700 until `finish`, which sets modes and mtimes from the leaves to the root; so a directory
  that nobody may write into can be filled, and filling it does not spoil its mtime. Directories that only the path of
  another member announces get 0755.
- Zeros become holes, in steps of 64 KiB, in files of 128 KiB and more: game databases are mostly that.

Memory: path and two integers of each directory, about 250 bytes (`ExtractLimits.max_directories`: 50 MiB at most; a
large modded server has some thousands), and `beneath.CACHED` descriptors.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sidecar.archive.beneath import Beneath, hostile, parts_of
from sidecar.archive.entries import Notice, NoticeKind, readable
from sidecar.archive.meter import Meter
from sidecar.archive.remove_tree import remove_tree
from sidecar.archive.tar_header import Kind
from sidecar.archive.tar_read import Member
from sidecar.archive.tree_state import IMPLICIT, ExtractLimits, TreeState
from sidecar.errors import DataCorrupt

RESERVED_PREFIX: Final = b".sidecar-"
IMPLICIT_MODE: Final = 0o755
_MODE_MASK: Final = 0o777
_HOLE_STEP_BYTES: Final = 64 << 10
_HOLE_LEAST_BYTES: Final = 4 << 10  # shorter runs at the edge of a piece are written: a page has no smaller hole
_SPARSE_LEAST_BYTES: Final = 2 * _HOLE_STEP_BYTES
_ZEROS: Final = bytes(_HOLE_STEP_BYTES)
_MAX_NOTICES: Final = 1000  # a person reads no more, and a hostile archive could cause millions
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TreeWriter:
    """Writes below `top`, an open descriptor that stays the caller's. `close` it in every case."""

    def __init__(
        self,
        top: int,
        limits: ExtractLimits,
        owner: tuple[int, int] | None,
        meter: Meter,
        notice: Callable[[Notice], None],
        tree: TreeState | None = None,
    ) -> None:
        """`tree`: what it shares with the writers of other streams; without it the writer is alone."""
        self._top = top
        self._limits = limits
        self._owner = None if owner == (os.geteuid(), os.getegid()) else owner
        self._meter = meter
        self._notice = notice
        self._notices = 0
        self._beneath = Beneath(top, self._implied)
        self._tree = tree if tree is not None else TreeState()
        self._member = Member(Kind.DIRECTORY, b"", 0, 0, 0)
        self._file = -1
        self._position = 0
        self._holes = False
        self.files = self.directories = self.symlinks = self.removed = 0
        self.content_bytes = 0

    @property
    def doing(self) -> str:
        """The member in hand, for the message of an error."""
        return f"cannot extract {readable(self._member.name[:1024])}"

    # --- the sink

    def begin(self, member: Member) -> None:
        """A member starts. Raises DataCorrupt (`archive.hostile`, `archive.limit`), OSError."""
        self._member = member
        if self._tree.count_entry() > self._limits.max_entries:
            raise self._too_much("max_entries", self._limits.max_entries)
        if len(member.name) > self._limits.max_path_bytes:
            raise self._too_much("max_path_bytes", self._limits.max_path_bytes)
        parts = parts_of(member.name, member.at)
        if len(parts) > self._limits.max_depth:
            raise self._too_much("max_depth", self._limits.max_depth)
        if parts and parts[0].startswith(RESERVED_PREFIX):
            raise hostile("has a name that is reserved for the transfer itself", member.name, member.at)
        kind = member.kind
        if not parts:
            self._root(member)
        elif member.removed:
            self._remove(parts, member)
        elif kind is Kind.FILE:
            self._open_file(parts, member)
        elif kind is Kind.DIRECTORY:
            self._directory(parts, member)
        elif kind is Kind.SYMLINK:
            self._symlink(parts, member)
        elif kind is Kind.HARD_LINK:
            self._hard_link(parts, member)
        elif kind is not Kind.LABEL:
            self._tell(Notice(NoticeKind.SKIPPED_SPECIAL, member.name, kind.name.lower()))

    def data(self, piece: bytes, start: int, end: int) -> None:
        """The open file goes on with `piece[start:end]`."""
        if self._member.size < _SPARSE_LEAST_BYTES:
            self._write(piece, start, end)
        else:
            self._write_around_zeros(piece, start, end)
        self._count(end - start)

    def hole(self, size: int) -> None:
        """The open file goes on with `size` zero bytes."""
        self._position += size
        self._holes = True
        self._count(size)

    def end(self) -> None:
        """The member is complete."""
        file = self._file
        if file < 0:
            return
        member = self._member
        if self._holes:
            os.ftruncate(file, member.size)
        if self._owner is not None:
            os.fchown(file, *self._owner)
        os.fchmod(file, member.mode & _MODE_MASK)
        os.utime(file, ns=(member.mtime_ns, member.mtime_ns))
        self._file = -1
        os.close(file)
        self.files += 1
        self._meter.files += 1

    # --- one kind of member each

    def _root(self, member: Member) -> None:
        if member.kind is not Kind.DIRECTORY or member.removed:
            raise hostile("has no name", member.name, member.at)
        self._tree.remember(b"", _packed(member.mode, member.mtime_ns))

    def _open_file(self, parts: list[bytes], member: Member) -> None:
        if self._tree.count_bytes(member.size) > self._limits.max_bytes:
            raise self._too_much("max_bytes", self._limits.max_bytes)
        parent = self._beneath.open(parts[:-1], member.at)
        try:
            self._file = os.open(parts[-1], _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, parts)
            self._file = os.open(parts[-1], _CREATE, 0o600, dir_fd=self._beneath.open(parts[:-1], member.at))
        self._position = 0
        self._holes = False

    def _directory(self, parts: list[bytes], member: Member) -> None:
        parent, name = self._beneath.open(parts[:-1], member.at), parts[-1]
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                self._may_replace(parts)
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._remember(b"/".join(parts), _packed(member.mode, member.mtime_ns))
        self.directories += 1

    def _symlink(self, parts: list[bytes], member: Member) -> None:
        if not member.link or b"\0" in member.link:
            raise hostile("is a symbolic link without a target", member.name, member.at)
        parent, name = self._beneath.open(parts[:-1], member.at), parts[-1]
        try:
            os.symlink(member.link, name, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, parts)
            parent = self._beneath.open(parts[:-1], member.at)
            os.symlink(member.link, name, dir_fd=parent)
        if self._owner is not None:
            os.chown(name, *self._owner, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)
        self.symlinks += 1

    def _hard_link(self, parts: list[bytes], member: Member) -> None:
        target = parts_of(member.link, member.at)
        if not target or len(target) > self._limits.max_depth or len(member.link) > self._limits.max_path_bytes:
            raise hostile("is a hard link to something that is no file", member.name, member.at)
        if target == parts:
            return
        found = self._beneath.find(target[:-1], member.at)
        if found is None:
            raise hostile("is a hard link to a file that the archive does not hold", member.name, member.at)
        source = os.dup(found)  # the cache may close its own while the other path is walked
        try:
            try:
                is_file = stat.S_ISREG(os.lstat(target[-1], dir_fd=source).st_mode)
            except FileNotFoundError as error:
                reason = "is a hard link to a file that the archive does not hold"
                raise hostile(reason, member.name, member.at) from error
            if not is_file:
                raise hostile("is a hard link to something that is no file", member.name, member.at)
            self._link(source, target[-1], parts, member)
        finally:
            os.close(source)
        self.files += 1
        self._meter.files += 1

    def _link(self, source: int, target: bytes, parts: list[bytes], member: Member) -> None:
        parent, name = self._beneath.open(parts[:-1], member.at), parts[-1]
        try:
            os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            if os.path.samestat(os.lstat(target, dir_fd=source), os.lstat(name, dir_fd=parent)):
                return
            self._clear(parent, parts)
            parent = self._beneath.open(parts[:-1], member.at)
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError as error:
                raise hostile("is a hard link that replaces its own target", member.name, member.at) from error

    def _remove(self, parts: list[bytes], member: Member) -> None:
        if member.size:
            raise hostile("is marked as removed and yet has content", member.name, member.at)
        parent = self._beneath.find(parts[:-1], member.at)
        if parent is not None:
            self._clear(parent, parts)
        self.removed += 1
        if member.kind is Kind.FILE:
            self._file = -1

    # --- beneath them

    def _clear(self, parent: int, parts: list[bytes]) -> None:
        """Remove what has this name. Cached descriptors below it would otherwise lead into a removed directory."""
        self._may_replace(parts)
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            remove_tree(parent, parts[-1])
            self._beneath.forget()

    def _may_replace(self, parts: list[bytes]) -> None:
        if self._tree.is_shared:
            raise hostile("came twice, on streams of which neither is the later", b"/".join(parts), self._member.at)

    def _implied(self, path: bytes) -> None:
        self._remember(path, IMPLICIT | IMPLICIT_MODE)
        self.directories += 1

    def _remember(self, path: bytes, packed: int) -> None:
        if self._tree.remember(path, packed) > self._limits.max_directories:
            raise self._too_much("max_directories", self._limits.max_directories)

    def _write(self, piece: bytes, start: int, end: int) -> None:
        view = memoryview(piece)[start:end]
        while view:
            written = os.pwrite(self._file, view, self._position)
            self._position += written
            view = view[written:]

    def _write_around_zeros(self, piece: bytes, start: int, end: int) -> None:
        pending = start
        for at in range(start, end, _HOLE_STEP_BYTES):
            stop = min(at + _HOLE_STEP_BYTES, end)
            size = stop - at
            if piece[at] or piece[stop - 1] or size < _HOLE_LEAST_BYTES:
                continue
            if not piece.startswith(_ZEROS if size == _HOLE_STEP_BYTES else _ZEROS[:size], at):
                continue
            self._write(piece, pending, at)
            self._position += size
            self._holes = True
            pending = stop
        self._write(piece, pending, end)

    def _count(self, size: int) -> None:
        self.content_bytes += size
        self._meter.content_bytes += size

    def _tell(self, notice: Notice) -> None:
        self._notices += 1
        if self._notices <= _MAX_NOTICES:
            self._notice(notice)
        elif self._notices == _MAX_NOTICES + 1:
            self._notice(Notice(NoticeKind.MORE, b""))

    def _too_much(self, limit: str, value: int) -> DataCorrupt:
        return DataCorrupt(
            "archive.limit",
            f"the archive exceeds the limit {limit} = {value} at {readable(self._member.name[:1024])}",
            limit=limit,
            value=value,
            at_byte=self._member.at,
        )

    # --- the end

    def finish(self) -> None:
        """Owners, modes and mtimes of the directories, the leaves first; the top itself last. Raises OSError."""
        directories = self._tree.directories
        root = directories.pop(b"", IMPLICIT | IMPLICIT_MODE)
        for path in sorted(directories, reverse=True):
            parts = path.split(b"/")
            self._member = Member(Kind.DIRECTORY, path, 0, 0, 0)
            # What is not there, or no directory, was replaced by a later member and needs nothing.
            with suppress(FileNotFoundError, NotADirectoryError, DataCorrupt):
                parent = self._beneath.find(parts[:-1], 0)
                if parent is not None:
                    self._seal_below(parent, parts[-1], directories[path])
        self._beneath.forget()
        self._seal(self._top, root)

    def _seal_below(self, parent: int, name: bytes, packed: int) -> None:
        directory = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        try:
            self._seal(directory, packed)
        finally:
            os.close(directory)

    def _seal(self, directory: int, packed: int) -> None:
        if self._owner is not None:
            os.fchown(directory, *self._owner)
        os.fchmod(directory, packed & _MODE_MASK)
        if not packed & IMPLICIT:
            mtime_ns = packed >> 12
            os.utime(directory, ns=(mtime_ns, mtime_ns))

    def close(self) -> None:
        """Close every descriptor that is open. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._beneath.forget()


def _packed(mode: int, mtime_ns: int) -> int:
    return (mtime_ns << 12) | (mode & _MODE_MASK)
