"""The comparison finds each kind of difference, and nothing where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.compare import compare


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    left, right = tmp_path / "left", tmp_path / "right"
    left.mkdir()
    (left / "a").write_bytes(b"one")
    (left / "b").write_bytes(b"two")
    os.link(left / "b", left / "b2")
    (left / "link").symlink_to("a")
    (left / "d").mkdir()
    (left / "d/inner").write_bytes(b"x" * 3_000_000)
    for path in sorted(left.rglob("*"), reverse=True):
        os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    copy(left, right)
    return left, right


def copy(left: Path, right: Path) -> None:
    shutil.copytree(left, right, symlinks=True)
    (right / "b2").unlink()
    os.link(right / "b", right / "b2")
    for path in sorted(right.rglob("*"), reverse=True):
        os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)


def changed(path: Path, change: Callable[[], object]) -> None:
    """Change something, and give the directory its time back."""
    status = path.parent.lstat()
    change()
    os.utime(path.parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def found(trees: tuple[Path, Path]) -> list[tuple[str, str]]:
    return [(difference.path, difference.what) for difference in compare(*trees).differences]


def test_equal_trees(trees: tuple[Path, Path]) -> None:
    comparison = compare(*trees)
    assert comparison.is_equal
    assert (comparison.entries, comparison.files, comparison.content_bytes) == (6, 4, 3_000_009)


def test_one_byte(trees: tuple[Path, Path]) -> None:
    inner = trees[1] / "d/inner"
    inner.write_bytes(b"x" * 2_999_999 + b"y")
    os.utime(inner, ns=(10**18, 10**18 + 7))
    assert found(trees) == [("d/inner", "content")]


def test_size(trees: tuple[Path, Path]) -> None:
    (trees[1] / "a").write_bytes(b"four")
    os.utime(trees[1] / "a", ns=(10**18, 10**18 + 7))
    assert found(trees) == [("a", "size")]


def test_mode(trees: tuple[Path, Path]) -> None:
    (trees[1] / "a").chmod(0o600)
    (trees[1] / "d").chmod(0o700)
    assert found(trees) == [("a", "mode"), ("d", "mode")]


def test_mode_of_the_roots(trees: tuple[Path, Path]) -> None:
    trees[1].chmod(0o700)
    assert found(trees) == [(".", "mode")]


def test_one_nanosecond(trees: tuple[Path, Path]) -> None:
    for name in ("a", "d", "link"):
        os.utime(trees[1] / name, ns=(10**18, 10**18 + 8), follow_symlinks=False)
    assert found(trees) == [("a", "mtime"), ("d", "mtime"), ("link", "mtime")]


def test_missing_on_either_side(trees: tuple[Path, Path]) -> None:
    left, right = trees
    changed(right / "a", (right / "a").unlink)
    changed(left / "d/inner", (left / "d/inner").unlink)
    assert [str(difference) for difference in compare(left, right).differences] == [
        "a: missing: file / -",
        "d/inner: missing: - / file",
    ]


def test_type(trees: tuple[Path, Path]) -> None:
    path = trees[1] / "a"
    changed(path, path.unlink)
    changed(path, path.mkdir)
    assert found(trees) == [("a", "type")]


def test_fifo(trees: tuple[Path, Path]) -> None:
    path = trees[1] / "a"
    changed(path, path.unlink)
    changed(path, lambda: os.mkfifo(path))
    assert found(trees) == [("a", "type")]


def test_target_of_a_link(trees: tuple[Path, Path]) -> None:
    path = trees[1] / "link"
    changed(path, path.unlink)
    changed(path, lambda: path.symlink_to("b"))
    os.utime(path, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    assert found(trees) == [("link", "target")]


def test_a_hard_link_that_became_a_copy(trees: tuple[Path, Path]) -> None:
    path = trees[1] / "b2"
    changed(path, path.unlink)
    changed(path, lambda: shutil.copy2(trees[1] / "b", path))
    os.utime(path, ns=(10**18, 10**18 + 7))
    assert found(trees) == [("b", "links"), ("b2", "links")]


def test_a_name_that_is_not_text(trees: tuple[Path, Path]) -> None:
    path = os.fsencode(trees[1]) + b"/\xff\n"
    changed(trees[1] / "a", lambda: os.close(os.open(path, os.O_CREAT)))
    (difference,) = compare(*trees).differences
    assert difference.what == "missing"
    difference.path.encode("utf-8")  # can be printed
