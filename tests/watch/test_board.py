"""Events folded into rows: both ends in one, the newest counts, nobody writes into another's, memory is bounded."""

from __future__ import annotations

import random

import pytest

from sidecar.lifecycle.statuses import Status
from sidecar.watch import board as board_module
from sidecar.watch.board import Board
from tests.bus.events import NOW, SERVER, TRANSFER, event, transfer_id

OTHER = "99999999-1234-4234-8234-123456789012"


def test_both_ends_of_a_transfer_are_one_row() -> None:
    board = Board()
    board.feed(event(seq=1, status="pending", stage="stopping"))
    board.feed(event(seq=2))
    board.feed(event(seq=1, node="node-b", role="destination"))
    board.feed(event("progress", 2))
    (row,) = board.rows()
    assert (row.transfer, row.server) == (TRANSFER, SERVER)
    assert row.source is not None and row.source.node == "node-a"
    assert row.destination is not None and row.destination.node == "node-b"
    assert row.status is Status.PROCESSING
    assert row.stages == ["sending", "receiving"]
    assert row.progress is not None and row.progress[0].bytes_done == 129_000_000
    assert row.heard_at == NOW + 2


def test_a_transfer_is_active_until_both_ends_have_ended() -> None:
    board = Board()
    board.feed(event(seq=1))
    board.feed(event(seq=1, node="node-b", role="destination"))
    row = board.feed(event(seq=2, status="completed", stage="settling"))
    assert row is not None
    assert row.is_active
    assert row.status is Status.PROCESSING
    assert row.stages == ["receiving"]
    last = event(seq=2, node="node-b", role="destination", status="failed", reason="disk.full", message="Full.")
    row = board.feed(last)
    assert row is not None
    assert not row.is_active
    assert row.status is Status.FAILED  # what did not complete is what is shown
    assert row.why == ("disk.full", "Full.")


def test_repeated_and_late_events_change_nothing() -> None:
    board = Board()
    for seq in (1, 2, 3):
        assert board.feed(event(seq=seq)) is not None
    assert board.feed(event(seq=2, status="pending")) is None
    assert board.feed(event(seq=3)) is None
    assert board.feed(event(seq=4, status="completed")) is not None
    assert board.feed(event("progress", 5)) is None  # of another status than the final one
    assert board.rows()[0].status is Status.COMPLETED


def test_any_order_ends_in_the_same() -> None:
    events = [event(seq=seq, status=status) for seq, status in enumerate(("pending", "processing", "completed"), 1)]
    events += [event("logs", 4, status="completed"), event("progress", 2)]
    for seed in range(20):
        board = Board()
        mixed = [*events, *events]
        random.Random(seed).shuffle(mixed)
        for one in mixed:
            board.feed(one)
        assert board.rows()[0].status is Status.COMPLETED


def test_a_clock_that_was_set_back_hides_nothing() -> None:
    board = Board()
    board.feed(event(seq=1))
    board.feed(event(seq=2, time=NOW - 3600, status="completed"))
    assert board.rows()[0].status is Status.COMPLETED


def test_no_node_writes_into_what_another_says() -> None:
    board = Board()
    board.feed(event(seq=1))
    board.feed(event(seq=9, node="node-x", status="failed", reason="disk.full"))
    board.feed(event(seq=9, node="node-x", role="destination", server=OTHER))
    rows = {row.ends[0].node + row.server: row for row in board.rows()}
    assert rows["node-a" + SERVER].status is Status.PROCESSING
    assert rows["node-x" + SERVER].status is Status.FAILED
    assert set(rows) == {"node-a" + SERVER, "node-x" + SERVER, "node-x" + OTHER}


def test_a_reason_stays_while_lines_are_logged_and_goes_with_the_next_status() -> None:
    board = Board()
    row = board.feed(event(seq=1, reason="panel.unreachable", message="The panel does not answer."))
    assert row is not None
    board.feed(event("logs", 2, message="Still waiting."))
    assert row.why == ("panel.unreachable", "The panel does not answer.")
    row = board.feed(event(seq=3, status="completed"))
    assert row is not None
    assert row.why == (None, None)


def test_what_is_looked_at() -> None:
    board = Board(servers=[SERVER], nodes=["node-b"])
    assert board.feed(event(server=OTHER, transfer=transfer_id(7))) is None
    assert board.feed(event()) is None  # of node-a, and nobody has heard of node-b yet
    assert board.feed(event(node="node-b", role="destination")) is not None
    assert [len(row.ends) for row in board.rows()] == [2]
    board.feed(event(seq=2, status="completed"))
    board.feed(event(seq=2, status="completed", node="node-b", role="destination"))
    assert board.rows(active_only=True) == []


def test_active_ones_first_and_the_newest_on_top() -> None:
    board = Board()
    for number in range(4):
        status = "completed" if number % 2 else "processing"
        board.feed(event(transfer=transfer_id(number), status=status, time=NOW + number))
    assert [row.transfer for row in board.rows()] == [transfer_id(number) for number in (2, 0, 3, 1)]


@pytest.mark.parametrize("status", ["processing", "completed"])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    monkeypatch.setattr(board_module, "MAX_ACTIVE", 50)
    monkeypatch.setattr(board_module, "MAX_ENDED", 50)
    board = Board()
    for number in range(512):
        board.feed(event(transfer=transfer_id(number), status=status, time=NOW + number))
    kept = [row.transfer for row in board.rows()]
    assert kept == [transfer_id(number) for number in range(511, 461, -1)]
