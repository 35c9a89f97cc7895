"""What the stream must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from sidecar.bus.stream import covers, differences, stream_config, stream_file
from tests.bus.broker import broker
from tests.bus.event_rig import looking, make_stream, mirroring, numbered, patiently, settings, until

SHIPPED = Path(__file__).parents[2] / "docker" / "nats" / "transfer_events.json"


def test_the_shipped_file_is_what_is_verified() -> None:
    assert SHIPPED.read_text() == stream_file()
    shipped = StreamConfig.from_response(json.loads(SHIPPED.read_text()))
    assert differences(shipped, stream_config()) == ()
    assert shipped.name == stream_config().name


@patiently
async def test_what_is_made_does_not_differ(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            await client.request("$JS.API.STREAM.CREATE.TRANSFER_EVENTS", SHIPPED.read_bytes())
            info = await client.jsm().stream_info("TRANSFER_EVENTS")
            assert differences(info.config, stream_config()) == ()
            assert (info.config.max_bytes, info.config.max_age) == (2 * 1024**3, 7 * 86400)


@patiently
async def test_a_stream_that_differs_is_used_and_left_as_it_is(tmp_path: Path) -> None:
    with broker(tmp_path, has_jetstream=True) as server:
        await server.wait_listening()
        async with looking(server) as client:
            await make_stream(client, storage=StorageType.MEMORY, duplicate_window=30.0)
            before = (await client.jsm().stream_info("TRANSFER_EVENTS")).config
            async with mirroring(settings(server.url), tmp_path) as m:
                m.take(numbered(1))
                await m.until_sent()
                await until(lambda: m.mirror.facts().code == "bus.stream_differs")
                words = m.mirror.facts().words
                assert words == "its storage is memory, not file; its duplicate window is 30 s, less than 600 s"
            assert (await client.jsm().stream_info("TRANSFER_EVENTS")).config == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subjects": ["transfer.v1.event.node-a.>"]}, "its subjects lack transfer.v1.event.>"),
        ({"subjects": ["transfer.>"]}, None),
        ({"retention": RetentionPolicy.WORK_QUEUE}, "its retention is workqueue, not limits"),
        ({"discard": DiscardPolicy.NEW}, "its discard is new, not old"),
        ({"no_ack": True}, "it does not acknowledge"),
        ({"allow_direct": False}, "direct get is off"),
        ({"duplicate_window": 3600.0}, None),
        ({"max_bytes": 5}, None),
    ],
)
def test_differences(changes: dict[str, object], words: str | None) -> None:
    found = stream_config()
    for name, value in changes.items():
        setattr(found, name, value)
    assert differences(found, stream_config()) == (() if words is None else (words,))


@pytest.mark.parametrize(
    ("pattern", "subject", "is_covered"),
    [
        ("a.>", "a.b.>", True),
        ("a.>", "a.>", True),
        (">", "a", True),
        ("a.*.c", "a.b.c", True),
        ("a.*", "a.>", False),
        ("a.b.>", "a.>", False),
        ("a", "a.b", False),
        ("a.b", "a", False),
        ("a.>", "a", False),
        ("*.b", "*.b", True),
    ],
)
def test_patterns(pattern: str, subject: str, is_covered: bool) -> None:
    assert covers(pattern, subject) is is_covered
