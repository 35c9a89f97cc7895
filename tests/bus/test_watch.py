"""Following the bus: the present state first, then everything, across restarts, and nothing left at the broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from sidecar.bus.subjects import event_filter
from sidecar.bus.watch import EVENT_STREAM, FORGOTTEN_AFTER_S, MAX_WAITING, Watch
from sidecar.views import EventKind
from tests.api.node import in_loop
from tests.bus.broker import broker
from tests.bus.event_rig import settings, until
from tests.bus.events import SERVER, make_stream, message, publish, streaming, transfer_id


@asynccontextmanager
async def watching(url: str, *, resumes: bool = False, **changes: object) -> AsyncIterator[Watch]:
    async with Watch(settings(url, **changes), event_filter(), stream=EVENT_STREAM, resumes=resumes) as watch:
        await watch.wait_connected()
        yield watch


async def seqs(watch: Watch, count: int) -> list[int]:
    return [(await anext(watch)).seq for _ in range(count)]


async def consumers(client: Client) -> int:
    return (await client.jetstream().stream_info(EVENT_STREAM)).state.consumer_count


async def until_kept(client: Client, count: int) -> None:
    while (await client.jetstream().stream_info(EVENT_STREAM)).state.messages < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def until_no_consumer(client: Client) -> float:
    """Seconds until the broker has none."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while await consumers(client):  # noqa: ASYNC110 - the broker tells nobody
        await asyncio.sleep(0.05)
    return loop.time() - began


@in_loop
async def test_the_present_state_comes_first_and_what_happens_next_follows(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, *(message(seq=seq) for seq in range(1, 4)), message("progress", 3))
        await publish(client, *(message(seq=seq, role="destination", node="node-b") for seq in (1, 2)))
        async with watching(server.url) as watch:
            heard = [await anext(watch) for _ in range(3)]
            assert [(one.node, one.kind, one.seq) for one in heard] == [
                ("node-a", EventKind.STATUS, 3),
                ("node-a", EventKind.PROGRESS, 3),
                ("node-b", EventKind.STATUS, 2),
            ]
            await watch.wait_caught_up()
            assert not watch.live_only
            await publish(client, message(seq=4))
            assert await seqs(watch, 1) == [4]


@in_loop
async def test_nothing_was_ever_published(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), watching(server.url) as watch:
        await watch.wait_caught_up()
        await publish(client, message())
        assert await seqs(watch, 1) == [1]


@in_loop
async def test_many_transfers_are_known_at_once(tmp_path: Path) -> None:
    count = 600
    async with streaming(tmp_path) as (server, client):
        for seq in (1, 2):
            await publish(client, *(message(seq=seq, transfer=transfer_id(number)) for number in range(count)))
        await until_kept(client, 2 * count)
        async with watching(server.url) as watch:
            heard = [await anext(watch) for _ in range(count)]
            assert {one.transfer for one in heard} == {transfer_id(number) for number in range(count)}
            assert {one.seq for one in heard} == {2}
            await watch.wait_caught_up()


@in_loop
async def test_after_a_restart_of_the_broker_nothing_is_left_out(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), watching(server.url, resumes=True) as watch:
        await publish(client, message(seq=1), message("logs", 2))
        assert await seqs(watch, 2) == [1, 2]
        server.stop()
        await until(lambda: not watch.is_connected and not client.is_connected)
        server.start()
        await until(lambda: client.is_connected)
        await publish(client, *(message("logs", seq) for seq in range(3, 60)))  # some of it before we are back
        assert await seqs(watch, 57) == list(range(3, 60))
        await until(lambda: watch.connections == 2)


@in_loop
async def test_after_a_restart_of_the_broker_the_present_state_is_told_again(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), watching(server.url) as watch:
        await publish(client, message(seq=1), message(seq=2))
        assert await seqs(watch, 2) == [1, 2]
        server.stop()
        await until(lambda: not watch.is_connected)
        server.start()
        assert await seqs(watch, 1) == [2]
        await publish(client, message(seq=3))
        assert await seqs(watch, 1) == [3]


@pytest.mark.parametrize("count", [1, 20])
@in_loop
async def test_a_stream_that_is_deleted_and_made_again(tmp_path: Path, count: int) -> None:
    """Shorter than the old one, or longer, when it is found."""
    async with streaming(tmp_path) as (server, client), watching(server.url, resumes=True) as watch:
        await publish(client, *(message("logs", seq) for seq in range(1, 10)))
        assert await seqs(watch, 9) == list(range(1, 10))
        await client.jetstream().delete_stream(EVENT_STREAM)
        await until(lambda: bool(watch.live_only))
        await publish(client, message("logs", 10))
        assert await seqs(watch, 1) == [10]  # heard directly
        await make_stream(client)
        late = range(11, 11 + count)
        await publish(client, *(message("logs", seq) for seq in late))
        assert await seqs(watch, count) == [*late]
        await until(lambda: not watch.live_only)
        assert await seqs(watch, 1) == [late[-1]]  # the present state, once more
        await publish(client, message("logs", 99))
        assert await seqs(watch, 1) == [99]


@in_loop
async def test_a_stream_that_is_made_later(tmp_path: Path) -> None:
    async with streaming(tmp_path, has_stream=False) as (server, client), watching(server.url) as watch:
        assert "no stream TRANSFER_EVENTS" in watch.live_only
        await make_stream(client)
        await until(lambda: not watch.live_only)
        await publish(client, message(seq=1))
        assert 1 in await seqs(watch, 1)


@in_loop
async def test_without_jetstream_only_what_happens_is_heard(tmp_path: Path) -> None:
    with broker(tmp_path) as server:
        await server.wait_listening()
        async with watching(server.url) as watch, Watch(settings(server.url), event_filter()) as plain:
            await plain.wait_connected()
            assert watch.live_only == "the broker has no JetStream"
            assert plain.live_only == "no stream is asked for"


@pytest.mark.parametrize(
    ("heard", "said", "kinds"),
    [
        ("transfer.v1.event.>", "this user may not follow the stream", ["logs", "status"]),
        ("transfer.v1.event.*.*.status.>", "this user may not follow the stream, and statuses only", ["status"]),
        ("nothing", "this user may not follow the stream, and hears no events at all", []),
    ],
)
@in_loop
async def test_a_user_who_may_only_listen(tmp_path: Path, heard: str, said: str, kinds: list[str]) -> None:
    users = f"""authorization {{ users: [ {{ user: all, password: p }}, {{ user: ears, password: p, permissions: {{
        publish: ["nothing"], subscribe: ["{heard}", "_INBOX.>"] }} }} ] }}"""
    with broker(tmp_path, f'jetstream {{ store_dir: "{tmp_path}/jetstream" }}\n{users}') as server:
        await server.wait_listening()
        ears = settings(server.url, user="ears", password="p", connect_s=10.0)
        client = await nats.connect(server.url, user="all", password="p")
        async with Watch(ears, event_filter(), stream=EVENT_STREAM) as watch:
            await watch.wait_connected()
            assert watch.live_only == said
            await publish(client, message("logs", 1), message("status", 2))
            assert [(await anext(watch)).kind.value for _ in kinds] == kinds
        await client.close()


@in_loop
async def test_a_broker_that_answers_nothing_is_not_taken_for_one_that_refuses(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), watching(server.url, ping_s=0.2) as watch:
        await publish(client, message(seq=1))
        assert await seqs(watch, 1) == [1]
        await client.close()
        server.freeze()
        await until(lambda: not watch.is_connected)  # seen by the pings of the connection
        server.stop()
        server.start()
        assert await seqs(watch, 1) == [1]
        assert not watch.live_only


@in_loop
async def test_nothing_is_left_at_the_broker(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client):
        await publish(client, message())
        async with watching(server.url) as watch:
            assert await seqs(watch, 1) == [1]
            assert await consumers(client) == 1
        assert await until_no_consumer(client) < FORGOTTEN_AFTER_S + 5


@in_loop
async def test_a_consumer_lives_as_long_as_it_is_used(tmp_path: Path) -> None:
    """A quiet bus does not end it."""
    async with streaming(tmp_path) as (server, client), watching(server.url) as watch:
        await asyncio.sleep(FORGOTTEN_AFTER_S + 1)  # the time itself is what is tested
        await publish(client, message())
        assert await seqs(watch, 1) == [1]
        assert watch.connections == 1
        assert await consumers(client) == 1


@in_loop
async def test_who_does_not_listen_costs_no_memory_and_misses_nothing(tmp_path: Path) -> None:
    count = MAX_WAITING + 1000
    async with streaming(tmp_path) as (server, client), watching(server.url) as watch:
        await publish(client, *(message("logs", seq) for seq in range(count)))
        await until(lambda: watch._waiting.qsize() > MAX_WAITING - 512)
        assert watch._waiting.qsize() <= MAX_WAITING
        assert await seqs(watch, count) == list(range(count))


@in_loop
async def test_what_is_no_event_is_left_out(tmp_path: Path) -> None:
    async with streaming(tmp_path) as (server, client), watching(server.url) as watch:
        subject, body = message(seq=1)
        await client.publish(subject, b"\xff\x1b[2J")
        await client.publish(subject, b"x" * 1_000_000)
        await client.publish(subject.replace("node-a", "node-b"), body)
        await client.publish(subject, body, headers={"Status": "409", "Description": "Consumer Deleted"})
        await publish(client, message(seq=2))
        assert await seqs(watch, 2) == [1, 2]
        assert watch.refused == 3
        assert watch.connections == 1


@in_loop
async def test_several_filters(tmp_path: Path) -> None:
    other = "99999999-1234-4234-8234-123456789012"
    async with streaming(tmp_path) as (server, client):
        filters = [event_filter(server=SERVER), event_filter(server=other)]
        async with Watch(settings(server.url), filters, stream=EVENT_STREAM) as watch:
            await watch.wait_connected()
            await publish(client, message(seq=1), message(seq=2, server=other), message(seq=3, server=transfer_id(1)))
            await publish(client, message(seq=4))
            assert await seqs(watch, 3) == [1, 2, 4]
