"""The bench itself, at a size that takes seconds: it moves, measures, compares and cleans up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.bench import __main__ as bench
from integration.bench import ours, report
from integration.bench.figures import MIB, Move
from integration.bench.ours import MoveFailed, Wire, destination_volume, source_volume
from integration.bench.pipeline import PipelineFailed, run_pipeline
from integration.bench.volumes import make_small_files, trouble
from sidecar.demo.compare import Comparison, Difference, compare
from sidecar.demo.world import make_world


def test_a_whole_run_ends_with_its_tables_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        bench.main(["--size", "8", "--rounds", "1", "--small", "200", "--events", "500", "--directory", str(tmp_path)])
        == 0
    )
    output = capsys.readouterr().out
    assert "A game world" in output
    assert "Many small files" in output
    assert "Events per second" in output
    assert "One world, and the bus" in output
    assert output.count("strangers' wire") >= 4  # in both tables and both rounds
    assert list(tmp_path.iterdir()) == []


def test_strangers_get_the_archive_of_strangers(tmp_path: Path) -> None:
    """The relay hides what the destination is: the source sends a symlink as the copy that strangers understand."""
    volume = source_volume(tmp_path)
    volume.mkdir(parents=True)
    (volume / "latest.log").write_text("one\n")
    (volume / "link").symlink_to("latest.log")
    moved = asyncio.run(ours.move(tmp_path, Wire.STRANGERS, 4))
    assert not (destination_volume(tmp_path) / "link").is_symlink()
    assert (destination_volume(tmp_path) / "link").read_text() == "one\n"
    assert min(moved.source_peak_bytes, moved.destination_peak_bytes) > 20 * MIB
    assert moved.wire_bytes > 0


def test_a_transfer_that_fails_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "source" / "volumes").mkdir(parents=True)
    with pytest.raises(MoveFailed, match="404"):
        asyncio.run(ours.move(tmp_path, Wire.OURS, 0))


@pytest.mark.parametrize("gzip", [True, False])
def test_the_pipeline_copies(tmp_path: Path, gzip: bool) -> None:
    make_world(tmp_path / "world", 2)
    copied = run_pipeline(tmp_path / "world", tmp_path / "copy", gzip=gzip)
    assert copied.wall_s > 0
    assert {one.what for one in compare(tmp_path / "world", tmp_path / "copy").differences} <= {"mtime"}


def test_a_pipeline_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(PipelineFailed):
        run_pipeline(tmp_path / "missing", tmp_path / "copy", gzip=True)


def test_small_files_are_as_many_and_as_large_as_said(tmp_path: Path) -> None:
    assert make_small_files(tmp_path, 401) == 401 * 4096
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 401
    assert {path.stat().st_size for path in files} == {4096}


def test_only_what_strangers_cannot_represent_is_forgiven() -> None:
    differences = (
        Difference("a", "mtime", "1", "2"),
        Difference("link", "type", "symlink", "file"),
        Difference("b", "content", "x", "y"),
    )
    assert len(trouble(Comparison(differences, 3, 3, 3), for_strangers=False)) == 3
    assert trouble(Comparison(differences, 3, 3, 3), for_strangers=True) == ["b: content: x / y"]


def test_the_bars_are_on_the_median_and_the_highest_peak() -> None:
    def move(wall_s: float, peak: int = 0) -> Move:
        return Move(wall_s=wall_s, source_cpu_s=wall_s, destination_cpu_s=0, source_peak_bytes=peak * MIB)

    slow = [move(1), move(3), move(9, 151)]
    assert report.missed([move(1), move(2), move(9, 149)], [move(10)], 10**9) == []
    assert [text.split(" is ")[0] for text in report.missed(slow, [move(9)], 10**8)] == [
        "wall time",
        "both processes take 30.0 CPU-s/GB, more than 8",
        "the source's peak",
    ]
