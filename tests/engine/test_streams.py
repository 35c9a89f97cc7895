"""An upload that a Calagopus source deals out over several requests: all of it arrives, or nothing does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from sidecar.archive.extract import ExtractLimits
from sidecar.engine.services import Receiving
from sidecar.lifecycle.statuses import Role
from tests.engine.replays import STREAMS, captured, differences, send
from tests.engine.rig import FAST, SERVER, Rig, running_node

QUICK = Receiving(stall_timeout_s=0.4, reserve_bytes=0, reserve_inodes=0)
FIRST, MAIN, SECOND = STREAMS  # in the order in which they ended when they were recorded


def renumbered(request: bytes, old: int, new: int) -> bytes:
    changed = request.replace(b"multiplex-stream: %d\r\n" % old, b"multiplex-stream: %d\r\n" % new)
    assert changed != request
    return changed


def announcing(request: bytes, streams: int) -> bytes:
    changed = request.replace(b"multiplex-stream-count: 2\r\n", b"multiplex-stream-count: %d\r\n" % streams)
    assert changed != request
    return changed


def damaged(request: bytes) -> bytes:
    """Another digit in the checksum."""
    found = re.search(rb"text/plain\r\n.*?([0-9a-f]{64})", request, re.DOTALL)
    assert found is not None
    at = found.start(1)
    return request[:at] + (b"1" if request[at : at + 1] == b"0" else b"0") + request[at + 1 :]


async def assert_nothing_came(rig: Rig, answers: list[bytes], reason: str) -> None:
    """Every connection was closed without an answer, for this source takes any for success."""
    assert answers == [b""] * len(answers)
    view = await rig.settled()
    assert (view.status, view.reason) == ("failed", reason)
    assert not rig.volume().exists() and rig.staging() == []


def run_failing(
    tmp_path: Path, make: Callable[[Rig], list[bytes]], reason: str, limits: ExtractLimits | None = None
) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", receiving=QUICK, limits=limits) as rig:
            answers = await asyncio.gather(*(send(rig, request) for request in make(rig)))
            await assert_nothing_came(rig, list(answers), reason)

    asyncio.run(scenario())


@pytest.mark.parametrize("victim", range(3))
def test_one_bad_checksum_fails_all(tmp_path: Path, victim: int) -> None:
    def make(rig: Rig) -> list[bytes]:
        requests = [captured(name, rig) for name in STREAMS]
        requests[victim] = damaged(requests[victim])
        return requests

    run_failing(tmp_path, make, "archive.checksum")


@pytest.mark.parametrize("victim", range(3))
def test_one_cut_stream_fails_all(tmp_path: Path, victim: int) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", receiving=QUICK) as rig:
            requests = [captured(name, rig) for name in STREAMS]
            cuts = [len(request) - 300 if number == victim else None for number, request in enumerate(requests)]
            answers = await asyncio.gather(
                *(send(rig, request, stop_at=cut) for request, cut in zip(requests, cuts, strict=True))
            )
            await assert_nothing_came(rig, list(answers), "upload.truncated")

    asyncio.run(scenario())


def test_a_missing_stream(tmp_path: Path) -> None:
    run_failing(tmp_path, lambda rig: [captured(MAIN, rig), captured(FIRST, rig)], "upload.multiplex")


def test_a_repeated_stream(tmp_path: Path) -> None:
    run_failing(tmp_path, lambda rig: [captured(name, rig) for name in (FIRST, FIRST, MAIN)], "upload.multiplex")


def test_a_surplus_stream(tmp_path: Path) -> None:
    run_failing(
        tmp_path,
        lambda rig: [captured(MAIN, rig), captured(FIRST, rig), renumbered(captured(SECOND, rig), 1, 2)],
        "upload.multiplex",
    )


def test_the_limits_count_all_streams(tmp_path: Path) -> None:
    limits = ExtractLimits(max_bytes=56_000)  # each stream alone is below it
    run_failing(tmp_path, lambda rig: [captured(name, rig) for name in STREAMS], "archive.limit", limits)


def test_more_streams_than_the_settings_take(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", receiving=QUICK) as rig:
            assert await send(rig, announcing(captured(MAIN, rig), 17)) == b""
            assert rig.node.views() == []

    asyncio.run(scenario())


def test_a_stream_without_a_main_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        timings = msgspec.structs.replace(FAST, join_s=0.05)
        async with running_node(tmp_path, "b", timings=timings) as rig:
            assert await send(rig, captured(FIRST, rig)) == b""
            assert rig.node.views() == []
            # Nor does it join a transfer whose source announced none.
            assert (await send(rig, captured("ca-source", rig))).startswith(b"HTTP/1.1 200 OK")
            assert await send(rig, captured(FIRST, rig)) == b""
            assert differences(rig.volume(), is_calagopus=True) == []

    asyncio.run(scenario())


def test_streams_that_come_first_wait_for_the_main_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b") as rig:
            early = [asyncio.create_task(send(rig, captured(name, rig))) for name in (SECOND, FIRST)]
            await asyncio.sleep(0)
            answers = [await send(rig, captured(MAIN, rig)), *(await asyncio.gather(*early))]
            assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)
            assert differences(rig.volume(), is_calagopus=True) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [(MAIN,), (MAIN, FIRST)])
def test_a_cancel_gives_all_up(tmp_path: Path, sent: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b") as rig:
            asking = [asyncio.create_task(send(rig, captured(name, rig))) for name in sent]
            await rig.stage("receiving")
            await rig.node.cancel(SERVER, Role.DESTINATION)
            assert [await answer for answer in asking] == [b""] * len(asking)
            view = await rig.settled()
            assert (view.status, view.reason) == ("cancelled", "transfer.cancelled")
            assert not rig.volume().exists() and rig.staging() == []

    asyncio.run(scenario())


def test_a_stop_of_the_node_lets_go_of_every_stream(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b") as rig:
            asking = [asyncio.create_task(send(rig, captured(name, rig))) for name in (MAIN, FIRST)]
            await rig.stage("receiving")
        assert [await answer for answer in asking] == [b"", b""]
        async with running_node(tmp_path, "b") as rig:
            view = await rig.settled()
            assert (view.status, view.reason) == ("failed", "transfer.interrupted")
            assert rig.staging() == []

    asyncio.run(scenario())


def test_the_transfer_counts_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_node(tmp_path, "b", max_transfers=1) as rig:
            answers = await asyncio.gather(*(send(rig, captured(name, rig)) for name in STREAMS))
            assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)

    asyncio.run(scenario())
