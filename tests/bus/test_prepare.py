"""What an operator makes on a broker once, by the command line, against a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig

from sidecar.bus.stream import differences, stream_config
from tests.bus.broker import Broker, broker
from tests.cli.test_cli import run


async def look(url: str) -> tuple[StreamConfig, float | None]:
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        info = await stream.stream_info("TRANSFER_EVENTS")
        bucket = await (await stream.key_value("transfer_nodes")).status()
        return info.config, bucket.ttl
    finally:
        await client.close()


def started(server: Broker) -> str:
    asyncio.run(server.wait_listening())
    return server.url


def test_what_is_missing_is_made_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    with broker(tmp_path, f'jetstream {{ store_dir: "{tmp_path / "store"}" }}') as server:
        url = started(server)
        for _ in range(2):
            code, shown, errors = run("prepare-bus", "--nats", url)
            assert code == 0, errors
            assert shown.splitlines() == [
                "The stream TRANSFER_EVENTS keeps events on transfer.v1.event.>.",
                "The bucket transfer_nodes is the nodes' directory.",
            ]
            config, expiry_s = asyncio.run(look(url))
            assert differences(config, stream_config()) == () and config.max_age == stream_config().max_age
            assert expiry_s == 35


def test_a_stream_that_does_not_fit_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    async def make(url: str) -> None:
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="TRANSFER_EVENTS", subjects=["other.>"], allow_direct=True)
        await client.close()

    async def subjects(url: str) -> list[str] | None:
        client = await nats.connect(url)
        info = await client.jetstream().stream_info("TRANSFER_EVENTS")
        await client.close()
        return info.config.subjects

    with broker(tmp_path, f'jetstream {{ store_dir: "{tmp_path / "store"}" }}') as server:
        url = started(server)
        asyncio.run(make(url))
        code, _, errors = run("prepare-bus", "--nats", url)
        assert code == 1 and "does not fit: its subjects lack transfer.v1.event.>" in errors
        assert asyncio.run(subjects(url)) == ["other.>"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_broker_that_keeps_nothing_or_is_not_there(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        with broker(tmp_path, "") as server:
            code, _, errors = run("prepare-bus", "--nats", started(server))
        assert code == 1 and "has no JetStream: events cannot be kept there" in errors
    else:
        code, _, errors = run("prepare-bus", "--nats", "nats://127.0.0.1:9")
        assert code == 1 and "nats://127.0.0.1:9: " in errors
