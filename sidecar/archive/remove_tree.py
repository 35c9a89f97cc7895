"""Remove a tree that a stranger made: any depth, any modes, any links, with two open descriptors and no recursion.

Nothing is followed, and no mount point is crossed: every step opens one name of one open directory with O_NOFOLLOW.
Depth costs nothing because subdirectories of subdirectories are first moved up into the top of the tree that is being
removed; so a path longer than PATH_MAX, or deeper than there are descriptors, is removed as any other. Modes that lock
even the owner out are opened up on the way.

Removing is idempotent, and after a crash it goes on where it stopped (with the tree in another shape: it was doomed).
"""

from __future__ import annotations

import os
import secrets
from itertools import count
from typing import Final

from sidecar.archive.durable import disk_errors

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Name = str | bytes


def remove_tree(directory: int, name: Name) -> None:
    """Remove `name` (one component) from the open directory, whatever it is. Missing is fine.

    Raises HostFailed (`disk.failed`): then part of it is still there.
    """
    with disk_errors(f"cannot remove {os.fsdecode(name)!r}", directory):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # POSIX lets unlink answer EPERM for a directory
            pass
        else:
            return
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError:
            _empty(directory, name)
            os.rmdir(name, dir_fd=directory)


def _empty(directory: int, name: Name) -> None:
    prefix = f".{secrets.token_hex(8)}."
    numbers = count()
    top = _open(directory, name)
    try:
        while True:
            found = False
            with os.scandir(top) as entries:
                for entry in entries:
                    found = True
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=top)
                        continue
                    doomed = entry.name
                    if not doomed.startswith(prefix):
                        # A mount point cannot be renamed, so what others have mounted here is not emptied.
                        doomed = f"{prefix}{next(numbers)}"
                        os.rename(entry.name, doomed, src_dir_fd=top, dst_dir_fd=top)
                    child = _open(top, doomed)
                    try:
                        while not _flatten(child, top, prefix, numbers):
                            pass
                    finally:
                        os.close(child)
                    os.rmdir(doomed, dir_fd=top)
            if not found:
                return
    finally:
        os.close(top)


def _flatten(child: int, top: int, prefix: str, numbers: count[int]) -> bool:
    """Unlink what is in `child`, move its directories up to `top`; whether there was nothing to do."""
    empty = True
    with os.scandir(child) as entries:
        for entry in entries:
            empty = False
            if entry.is_dir(follow_symlinks=False):
                os.close(_open(child, entry.name))  # moving a directory needs the right to write into it
                os.rename(entry.name, f"{prefix}{next(numbers)}", src_dir_fd=child, dst_dir_fd=top)
            else:
                os.unlink(entry.name, dir_fd=child)
    return empty


def _open(directory: int, name: Name) -> int:
    if os.geteuid() != 0:
        # Only the owner may change a mode, so this fails where it could not help; the open then says why.
        unlocked = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if os.fstat(unlocked).st_mode & 0o700 != 0o700:
                os.chmod(f"/proc/self/fd/{unlocked}", 0o700)  # noqa: PTH101 - a descriptor, not a path
        finally:
            os.close(unlocked)
    return os.open(name, _OPEN, dir_fd=directory)
