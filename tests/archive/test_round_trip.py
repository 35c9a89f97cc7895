"""Both halves together: what this program archives, it extracts to the same tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.produce import Dialect
from tests.archive.extracting import extract, split
from tests.archive.producing import Seen, make, no_residue, stamp_directories, tree, write
from tests.archive.test_produce import awkward_volume


def expected(volume: Path) -> dict[bytes, Seen]:
    """The destination takes the bits for another user, group and the sticky bit away, as it documents."""
    return {path: seen._replace(mode=seen.mode & 0o777) for path, seen in tree(volume).items()}


@pytest.mark.parametrize("level", [0, 1, 6])
@pytest.mark.parametrize("size", [1 << 20, 4099])
def test_the_same_tree_arrives(level: int, size: int, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    awkward_volume(volume)
    with no_residue():
        made = make(volume, level=level)
        extracted = extract(split(made.wire, size), tmp_path / "out")
    assert tree(tmp_path / "out") == expected(volume)
    assert extracted.wire_bytes == len(made.wire)


@pytest.mark.parametrize("dialect", Dialect)
def test_a_volume_that_moved_arrives_as_it_is_now(dialect: Dialect, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for name in ("a", "b", "d/e/f", "d/g", "kind", "map/x", "map2/x"):
        write(volume, name)
    os.link(volume / "a", volume / "a2")

    def change() -> None:
        write(volume, "b", b"longer than before")
        write(volume, "a2", b"both names change")
        write(volume, "new/file", b"new")
        os.chmod(volume / "map/x", 0o600)
        if dialect is Dialect.SIDECAR:  # what is gone cannot be told to a stranger
            (volume / "d/e/f").unlink()
            (volume / "d/e").rmdir()
            (volume / "kind").unlink()
            write(volume, "kind/is/a/directory/now")
            (volume / "map2").rename(volume / "map3")
        stamp_directories(volume)

    made = make(volume, dialect=dialect, between=change)
    extract(made.wire, tmp_path / "out")
    found, wanted = tree(tmp_path / "out"), expected(volume)
    if dialect is Dialect.STRANGER:
        found, wanted = [
            {path: seen._replace(mtime_ns=seen.mtime_ns // 10**9, inode=0) for path, seen in one.items()}
            for one in (found, wanted)
        ]
    assert found == wanted
