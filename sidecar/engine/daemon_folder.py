"""A folder that a node daemon keeps for one server, and deletes when it forgets the server: out of its reach meanwhile.

    <directory>/<server>/                   the daemon's own
    <directory>/.sidecar-aside-<server>/    the same, while the daemon is told to forget the server, or to take it anew

Nothing is ever overwritten or deleted but a second copy of the same content: of two files of one name the one that is
there keeps it, and the other is `<name>.sidecar-kept-<n>` beside it, which no daemon takes for a backup.
"""

from __future__ import annotations

import filecmp
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from sidecar.archive.durable import disk_errors, fsync_directory, is_directory
from sidecar.archive.moving import move
from sidecar.archive.staging import OWN_PREFIX
from sidecar.errors import HostFailed

log = logging.getLogger(__name__)

_ASIDE: Final = f"{OWN_PREFIX}aside-"


class DaemonFolder:
    """Blocking; every step may be repeated after a crash."""

    def __init__(self, directory: Path, server: str) -> None:
        self._folder = directory / server
        self._aside = directory / f"{_ASIDE}{server}"

    def set_aside(self) -> None:
        """Afterwards there is no folder, and all that was in it is aside. Raises HostFailed (`disk.failed`)."""
        with disk_errors(f"cannot move {self._folder} aside"):
            _move(self._folder, self._aside)

    def put_back(self) -> None:
        """Under its name again, or into what the daemon has made meanwhile. Raises HostFailed (`disk.failed`)."""
        with disk_errors(f"cannot move {self._aside} back"):
            _move(self._aside, self._folder)

    def aside(self, name: str) -> Path:
        """Where a file of the folder lies while that is aside."""
        return self._aside / name


def put_back_leftovers(directory: Path, busy: Collection[str]) -> None:
    """What a crash or a full disk left aside, but for servers whose transfers are under way. Logs, raises nothing."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:  # missing, or not ours to read: whoever needs it says so
        return
    for name in names:
        server = name.removeprefix(_ASIDE)
        if server != name and server not in busy:
            try:
                DaemonFolder(directory, server).put_back()
                log.info("put %s back, which was aside", directory / server)
            except HostFailed as error:
                log.warning("%s", error.message)


def _move(source: Path, target: Path) -> None:
    """All of one directory into another, which may be there; then the first is gone. Raises OSError."""
    if not is_directory(source):
        return
    if not os.path.lexists(target):
        os.rename(source, target)  # noqa: PTH104 - onto nothing, as was just seen
    else:
        for path in sorted(source.iterdir()):
            _move_into(path, target)
        fsync_directory(target)
        source.rmdir()
    fsync_directory(target.parent)


def _move_into(path: Path, target: Path) -> None:
    place = target / path.name
    if os.path.lexists(place):
        if _is_equal(path, place):
            path.unlink()
            return
        number = 1
        while os.path.lexists(place := target / f"{path.name}.sidecar-kept-{number}"):
            number += 1
        log.warning("%s has another file of that name: kept as %s", target / path.name, place.name)
    move(path, place)


def _is_equal(one: Path, other: Path) -> bool:
    """Two regular files of the same content. Raises OSError."""
    if one.is_symlink() or other.is_symlink() or not (one.is_file() and other.is_file()):
        return False
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
