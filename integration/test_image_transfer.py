"""Two containers of the image, each with a Docker engine of its own, move a game server from one to the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.container_nodes import ContainerNode, containers_of
from integration.game_server import USER
from integration.scene import PATIENCE_S, Scene, Setting, World, set_scene

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

HELD_AFTER = 2_000_000  # in the middle, whatever lies in buffers


def test_a_server_moves(world: World, image: str, tmp_path: Path) -> None:
    """From a node without any capability to one that gives files to another user."""
    asyncio.run(_moves(world, image, tmp_path))


async def _moves(world: World, image: str, tmp_path: Path) -> None:
    async with set_scene(world, tmp_path, Setting(size_mb=24), make_node=containers_of(image, root="node-b")) as scene:
        source, destination = _containers(scene)
        assert (await source.healthcheck(), await destination.healthcheck()) == ("healthy", "healthy")
        await scene.transfer(start=True)
        for node in (source, destination):
            await scene.until_shown(node, status="completed")
        await scene.server_is_up(destination, times=2)
        await scene.check_done()
        assert scene.told() == {"success": ["node-b"], "failure": [], "delete": ["node-a"]}
        (kept,) = source.trash(scene.server)
        volume = destination.volume(scene.server)
        assert scene.differences(kept, volume, is_running=True) == []
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (volume, *volume.rglob("*"))} == {USER}
        assert await source.stop_container(30) == 0
        assert await destination.stop_container(30) == 0


def test_docker_stop_lets_a_transfer_end(world: World, image: str, tmp_path: Path) -> None:
    asyncio.run(_ends(world, image, tmp_path))


async def _ends(world: World, image: str, tmp_path: Path) -> None:
    setting = Setting(size_mb=24, shutdown_grace_s=300.0)
    async with set_scene(world, tmp_path, setting, make_node=containers_of(image)) as scene:
        source, destination = _containers(scene)
        await _hold_in_the_middle(scene)
        stops = [asyncio.create_task(node.stop_container(300)) for node in (source, destination)]
        for node in (source, destination):
            await scene.until(lambda node=node: "stopping" in node.log.read_text(), f"{node.name} to be stopping")  # type: ignore[misc]
            assert "unhealthy" in await node.healthcheck()
        scene.link.release()
        async with asyncio.timeout(PATIENCE_S):
            assert await asyncio.gather(*stops) == [0, 0]
        assert scene.panel.owner(scene.server) == destination.name
        assert not scene.is_running(source)
        await scene.server_is_up(destination, times=2)


def test_docker_stop_in_the_middle_is_mended_by_the_next_start(world: World, image: str, tmp_path: Path) -> None:
    """The grace is over before the transfer is: it ends with code 0 all the same, and the journal hands over."""
    asyncio.run(_mended(world, image, tmp_path))


async def _mended(world: World, image: str, tmp_path: Path) -> None:
    setting = Setting(size_mb=24, shutdown_grace_s=0.5)
    async with set_scene(world, tmp_path, setting, make_node=containers_of(image, root="node-a")) as scene:
        source, destination = _containers(scene)
        await _hold_in_the_middle(scene)
        assert await source.stop_container(30) == 0
        assert not scene.is_running(source)
        scene.link.release()
        await source.start()
        await scene.until_shown(source, status="failed")
        await scene.until_shown(destination, status="failed")
        await scene.check_undone()


async def _hold_in_the_middle(scene: Scene) -> None:
    scene.link.hold_after(HELD_AFTER)
    await scene.transfer(start=True)
    async with asyncio.timeout(PATIENCE_S):
        await scene.link.held.wait()


def _containers(scene: Scene) -> tuple[ContainerNode, ContainerNode]:
    source, destination = scene.source, scene.destination
    assert isinstance(source, ContainerNode)
    assert isinstance(destination, ContainerNode)
    return source, destination
