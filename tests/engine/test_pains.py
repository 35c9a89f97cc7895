"""What operators of transfers suffer elsewhere, as far as it takes both ends and a panel to show that it is not so.

Each test names the symptom. Those of the rules are in `test_rules_*`; those of single parts beside the parts.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from sidecar.archive.extract import ExtractLimits
from sidecar.engine.services import Receiving
from tests.engine.pair import running_pair, soon
from tests.engine.rig import SERVER, token_of, tree_of
from tests.engine.strangers import Received, stranger

ROOMY = Receiving(stall_timeout_s=5, reserve_bytes=0, reserve_inodes=0)


@pytest.mark.parametrize("why", ["bytes", "inodes", "limit"])
def test_a_disk_without_room_is_said_on_both_ends_before_a_byte_is_written(tmp_path: Path, why: str) -> None:
    """Symptom: disk full, no error shown; opaque "500 from destination", the cause only in the other node's log."""

    async def scenario() -> None:
        huge = {
            "bytes": Receiving(reserve_bytes=1 << 60, reserve_inodes=0),
            "inodes": Receiving(reserve_bytes=0, reserve_inodes=1 << 60),
            "limit": ROOMY,
        }[why]
        limits = ExtractLimits(max_bytes=1000) if why == "limit" else None
        async with running_pair(tmp_path, receiving=huge, limits=limits) as pair:
            await pair.move()
            left, came = await pair.settled()
            assert pair.check() == "a" and SERVER in pair.a.runtime.running
            code = {"bytes": "disk.full", "inodes": "disk.inodes", "limit": "archive.limit"}[why]
            assert came.reason == code
            assert code in (left.message or ""), left
            assert any(code in line for line in pair.a.lines()), pair.a.lines()
            assert not pair.b.volume().exists() and pair.b.staging() == [] and pair.b.trash() == []

    asyncio.run(scenario())


def test_a_destination_that_refuses_early_does_not_hold_the_source_up(tmp_path: Path) -> None:
    """Symptom: upload deadlock when the target answers early: 500 after 1 MiB: the source fails promptly, unlocks."""

    async def scenario() -> None:
        async def behave(upload: Received) -> None:
            await upload.read_to(b"\0", skip=1_000_000)
            await upload.answer("500 Internal Server Error")
            await asyncio.sleep(60)  # it keeps the connection and reads no more

        async with stranger(behave) as b, running_pair(tmp_path, nodes=("a",), big_bytes=80_000_000) as pair:
            pair.panel.add_node("b", token_id="id-b", token=token_of("b"), url=b.url)
            await pair.move()
            await soon(lambda: SERVER in pair.a.runtime.running, "the start")
            left = await pair.a.settled()
            assert (left.status, left.reason) == ("failed", "peer.status")
            assert pair.panel.transfer(SERVER) is None and tree_of(pair.a.volume()) == pair.world

    asyncio.run(scenario())


def test_an_empty_volume_moves(tmp_path: Path) -> None:
    """Symptom: progress panic, wrong totals: a volume of no bytes; progress is never above 100 %."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            shutil.rmtree(pair.a.volume())
            pair.a.volume().mkdir()
            pair.world = {}
            await pair.move()
            left, came = await pair.settled()
            assert left.status == came.status == "completed" and pair.check() == "b"
            assert left.progress.bytes_done == left.progress.bytes_total == 0

    asyncio.run(scenario())


def test_progress_rises_to_all_of_it_and_no_further(tmp_path: Path) -> None:
    """Symptom: no progress, wrong totals: monotonic on both ends, never above 100 %."""

    async def scenario() -> None:
        async with running_pair(tmp_path, big_bytes=30_000_000) as pair:
            await pair.move()
            await pair.settled()
            for rig in (pair.a, pair.b):
                seen = [event.progress for event in rig.events if event.progress is not None]
                done = [progress.bytes_done for progress in seen]
                assert done == sorted(done) and done[-1] > 30_000_000 - 1
                assert all((progress.percent or 0) <= 100 for progress in seen)
                assert any("bytes" in line or "MiB" in line for line in rig.lines())

    asyncio.run(scenario())


def test_many_servers_at_once_move_each_on_its_own(tmp_path: Path) -> None:
    """Symptom: a shared connection pool broke streams; one transfer's failure must not be another's."""

    async def scenario() -> None:
        async with running_pair(tmp_path) as pair:
            others = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(4)]
            for n, server in enumerate(others):
                shutil.copytree(pair.a.volume(), pair.a.volume(server), symlinks=True)
                (pair.a.volume(server) / "which").write_text(str(n))
                pair.panel.add_server(server, "a")
            await asyncio.gather(*(pair.panel.start_transfer(server, "b") for server in others))
            for server in others:
                await pair.a.settled(server)
                await pair.b.settled(server)
                assert pair.panel.owner(server) == "b"
            assert [(pair.b.volume(server) / "which").read_text() for server in others] == ["0", "1", "2", "3"]
            assert tree_of(pair.a.volume()) == pair.world

    asyncio.run(scenario())
