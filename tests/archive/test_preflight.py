from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.archive.preflight import check_space
from sidecar.errors import HostFailed


def test_enough(tmp_path: Path) -> None:
    check_space(tmp_path, size_bytes=1000, entries=10, reserve_bytes=1000, reserve_inodes=10)
    check_space(tmp_path, size_bytes=None, entries=None)


def test_too_few_bytes(tmp_path: Path) -> None:
    for size, reserve in ((1 << 60, 0), (None, 1 << 60)):
        with pytest.raises(HostFailed) as caught:
            check_space(tmp_path, size_bytes=size, entries=None, reserve_bytes=reserve)
        assert caught.value.code == "disk.full"
        needed, free = caught.value.facts["needed"], caught.value.facts["free"]
        assert isinstance(needed, int)
        assert isinstance(free, int)
        assert needed >= 1 << 60 > free


def test_too_few_inodes(tmp_path: Path) -> None:
    if not os.statvfs(tmp_path).f_files:
        pytest.skip("this filesystem has no number of inodes")
    with pytest.raises(HostFailed) as caught:
        check_space(tmp_path, size_bytes=0, entries=0, reserve_inodes=1 << 50)
    assert caught.value.code == "disk.inodes"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostFailed) as caught:
        check_space(tmp_path / "missing", size_bytes=1, entries=1)
    assert caught.value.code == "disk.failed"
