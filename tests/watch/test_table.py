"""What is drawn, narrow and wide, and that nothing of an event is obeyed by a terminal."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console

from sidecar.watch.board import Board
from sidecar.watch.shown import clean, clock, duration, size
from sidecar.watch.table import draw, plain
from tests.bus.events import NOW, SERVER, event, transfer_id


def board() -> Board:
    filled = Board()
    filled.feed(event(seq=1))
    filled.feed(event(seq=1, node="node-b", role="destination"))
    filled.feed(event("progress", 1, time=NOW + 3))
    filled.feed(event(seq=1, transfer=transfer_id(2), status="failed", reason="peer.reset", message="It broke."))
    return filled


def drawn(filled: Board, columns: int, lines: int | None = 24, **options: str) -> str:
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=True, color_system=None, legacy_windows=False)
    headline = "nats://127.0.0.1:4222"
    console.print(
        draw(
            filled.rows(),
            columns=columns,
            lines=lines,
            now=NOW + 5,
            headline=headline,
            warning=options.get("warning", ""),
        )
    )
    return file.getvalue()


def test_wide() -> None:
    top, header, moving, failed = drawn(board(), 160).splitlines()
    assert top.split() == ["1", "active,", "1", "ended", "nats://127.0.0.1:4222"]
    assert header.split() == ["SERVER", "FROM", "→", "TO", "STATUS", "STAGE", "PROGRESS", "RATE", "LEFT", "AGE"]
    assert moving.startswith(f"{SERVER} node-a → node-b processing sending/receiving")
    assert "43% ━━━" in moving
    assert moving.split()[-4:] == ["210", "MB/s", "0:01", "2s"]
    assert failed.startswith(f"{SERVER} node-a → ?")
    assert "peer.reset: It broke." in failed
    assert failed.rstrip().endswith("4s")


@pytest.mark.parametrize("columns", [20, 40, 60, 64, 72, 80, 84, 100, 104, 120, 150, 200, 400])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    for line in drawn(board(), columns, warning="reconnecting since 5s (the broker is away)").splitlines():
        assert cell_len(line) <= columns


def test_narrow_the_needed_stays() -> None:
    output = drawn(board(), 60)
    assert "12345678 node-a → node-b processing  43%" in output
    assert "peer.reset" in output
    assert "RATE" not in output


def test_more_than_there_is_room_for() -> None:
    filled = Board()
    for number in range(100):
        filled.feed(event(transfer=transfer_id(number)))
    lines = drawn(filled, 80, lines=10, warning="reconnecting").splitlines()
    assert len(lines) <= 10
    assert lines[-1].strip() == "… and 95 more"
    assert len(drawn(filled, 80, lines=None).splitlines()) == 102


def test_nothing_yet() -> None:
    assert "no transfers" in drawn(Board(), 80)


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\u202eevil\x9b31m\u200b[red]not red[/red]" + "x" * 5000


def test_texts_from_elsewhere_are_only_text() -> None:
    filled = Board()
    hostile = event(status="failed", reason="\x1b[31m" + "y" * 20, message=HOSTILE, stage="\x07")
    filled.feed(msgspec.structs.replace(hostile, node="\x1b]2;n"))  # which the reading of events refuses
    for output in (drawn(filled, 400), plain(filled.rows()[0], NOW)):
        for obeyed in ("\x1b", "\x07", "\r", "\u202e", "\x9b", "\u200b"):
            assert obeyed not in output
        assert "[red]not red[/red]" in output
    assert len(plain(filled.rows()[0], NOW)) < 1000
    assert clean("a\nb", 10) == "a?b"
    assert clean("x" * 11, 10) == "x" * 9 + "…"


def test_values_that_make_no_sense_are_drawn_all_the_same() -> None:
    huge = {"bytes_done": 2**61, "bytes_total": 1, "rate_bytes_per_s": 4e18, "eta_s": 4e18, "files_done": 2**61}
    filled = Board()
    filled.feed(event("progress", 1, progress=huge, time=9e10))
    filled.feed(event("progress", 1, progress={"bytes_total": 0}, node="node-b", role="destination", time=0.0))
    for columns in (40, 200):
        assert "100%" in drawn(filled, columns)
    assert plain(filled.rows()[0], NOW)


def test_a_rate_of_long_ago_is_not_shown() -> None:
    (row,) = [row for row in board().rows() if row.is_active]
    assert "MB/s" in plain(row, NOW + 5)
    assert "MB/s" not in plain(row, NOW + 500)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_950, "100 kB"), (210_300_000, "210 MB"), (999_600, "1.0 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_times() -> None:
    assert [duration(seconds) for seconds in (-5, 7, 61, 7300, 4 * 86400, 1e11)] == [
        "0s",
        "7s",
        "1m",
        "2h",
        "4d",
        "9999d",
    ]
    assert [clock(seconds) for seconds in (0.8, 7, 750, 11_100, 1e12)] == [
        "0:01",
        "0:07",
        "12:30",
        "3:05:00",
        "99:00:00",
    ]
