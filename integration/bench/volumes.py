"""Where a bench works, and what it moves beside the world of `sidecar.demo.world`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import psutil

from sidecar.demo.compare import Comparison

SERVER: Final = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
SMALL_FILE_BYTES: Final = 4096
_FILES_PER_DIRECTORY: Final = 200
_TMPFS: Final = Path("/dev/shm")
# A source, a destination, and a third as much again for whoever else needs memory.
_ROOM: Final = 2.4
_LOST_ON_STRANGERS: Final = frozenset({"mtime", "links", "target"})


class Place(msgspec.Struct, frozen=True):
    directory: Path
    is_tmpfs: bool


@contextlib.contextmanager
def place(content_bytes: int, base: Path | None) -> Iterator[Place]:
    """A directory to work in, removed at the end: in memory where there is room for two copies, else on the disk.

    Args: base: where the caller wants it instead.
    """
    is_tmpfs = base is None and _has_room(int(content_bytes * _ROOM))
    directory = Path(tempfile.mkdtemp(prefix="transfer-sidecar-bench-", dir=_TMPFS if is_tmpfs else base)).resolve()
    try:
        yield Place(directory, is_tmpfs)
    finally:
        shutil.rmtree(directory)


def _has_room(needed_bytes: int) -> bool:
    try:
        room: int = min(shutil.disk_usage(_TMPFS).free, psutil.virtual_memory().available)
    except OSError:
        return False
    return room >= needed_bytes


def make_small_files(root: Path, count: int) -> int:
    """`count` files of 4 KiB, each with other content, in directories of 200. Returns the bytes of content."""
    block = (Path(__file__).read_bytes() * 2)[:SMALL_FILE_BYTES].ljust(SMALL_FILE_BYTES, b".")
    for index in range(count):
        directory = root / f"chunk-{index // _FILES_PER_DIRECTORY:05}"
        if index % _FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"{index:07}.json").write_bytes(b"%016d" % index + block[16:])
    return count * SMALL_FILE_BYTES


def trouble(comparison: Comparison, *, for_strangers: bool) -> list[str]:
    """What differs that must not: everything between two of ours; to strangers, links and fractions of seconds may."""
    found = []
    for difference in comparison.differences:
        is_link = "symlink" in (difference.left, difference.right)
        if not (for_strangers and (is_link or difference.what in _LOST_ON_STRANGERS)):
            found.append(str(difference))
    return found
