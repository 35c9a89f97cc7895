"""A real game server moves from node to node, and everyone who listens learns it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from integration.game_server import SAVED, USER, answers, sessions
from integration.listeners import open_page
from integration.scene import Setting, World, set_scene

pytestmark = [pytest.mark.docker, pytest.mark.root]

ON_TIME = r"[A-Z][a-z]{2} \d\d \d{4} \d\d:\d\d:\d\d"
LINE = re.compile(rf"\[yellow\]\[bold\]{ON_TIME} \[Transfer System\] \[(Source|Destination) Node\]:\[default\] \S.*")


def test_running_server_moves_and_is_started_there(world: World, tmp_path: Path) -> None:
    asyncio.run(_moves_and_is_started(world, tmp_path))


async def _moves_and_is_started(world: World, tmp_path: Path) -> None:
    setting = Setting(size_mb=20, container={"restart_policy": {"Name": "unless-stopped"}})
    async with set_scene(world, tmp_path, setting) as scene, AsyncExitStack() as stack:
        server, source, destination = scene.server, scene.source, scene.destination
        here, there = ((address.ip, address.port) for address in scene.addresses)
        if world.game.answers:
            await scene.until(lambda: answers(here), "the game to answer at the source")
        # the destination waits for its configuration, so that a page can be opened before anything has arrived
        scene.hold("configuration", after=1)
        pages = [
            await stack.enter_async_context(open_page(source.url, server, token=source.token, origin=scene.panel.url))
        ]

        await scene.transfer(start=True)
        stopped = scene.container(source)
        assert stopped is not None
        assert not stopped["State"]["Running"], "202 before the server had stopped"
        assert stopped["RestartCount"] == 0
        await scene.until_held("configuration")
        pages.append(
            await stack.enter_async_context(
                open_page(destination.url, server, token=destination.token, origin=scene.panel.url)
            )
        )
        scene.panel.release()
        for node in (destination, source):
            await scene.until_shown(node, status="completed")
        await scene.server_is_up(destination, times=2)

        # one owner, one running server, the panel told once
        await scene.check_done()
        assert scene.told() == {"success": ["node-b"], "failure": [], "delete": ["node-a"]}
        assert len(scene.panel.calls_of("success")) == 1
        await scene.until(lambda: scene.container(source) is None, "the source's container to be removed")
        assert not source.volume(server).exists()
        if world.game.answers:
            await scene.until(lambda: answers(there), "the game to answer at the destination, where it was allocated")
            assert not answers(here)

        # the same world, with what the server wrote while it ended, and owned by the user of servers
        (kept,) = source.trash(server)
        volume = destination.volume(server)
        assert scene.differences(kept, volume, is_running=True) == []
        assert sessions(kept)[-1] == SAVED
        assert sessions(volume)[: len(sessions(kept))] == sessions(kept)
        assert (volume.stat().st_uid, volume.stat().st_gid) == USER
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in volume.rglob("*")} == {USER}

        # the bus: every status in order, no number missing, lines as documented
        for name in (source.name, destination.name):
            await scene.until(partial(_has_ended, scene.bus.statuses, name, server), "the bus to tell the end")
            assert scene.bus.statuses(name, server) == ["pending", "processing", "completed"]
            lines = scene.bus.lines(name, server)
            assert lines
            assert [line for line in lines if not LINE.fullmatch(line)] == []
        await scene.until(lambda: len(scene.bus.numbers(server)) == 2, "both nodes' events")
        numbers = scene.bus.numbers(server)
        assert len({transfer for _, transfer in numbers}) == 1, "the two ends do not share the transfer's id"
        for found in numbers.values():
            assert found == list(range(1, len(found) + 1))

        # the pages: both dialects
        for page, documented, daemon in (
            (pages[0], ["pending", "processing", "completed"], ["processing", "completed"]),
            (pages[1], ["pending", "processing", "completed"], ["success", "completed"]),
        ):
            await scene.until(partial(_has_ended, page.words, "transfer status"), "the page to hear the end")
            assert page.words("transfer.status") == documented
            assert page.words("transfer status") == daemon
            assert page.words("transfer.logs")
            assert [line for line in page.words("transfer.logs") if not LINE.fullmatch(line)] == []
            assert all("[Transfer System]" in line for line in page.words("transfer logs"))


def _has_ended(statuses: Callable[..., list[str]], *args: str) -> bool:
    return statuses(*args)[-1:] == ["completed"]


def test_stopped_where_it_was_asked_to_stay_stopped(world: World, tmp_path: Path) -> None:
    asyncio.run(_stays_stopped(world, tmp_path))


async def _stays_stopped(world: World, tmp_path: Path) -> None:
    """Without `start_on_completion` the trees are equal to the last byte, and the container is there, not running."""
    async with set_scene(world, tmp_path) as scene:
        await scene.transfer()
        for node in (scene.destination, scene.source):
            await scene.until_shown(node, status="completed")
        await scene.until(lambda: scene.container(scene.source) is None, "the source's container to be removed")
        await scene.check_done()

        (kept,) = scene.source.trash(scene.server)
        assert scene.differences(kept, scene.destination.volume(scene.server)) == []
        made = scene.container(scene.destination)
        assert made is not None
        assert made["State"]["Status"] == "created"
        assert scene.told() == {"success": ["node-b"], "failure": [], "delete": ["node-a"]}
