from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.archive.remove_tree import remove_tree
from sidecar.errors import HostFailed


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def hostile_tree(path: Path) -> None:
    (path / "a/b/c").mkdir(parents=True)
    (path / "a/b/file").write_bytes(b"x")
    (path / "link").symlink_to("/etc")
    (path / "a/up").symlink_to("..")
    os.mkfifo(path / "fifo")
    (path / "read-only").mkdir()
    (path / "read-only/x").write_bytes(b"x")
    (path / "read-only/d/e").mkdir(parents=True)
    (path / "read-only/d/e/f").write_bytes(b"x")
    (path / "locked").mkdir()
    (path / "locked/x").write_bytes(b"x")
    for name, mode in (("read-only/d/e", 0o000), ("read-only/d", 0o500), ("read-only", 0o555), ("locked", 0)):
        (path / name).chmod(mode)


def test_links_modes_and_odd_types(tmp_path: Path, top: int) -> None:
    hostile_tree(tmp_path / "tree")
    remove_tree(top, "tree")
    remove_tree(top, "tree")
    remove_tree(top, b"never there")
    assert list(tmp_path.iterdir()) == []
    assert Path("/etc").is_dir()


def test_a_link_is_removed_and_not_followed(tmp_path: Path, top: int) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(top, "link")
    assert (tmp_path / "kept/file").exists()
    assert not (tmp_path / "link").is_symlink()


def test_deeper_than_path_max_and_descriptors(tmp_path: Path, top: int) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 10, dir_fd=here)
        below = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(top, "d" * 10)
    assert list(tmp_path.iterdir()) == []


def test_wide_and_nested(tmp_path: Path, top: int) -> None:
    for number in range(3000):
        (tmp_path / f"t/{number % 50}/{number % 7}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"t/{number % 50}/{number % 7}/{number}").write_bytes(b"")
    remove_tree(top, "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_modes_that_lock_their_owner_out(tmp_path: Path) -> None:
    """The same as nobody: root could have ignored every mode."""
    program = """
import os, sys
from pathlib import Path
from tests.archive.test_remove_tree import hostile_tree
from sidecar.archive.remove_tree import remove_tree
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.chdir(sys.argv[1])
hostile_tree(Path("tree"))
remove_tree(os.open(".", os.O_RDONLY), "tree")
assert os.listdir(".") == [], os.listdir(".")
"""
    home = Path("/tmp") / f"remove-tree-{os.getpid()}"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    try:
        subprocess.run([sys.executable, "-c", program, home], check=True, cwd=Path(__file__).parents[2])
    finally:
        home.rmdir()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_what_others_mounted_is_not_emptied(tmp_path: Path, top: int) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"x")
    for where in ("tree/at-top", "tree/a/b/c"):
        (tmp_path / where).mkdir(parents=True)
        mounted = subprocess.run(["mount", "--bind", precious, tmp_path / where], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting is not allowed here")
        try:
            with pytest.raises(HostFailed):
                remove_tree(top, "tree")
            assert (precious / "file").exists()
        finally:
            for line in Path("/proc/self/mountinfo").read_text().splitlines():
                if line.split()[4].startswith(str(tmp_path / "tree")):
                    subprocess.run(["umount", line.split()[4]], check=True)
        remove_tree(top, "tree")
