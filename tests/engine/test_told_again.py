"""A kill between a decision and the outbox costs no status: the journal's are told again, and recognised."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sidecar.bus.outbox import Outbox
from sidecar.lifecycle.statuses import Status
from sidecar.views import EventKind, TransferEvent
from tests.bus.event_rig import outbox, patiently
from tests.engine.rig import SERVER, Rig, grow_world, request_to, running_node


class Recorder:
    """What a ledger is told."""

    def __init__(self) -> None:
        self.taken: list[TransferEvent] = []
        self.again: list[list[TransferEvent]] = []

    def take(self, event: TransferEvent) -> None:
        self.taken.append(event)

    def retake(self, statuses: Sequence[TransferEvent]) -> None:
        self.again.append(list(statuses))

    def statuses(self) -> list[tuple[int, Status]]:
        return [(event.decision, event.status) for event in self.taken if event.kind is EventKind.STATUS]


async def move(a: Rig, b: Rig) -> None:
    grow_world(a.volume())
    await a.node.start(request_to(b), caller=None, respond_async=True)
    assert (await a.settled()).status is Status.COMPLETED
    await b.settled()


@patiently
async def test_the_journal_tells_the_statuses_that_were_told(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    async with running_node(tmp_path / "b", "b") as b, running_node(tmp_path / "a", "a", ledger=first) as a:
        await move(a, b)
    assert [status for _, status in first.statuses()] == [Status.PENDING, Status.PROCESSING, Status.COMPLETED]
    assert first.again == []
    async with running_node(tmp_path / "a", "a", ledger=second) as a:
        (again,) = second.again
        assert [(event.decision, event.status) for event in again] == first.statuses()
        told = [event for event in first.taken if event.kind is EventKind.STATUS]
        assert [msgspec.structs.replace(event, time=0) for event in again] == [
            msgspec.structs.replace(event, time=0) for event in told
        ]
        a.node.tell_statuses()  # what a lost outbox asks for; where it is not lost after all, its number is known
        assert second.again[1] == [msgspec.structs.replace(again[-1], stage="ended", time=second.again[1][0].time)]


async def lines_of(box: Outbox) -> list[tuple[str, int]]:
    await box.wait_written()
    rows = await box.ask(lambda file: file.read(0, 10_000))
    bodies = [msgspec.json.decode(row.body) for row in rows if row.kind is not EventKind.PROGRESS]
    return [(body["status"] if body["event"] == "transfer.status" else "", body["seq"]) for body in bodies]


@patiently
async def test_an_outbox_that_missed_the_end_is_told_it_once(tmp_path: Path) -> None:
    """The outbox of a killed process: it has the beginning; what follows was decided, and never written to it."""
    async with running_node(tmp_path / "b", "b") as b:
        seen = Recorder()
        async with running_node(tmp_path / "a", "a", ledger=seen) as a:
            await move(a, b)
    async with outbox(tmp_path) as box:
        second = next(i for i, event in enumerate(seen.taken) if event.status is Status.PROCESSING)
        for event in seen.taken[:second]:
            box.take(event)
        before = await lines_of(box)
        assert [status for status, _ in before if status] == ["pending"]
    for _ in range(2):  # a second restart tells nothing new
        async with outbox(tmp_path, epoch="e2") as box, running_node(tmp_path / "a", "a", ledger=box):
            await asyncio.sleep(0)
            found = await lines_of(box)
            assert [status for status, _ in found if status] == ["pending", "processing", "completed"]
            assert [seq for _, seq in found] == list(range(1, len(found) + 1))


@patiently
async def test_an_outbox_that_lost_nothing_is_told_no_status_twice(tmp_path: Path) -> None:
    """After the end more is written down, here that the panel deleted the server: that record tells no status."""
    async with running_node(tmp_path / "b", "b") as b, outbox(tmp_path) as box:
        async with running_node(tmp_path / "a", "a", ledger=box) as a:
            await move(a, b)
            await a.node.delete_server(SERVER)
            found = await lines_of(box)
            assert [status for status, _ in found if status] == ["pending", "processing", "completed"]
            a.node.tell_statuses()
            assert await lines_of(box) == found
        async with running_node(tmp_path / "a", "a", ledger=box) as a:
            a.node.tell_statuses()
            assert await lines_of(box) == found
