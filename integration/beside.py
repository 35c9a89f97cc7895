"""Two nodes as processes, each in front of a stand-in node daemon with a Docker engine of its own, and a game server.

The daemons live in the test's process, so that a test sees what they saw; everything else is as it is run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import docker

from integration.engines import Engine
from integration.game_server import LABEL, SESSIONS, make_volume, sessions
from integration.nodes import HURRIED, Node
from integration.scene import Setting, World, node_sections, source_name
from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.daemon_containers import EngineContainers
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Allocation, Family, ServerKind

NAMES: Final = ("node-a", "node-b")
PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.03


class BesideScene:
    """The server runs on `a`, by a's daemon. Use `set_beside`."""

    def __init__(self, world: World, panel: StandInPanel, server: str) -> None:
        self.world = world
        self.panel = panel
        self.server = server
        self.nodes: dict[str, Node] = {}
        self.daemons: dict[str, StandInDaemon] = {}

    @property
    def a(self) -> Node:
        return self.nodes["node-a"]

    @property
    def b(self) -> Node:
        return self.nodes["node-b"]

    def engine(self, name: str) -> Engine:
        return self.world.engines.first if name == "node-a" else self.world.engines.second

    def container_name(self, name: str) -> str:
        return source_name(self.world.engines, self.server) if name == "node-a" else self.server

    def name_at(self, name: str, _: str) -> str:
        """As `EngineContainers` asks for it."""
        return self.container_name(name)

    async def move(self, *, start: bool = True, backups: tuple[str, ...] = ()) -> None:
        """An administrator's click. Raises TransferNotStarted."""
        await self.panel.start_transfer(self.server, "node-b", start_on_completion=start, backups=backups)

    def state(self, name: str) -> str | None:
        """What the daemon says of the server; None: it does not know it."""
        found = self.daemons[name].find(self.server)
        return None if found is None else found.state

    async def is_running(self, name: str) -> bool:
        """What its engine says."""

        def look() -> bool:
            try:
                found = self.engine(name).client.containers.get(self.container_name(name))
            except docker.errors.NotFound:
                return False
            return bool(found.attrs["State"]["Running"])

        return await asyncio.to_thread(look)

    def said(self, name: str) -> list[str]:
        """What the game said in that node's volume."""
        return sessions(self.nodes[name].volume(self.server))

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not holds():  # noqa: ASYNC110 - other processes do not tell
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            logs = "\n".join(node.log_tail() for node in self.nodes.values())
            raise AssertionError(f"waited in vain for {what}\n{self.panel.calls}\n{logs}") from None

    async def until_shown(self, name: str, **fields: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while any(seen.get(field) != value for field, value in fields.items()):
                    await asyncio.sleep(_POLL_S)
                    seen = await self.nodes[name].view(self.server)
        except TimeoutError:
            logs = "\n".join(node.log_tail() for node in self.nodes.values())
            raise AssertionError(f"waited in vain for {fields} on {name}: {seen}\n{logs}") from None
        return seen

    async def until_up(self, name: str, times: int) -> None:
        """The game has said `times` times in that node's volume that it was started, and runs."""

        def is_up() -> bool:
            return sum(line.startswith("started") for line in self.said(name)) >= times and (
                self.state(name) == "running"
            )

        await self.until(is_up, f"the server to run on {name}")
        assert await self.is_running(name)

    async def check_moved(self) -> None:
        """b owns and runs it, once; a has forgotten it and keeps its files in trash."""
        assert self.panel.owner(self.server) == "node-b" and self.panel.transfer(self.server) is None
        await self.until(lambda: self.state("node-a") is None, "a's daemon to forget the server")
        assert [known.uuid for known in self.daemons["node-b"].servers].count(self.server) == 1
        assert not await self.is_running("node-a")
        assert not self.a.volume(self.server).exists() and len(self.a.trash(self.server)) == 1
        assert not self.b.leftovers() and not self.a.leftovers()

    async def check_undone(self, times_started: int) -> None:
        """a owns it and runs it again; b does not know it and runs nothing."""
        await self.until_up("node-a", times_started)
        await self.until(lambda: not self.b.leftovers(), "the staging directory to go")
        assert self.panel.owner(self.server) == "node-a" and self.panel.transfer(self.server) is None
        assert self.state("node-b") is None and not await self.is_running("node-b")
        assert not self.b.volume(self.server).exists()

    def remove_containers(self) -> None:
        for name in NAMES:
            try:
                self.engine(name).client.containers.get(self.container_name(name)).remove(force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # 409: a daemon is removing it
                    raise


@contextlib.asynccontextmanager
async def set_beside(
    world: World, directory: Path, family: Family, *, size_mb: int = 6, is_source_beside: bool = True
) -> AsyncIterator[BesideScene]:
    """Everything runs when this is entered, and is gone when it is left. `is_source_beside`: False: node a stops its
    servers at Docker itself, although a daemon runs them."""
    server = str(uuid4())
    setting = Setting(size_mb=size_mb)
    async with AsyncExitStack() as stack:
        panel_server = await stack.enter_async_context(PanelServer(StandInPanel(family=family)))
        panel = panel_server.panel
        scene = BesideScene(world, panel, server)
        for name in NAMES:
            sections = node_sections(setting, scene.engine(name), panel.url)
            if scene.container_name(name) != server:
                sections[f"servers.{server}"] = {"container": scene.container_name(name)}
            port = free_port()
            home = directory / name
            token_id, token = f"tokenIdOf{name[-1].upper()}", f"token-of-{name}-0123456789abcdef0123"
            panel.add_node(name, token_id=token_id, token=token, url=f"http://127.0.0.1:{port}")
            containers = EngineContainers(
                scene.engine(name).url, labels={LABEL: "1"}, name=partial(scene.name_at, name)
            )
            daemon = StandInDaemon(
                family,
                token_id=token_id,
                token=token,
                volumes=home / "volumes",
                panel_url=panel.url,
                containers=containers,
                crash_delay_s=0.5,
            )
            scene.daemons[name] = daemon
            if is_source_beside or name != "node-a":
                sections["api"] = {"host": "127.0.0.1", "port": port, "front": True}
                sections["daemon"] = {"url": await stack.enter_async_context(_running(daemon))}
                logs = daemon.shelves.logs if family is Family.CALAGOPUS else daemon.shelves.logs / "install"
                sections["servers"] |= {"backups": daemon.shelves.backups, "install_logs": logs}
            else:
                await stack.enter_async_context(_running(daemon))
            scene.nodes[name] = _node(name, home, port, sections)
        kind = ServerKind(
            image=f"~{world.game.image}", invocation=world.game.invocation, environment={}, stop=("command", "stop")
        )
        address = Allocation(ip="127.0.0.1", port=free_port())
        panel.add_server(server, "node-a", kind, dict.fromkeys(NAMES, address))
        await asyncio.to_thread(make_volume, scene.a.volume(server), size_mb)
        stack.push_async_callback(asyncio.to_thread, scene.remove_containers)
        for node in scene.nodes.values():
            stack.push_async_callback(node.stop)
        await scene.daemons["node-a"].restart()  # it lists its servers from the panel
        await asyncio.gather(*(node.start() for node in scene.nodes.values()))
        owned = scene.daemons["node-a"].find(server)
        assert owned is not None
        scene.daemons["node-a"].power.act(owned, "start")
        await scene.until(lambda: (scene.a.volume(server) / SESSIONS).exists(), "the game to start")
        await scene.until_up("node-a", 1)
        yield scene


def _node(name: str, home: Path, port: int, sections: dict[str, dict[str, Any]]) -> Node:
    return Node(
        name,
        home,
        host="127.0.0.1",
        port=port,
        url=f"http://127.0.0.1:{port}",
        sections=sections,
        program=HURRIED,
    )


@contextlib.asynccontextmanager
async def _running(daemon: StandInDaemon) -> AsyncIterator[str]:
    async with daemon:
        yield daemon.url
