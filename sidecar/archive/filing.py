"""Single files that come with a server, such as its backups, filed in a directory of this node under their own names.

    <directory>/.sidecar-staging/<transfer>/<name>   while they are received, until the transfer has ended
    <directory>/<name>                               a second name of the same file, from the commit on
    <directory>/<folder>/<name>                      there, where whoever reads it keeps a folder for each server
    <directory>/.sidecar-trash/                      what was given up: as a volume's trash, kept and purged like it

Staging lies in the directory itself, not beside the volume: it is on the same filesystem then, so that the commit can
neither run out of space nor leave half a file. Nothing there is ever overwritten. A file keeps its name in staging
until the transfer has ended, which tells the files of this transfer from others of the same name (one inode); so every
step may be repeated after a crash.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sidecar.archive.durable import disk_errors, fsync_directory, host_failed, is_directory
from sidecar.archive.moving import move
from sidecar.archive.staging import STAGING_NAME, TRASH_NAME, LayoutKind, VolumeLayout, make_private, safe_name
from sidecar.archive.trash import move_to_trash

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_READ_BYTES: Final = 1 << 20


def filing_layout(directory: Path, transfer: str) -> VolumeLayout:
    """The staging directory of a transfer as the functions of `staging` and `trash` take it."""
    staging = directory / STAGING_NAME
    return VolumeLayout(LayoutKind.DIRECTORY, staging / safe_name(transfer), staging, directory / TRASH_NAME)


class Filing:
    """The files of one transfer for one directory. Blocking; one thread at a time."""

    def __init__(self, directory: Path, transfer: str, *, owner: tuple[int, int] | None = None) -> None:
        self._directory = directory
        self._layout = filing_layout(directory, transfer)
        self._owner = owner

    def staged(self, name: str) -> Path:
        """Where the file waits."""
        return self._layout.volume / safe_name(name)

    def receive(self, name: str, pieces: Iterable[bytes | memoryview], *, most_bytes: int) -> tuple[str, int]:
        """Write a new file of mode 0600 into staging; durable but for its name (`sync`).

        Returns (SHA-256 of all pieces as 64 lower-case digits, their size); what is beyond `most_bytes` is hashed and
        counted but not kept. Raises HostFailed (`disk.*`: also where the parent of `directory` is missing) and what
        `pieces` raises.
        """
        with disk_errors(f"cannot write {name} into {self._directory}"):
            make_private(self._directory)  # a daemon makes that of its logs with its first installation
            make_private(self._layout.staging_root)
            make_private(self._layout.volume)
            descriptor = os.open(self.staged(name), _CREATE, 0o600)
        sha, size = hashlib.sha256(), 0
        try:
            for piece in pieces:
                sha.update(piece)
                try:
                    _write(descriptor, memoryview(piece)[: max(0, most_bytes - size)])
                except OSError as error:
                    raise host_failed(error, f"cannot write {name}", descriptor) from error
                size += len(piece)
            with disk_errors(f"cannot write {name}", descriptor):
                if self._owner is not None and self._owner != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, *self._owner)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return sha.hexdigest(), size

    def sync(self) -> None:
        """Make the names in staging durable. Raises HostFailed (`disk.failed`)."""
        if is_directory(self._layout.volume):
            fsync_directory(self._layout.volume)

    def has(self, name: str, sha256_hex: str, folder: str | None = None) -> bool:
        """Whether a file of that content lies under its own name. Reads all of it."""
        return sha256_of(self.target(name, folder)) == sha256_hex

    def target(self, name: str, folder: str | None = None) -> Path:
        """The file's own name; `folder`: one component below `directory`."""
        parent = self._directory if folder is None else self._directory / safe_name(folder)
        return parent / safe_name(name)

    def place(self, name: str, sha256_hex: str, folder: str | None = None) -> bool:
        """Give the file its own name, durable; again after a crash is fine.

        Returns False, and changes nothing, where another file with other content has the name. Raises HostFailed.
        """
        staged, target = self.staged(name), self.target(name, folder)
        with disk_errors(f"cannot file {target}"):
            if folder is not None:
                make_private(target.parent)
            try:
                os.link(staged, target, follow_symlinks=False)
            except FileExistsError:
                if not _is_same(staged, target) and sha256_of(target) != sha256_hex:
                    return False
            except FileNotFoundError:
                if sha256_of(target) != sha256_hex:
                    raise
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if os.path.lexists(target):
                    return sha256_of(target) == sha256_hex
                os.rename(staged, target)  # noqa: PTH104 - onto nothing, as was just seen
        fsync_directory(target.parent)
        return True

    def take_back(self, name: str) -> None:
        """Undo `place`: only a file that this transfer has filed loses its name. Raises HostFailed (`disk.failed`)."""
        staged, target = self.staged(name), self._directory / safe_name(name)
        with disk_errors(f"cannot take {target} back"):
            if _is_same(staged, target):
                target.unlink()
                fsync_directory(self._directory)

    def trash(self, server: str, label: str, now_s: float, paths: Sequence[Path] = ()) -> None:
        """Move what is in staging to the trash, and before it `paths`, files or directories below `directory`.

        Idempotent, durable. Raises HostFailed (`disk.failed`).
        """
        present = [path for path in paths if os.path.lexists(path)]
        if present:
            with disk_errors(f"cannot move files of {self._directory} to the trash"):
                make_private(self._layout.staging_root)
                make_private(self._layout.volume)
                for path in present:
                    move(path, self.staged(path.name))
                fsync_directory(self._layout.volume)
                for parent in {path.parent for path in present}:
                    fsync_directory(parent)
        if is_directory(self._layout.volume):
            move_to_trash(self._layout, server, label, now_s=now_s)


def _write(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def sha256_of(path: Path) -> str | None:
    """Of a file's content, as 64 lower-case digits; None where it is no regular file that can be read."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        sha = hashlib.sha256()
        while piece := os.read(descriptor, _READ_BYTES):
            sha.update(piece)
        return sha.hexdigest()
    except OSError:
        return None
    finally:
        os.close(descriptor)
