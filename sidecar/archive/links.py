"""Where a symlink leads, without ever leaving the volume: for receivers that know no links and get a copy instead.

The kernel is not asked to follow anything. Every name on the way is looked at by the descriptor of the directory that
it stands in, links are taken apart here, and `..` above the root or an absolute target ends the search.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from enum import StrEnum
from typing import Final

from sidecar.archive.descent import MAX_PATH_BYTES, Descent
from sidecar.archive.scan import MOVED, is_own, unreadable

MAX_HOPS: Final = 40  # as the kernel


class NoTarget(StrEnum):
    """Why a symlink has no file of the volume at its end; the words stand in a notice."""

    ABSOLUTE = "absolute target"
    OUTSIDE = "target outside the volume"
    DANGLING = "dangling"
    LOOP = "loop"
    DIRECTORY = "target is a directory"
    SPECIAL = "target is no file"


def resolve(descent: Descent, path: bytes) -> bytes | NoTarget:
    """The path of the regular file that the symlink `path` leads to, all links in it resolved, or why there is none.

    Raises HostFailed (`volume.unreadable`). The answer is as of now: open it by `descent` and without following links.
    """
    done: list[bytes] = []
    todo = deque(path.split(b"/"))
    hops = 0
    while todo:
        name = todo.popleft()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if not done:
                return NoTarget.OUTSIDE
            done.pop()
            continue
        if not done and is_own(name):
            return NoTarget.OUTSIDE
        here = b"/".join(done)
        if len(here) > MAX_PATH_BYTES:
            return NoTarget.LOOP
        try:
            fd = descent.directory(here)
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(mode) else b""
        except OSError as error:
            if error.errno in MOVED:
                return NoTarget.DANGLING
            raise unreadable(path, error) from error
        if stat.S_ISLNK(mode):
            hops += 1
            if hops > MAX_HOPS:
                return NoTarget.LOOP
            if target.startswith(b"/"):
                return NoTarget.ABSOLUTE
            todo.extendleft(reversed(target.split(b"/")))
        elif stat.S_ISDIR(mode):
            done.append(name)
        elif todo:
            return NoTarget.DANGLING  # a file where a directory is asked for
        elif stat.S_ISREG(mode):
            return b"/".join([*done, name])
        else:
            return NoTarget.SPECIAL
    return NoTarget.DIRECTORY
