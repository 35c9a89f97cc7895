from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.descent import HOLD_EVERY, Descent
from tests.archive.producing import no_residue


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_any_directory_after_any_other(tmp_path: Path) -> None:
    paths = [b"", b"a", b"a/b", b"a/b/c", b"a/bc", b"map", b"map2"]
    for path in paths:
        os.makedirs(os.path.join(os.fsencode(tmp_path), path), exist_ok=True)
    with no_residue():
        descent = Descent(tmp_path)
        for one in paths:
            for other in paths:
                descent.directory(one)
                assert inode(descent.directory(other)) == os.stat(os.path.join(os.fsencode(tmp_path), other)).st_ino
        descent.close()
        descent.close()


def test_links_are_never_followed_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("../outside")
    (root / "file").write_bytes(b"")
    descent = Descent(root)
    for name in (b"link", b"file", b"missing", b"link/x"):
        with pytest.raises(OSError, match=r"Not a directory|No such file|Too many levels"):
            descent.directory(name)
    assert inode(descent.directory(b"")) == root.stat().st_ino
    descent.close()
    with pytest.raises(ValueError, match="closed"):
        descent.directory(b"x")


def test_a_tree_deeper_than_descriptors_and_paths_go(tmp_path: Path) -> None:
    depth = 3 * HOLD_EVERY
    fd = os.open(tmp_path, os.O_RDONLY)
    inodes = [inode(fd)]
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        inodes.append(inode(fd))
    os.close(fd)
    with no_residue():
        descent = Descent(tmp_path)
        before = len(os.listdir("/proc/self/fd"))
        path = b"/".join([b"d" * 20] * depth)
        assert inode(descent.directory(path)) == inodes[depth]
        assert len(os.listdir("/proc/self/fd")) - before <= HOLD_EVERY + 5
        for level in reversed(range(depth)):
            assert inode(descent.directory(b"/".join([b"d" * 20] * level))) == inodes[level]
        descent.close()
