"""One tree out of several archives, extracted at the same time."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from sidecar.archive.extract import Extracted, Extraction, ExtractLimits, TreeState, seal
from sidecar.archive.meter import Meter
from sidecar.errors import DataCorrupt
from tests.archive.extracting import MTIME, directory, member, symlink, tar_of


def start(staging: Path, tree: TreeState, limits: ExtractLimits | None = None) -> Extraction:
    return Extraction(
        staging, limits=limits or ExtractLimits(), owner=None, meter=Meter(), notice=lambda _: None, tree=tree
    )


def extract_one_after_another(staging: Path, *archives: bytes, limits: ExtractLimits | None = None) -> TreeState:
    tree = TreeState(streams=len(archives))
    staging.mkdir()
    for archive in archives:
        extraction = start(staging, tree, limits)
        try:
            extraction.feed(archive)
            extraction.finish()
        finally:
            extraction.abort()
    return tree


def mode_and_mtime(path: Path) -> tuple[int, float]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_mtime


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_directory_and_its_file_on_different_streams(tmp_path: Path, order: tuple[int, int]) -> None:
    archives = (tar_of(directory("closed", 0o550)), tar_of(member("closed/deep/a.txt", b"hello")))
    staging = tmp_path / "staging"
    tree = extract_one_after_another(staging, *(archives[i] for i in order))
    assert stat.S_IMODE((staging / "closed").stat().st_mode) == 0o700, "not before all streams have ended"
    seal(staging, tree, owner=None)
    assert (staging / "closed/deep/a.txt").read_bytes() == b"hello"
    assert mode_and_mtime(staging / "closed") == (0o550, MTIME)
    assert stat.S_IMODE((staging / "closed/deep").stat().st_mode) == 0o755
    (staging / "closed").chmod(0o700)


def test_streams_at_once_make_the_same_directories(tmp_path: Path) -> None:
    """Each makes the parents that it needs, and may find that another was a moment earlier."""
    streams, each = 4, 200
    tree = TreeState(streams=streams)
    staging = tmp_path / "staging"
    staging.mkdir()
    barrier = threading.Barrier(streams)
    results: list[Extracted] = []

    def run(number: int) -> None:
        archive = tar_of(*(member(f"d{i}/e{i}/{number}.txt", b"x") for i in range(each)))
        extraction = start(staging, tree)
        try:
            barrier.wait()
            extraction.feed(archive)
            results.append(extraction.finish())
        finally:
            extraction.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seal(staging, tree, owner=None)
    assert len(results) == streams
    assert sum(len(files) for _, _, files in os.walk(staging)) == streams * each
    assert len(tree.directories) == 2 * each


@pytest.mark.parametrize(
    "second",
    [
        member("x", b"2"),
        symlink("x", "y"),
        directory("x"),
        member("x/below", b"2"),
        member("x", pax_headers={"SIDECAR.removed": "1"}),
    ],
)
def test_nothing_is_replaced_across_streams(tmp_path: Path, second: tuple[object, bytes]) -> None:
    with pytest.raises(DataCorrupt) as caught:
        extract_one_after_another(tmp_path / "staging", tar_of(member("x", b"1")), tar_of(second))  # type: ignore[arg-type]
    assert caught.value.code == "archive.hostile"
    assert (tmp_path / "staging/x").read_bytes() == b"1"


def test_a_link_of_one_stream_is_not_followed_by_another(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with pytest.raises(DataCorrupt) as caught:
        extract_one_after_another(
            tmp_path / "staging", tar_of(symlink("way", str(outside))), tar_of(member("way/out", b"!"))
        )
    assert caught.value.code == "archive.hostile"
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (ExtractLimits(max_entries=3), "max_entries"),
        (ExtractLimits(max_bytes=30), "max_bytes"),
        (ExtractLimits(max_directories=3), "max_directories"),
    ],
)
def test_the_limits_hold_for_the_sum(tmp_path: Path, limits: ExtractLimits, name: str) -> None:
    archives = [tar_of(member(f"{stream}/{i}/file", b"0123456789")) for stream in "ab" for i in range(2)]
    assert extract_one_after_another(tmp_path / "fine", *archives[:1], limits=limits)
    with pytest.raises(DataCorrupt) as caught:
        extract_one_after_another(tmp_path / "staging", *archives, limits=limits)
    assert (caught.value.code, caught.value.facts["limit"]) == ("archive.limit", name)
