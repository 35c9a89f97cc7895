"""Whose the node's id is: the decisions alone, and two processes of one id on a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from nats.js.api import StorageType

from sidecar.bus.control import Pace
from sidecar.bus.fence import Fence, Found, Standing
from sidecar.errors import HostFailed, Refused
from tests.api.node import in_loop
from tests.bus.broker import Broker, broker
from tests.bus.command_rig import NODE, QUICK, Commanded, asking, commanded

STRANGER = "epoch-of-a-stranger"


def fence(*former: str) -> Fence:
    return Fence("me", frozenset(former), expiry_s=30.0)


def test_an_unknown_directory_fences_nobody() -> None:
    one = fence()
    one.reconnected(0.0)
    assert one.standing.value == "untold"
    one.claimed(5)
    one.reconnected(1000.0)
    assert one.standing.value == "held"


def test_what_is_free_ours_or_given_up_is_claimed_at_once() -> None:
    for found, revision in (
        (None, 0),
        (Found(None, 7), 7),
        (Found("me", 8), 8),
        (Found("before", 9), 9),
    ):
        one = fence("before")
        assert one.may_claim(found, 0.0)
        assert (one.revision, one.standing) == (revision, Standing.UNTOLD)
        one.claimed(10)
        assert (one.revision, one.standing) == (10, Standing.HELD)


def test_a_strangers_entry_fences_until_it_is_no_longer_renewed() -> None:
    one = fence("before")
    assert not one.may_claim(Found(STRANGER, 1), 100.0)
    assert (one.standing, one.rival) == (Standing.FENCED, STRANGER)
    assert not one.may_claim(Found(STRANGER, 1), 129.0)
    assert not one.may_claim(Found(STRANGER, 2), 129.9)  # renewed
    assert not one.may_claim(Found(STRANGER, 2), 159.8)
    one.reconnected(159.8)  # nothing could be seen for a while
    assert not one.may_claim(Found(STRANGER, 2), 160.0)
    assert one.may_claim(Found(STRANGER, 2), 189.9)
    assert one.revision == 2
    one.claimed(3)
    assert one.standing is Standing.HELD


def test_an_entry_that_vanishes_is_left_to_its_holder_for_a_while() -> None:
    one = fence()
    assert not one.may_claim(Found(STRANGER, 5), 0.0)
    assert not one.may_claim(None, 1.0)  # a bucket in memory, and its broker was restarted
    assert not one.may_claim(Found(STRANGER, 1), 2.0)
    assert not one.may_claim(None, 31.0)
    assert one.may_claim(None, 32.0)
    other = fence()
    assert not other.may_claim(Found(STRANGER, 5), 0.0)
    assert other.may_claim(Found(None, 6), 1.0)  # given up by its holder


def test_who_is_displaced_is_fenced() -> None:
    one = fence()
    one.claimed(5)
    one.lost()
    assert not one.may_claim(Found(STRANGER, 6), 0.0)
    assert one.standing is Standing.FENCED


def jetstream(tmp_path: Path) -> str:
    return f'jetstream {{ store_dir: "{tmp_path / "store"}" }}'


@asynccontextmanager
async def two(server: Broker, pace: Pace = QUICK) -> AsyncIterator[tuple[Commanded, Commanded]]:
    """A node, and a second process with its id that comes later."""
    async with commanded(server.url, directory="create", pace=pace) as first:
        await first.wait_standing("held")
        async with commanded(server.url, directory="create", epoch="epoch-2", pace=pace) as second:
            await second.wait_standing("fenced")
            yield first, second


@in_loop
async def test_two_nodes_of_one_id(tmp_path: Path) -> None:
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with two(server) as (first, second), asking(server.url) as asker:
            assert (first.barred, second.barred) == ([], ["node.fenced"])
            with pytest.raises(Refused) as fenced:
                await second.control.check_fence()
            assert fenced.value.code == "node.fenced"
            assert "node.id" in fenced.value.message
            with pytest.raises(Refused):
                await second.control.check()
            assert await first.control.check_fence() == {}
            await first.wait(lambda facts: facts.get("rival") == "epoch-2")
            with pytest.raises(HostFailed) as rival:
                await first.control.check()
            assert rival.value.code == "bus.rival"
            await first.wait_ready()
            for _ in range(20):  # all of them to the first: the second takes none
                assert (await asker.told("info"))["epoch"] == "epoch-1"
            answers = await asker.client.subscribe("answers")
            await asker.client.publish("$SRV.PING.transfer-sidecar", reply="answers")
            seen = {json.loads((await answers.next_msg()).data)["metadata"]["epoch"] for _ in range(2)}
            assert seen == {"epoch-1", "epoch-2"}


@in_loop
async def test_the_id_is_free_when_its_holder_has_ended(tmp_path: Path) -> None:
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(commanded(server.url, directory="create"))
            await first.wait_standing("held")
            async with commanded(server.url, directory="create", epoch="epoch-2") as second:
                await second.wait_standing("fenced")
                await stack.aclose()
                await second.wait_standing("held")
                await second.wait_ready()
                assert second.barred == ["node.fenced", None]
                async with asking(server.url) as asker:
                    assert (await asker.told("info"))["epoch"] == "epoch-2"


@in_loop
async def test_a_killed_holders_entry_ages_and_its_own_restart_need_not_wait(tmp_path: Path) -> None:
    slow = Pace(beat_s=0.05, expiry_s=60.0, again_s=0.05)
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with asking(server.url) as asker:
            stream = asker.client.jetstream()
            bucket = await stream.create_key_value(bucket="transfer_nodes", ttl=60.0, history=1)
            await bucket.put(NODE, b'{"epoch": "killed"}')
            async with commanded(server.url, directory="verify", former=frozenset({"killed"}), pace=slow) as restarted:
                await restarted.wait_ready()
                assert restarted.control.facts()["standing"] == "held"
            await bucket.put(NODE, b'{"epoch": "killed"}')
            async with commanded(server.url, directory="verify", pace=QUICK) as stranger:
                await stranger.wait_standing("fenced")
                await stranger.wait_standing("held")  # the bucket keeps the entry for a minute, the fence half a second
                assert stranger.barred == ["node.fenced", None]
            await bucket.put(NODE, b"not JSON")
            async with commanded(server.url, directory="verify", pace=QUICK) as stranger:
                await stranger.wait_standing("fenced")
                await stranger.wait_standing("held")


@in_loop
async def test_losing_the_broker_fences_nobody_and_frees_nobody(tmp_path: Path) -> None:
    slow = Pace(beat_s=0.05, expiry_s=60.0, again_s=0.05)
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with two(server, slow) as (first, second):
            for _ in range(2):
                server.stop()
                for node in (first, second):
                    await node.wait(lambda facts: facts["commands"] is False)
                assert first.control.facts()["standing"] == "held"
                assert second.control.facts()["standing"] == "fenced"
                server.start()
                await server.wait_listening()
                await first.wait_ready()
            assert (first.barred, second.barred) == ([], ["node.fenced"])


@in_loop
async def test_a_bucket_in_memory_vanishes_and_its_holder_writes_it_anew(tmp_path: Path) -> None:
    slow = Pace(beat_s=0.05, expiry_s=60.0, again_s=0.05)
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with asking(server.url) as asker:
            stream = asker.client.jetstream()
            await stream.create_key_value(bucket="transfer_nodes", ttl=60.0, history=1, storage=StorageType.MEMORY)
        async with two(server, slow) as (first, second):
            server.stop()
            await first.wait(lambda facts: facts["commands"] is False)
            server.start()
            await server.wait_listening()
            await first.wait_ready()
            await first.wait(lambda facts: facts["directory"] == "ok")
            async with asking(server.url) as asker:
                bucket = await asker.client.jetstream().key_value("transfer_nodes")
                entry = await bucket.get(NODE)
                assert json.loads(entry.value or b"")["epoch"] == "epoch-1"
            assert (first.barred, second.barred) == ([], ["node.fenced"])


@in_loop
async def test_a_node_whose_entry_was_taken_over_meanwhile_is_fenced(tmp_path: Path) -> None:
    """A partition: the entry ages, another process claims it, and then both are there."""
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        async with commanded(server.url, directory="create") as first, asking(server.url) as asker:
            await first.wait_ready()
            bucket = await asker.client.jetstream().key_value("transfer_nodes")
            entry = json.loads((await bucket.get(NODE)).value or b"")

            async def another_one_lives() -> None:
                while True:
                    await bucket.put(NODE, json.dumps({**entry, "epoch": STRANGER}).encode())
                    await asyncio.sleep(0.1)

            living = asyncio.create_task(another_one_lives())
            await first.wait_standing("fenced")
            await first.wait(lambda facts: facts["commands"] is False)
            assert first.barred == ["node.fenced"]
            living.cancel()
            await first.wait_standing("held")
            await first.wait_ready()
            assert first.barred == ["node.fenced", None]


@in_loop
async def test_the_directory_shows_the_node_and_forgets_it(tmp_path: Path) -> None:
    with broker(tmp_path, jetstream(tmp_path)) as server:
        await server.wait_listening()
        pace = Pace(beat_s=0.05, expiry_s=1.0, again_s=0.05)
        async with asking(server.url) as asker:
            async with commanded(server.url, directory="create", pace=pace) as node:
                await node.wait_ready()
                bucket = await asker.client.jetstream().key_value("transfer_nodes")
                shown = json.loads((await bucket.get(NODE)).value or b"")
                assert shown == {**await asker.told("info"), "time": shown["time"]}
                assert (shown["url"], shown["codecs"]) == ("https://node-a.test/api/transfers", ["gzip"])
                assert (await bucket.status()).ttl == 1.0
            await bucket.put("node-b", b'{"epoch": "killed"}')
            while (await bucket.status()).values:  # noqa: ASYNC110 - what ends is told to nobody
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("has_jetstream", "words"), [(False, "no JetStream"), (True, "no bucket")])
@in_loop
async def test_without_a_directory_everything_else_works(tmp_path: Path, has_jetstream: bool, words: str) -> None:
    with broker(tmp_path, jetstream(tmp_path) if has_jetstream else "") as server:
        await server.wait_listening()
        async with commanded(server.url, directory="verify") as first, asking(server.url) as asker:
            await first.wait_ready()
            assert await asker.code("list") == ""
            with pytest.raises(HostFailed) as none:
                await first.control.check()
            assert none.value.code == "bus.no_directory"
            assert words in str(none.value.facts["directory"])
            async with commanded(server.url, directory="verify", epoch="epoch-2") as second:
                await second.wait_ready()  # nobody is fenced, and both say what they hear
                for node, rival in ((first, "epoch-2"), (second, "epoch-1")):
                    await node.wait(lambda facts, rival=rival: facts.get("rival") == rival)  # type: ignore[misc]
                    assert node.barred == []
