"""SIGKILL of either process in the middle, and a restart: it ends by itself, with one owner and one whole world."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.scene import Scene, Setting, World, set_scene

pytestmark = [pytest.mark.docker, pytest.mark.root]

HELD_AFTER = 2_000_000
SIZE_MB = 24


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_killed_while_sending(world: World, tmp_path: Path, victim: str) -> None:
    asyncio.run(_while_sending(world, tmp_path, victim))


async def _while_sending(world: World, tmp_path: Path, victim: str) -> None:
    async with set_scene(world, tmp_path, Setting(size_mb=SIZE_MB)) as scene:
        node, other = scene.source, scene.destination
        if victim == "destination":
            node, other = other, node
        scene.link.hold_after(HELD_AFTER)
        await scene.transfer(start=True)
        async with asyncio.timeout(10):
            await scene.link.held.wait()
        await scene.until_shown(scene.destination, stage="receiving")
        await node.kill()
        scene.link.release()
        await scene.until_shown(other, status="failed")
        if victim == "destination":  # the source needs nobody to start its server again
            await scene.server_is_up(scene.source, times=2)
        else:
            assert not scene.is_running(scene.source)
        await node.start()
        await scene.until_shown(node, status="failed", reason="transfer.interrupted")
        await scene.check_undone()
        assert scene.told()["success"] == []
        assert len(scene.told()["failure"]) == 1


def test_source_killed_after_the_point(world: World, tmp_path: Path) -> None:
    asyncio.run(_source_after_the_point(world, tmp_path))


async def _source_after_the_point(world: World, tmp_path: Path) -> None:
    """The destination gets the server while the source is away; the source comes back and does not start it."""
    async with set_scene(world, tmp_path, Setting(is_hurried=True)) as scene:
        await _announcing(scene)
        await scene.source.kill()
        scene.panel.release()
        await scene.until_shown(scene.destination, status="completed")
        await scene.source.start()
        await scene.until_shown(scene.source, status="completed")
        await scene.server_is_up(scene.destination, times=2)
        await scene.check_done()
        # the panel's DELETE was lost, so the files are still at their place; it is made again
        assert scene.source.volume(scene.server).exists()
        assert (await scene.source.ask("DELETE", f"/api/servers/{scene.server}")).status_code == 204
        await scene.until(lambda: scene.container(scene.source) is None, "the source's container to be removed")
        (kept,) = scene.source.trash(scene.server)
        assert scene.differences(kept, scene.destination.volume(scene.server), is_running=True) == []


def test_destination_killed_after_the_commit_while_its_success_arrives(world: World, tmp_path: Path) -> None:
    asyncio.run(_success_arrives(world, tmp_path))


async def _success_arrives(world: World, tmp_path: Path) -> None:
    """The panel moves the server although nobody hears its answer: the destination learns it when it is back."""
    async with set_scene(world, tmp_path, Setting(is_hurried=True)) as scene:
        scene.hold("failure")  # that of the source, which comes second
        await _announcing(scene)
        await scene.destination.kill()
        await scene.until_held("failure")
        assert (await scene.source.view(scene.server))["in_doubt"]
        assert not scene.is_running(scene.source)
        scene.panel.release()
        await scene.until_shown(scene.source, status="completed")
        await scene.destination.start()
        await scene.until_shown(scene.destination, status="completed")
        await scene.server_is_up(scene.destination, times=2)
        await scene.check_done()
        assert scene.told() == {"success": ["node-b"], "failure": [], "delete": ["node-a"]}
        await scene.until(lambda: scene.container(scene.source) is None, "the source's container to be removed")
        (kept,) = scene.source.trash(scene.server)
        assert scene.differences(kept, scene.destination.volume(scene.server), is_running=True) == []


def test_destination_killed_after_the_commit_before_its_success_arrives(world: World, tmp_path: Path) -> None:
    asyncio.run(_success_is_too_late(world, tmp_path))


async def _success_is_too_late(world: World, tmp_path: Path) -> None:
    """The source ends the transfer first: its server runs again, and the committed files go to trash, not away."""
    async with set_scene(world, tmp_path, Setting(is_hurried=True)) as scene:
        await _announcing(scene)
        await scene.destination.kill()
        await scene.until_shown(scene.source, status="failed")
        await scene.server_is_up(scene.source, times=2)
        await scene.destination.start()
        await scene.until_shown(scene.destination, status="failed", reason="transfer.disowned")
        scene.panel.release()  # the call of the dead process is answered 409
        await scene.check_undone()
        assert scene.told() == {"success": [], "failure": ["node-a"], "delete": []}
        (disowned,) = scene.destination.trash(scene.server)
        assert scene.differences(scene.source.volume(scene.server), disowned, is_running=True) == []


async def _announcing(scene: Scene) -> None:
    """Begin a transfer, and return when its files are committed and the panel is being told."""
    scene.hold("success")
    await scene.transfer(start=True)
    await scene.until_held("success")
