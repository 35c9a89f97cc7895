"""DELETE at either end, at several moments: before the point nothing has happened, after it the truth is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.scene import Scene, Setting, World, set_scene
from sidecar.demo.panel import TransferNotStarted

pytestmark = [pytest.mark.docker, pytest.mark.root]

HELD_AFTER = 2_000_000  # far from the end, whatever lies in buffers
SIZE_MB = 24


def test_cancel_before_the_point_undoes_it(world: World, tmp_path: Path) -> None:
    asyncio.run(_before_the_point(world, tmp_path))


async def _before_the_point(world: World, tmp_path: Path) -> None:
    setting = Setting(size_mb=SIZE_MB, is_hurried=True, variables={"SAVES_S": "1"})
    async with set_scene(world, tmp_path, setting) as scene:
        await _cancel_while_stopping(scene)
        await scene.check_undone(times_started=2)
        assert scene.told() == {"success": [], "failure": [], "delete": []}, "the panel knew of no transfer"
        assert _statuses(scene)[scene.source.name] == ["pending", "cancelling", "cancelled"]
        assert scene.destination.name not in _statuses(scene)

        await _hold_in_the_middle(scene)
        assert await scene.cancel(scene.source) == 202
        scene.link.release()
        await scene.until_shown(scene.source, status="cancelled", reason="transfer.cancelled")
        await _free(scene)
        await scene.check_undone(times_started=3)
        assert _statuses(scene)[scene.source.name] == ["pending", "processing", "cancelling", "cancelled"]
        assert _statuses(scene)[scene.destination.name] == ["pending", "processing", "failed"]
        assert await scene.cancel(scene.source) == 409

        await _hold_in_the_middle(scene)
        assert await scene.cancel(scene.destination) == 202
        scene.link.release()
        await scene.until_shown(scene.source, status="failed")
        await _free(scene)
        await scene.check_undone(times_started=4)
        assert _statuses(scene)[scene.destination.name] == ["pending", "processing", "cancelling", "cancelled"]
        assert _statuses(scene)[scene.source.name] == ["pending", "processing", "failed"]
        assert await scene.cancel(scene.destination) == 409
        assert scene.told()["success"] == []
        assert len(scene.told()["failure"]) == 2, "each transfer that the panel knew of was ended once"


def test_cancel_after_the_point_tells_the_truth(world: World, tmp_path: Path) -> None:
    asyncio.run(_after_the_point(world, tmp_path))


async def _after_the_point(world: World, tmp_path: Path) -> None:
    async with set_scene(world, tmp_path, Setting(is_hurried=True)) as scene:
        # the source's `failure` arrives before the destination's `success`: it is undone, the files go to trash
        scene.hold("success")
        await scene.transfer(start=True)
        await scene.until_held("success")
        assert await scene.cancel(scene.source) == 202
        await scene.until_shown(scene.source, status="cancelled")
        await scene.server_is_up(scene.source, times=2)
        scene.panel.release()
        await scene.until_shown(scene.destination, status="failed", reason="transfer.disowned")
        await _free(scene)
        await scene.check_undone(times_started=2)
        assert len(scene.destination.trash(scene.server)) == 1
        assert scene.told() == {"success": [], "failure": ["node-a"], "delete": []}

        # the destination's `success` is under way when it is asked to cancel: it moves, and says so
        scene.hold("success")
        await scene.transfer(start=True)
        await scene.until_held("success")
        assert await scene.cancel(scene.destination) == 202
        scene.panel.release()
        for node in (scene.destination, scene.source):
            await scene.until_shown(node, status="completed")
        await scene.server_is_up(scene.destination, times=3)
        await scene.check_done()
        assert scene.told() == {"success": ["node-b"], "failure": ["node-a"], "delete": ["node-a"]}


async def _cancel_while_stopping(scene: Scene) -> None:
    clicking = asyncio.create_task(scene.transfer())
    await scene.until_shown(scene.source, stage="stopping")
    assert await scene.cancel(scene.source) == 202
    with pytest.raises(TransferNotStarted) as refused:
        await clicking
    assert refused.value.status == 409
    await scene.until_shown(scene.source, status="cancelled", stage="ended")


async def _hold_in_the_middle(scene: Scene) -> None:
    """Begin a transfer, and return when a part of its archive has arrived."""
    scene.link.hold_after(HELD_AFTER)
    await scene.transfer()
    async with asyncio.timeout(10):
        await scene.link.held.wait()
    await scene.until_shown(scene.destination, stage="receiving")
    assert scene.destination.leftovers()


async def _free(scene: Scene) -> None:
    """Until both ends would take another transfer of the server."""
    for node in (scene.source, scene.destination):
        await scene.until_shown(node, stage="ended")


def _statuses(scene: Scene) -> dict[str, list[str]]:
    """Of the newest transfer, by node; what the bus has told, once the ends have come."""
    newest = scene.bus.events[-1]["transfer"]
    found: dict[str, list[str]] = {}
    for event in scene.bus.events:
        if event["transfer"] == newest and event["event"] == "transfer.status":
            found.setdefault(event["node"], []).append(event["status"])
    return found
