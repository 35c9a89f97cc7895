"""`docs/examples/follow.py`, as it stands there, with a broker that is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.bus.configured import PASSWORDS, configured, someone
from tests.bus.event_rig import replace_stream, until
from tests.bus.events import message, publish, streaming
from tests.bus.test_permissions import prepare
from tests.watch.test_run import in_loop

EXAMPLE: Final = Path(__file__).parents[2] / "docs" / "examples" / "follow.py"


class Follower:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        assert line, "it ended"
        return line.rstrip("\n")

    async def seqs(self, count: int) -> list[int]:
        """Of so many different events; what it says of missing ones is left out."""
        found: list[int] = []
        while len(found) < count:
            line = await self.line()
            if not line.startswith("missing"):
                found.append(int(json.loads(line.partition(" ")[2])["seq"]))
        return found


@asynccontextmanager
async def following(url: str, inbox: str = "_INBOX") -> AsyncIterator[Follower]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLE)),
        env=os.environ | {"NATS_URL": url, "NATS_INBOX": inbox},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the client library tells there how it reconnects
    )
    try:
        yield Follower(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@in_loop
async def test_every_event_once_across_restarts_of_the_broker_and_of_itself(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        async with following(server.url) as follower:
            await publish(client, *(message("logs", seq) for seq in range(1, 51)))
            assert await follower.seqs(50) == list(range(1, 51))
            server.stop()
            await until(lambda: not client.is_connected)
            server.start()
            await until(lambda: client.is_connected)
            await publish(client, *(message("logs", seq) for seq in range(51, 101)))
            assert sorted(await follower.seqs(50)) == list(range(51, 101))
            await publish(client, *(message("logs", seq) for seq in (99, 100)))  # repeated, as a node may
            await publish(client, message("logs", 101))
            assert await follower.seqs(1) == [101]
        await publish(client, *(message("logs", seq) for seq in range(102, 111)))
        async with following(server.url) as follower:
            late = await follower.seqs(9)
            assert set(range(102, 111)) <= {*late, *(await follower.seqs(1) if 101 in late else [])}


@in_loop
async def test_a_stream_that_is_deleted_and_made_anew_is_followed_on(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), following(server.url) as follower:
        await publish(client, *(message("logs", seq) for seq in range(1, 4)))
        assert await follower.seqs(3) == [1, 2, 3]
        await replace_stream(client)
        await publish(client, *(message("logs", seq) for seq in (4, 1, 2, 3, 4)))  # as a node tells again what it has
        await publish(client, message("logs", 5))
        assert await follower.seqs(2) == [4, 5]


@in_loop
async def test_a_gap_is_said(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), following(server.url) as follower:
        await publish(client, message("logs", 3), message("progress", 3), message("logs", 7), message("logs", 8))
        lines = [await follower.line() for _ in range(5)]
        assert [line.startswith("missing") for line in lines] == [False, False, True, False, False]
        assert lines[2].startswith("missing so far: seq 4 to 6 of node-a ")


@in_loop
async def test_what_is_no_event_does_not_end_it(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), following(server.url) as follower:
        subject, _ = message()
        for number, body in enumerate(
            (b"", b"\xff", b"[1]", b"{}", b'{"node": 1, "transfer": [], "seq": "x"}', b"[" * 5000)
        ):
            await client.publish(subject, body, headers={"ce-id": f"strange-{number}"})
        await client.publish(subject, b"without headers")
        await publish(client, message("logs", 1))
        lines = [await follower.line() for _ in range(7)]
        assert lines[:6] == [f"no event of this protocol: 'strange-{number}'" for number in range(6)]
        assert '"seq": 1' in lines[6]


@in_loop
async def test_a_panel_may_run_it(tmp_path: Path) -> None:
    async with (
        configured(tmp_path) as server,
        someone(server, "admin") as admin,
        someone(server, "node-a") as node,
        following(server.url.replace("://", f"://panel:{PASSWORDS['panel']}@"), "_INBOX_panel") as follower,
    ):
        await prepare(admin.client)
        await publish(node.client, message("logs", 1))
        assert await follower.seqs(1) == [1]
        assert server.denied == []
