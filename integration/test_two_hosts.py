"""Two hosts with a cable between them, which is pulled in the middle of a transfer and plugged in again."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from integration.game_server import make_volume
from integration.listeners import BusEvents
from integration.namespaces import Host, NoNamespaces, door_in, door_out, two_hosts
from integration.nodes import HURRIED, Node
from integration.scene import Scene, Setting, World, introduce, node_sections, source_name
from sidecar.demo.panel import PanelServer

pytestmark = [pytest.mark.docker, pytest.mark.root]

PORT = 8080
STALL_S = 2.0
SIZE_MB = 24


def test_pulled_cable_is_noticed_and_undone(world: World, tmp_path: Path) -> None:
    try:
        with two_hosts() as hosts:
            asyncio.run(_pulled_cable(world, tmp_path, hosts))
    except NoNamespaces as why:
        if os.environ.get("CI"):
            pytest.fail(str(why))
        pytest.skip(str(why))


async def _pulled_cable(world: World, tmp_path: Path, hosts: tuple[Host, Host]) -> None:
    setting = Setting(size_mb=SIZE_MB, stall_timeout_s=STALL_S, is_hurried=True)
    async with AsyncExitStack() as stack:
        scene = await _set_scene(world, tmp_path, setting, hosts, stack)
        # the destination admits the upload only when half of it lies in buffers and the cable is out
        scene.hold("configuration", after=1)
        await scene.transfer(start=True)
        await scene.until_held("configuration")
        hosts[1].pull_cable()
        pulled = asyncio.get_running_loop().time()
        scene.panel.release()
        await scene.until_shown(scene.source, status="failed", reason="peer.stalled")
        await scene.until_shown(scene.destination, status="failed", reason="upload.stalled")
        assert asyncio.get_running_loop().time() - pulled < 4 * STALL_S
        await scene.check_undone()
        assert scene.told()["success"] == []

        hosts[1].plug_in()
        for node in (scene.source, scene.destination):
            await scene.until_shown(node, stage="ended")
        await scene.transfer(start=True)
        for node in (scene.source, scene.destination):
            await scene.until_shown(node, status="completed")
        await scene.server_is_up(scene.destination, times=3)
        await scene.check_done()
        (kept,) = scene.source.trash(scene.server)
        assert scene.differences(kept, scene.destination.volume(scene.server), is_running=True) == []


async def _set_scene(
    world: World, directory: Path, setting: Setting, hosts: tuple[Host, Host], stack: AsyncExitStack
) -> Scene:
    """As `scene.set_scene`, with each node on a host of its own and the panel reachable by doors of theirs."""
    server = str(uuid4())
    panel = (await stack.enter_async_context(PanelServer())).panel
    nodes = []
    for name, engine, host in zip(
        ("node-a", "node-b"), (world.engines.first, world.engines.second), hosts, strict=True
    ):
        panel_url = await stack.enter_async_context(door_out(host, panel.url))
        sections = node_sections(setting, engine, panel_url)
        if world.engines.is_shared and name == "node-a":
            sections[f"servers.{server}"] = {"container": source_name(world.engines, server)}
        node = Node(
            name,
            directory / name,
            host=host.address,
            port=PORT,
            url=await stack.enter_async_context(door_in(host, PORT)),
            sections=sections,
            program=HURRIED,
            within=host.within,
        )
        nodes.append(node)
    source, destination = nodes
    addresses = introduce(
        panel, world, setting, server, source, destination, destination_url=f"http://{hosts[1].address}:{PORT}"
    )
    scene = Scene(world, setting, panel, BusEvents(), source, destination, None, server, addresses)
    await asyncio.to_thread(make_volume, source.volume(server), setting.size_mb)
    stack.push_async_callback(asyncio.to_thread, scene.remove_containers)  # when no node makes any more
    for node in nodes:
        stack.push_async_callback(node.stop)
    await asyncio.to_thread(scene.make_container)
    await asyncio.gather(source.start(), destination.start(), scene.server_is_up(source))
    return scene
