"""How a server is stopped, or does not stop, or does not stay stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.game_server import SAVED, sessions
from integration.scene import Setting, World, set_scene
from sidecar.demo.panel import TransferNotStarted

pytestmark = [pytest.mark.docker, pytest.mark.root]

UNLESS_STOPPED: dict[str, Any] = {"restart_policy": {"Name": "unless-stopped"}}
STUBBORN = {"IGNORES_TERM": "1"}


def test_stop_typed_at_the_console(world: World, tmp_path: Path) -> None:
    asyncio.run(_stop_typed(world, tmp_path))


async def _stop_typed(world: World, tmp_path: Path) -> None:
    """A server that ends by itself is brought back by its restart policy, if that is not disarmed."""
    setting = Setting(stop=("command", "stop"), container=UNLESS_STOPPED)
    async with set_scene(world, tmp_path, setting) as scene:
        scene.hold("success")
        await scene.transfer()
        await scene.until_held("success")
        stopped = scene.container(scene.source)
        assert stopped is not None
        assert (stopped["State"]["Status"], stopped["State"]["ExitCode"], stopped["RestartCount"]) == ("exited", 0, 0)
        assert sessions(scene.source.volume(scene.server))[1:] == ["asked to end by console", SAVED]
        scene.panel.release()
        for node in (scene.source, scene.destination):
            await scene.until_shown(node, status="completed")
        await scene.check_done()


def test_server_that_does_not_stop_is_left_running(world: World, tmp_path: Path) -> None:
    asyncio.run(_does_not_stop(world, tmp_path))


async def _does_not_stop(world: World, tmp_path: Path) -> None:
    setting = Setting(stop=("signal", "SIGTERM"), stop_timeout_s=1.0, container=UNLESS_STOPPED, variables=STUBBORN)
    async with set_scene(world, tmp_path, setting) as scene:
        with pytest.raises(TransferNotStarted) as refused:
            await scene.transfer()
        assert refused.value.status == 500
        answer = msgspec.json.decode(refused.value.body)
        assert answer["code"] == "server.stop_timeout"
        assert answer["error"]
        assert answer["request_id"]

        details = scene.container(scene.source)
        assert details is not None
        assert details["State"]["Running"]
        assert details["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert sessions(scene.source.volume(scene.server))[1:] == ["ignored"]
        assert await scene.destination.view(scene.server) == {}
        assert scene.told() == {"success": [], "failure": [], "delete": []}


def test_server_that_does_not_stop_is_killed_where_the_settings_say_so(world: World, tmp_path: Path) -> None:
    asyncio.run(_is_killed(world, tmp_path))


async def _is_killed(world: World, tmp_path: Path) -> None:
    setting = Setting(
        stop=("signal", "SIGTERM"), stop_policy="kill", stop_timeout_s=1.0, container=UNLESS_STOPPED, variables=STUBBORN
    )
    async with set_scene(world, tmp_path, setting) as scene:
        await scene.transfer(start=True)
        for node in (scene.source, scene.destination):
            await scene.until_shown(node, status="completed")
        await scene.server_is_up(scene.destination, times=2)
        await scene.check_done()
        (kept,) = scene.source.trash(scene.server)
        assert sessions(kept)[1:] == ["ignored"]


def test_server_started_from_outside_is_not_moved(world: World, tmp_path: Path) -> None:
    asyncio.run(_started_from_outside(world, tmp_path))


async def _started_from_outside(world: World, tmp_path: Path) -> None:
    """Its files change while they are read: what has arrived is thrown away, and the server goes on where it is."""
    async with set_scene(world, tmp_path, Setting(size_mb=24, container=UNLESS_STOPPED)) as scene:
        scene.link.hold_after(2_000_000)
        await scene.transfer(start=True)
        async with asyncio.timeout(10):
            await scene.link.held.wait()
        await asyncio.to_thread(scene.start_from_outside)
        await scene.until_shown(scene.source, status="failed", reason="server.started_outside")
        scene.link.release()
        await scene.until_shown(scene.destination, status="failed")
        await scene.check_undone()
        details = scene.container(scene.source)
        assert details is not None
        assert details["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert scene.told()["success"] == []
        assert scene.told()["failure"] != []
