"""Directories that even their owner may not write into, moved by an owner who is not root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sidecar.archive.moving import move
from sidecar.archive.staging import Identity, LayoutKind, Staging, commit
from sidecar.archive.trash import move_to_trash
from tests.archive.producing import powerless
from tests.archive.test_staging import KINDS, TRANSFER, fill, layout_of

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
LOCKED = [0o555, 0o500, 0]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mode", LOCKED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_is_committed_and_moved_to_the_trash_as_it_is(kind: LayoutKind, mode: int) -> None:
    with powerless() as home:
        layout = layout_of(kind, home)
        staging = Staging.make(layout, TRANSFER)
        fill(staging.path)
        locked = "" if kind is LayoutKind.DIRECTORY else "world"  # what is moved to another directory
        (staging.path / locked).chmod(mode)
        commit(layout, staging.path, staging.identity)
        assert mode_of(layout.volume / locked) == mode
        item = move_to_trash(layout, SERVER, "x", now_s=0)
        assert item is not None and mode_of(item.path / locked) == mode
        (item.path / locked).chmod(0o755)
        assert (item.path / "world/region/r.mca").read_bytes() == b"region" * 1000


def test_what_is_denied_for_another_reason_is_denied(tmp_path: Path) -> None:
    with powerless() as home:
        for name in ("from", "to"):
            (home / name).mkdir()
        (home / "from/file").write_bytes(b"x")
        (home / "from/directory").mkdir(0o555)
        (home / "from/link").symlink_to("directory")
        (home / "to").chmod(0o555)
        for name in ("file", "directory", "link"):
            with pytest.raises(PermissionError):
                move(home / "from" / name, home / "to" / name)
        assert mode_of(home / "from/directory") == 0o555
        (home / "to").chmod(0o755)
        assert Identity.of(home / "from/directory") is not None and os.listdir(home / "to") == []
