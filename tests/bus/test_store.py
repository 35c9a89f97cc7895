"""What the mirror keeps and what it drops."""

from __future__ import annotations

import asyncio
from uuid import UUID

import msgspec

from sidecar.bus.mirror import MAX_KEPT_STATUSES, MAX_QUEUED, Store
from sidecar.lifecycle.statuses import Status
from sidecar.views import EventKind, TransferEvent
from tests.api.fake_transfers import log_event, progress_event, status_event


def of_transfer(number: int, event: TransferEvent) -> TransferEvent:
    return msgspec.structs.replace(event, transfer=str(UUID(int=number)))


def kinds(events: list[TransferEvent]) -> list[EventKind]:
    return [event.kind for event in events]


def test_without_a_broker_the_newest_status_of_each_transfer_is_kept() -> None:
    store = Store()
    for number in (1, 2):
        for event in (
            status_event(1, Status.PENDING),
            log_event(2, "x"),
            progress_event(2, 5),
            status_event(3, Status.PROCESSING),
        ):
            store.put(of_transfer(number, event), is_connected=False)
    assert (len(store), store.dropped) == (2, 4)
    store.bring_back()
    assert [event.status for event in store.window(9)] == [Status.PROCESSING, Status.PROCESSING]
    assert [event.transfer for event in store.window(9)] == [str(UUID(int=1)), str(UUID(int=2))]


def test_what_was_not_confirmed_is_shrunk_and_comes_back_first() -> None:
    store = Store()
    for event in (status_event(1, Status.PENDING), log_event(2, "x"), status_event(3, Status.PROCESSING)):
        store.put(event, is_connected=True)
    assert len(store.window(2)) == 2
    store.shrink()
    store.put(of_transfer(7, status_event(1, Status.PENDING)), is_connected=False)
    store.bring_back()
    store.put(log_event(4, "later"), is_connected=True)
    assert [event.seq for event in store.window(9)] == [3, 1, 4]
    store.confirm()
    assert len(store) == 0


def test_an_older_status_does_not_replace_a_newer_one() -> None:
    store = Store()
    store.put(status_event(5, Status.COMPLETED), is_connected=True)
    store.window(1)
    store.shrink()
    store.put(status_event(4, Status.PROCESSING), is_connected=False)
    store.bring_back()
    assert [event.status for event in store.window(9)] == [Status.COMPLETED]


def test_above_the_bound_progress_goes_first_then_logs_and_never_a_status() -> None:
    store = Store()
    for number in range(MAX_QUEUED - 2):
        store.put(of_transfer(number, status_event(1, Status.PENDING)), is_connected=True)
    for event in (log_event(2, "x"), progress_event(2, 1), log_event(3, "y"), log_event(4, "z")):
        store.put(event, is_connected=True)
    everything = store.window(MAX_QUEUED + 9)
    assert len(everything) == MAX_QUEUED
    assert kinds(everything[-2:]) == [EventKind.LOGS, EventKind.LOGS]
    assert [event.seq for event in everything[-2:]] == [3, 4]


def test_statuses_above_the_bound_are_reduced_to_the_newest_of_each_transfer() -> None:
    store = Store()
    for seq in range(1, MAX_QUEUED + 2):
        store.put(of_transfer(seq % 2, status_event(seq, Status.PROCESSING)), is_connected=True)
    assert [event.seq for event in store.window(9)] == [MAX_QUEUED, MAX_QUEUED + 1]


def test_kept_statuses_are_bounded() -> None:
    store = Store()
    for number in range(MAX_KEPT_STATUSES + 5):
        store.put(of_transfer(number, status_event(1, Status.COMPLETED)), is_connected=False)
    assert (len(store), store.dropped) == (MAX_KEPT_STATUSES, 5)


def test_waiting() -> None:
    async def main() -> None:
        store = Store()
        await store.wait_empty()
        waiting = asyncio.create_task(store.wait_ready())
        store.put(status_event(1, Status.PENDING), is_connected=True)
        await waiting
        store.window(9)
        emptied = asyncio.create_task(store.wait_empty())
        await asyncio.sleep(0)
        assert not emptied.done()
        store.confirm()
        await emptied

    asyncio.run(main())
