"""What is on the disk after a power cut, and the table that turns the system's errors into ours.

What may be relied on, given a disk that does not lie about its cache:

- `write_file_durably`: the file holds either its old content or all of the new, and after the return the new.
- `fsync_directory`: creations, removals and renames in that directory, made before the call, survive.
- `sync_filesystem`: everything written to the filesystem before the call survives. It is one call for a tree of any
  size (a volume of 100,000 files would otherwise need 100,000 fsyncs), at the price of waiting for what others have
  written to the same filesystem. Kernels older than 5.8 do not report errors of writing back here; newer ones do,
  once for each open descriptor, hence the descriptor must have been opened before the data was written. Where the
  system call is missing or forbidden, every file and directory of the tree is synced instead.

tmpfs has nothing to sync to and always succeeds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sidecar.errors import HostFailed

_CODES: Final = {errno.ENOSPC: "disk.full", errno.EDQUOT: "disk.full"}
_NO_SYNCFS: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def host_failed(error: OSError, doing: str, where: int | None = None) -> HostFailed:
    """What an OSError of the disk means: `disk.full`, `disk.inodes` or `disk.failed`.

    Args: `doing`: what was tried, for the message; `where`: a descriptor of the filesystem, which tells whether it is
    the inodes that ran out.
    """
    code = _CODES.get(error.errno or 0, "disk.failed")
    if code == "disk.full" and where is not None:
        with suppress(OSError):
            free = os.fstatvfs(where)
            if free.f_files and not free.f_favail:
                code = "disk.inodes"
    return HostFailed(
        code,
        f"{doing}: {error.strerror or error}",
        errno=errno.errorcode.get(error.errno or 0, str(error.errno)),
    )


@contextmanager
def disk_errors(doing: str, where: int | None = None) -> Iterator[None]:
    """Translate an OSError of the block by `host_failed`."""
    try:
        yield
    except OSError as error:
        raise host_failed(error, doing, where) from error


def fsync_directory(directory: Path | int) -> None:
    """Make what happened to the names in `directory` durable. Raises HostFailed (`disk.failed`)."""
    with disk_errors(f"cannot sync the directory {directory}"):
        if isinstance(directory, int):
            os.fsync(directory)
            return
        descriptor = os.open(directory, _DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_filesystem(descriptor: int) -> None:
    """Make everything on the filesystem of the open directory `descriptor` durable; at least its own tree.

    Raises HostFailed (`disk.failed`, `disk.full`).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "syncfs"):
        if libc.syncfs(descriptor) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_SYNCFS:
            raise host_failed(OSError(number, os.strerror(number)), "cannot sync the filesystem", descriptor)
    fsync_tree(descriptor)


def fsync_tree(descriptor: int) -> None:
    """fsync every regular file and directory below the open directory `descriptor`, and itself. Follows no link.

    For trees whose paths are shorter than PATH_MAX; a longer one raises, as any other failure does.

    Raises HostFailed. Memory: two descriptors, and the paths of the directories that wait for their turn.
    """
    with disk_errors("cannot sync a tree", descriptor):
        waiting = ["."]
        while waiting:
            path = waiting.pop()
            directory = os.open(path, _DIRECTORY, dir_fd=descriptor)
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(f"{path}/{entry.name}")
                        elif entry.is_file(follow_symlinks=False):
                            _fsync_file(directory, entry.name)
                os.fsync(directory)
            finally:
                os.close(directory)


def _fsync_file(directory: int, name: str) -> None:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=directory)
    except PermissionError:
        descriptor = os.open(name, os.O_WRONLY | flags, dir_fd=directory)  # its mode keeps even its owner from reading
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` by one with `content`, atomically; durable on return.

    Raises HostFailed. A crash may leave a file named `.<name>.<8 hex digits>` behind, which means nothing.
    """
    with disk_errors(f"cannot write {path}"):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)  # noqa: PTH104 - Path.rename adds nothing here
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)


def is_directory(path: Path) -> bool:
    """Whether `path` itself is a directory: False for a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
