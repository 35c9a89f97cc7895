"""What the outbox keeps, numbers, drops; and what it does when its disk or file fails."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from sidecar.bus.outbox import COMMIT_EVENTS, UNKNOWN_SEQ, Outbox
from sidecar.bus.outbox_file import Row
from sidecar.bus.outbox_queue import MAX_QUEUED, MAX_QUEUED_STATUSES, EventQueue
from sidecar.lifecycle.statuses import Status
from sidecar.views import EventKind, TransferEvent
from tests.api.fake_transfers import TRANSFER, log_event, progress_event, status_event
from tests.bus.event_rig import numbered, outbox, patiently, show_damage, until


async def rows(box: Outbox) -> list[Row]:
    await box.wait_written()
    return await box.ask(lambda file: file.read(0, 100_000))


def body(row: Row) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(row.body)
    return found


def seqs(found: list[Row], transfer: str = TRANSFER) -> list[object]:
    return [body(row)["seq"] for row in found if row.transfer == transfer]


def named(transfer: int, event: TransferEvent) -> TransferEvent:
    return msgspec.structs.replace(event, transfer=str(UUID(int=transfer)))


@patiently
async def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    async with outbox(tmp_path) as box:
        for event in (status_event(1, Status.PENDING), log_event("a"), progress_event(5), log_event("b")):
            box.take(event)
        box.take(named(7, status_event(1, Status.PENDING)))
        found = await rows(box)
        assert [row.number for row in found] == [1, 2, 3, 4, 5]
        assert seqs(found) == [1, 2, 2, 3]  # progress has that of the event before it
        assert [body(row)["number"] for row in found] == [1, 2, 3, 4, 5]
    async with outbox(tmp_path, epoch="e2") as box:
        box.take(status_event(2, Status.PROCESSING))
        found = await rows(box)
        assert (found[-1].number, found[-1].epoch, seqs(found)[-1]) == (6, "e2", 4)
        assert found[0].epoch == "e1"


@patiently
async def test_numbers_are_not_given_again_when_their_rows_are_gone(tmp_path: Path) -> None:
    async with outbox(tmp_path) as box:
        box.take(status_event(1, Status.PENDING))
        await box.wait_written()
        await box.acknowledged(1)
        await box.ask(lambda file: file.drop_acked(1))
    async with outbox(tmp_path, epoch="e2") as box:
        box.take(log_event("x"))
        assert [(row.number, body(row)["seq"]) for row in await rows(box)] == [(2, 2)]


@patiently
async def test_statuses_of_the_journal_are_taken_once(tmp_path: Path) -> None:
    history = [status_event(1, Status.PENDING), status_event(4, Status.PROCESSING), status_event(9, Status.COMPLETED)]
    async with outbox(tmp_path) as box:
        box.take(history[0])
        await box.wait_written()
    async with outbox(tmp_path, epoch="e2") as box:
        box.retake(history)
        box.retake(history)
        found = await rows(box)
        assert [body(row)["status"] for row in found] == ["pending", "processing", "completed"]
        assert seqs(found) == [1, 2, 3]


@patiently
async def test_a_transfer_that_is_not_known_is_told_as_it_is(tmp_path: Path) -> None:
    """The outbox was lost: numbers of the transfer's events may have been used already."""
    async with outbox(tmp_path) as box:
        box.retake([status_event(1, Status.PENDING), status_event(4, Status.PROCESSING)])
        box.take(log_event("x"))
        found = await rows(box)
        assert [body(row)["status"] for row in found] == ["processing", "processing"]
        assert seqs(found) == [4 * UNKNOWN_SEQ + 1, 4 * UNKNOWN_SEQ + 2]


@patiently
async def test_a_transfer_that_began_just_before_the_kill_is_told_whole(tmp_path: Path) -> None:
    """The outbox is the same as before; it was killed before any of that transfer was in it."""
    async with outbox(tmp_path) as box:
        await box.wait_written()
        await box.ask(lambda file: None)
    async with outbox(tmp_path, epoch="e2") as box:
        box.retake([status_event(1, Status.PENDING), status_event(4, Status.PROCESSING)])
        found = await rows(box)
        assert [body(row)["status"] for row in found] == ["pending", "processing"]
        assert seqs(found) == [1, 2]


@patiently
async def test_above_the_budget_progress_goes_first_then_logs_and_never_a_status(tmp_path: Path) -> None:
    async with outbox(tmp_path, budget_bytes=1 << 20) as box:
        for number in range(200):
            box.take(log_event(f"{number} " + "x" * 900))
            box.take(progress_event(number))
            box.take(numbered(number))
        await box.wait_written()
        for number in range(200, 1600):
            box.take(log_event(f"{number} " + "x" * 900))
        found = await rows(box)
        kinds = [row.kind for row in found]
        facts = box.facts()
        assert EventKind.PROGRESS not in kinds
        assert kinds.count(EventKind.STATUS) == 200
        assert facts.dropped_progress == 200
        assert facts.dropped_logs == 1600 - kinds.count(EventKind.LOGS) > 0
        assert facts.waiting == len(found)
        assert await box.ask(lambda file: file.bytes) <= 1 << 20
        # the gap shows, in the number of the node and in that of the transfer
        assert [row.number for row in found] != list(range(1, len(found) + 1))
        logs = [seq for seq in seqs(found) if isinstance(seq, int)]
        assert logs[0] > 1
        assert logs == list(range(logs[0], 1601))


@patiently
async def test_acknowledged_events_go_before_any_other(tmp_path: Path) -> None:
    async with outbox(tmp_path, budget_bytes=1 << 20) as box:
        for number in range(300):
            box.take(log_event(f"{number} " + "x" * 900))
        await box.wait_written()
        await box.acknowledged(300)
        for number in range(300):
            box.take(log_event(f"{number} " + "x" * 900))
        found = await rows(box)
        assert [row.number for row in found if row.number > 300] == list(range(301, 601))
        assert box.facts().dropped_logs == 0


@patiently
async def test_acknowledged_events_are_kept_for_some_time(tmp_path: Path) -> None:
    now = 0.0
    async with outbox(tmp_path, monotonic=lambda: now, keep_s=600.0) as box:
        box.take(log_event("x"))
        await box.wait_written()
        await box.acknowledged(1)
        now = 599.0
        await box.ask(box._sweep)
        assert len(await rows(box)) == 1
        now = 601.0
        await box.ask(box._sweep)
        assert await rows(box) == []


@patiently
async def test_what_was_sent_again_is_kept_from_then_on(tmp_path: Path) -> None:
    """The broker lost it once, and may lose it again: when it was acknowledged first does not count."""
    now = 0.0
    async with outbox(tmp_path, monotonic=lambda: now, keep_s=600.0) as box:
        box.take(log_event("x"))
        await box.wait_written()
        await box.acknowledged(1)
        now = 599.0
        await box.ask(lambda file: file.set_acked(0))
        await box.acknowledged(1)
        now = 601.0
        await box.ask(box._sweep)
        assert len(await rows(box)) == 1
        now = 1200.0
        await box.ask(box._sweep)
        assert await rows(box) == []


def test_a_disk_that_takes_nothing_costs_no_status(tmp_path: Path) -> None:
    """In memory meanwhile: bounded, progress first; the gap shows when it works again."""
    directory = tmp_path / "state"
    directory.write_text("in the way")

    async def main() -> None:
        async with outbox(directory) as box:
            await until(lambda: box.facts().code == "bus.outbox_failed")
            box.take(log_event("first"))
            for number in range(MAX_QUEUED):
                box.take(progress_event(number))
            for number in range(MAX_QUEUED):
                box.take(numbered(number))
            facts = box.facts()
            assert (facts.dropped_progress, facts.dropped_logs, facts.waiting) == (MAX_QUEUED, 1, MAX_QUEUED)
            directory.unlink()
            await until(lambda: box.facts().code is None and not box.queued)
            found = await rows(box)
            assert [row.kind for row in found] == [EventKind.STATUS] * MAX_QUEUED
            assert found[0].number == MAX_QUEUED + 2  # what was dropped has had its numbers
            box.take(log_event("next"))
            assert seqs(await rows(box)) == [2]

    asyncio.run(main())


@patiently
async def test_a_disk_that_hangs_delays_nobody(tmp_path: Path) -> None:
    release = threading.Event()
    async with outbox(tmp_path) as box:
        hanging = asyncio.create_task(box.ask(lambda file: release.wait(60)))
        await asyncio.sleep(0)
        spent = 0.0
        for number in range(20_000):
            event = log_event(str(number)) if number % 3 else progress_event(number)
            began = time.thread_time()
            box.take(event)
            box.facts()
            spent += time.thread_time() - began
        assert spent < 2  # some 10 us each: nothing waits, and a full queue costs no more than an empty one
        kept = box.queued
        is_hanging = not hanging.done()
        release.set()
        assert await hanging
        assert is_hanging
        assert MAX_QUEUED <= kept <= MAX_QUEUED + COMMIT_EVENTS
        assert len(await rows(box)) == kept


@patiently
async def test_a_full_disk(tmp_path: Path) -> None:
    async with outbox(tmp_path) as box:
        box.take(status_event(1, Status.PENDING))
        await box.wait_written()
        pages = await box.ask(lambda file: file._one("PRAGMA page_count"))
        await box.ask(lambda file: file._one(f"PRAGMA max_page_count={pages}"))  # the file may not grow
        for number in range(400):
            box.take(log_event(f"{number} " + "x" * 500))
        await until(lambda: box.facts().code == "bus.outbox_full")
        assert len(await box.ask(lambda file: file.read(0, 9))) > 0  # it can still be read
        await box.acknowledged(1)  # and what is in it can be sent
        assert await box.ask(lambda file: file.acked) == 1
        await box.ask(lambda file: file._one("PRAGMA max_page_count=1000000"))
        await until(lambda: box.facts().code is None and not box.queued)
        assert seqs(await rows(box)) == list(range(1, 402))
        box._code = "bus.outbox_full"
        await box.ask(box._sweep)
        assert box.facts().code is None  # seen without any new event


@pytest.mark.parametrize("damage", ["no database", "a torn page", "another version"])
def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "outbox.sqlite"
    told: list[str] = []

    async def before() -> None:
        async with outbox(tmp_path) as box:
            for number in range(300):
                box.take(log_event(f"{number} " + "x" * 300))
            await box.wait_written()

    async def after() -> None:
        async with outbox(tmp_path, epoch="e2", on_lost=lambda: told.append("lost")) as box:
            box.take(status_event(3, Status.COMPLETED))
            found = await rows(box)
            assert [body(row)["status"] for row in found] == ["completed"]
            facts = box.facts()
            assert facts.code is None
            assert (tmp_path / facts.put_aside).stat().st_size > 0
            assert facts.put_aside.startswith("outbox.sqlite.damaged-")
            assert told == ["lost"]

    asyncio.run(before())
    if damage == "no database":
        path.write_bytes(b"x" * 10_000)
    elif damage == "another version":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version=99")
        db.close()
    else:
        with path.open("r+b") as file:
            file.seek(5 * 4096)
            file.write(os.urandom(3 * 4096))
    asyncio.run(after())


def modes_in(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


@patiently
async def test_its_files_are_for_nobody_else(tmp_path: Path) -> None:
    async with outbox(tmp_path) as box:
        box.take(log_event("x"))
        await box.wait_written()
        modes = modes_in(tmp_path)
        assert "outbox.sqlite-wal" in modes and set(modes.values()) == {0o600}


@patiently
async def test_damage_that_shows_while_it_runs(tmp_path: Path) -> None:
    told: list[str] = []
    async with outbox(tmp_path, on_lost=lambda: told.append("lost")) as box:
        box.take(status_event(1, Status.PENDING))
        box.take(log_event("x"))
        await box.wait_written()

        await show_damage(box)
        await until(lambda: bool(told))
        box.retake([status_event(1, Status.PENDING)])  # what the engine does when it hears that
        box.take(log_event("y"))
        found = await rows(box)
        assert [(row.number, body(row)["seq"]) for row in found] == [(3, 3), (4, 4)]  # goes on where it was
    async with outbox(tmp_path, epoch="e2") as box:
        box.take(log_event("z"))
        assert (await rows(box))[-1].number == 5


@patiently
async def test_events_that_are_none_stop_nothing(tmp_path: Path) -> None:
    async with outbox(tmp_path) as box:
        good = status_event(4, Status.COMPLETED)
        box.take(msgspec.structs.replace(good, server="*"))
        box.take(msgspec.structs.replace(good, transfer=">"))
        box.take(log_event("\udcff \ud800 strange"))
        box.take(log_event("x" * 200_000))
        box.take(msgspec.structs.replace(good, message="\u0001" * 100_000))
        box.take(good)
        found = await rows(box)
        assert [row.number for row in found] == [1, 2, 3, 4]
        assert max(len(row.body) for row in found) <= 60 * 1024
        assert body(found[0])["args"] == ["documented: \\udcff \\ud800 strange"]
        assert str(body(found[1])["message"]).endswith("x [...]")
        assert body(found[2])["status"] == "completed"
        assert str(body(found[2])["message"]).endswith(" [...]")


@patiently
async def test_where_an_id_of_the_stream_stands(tmp_path: Path) -> None:
    for epoch, count in (("e1", 3), ("e2", 2), ("e3", 1)):
        async with outbox(tmp_path, epoch=epoch) as box:
            for _ in range(count):
                box.take(log_event("x"))
            await box.wait_written()
    async with outbox(tmp_path, epoch="e4") as box:
        places = await box.ask(lambda file: [file.place_of(*i) for i in (("e1", 2), ("e1", 9), ("e2", 5), ("e4", 9))])
        assert places == [2, 3, 5, 6]  # no earlier run has made what a later one did
        assert await box.ask(lambda file: file.place_of("stranger", 1)) is None


def test_it_survives_being_ended_in_the_middle(tmp_path: Path) -> None:
    """What was taken is written at the end."""

    async def main() -> None:
        async with outbox(tmp_path) as box:
            for number in range(2000):
                box.take(log_event(str(number)))
        async with outbox(tmp_path, epoch="e2") as box:
            assert [row.number for row in await rows(box)] == list(range(1, 2001))

    asyncio.run(main())


def test_statuses_of_a_disk_that_never_comes_back() -> None:
    """Above the bound the newest of each transfer is left; nothing else is."""
    queue = EventQueue()
    for number in range(MAX_QUEUED_STATUSES + 1):
        queue.put(msgspec.structs.replace(numbered(number % 7), decision=number))
    batch, skipped = queue.take(100)
    decisions = [item.decision for item in batch if isinstance(item, TransferEvent)]
    assert decisions == list(range(MAX_QUEUED_STATUSES - 6, MAX_QUEUED_STATUSES + 1))
    assert (len(queue), skipped.total()) == (0, 0)


def test_what_is_given_back_comes_first_again() -> None:
    queue = EventQueue()
    for number in range(5):
        queue.put(log_event(str(number)))
    batch, skipped = queue.take(3)
    queue.put(log_event("5"))
    queue.give_back(batch, skipped)
    assert [item.message for item in queue.take(9)[0] if isinstance(item, TransferEvent)] == list("012345")
