"""A stand-in for the engine, as a process that a test kills: `python -m tests.bus.driver STATE URL EPOCH COUNT`.

Its ledger is what the journal is to the engine: each decision is a line, synced before it is told. There is no clock in
it and no random number, so what must be on the bus follows from the ledger alone. It says `ready` and goes on until
COUNT decisions have been made and the broker has acknowledged everything; then it says `done`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from uuid import UUID

import msgspec

from sidecar.bus.connection import BusConnection
from sidecar.bus.mirror import Mirror
from sidecar.bus.outbox import Outbox
from sidecar.bus.settings import BusSettings
from sidecar.bus.stream import DEFAULT_STREAM, EventStream
from sidecar.bus.subjects import Subjects
from sidecar.lifecycle.statuses import Status
from sidecar.views import TransferEvent
from tests.api.fake_transfers import log_event, progress_event, status_event

TRANSFERS = 5  # at once
DECISIONS = 8  # each
MOST_QUEUED = 1_000
REMEMBERED = 500  # transfers, as a node remembers them


def transfer_of(decision: int) -> tuple[str, int]:
    """Whose decision it is, and which of that transfer's."""
    group, place = divmod(decision, TRANSFERS * DECISIONS)
    number, transfer = divmod(place, TRANSFERS)
    return str(UUID(int=1 + group * TRANSFERS + transfer)), number + 1


def told(decision: int) -> TransferEvent:
    transfer, number = transfer_of(decision)
    event = status_event(number, Status.PROCESSING)
    return msgspec.structs.replace(event, transfer=transfer, message=f"decision {decision}")


class Ledger:
    """Lines of decisions; a torn end was never told."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        self.decisions = [int(line) for line in whole.split()]
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.ftruncate(self._descriptor, len(whole))

    def append(self, decision: int) -> None:
        os.write(self._descriptor, b"%d\n" % decision)
        os.fsync(self._descriptor)
        self.decisions.append(decision)

    def histories(self) -> list[list[TransferEvent]]:
        """Of the newest transfers, oldest first."""
        found: dict[str, list[TransferEvent]] = {}
        for decision in self.decisions:
            event = told(decision)
            found.setdefault(event.transfer, []).append(event)
        return list(found.values())[-REMEMBERED:]


async def main(state: Path, url: str, epoch: str, count: int) -> None:
    subjects = Subjects("node-a")
    connection = BusConnection(BusSettings(urls=(url,), retry_min_s=0.02, retry_max_s=0.1, connect_s=1.0, ping_s=1.0))
    box = Outbox(state / "outbox.sqlite", node="node-a", epoch=epoch, budget_bytes=1 << 30, keep_s=600.0)
    stream = EventStream(connection, subjects, name=DEFAULT_STREAM, may_create=True)
    ledger = Ledger(state / "ledger")
    async with box, connection:
        for history in ledger.histories():
            box.retake(history)
        mirror = Mirror(outbox=box, connection=connection, subjects=subjects, stream=stream)
        sending = asyncio.create_task(mirror.run())
        print("ready", flush=True)
        for decision in range(len(ledger.decisions), count):
            while box.queued > MOST_QUEUED:  # noqa: ASYNC110 - above 4,096 progress is dropped, as it must be
                await asyncio.sleep(0.001)
            await asyncio.to_thread(ledger.append, decision)
            event = told(decision)
            box.take(event)
            box.take(msgspec.structs.replace(log_event(f"after {decision}"), transfer=event.transfer))
            box.take(msgspec.structs.replace(progress_event(decision % 100), transfer=event.transfer))
        while box.facts().waiting:  # noqa: ASYNC110 - the test gives up where it takes too long
            await asyncio.sleep(0.01)
        print("done", flush=True)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
