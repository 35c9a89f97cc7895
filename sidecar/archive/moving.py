"""Rename what a stranger made, whatever its mode."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.archive.durable import is_directory


def move(source: Path, target: Path) -> None:
    """Rename onto nothing, as the caller has just seen. Raises OSError.

    A directory that comes into another one gets another `..`, so its owner must be allowed to write into it. Where the
    owner is not, this program neither is unless it is root: then it is, for that moment. A crash just then leaves the
    directory open to its owner, and is no obstacle to another attempt.
    """
    try:
        os.rename(source, target)  # noqa: PTH104 - Path.rename adds nothing here
    except PermissionError:
        if not is_directory(source):
            raise
        with _open_to_its_owner(source):
            os.rename(source, target)  # noqa: PTH104 - as above


@contextmanager
def _open_to_its_owner(path: Path) -> Iterator[None]:
    opened = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        place, mode = f"/proc/self/fd/{opened}", stat.S_IMODE(os.fstat(opened).st_mode)  # whatever its name is by then
        os.chmod(place, mode | stat.S_IRWXU)  # noqa: PTH101 - a descriptor, not a path
        try:
            yield
        finally:
            os.chmod(place, mode)  # noqa: PTH101 - as above
    finally:
        os.close(opened)
