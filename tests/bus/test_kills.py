"""Broker and sender are killed, and streams deleted, at random moments: nothing is lost.

Where the stream stays the same one, nothing is out of order either, and no status is told as two events.
`SIDECAR_KILLS_S=120 pytest tests/bus/test_kills.py` goes on for two minutes, and as long again for what is unsent then.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from nats.js.api import RawStreamMsg

from sidecar.bus.stream import DEFAULT_STREAM
from tests.bus.broker import Broker, broker
from tests.bus.driver import Ledger, transfer_of
from tests.bus.event_rig import ids, looking, make_stream, numbers, stored

KILLS_S = float(os.environ.get("SIDECAR_KILLS_S", "6"))
LEAST = 3  # kills of each, however slow the machine is
MOST = 10_000_000  # decisions; the driver is always killed before


async def drive(directory: Path, url: str, epoch: str, count: int) -> asyncio.subprocess.Process:
    """A driver that has begun."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bus.driver", str(directory), url, epoch, str(count)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


async def drivers_are_killed(directory: Path, url: str, random: Random, until: float) -> int:
    count = 0
    while time.monotonic() < until or count < LEAST:
        process = await drive(directory, url, f"run{count}", MOST)
        await asyncio.sleep(random.uniform(0.05, 1.5))
        await kill(process)
        count += 1
    return count


async def broker_is_killed(server: Broker, random: Random, until: float) -> int:
    count = 0
    while time.monotonic() < until or count < LEAST:
        await asyncio.sleep(random.uniform(0.1, 1.5))
        if random.random() < 0.2:
            server.freeze()
            await asyncio.sleep(random.uniform(0.1, 3.0))
            server.thaw()
        else:
            server.stop()
            await asyncio.sleep(random.uniform(0.0, 0.5))
            server.start()
            count += 1
    return count


async def harried(
    directory: Path, server: Broker, seed: int, harry: Callable[[Broker, Random, float], Awaitable[int]]
) -> tuple[int, int, list[RawStreamMsg]]:
    """Kills of the sender, what else was done to it, and what the stream has when a last driver has ended in peace."""
    until = time.monotonic() + KILLS_S
    drivers, others = await asyncio.gather(
        drivers_are_killed(directory, server.url, Random(seed), until), harry(server, Random(seed + 1), until)
    )
    decided = len(Ledger(directory / "ledger").decisions)
    last = await drive(directory, server.url, "last", decided + 10)
    assert last.stdout is not None
    async with asyncio.timeout(60 + 4 * KILLS_S):
        assert await last.stdout.readline() == b"done\n"
        await last.wait()
    async with looking(server) as client:
        return drivers, others, await stored(client)


def check(found: list[RawStreamMsg], ledger: Ledger) -> None:
    """What is in the stream, against what was decided."""
    assert numbers(found) == list(range(1, len(set(ids(found))) + 1))  # none lost, none out of order
    statuses: list[int] = []
    seqs: dict[str, list[int]] = defaultdict(list)
    seen: set[str] = set()
    for name, message in zip(ids(found), found, strict=True):
        if name in seen:
            continue
        seen.add(name)
        body = json.loads(message.data or b"")
        if body["event"] == "transfer.status":
            statuses.append(int(body["message"].removeprefix("decision ")))
        if body["event"] != "transfer.progress":
            seqs[body["transfer"]].append(body["seq"])
    assert sorted(statuses) == ledger.decisions  # every decision told, and told once
    of_each: dict[str, list[int]] = defaultdict(list)
    for decision in statuses:
        transfer, number = transfer_of(decision)
        of_each[transfer].append(number)
    assert all(numbers == sorted(numbers) for numbers in of_each.values())
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seqs.values())


async def stream_is_remade(server: Broker, random: Random, until: float) -> int:
    count = 0
    while time.monotonic() < until or count < LEAST:
        await asyncio.sleep(random.uniform(0.2, 1.5))
        async with looking(server) as client:
            await client.jsm().delete_stream(DEFAULT_STREAM)
            await asyncio.sleep(random.choice((0.0, random.uniform(0.0, 0.3))))
            await make_stream(client)
        count += 1
    return count


def check_remade(found: list[RawStreamMsg], ledger: Ledger) -> None:
    """The last stream has everything. What came too early is there once more, so each subject ends with its newest."""
    assert sorted(numbers(found)) == list(range(1, len(set(ids(found))) + 1))
    newest: dict[str | None, int] = {}
    last: dict[str | None, int] = {}
    for name, message in zip(ids(found), found, strict=True):
        last[message.subject] = int(name.rpartition("-")[2])
        newest[message.subject] = max(last[message.subject], newest.get(message.subject, 0))
    assert last == newest
    events = [json.loads(message.data or b"") for message in found]
    told = {event["message"] for event in events if event["event"] == "transfer.status"}
    assert told == {f"decision {decision}" for decision in ledger.decisions}


@pytest.mark.timeout(120 + 8 * KILLS_S)
def test_a_stream_that_is_remade_again_and_again_while_the_sender_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        with broker(tmp_path, has_jetstream=True) as server:
            await server.wait_listening()
            async with looking(server) as client:
                await make_stream(client)
            drivers, streams, found = await harried(tmp_path, server, 7, stream_is_remade)
            check_remade(found, Ledger(tmp_path / "ledger"))
            print(f"{drivers} kills of the sender, {streams} streams, {len(set(ids(found)))} events")

    asyncio.run(main())


@pytest.mark.timeout(120 + 8 * KILLS_S)
def test_random_kills_of_broker_and_sender(tmp_path: Path) -> None:
    async def main() -> None:
        with broker(tmp_path, has_jetstream=True) as server:
            await server.wait_listening()
            drivers, brokers, found = await harried(tmp_path, server, 5, broker_is_killed)
            check(found, Ledger(tmp_path / "ledger"))
            print(
                f"{drivers} kills of the sender, {brokers} of the broker, "
                f"{len(set(ids(found)))} events, {len(found) - len(set(ids(found)))} repeats in the stream"
            )

    asyncio.run(main())
