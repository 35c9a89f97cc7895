from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.archive.spool import BLOCK_ITEMS, MEMORY_BYTES, Spool
from sidecar.errors import HostFailed
from tests.archive.producing import no_residue


@pytest.mark.parametrize("count", [0, 1, BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1, 3 * BLOCK_ITEMS])
def test_items_come_back_in_both_directions_as_often_as_wanted(count: int) -> None:
    spool = Spool(bytes)
    items = [b"%d" % number for number in range(count)]
    for item in items:
        spool.add(item)
    spool.done()
    assert spool.count == count
    assert list(spool) == items == list(spool)
    assert list(reversed(spool)) == items[::-1]
    spool.close()
    spool.close()


def test_a_long_list_moves_to_a_file_without_a_name(tmp_path: Path) -> None:
    with no_residue():
        spool = Spool(bytes, tmp_path)
        item = bytes(10_000)
        for _ in range(MEMORY_BYTES // len(item) + BLOCK_ITEMS):
            spool.add(item)
        spool.done()
        assert sum(len(one) for one in spool) > MEMORY_BYTES
        assert list(tmp_path.iterdir()) == []
        spool.close()


def test_two_iterations_do_not_disturb_each_other() -> None:
    spool = Spool(bytes)
    for number in range(3 * BLOCK_ITEMS):
        spool.add(b"%d" % number)
    spool.done()
    assert all(one == other for one, other in zip(spool, spool, strict=True))
    spool.close()


def test_a_list_beyond_all_measure_is_refused() -> None:
    spool = Spool(bytes, limit_bytes=100_000)
    with pytest.raises(HostFailed) as caught:
        for _ in range(BLOCK_ITEMS):
            spool.add(bytes(200))
    assert caught.value.code == "archive.limit"
    spool.close()


def test_a_file_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    spool = Spool(bytes, tmp_path / "missing")
    with pytest.raises(HostFailed) as caught:
        for _ in range(BLOCK_ITEMS):
            spool.add(bytes(MEMORY_BYTES // 256))
    assert caught.value.code == "disk.failed"
    spool.close()
