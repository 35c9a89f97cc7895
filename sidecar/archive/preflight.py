"""Is there room? Asked before the first byte is taken, from what the source announces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sidecar.archive.durable import disk_errors
from sidecar.errors import HostFailed

_BYTES_PER_ENTRY: Final = 1024  # a directory's record and an inode's share of tables, on common filesystems


def check_space(
    directory: Path,
    *,
    size_bytes: int | None,
    entries: int | None,
    reserve_bytes: int = 0,
    reserve_inodes: int = 0,
) -> None:
    """Return if the filesystem of `directory` can take a volume and keep its reserve.

    Args: `size_bytes`: of all files, `entries`: files, directories and links; None: unknown, then only the reserve is
    asked for. What only root may use (the filesystem's own reserve) does not count as free. A filesystem without a
    number of inodes (btrfs) is not asked for them.

    Raises HostFailed (`disk.full`, `disk.inodes`, each with the facts `needed` and `free`; `disk.failed`). Room is not
    set aside: others may take it the moment after, and then the extraction fails with the same codes.
    """
    with disk_errors(f"cannot ask for the free space of {directory}"):
        disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    needed = (size_bytes or 0) + (entries or 0) * _BYTES_PER_ENTRY + reserve_bytes
    if needed > free:
        raise HostFailed(
            "disk.full",
            f"{directory} has {free} bytes free, and {needed} are needed",
            needed=needed,
            free=free,
            reserve=reserve_bytes,
        )
    inodes = (entries or 0) + reserve_inodes
    if disk.f_files and inodes > disk.f_favail:
        raise HostFailed(
            "disk.inodes",
            f"{directory} has {disk.f_favail} inodes free, and {inodes} are needed",
            needed=inodes,
            free=disk.f_favail,
            reserve=reserve_inodes,
        )
