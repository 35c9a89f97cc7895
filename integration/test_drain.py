"""SIGTERM, as a rolling update sends it: what runs is ended, nothing is begun, and the process goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.nodes import Node
from integration.scene import PATIENCE_S, Scene, Setting, World, set_scene

pytestmark = [pytest.mark.docker, pytest.mark.root]

HELD_AFTER = 2_000_000  # in the middle, whatever lies in buffers


def test_sigterm_at_both_ends_lets_a_transfer_end(world: World, tmp_path: Path) -> None:
    asyncio.run(_both_ends(world, tmp_path))


async def _both_ends(world: World, tmp_path: Path) -> None:
    async with set_scene(world, tmp_path, Setting(size_mb=24, shutdown_grace_s=300.0)) as scene:
        scene.link.hold_after(HELD_AFTER)
        await scene.transfer(start=True)
        async with asyncio.timeout(PATIENCE_S):
            await scene.link.held.wait()
        await scene.until_shown(scene.destination, status="processing")  # what is held may be unread
        for node in (scene.source, scene.destination):
            node.terminate()
            await _until_stopping(scene, node)
            assert (await node.ask("GET", "/healthz")).status_code == 200
        other = "12345678-1234-4234-8234-123456789012"
        scene.source.volume(other).mkdir()
        body = {"url": f"{scene.link.url}/api/transfers", "token": "Bearer x"}
        answer = await scene.source.ask("POST", f"/api/servers/{other}/transfer", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "node.stopping")
        scene.link.release()
        async with asyncio.timeout(PATIENCE_S):
            assert await scene.source.exit_code() == 0
            assert await scene.destination.exit_code() == 0
        assert scene.panel.owner(scene.server) == scene.destination.name
        assert scene.panel.transfer(scene.server) is None
        assert not scene.is_running(scene.source)
        await scene.server_is_up(scene.destination)
        assert not scene.destination.leftovers()


def test_a_second_signal_does_not_wait(world: World, tmp_path: Path) -> None:
    asyncio.run(_hurried(world, tmp_path))


async def _hurried(world: World, tmp_path: Path) -> None:
    """As after the grace period: the source is told that nothing will arrive, and its server runs again."""
    async with set_scene(world, tmp_path, Setting(size_mb=24, shutdown_grace_s=300.0)) as scene:
        scene.link.hold_after(HELD_AFTER)
        await scene.transfer(start=True)
        async with asyncio.timeout(PATIENCE_S):
            await scene.link.held.wait()
        await scene.until_shown(scene.destination, status="processing")  # what is held may be unread
        for _ in range(2):  # the same one, passed on twice
            scene.destination.terminate()
        await _until_stopping(scene, scene.destination)
        await asyncio.sleep(1.2)  # no longer the same one
        assert (await scene.destination.ask("GET", "/healthz")).status_code == 200
        scene.destination.terminate()
        async with asyncio.timeout(PATIENCE_S):
            assert await scene.destination.exit_code() == 0
        scene.link.release()
        await scene.destination.start()
        await scene.until_shown(scene.source, status="failed")
        await scene.check_undone()


async def _until_stopping(scene: Scene, node: Node) -> None:
    for _ in range(200):
        answer = await node.ask("GET", "/readyz")
        if answer.status_code == 503:
            break
        await asyncio.sleep(0.05)
    assert answer.json()["checks"]["node"]["code"] == "node.stopping", (answer.text, scene.source.log_tail())
