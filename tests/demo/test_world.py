"""The generated volume: the same everywhere, of the asked size, and with what transfers trip over."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from sidecar.demo.compare import compare
from sidecar.demo.world import make_world


def test_the_same_seed_makes_the_same_world_and_another_seed_another(tmp_path: Path) -> None:
    world = make_world(tmp_path / "a", 8)
    again = make_world(tmp_path / "b", 8)
    other = make_world(tmp_path / "c", 8, seed=2)
    assert compare(world.root, again.root).differences == ()
    assert not compare(world.root, other.root).is_equal


@pytest.mark.parametrize("size_mb", [1, 20, 60])
def test_the_world_has_the_size_that_was_asked_for(tmp_path: Path, size_mb: int) -> None:
    world = make_world(tmp_path / "world", size_mb)
    assert 0.9 * size_mb < world.content_bytes / 1_000_000 < 1.25 * size_mb
    names = [os.path.join(folder, name) for folder, _, files in os.walk(world.root) for name in files]  # noqa: PTH118
    regular = [os.lstat(name) for name in names if not os.path.islink(name)]  # noqa: PTH114
    assert len(regular) == world.files
    assert sum({status.st_ino: status.st_size for status in regular}.values()) == world.content_bytes


def test_the_world_has_what_transfers_trip_over(tmp_path: Path) -> None:
    root = make_world(tmp_path / "world", 20).root
    assert (root / "latest.log").readlink() == Path("logs/latest.log")
    assert (root / "world/logs").is_dir() and (root / "world/logs").is_symlink()
    assert not (root / "dangling").exists() and (root / "dangling").is_symlink()
    assert list((root / "backups/old/empty").iterdir()) == []
    assert (root / "server.properties").samefile(root / "server.properties.linked")
    assert stat.S_IMODE((root / "start.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "private").stat().st_mode) == 0o700
    assert (root / "odd names/Спавн.yml").read_bytes() == b"a: 1\n"
    assert b"latin-\xe9.txt" in os.listdir(os.fsencode(root / "odd names"))  # noqa: PTH208 - a name that is not UTF-8
    database = (root / "plugins/CoreProtect/database.db").stat()
    assert database.st_blocks * 512 < database.st_size
    times = [path.lstat().st_mtime_ns for path in root.rglob("*")]
    assert max(times) < time.time_ns() - 10**9 * 86400
    assert sum(moment % 1_000_000 != 0 for moment in times) > len(times) * 0.9


def test_a_world_is_made_only_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FileExistsError):
        make_world(tmp_path, 1)
