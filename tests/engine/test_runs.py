"""Earlier runs on one state directory are known by their epochs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.engine.runs import REMEMBERED, remember_run
from sidecar.errors import HostFailed


def test_every_run_knows_those_before_it(tmp_path: Path) -> None:
    epochs = [f"{number:012x}" for number in range(REMEMBERED + 5)]
    for number, epoch in enumerate(epochs):
        assert remember_run(tmp_path, epoch) == frozenset(epochs[max(0, number - REMEMBERED) : number])


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"../../etc\nok\n"])
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "epochs").write_bytes(content)
    assert remember_run(tmp_path, "0123456789ab") == frozenset()
    assert remember_run(tmp_path, "ba9876543210") == {"0123456789ab"}


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "epochs").mkdir()
    with pytest.raises(HostFailed) as failed:
        remember_run(tmp_path, "0123456789ab")
    assert failed.value.code == "journal.failed"
