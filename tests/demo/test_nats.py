"""The embedded broker starts, is reached, and is gone with its scope."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import nats
import pytest

from sidecar.demo.nats import run_nats


def test_it_serves_and_is_gone_afterwards(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with run_nats(tmp_path) as server:
            assert server.url.startswith("nats://127.0.0.1:")
            client = await nats.connect(server.url)
            await client.flush()
            await client.close()
            return server.pid

    pid = asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_is_gone_after_a_failure_inside(tmp_path: Path) -> None:
    pids: list[int] = []

    async def scenario() -> None:
        async with run_nats(tmp_path, jetstream=True) as server:
            pids.append(server.pid)
            raise KeyError("inside")

    with pytest.raises(KeyError):
        asyncio.run(scenario())
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
