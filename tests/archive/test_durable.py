from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sidecar.archive.durable import (
    disk_errors,
    fsync_directory,
    fsync_tree,
    host_failed,
    is_directory,
    sync_filesystem,
    write_file_durably,
)
from sidecar.errors import HostFailed


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file_durably(path, b"one" * 100_000)
    write_file_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(HostFailed) as caught:
        write_file_durably(tmp_path / "file", b"content")
    assert caught.value.code == "disk.failed"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(HostFailed):
        write_file_durably(tmp_path / "missing/file", b"content")


def test_syncing_a_directory_and_a_tree(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_bytes(b"x")
    (tmp_path / "d/write-only").write_bytes(b"x")
    (tmp_path / "d/write-only").chmod(0o200)
    (tmp_path / "d/link").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "d/fifo")
    fsync_directory(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fsync_directory(descriptor)
        fsync_tree(descriptor)
        sync_filesystem(descriptor)
    finally:
        os.close(descriptor)
    with pytest.raises(HostFailed):
        fsync_directory(tmp_path / "missing")
    with pytest.raises(HostFailed):
        sync_filesystem(descriptor)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk.full"),
        (errno.EDQUOT, "disk.full"),
        (errno.EIO, "disk.failed"),
        (errno.EROFS, "disk.failed"),
        (errno.EPERM, "disk.failed"),
    ],
)
def test_the_table_of_errors(number: int, code: str) -> None:
    error = host_failed(OSError(number, os.strerror(number)), "cannot do it")
    assert error.code == code
    assert error.facts["errno"] == errno.errorcode[number]
    with pytest.raises(HostFailed) as caught, disk_errors("cannot do it"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code


def test_is_directory_does_not_follow(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("d")
    (tmp_path / "f").write_bytes(b"")
    names = ("d", "l", "f", "missing", "f/x")
    assert [is_directory(tmp_path / name) for name in names] == [True, False, False, False, False]
