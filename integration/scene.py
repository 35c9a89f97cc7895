"""What every test here sets up: a panel, a broker, two nodes as processes, and a game server that runs on the first.

`until` waits for what a test expects; when it does not come, the failure shows both nodes' logs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import docker
import msgspec

from integration.engines import Engine, Engines
from integration.game_server import DATA_TARGET, USER, WRITTEN, GameServer, make_volume, sessions
from integration.link import Link, link_to
from integration.listeners import BusEvents, listening_bus
from integration.nodes import HURRIED, PROGRAM, Node
from sidecar.demo.compare import Difference, compare
from sidecar.demo.nats import run_nats
from sidecar.demo.node import free_port
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Allocation, ServerKind

PATIENCE_S: Final = 30.0
_POLL_S: Final = 0.03
_ADDRESSES: Final = ("127.0.0.2", "127.0.0.3")


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between tests."""

    size_mb: int = 6
    stop: tuple[str, str] = ("signal", "C")
    stop_policy: str = "fail"
    stop_timeout_s: float = 10.0
    stall_timeout_s: float = 20.0
    retain_s: int = 3600
    shutdown_grace_s: float = 0.0
    is_hurried: bool = False
    container: dict[str, Any] = {}  # of the server's container on the first node, beside what a daemon says
    variables: dict[str, str] = {}  # of the server, on both nodes


class World(msgspec.Struct, frozen=True):
    """What the session's fixtures give."""

    engines: Engines
    game: GameServer


class Scene:
    """One server and everything around it. Use `set_scene`."""

    def __init__(
        self,
        world: World,
        setting: Setting,
        panel: StandInPanel,
        bus: BusEvents,
        source: Node,
        destination: Node,
        link: Link | None,
        server: str,
        addresses: tuple[Allocation, Allocation],
    ) -> None:
        self.world = world
        self.panel = panel
        self.bus = bus
        self.source = source
        self.destination = destination
        self._link = link
        self.server = server
        self.addresses = addresses
        self._setting = setting
        self._names = (source_name(world.engines, server), server)
        self._heard: Counter[str] = Counter()  # calls of the nodes to the panel, by route
        self._held: dict[str, int] = {}
        panel.before_call = self._hear

    @property
    def link(self) -> Link:
        """What carries the upload, where it is one of ours."""
        assert self._link is not None
        return self._link

    # -- what the panel does -------------------------------------------------------------------------------------------
    async def transfer(self, *, start: bool = False) -> None:
        """An administrator's click. Raises TransferNotStarted."""
        await self.panel.start_transfer(self.server, self.destination.name, start_on_completion=start)

    def hold(self, route: str, *, after: int = 0) -> None:
        """Let the panel keep a call of a node without deciding it, until `panel.release`; `after`: how many pass."""
        self.panel.script(route, *["ok"] * after, "hold")
        self._held[route] = self._heard[route] + after + 1

    async def until_held(self, route: str) -> None:
        await self.until(lambda: self._heard[route] >= self._held[route], f"the panel's {route} to be called")

    def _hear(self, route: str) -> None:
        self._heard[route] += 1

    async def cancel(self, node: Node) -> int:
        """The documented DELETE on one of the nodes; its status."""
        path = f"/api/servers/{self.server}/transfer" if node is self.source else f"/api/transfers/{self.server}"
        return (await node.ask("DELETE", path)).status_code

    def told(self) -> dict[str, list[str | None]]:
        """Which nodes' calls the panel has accepted, and where it has deleted."""
        return {
            route: [c.node for c in self.panel.calls_of(route) if c.status is not None and c.status < 300]
            for route in ("success", "failure", "delete")
        }

    # -- what runs -----------------------------------------------------------------------------------------------------
    def container(self, node: Node) -> dict[str, Any] | None:
        """The server's container on a node as its engine shows it, or None."""
        engine, name = self._place(node)
        try:
            found: dict[str, Any] = engine.client.containers.get(name).attrs
        except docker.errors.NotFound:
            return None
        return found

    def is_running(self, node: Node) -> bool:
        details = self.container(node)
        return details is not None and bool(details["State"]["Running"])

    def start_from_outside(self) -> None:
        """Somebody types `docker start` on the source's machine."""
        engine, name = self._place(self.source)
        engine.client.containers.get(name).start()

    def _place(self, node: Node) -> tuple[Engine, str]:
        engines = self.world.engines
        return (engines.first, self._names[0]) if node is self.source else (engines.second, self._names[1])

    def make_container(self) -> None:
        """As a daemon makes it on the first node."""
        engine, name = self._place(self.source)
        variables = {"STARTUP": _startup(self.world.game, self.addresses[0]), **self._setting.variables}
        made = engine.client.containers.create(
            self.world.game.image,
            name=name,
            hostname=None,
            tty=True,
            stdin_open=True,
            user=f"{USER[0]}:{USER[1]}",
            network_mode="host",
            read_only=True,
            tmpfs={"/tmp": "rw,exec,nosuid,size=100M"},
            security_opt=["no-new-privileges"],
            labels={"Service": "Pterodactyl", "ContainerType": "server_process"},
            environment=variables,
            volumes={str(self.source.volume(self.server)): {"bind": DATA_TARGET, "mode": "rw"}},
            **self._setting.container,
        )
        made.start()

    def remove_containers(self) -> None:
        for node in (self.source, self.destination):
            engine, name = self._place(node)
            try:
                engine.client.containers.get(name).remove(force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # 409: the node is removing it
                    raise

    # -- what is expected ----------------------------------------------------------------------------------------------
    async def until(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Wait until it holds; it is looked at in a thread, because it may ask an engine."""

        async def holds() -> bool:
            return await asyncio.to_thread(condition)

        await self._until(holds, what, patience_s)

    async def until_shown(self, node: Node, patience_s: float = PATIENCE_S, **fields: Any) -> dict[str, Any]:
        """Wait until the node's view of the transfer has these fields. Returns the view."""
        seen: dict[str, Any] = {}

        async def holds() -> bool:
            seen.update(await node.view(self.server))
            return all(seen.get(name) == value for name, value in fields.items())

        await self._until(holds, f"{node.name} to show {fields}", patience_s, seen)
        return seen

    async def _until(
        self, holds: Callable[[], Awaitable[bool]], what: str, patience_s: float, seen: object = ""
    ) -> None:
        try:
            async with asyncio.timeout(patience_s):
                while not await holds():  # noqa: ASYNC110 - other processes do not tell
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            logs = "\n".join(node.log_tail() for node in (self.source, self.destination))
            raise AssertionError(f"waited in vain for {what}; {seen}\n{self.panel.calls}\n{logs}") from None

    async def server_is_up(self, node: Node, times: int = 1) -> None:
        """Wait until the game has said `times` times that it was started in the node's volume."""

        def is_up() -> bool:
            said = sessions(node.volume(self.server))
            return sum(line.startswith("started") for line in said) >= times and self.is_running(node)

        await self.until(is_up, f"the server to run on {node.name}")

    def differences(self, left: Path, right: Path, *, is_running: bool = False) -> list[Difference]:
        """Between two volumes; `is_running`: apart from what a running server writes, and the directories of that."""
        found = compare(left, right)
        assert found.entries > 20, "there is next to nothing to compare"
        if not is_running:
            return list(found.differences)
        folders = {str(Path(path).parent) for path in WRITTEN}
        return [d for d in found.differences if d.path not in WRITTEN and d.path not in folders]

    async def check_undone(self, *, times_started: int = 2) -> None:
        """The server is the source's and runs there again; nothing of it is left at the destination."""
        await self.server_is_up(self.source, times_started)
        await self.until(lambda: not self.destination.leftovers(), "the staging directory to go")
        assert self.container(self.destination) is None or self.world.engines.is_shared
        assert not self.destination.volume(self.server).exists()
        assert self.panel.owner(self.server) == self.source.name
        assert self.panel.transfer(self.server) is None
        assert not self.source.trash(self.server)

    async def check_done(self) -> None:
        """The server is the destination's, whole; at the source is nothing but what was moved to trash."""
        assert self.panel.owner(self.server) == self.destination.name
        assert self.panel.transfer(self.server) is None
        assert not self.is_running(self.source)
        assert not self.destination.leftovers()


class MakesNode(Protocol):
    """How a node comes to be: `Node`, or another that is used like it."""

    def __call__(
        self,
        name: str,
        directory: Path,
        *,
        host: str,
        port: int,
        url: str,
        sections: Mapping[str, Mapping[str, Any]],
        program: tuple[str, ...],
    ) -> Node: ...


@contextlib.asynccontextmanager
async def set_scene(
    world: World, directory: Path, setting: Setting | None = None, *, make_node: MakesNode = Node
) -> AsyncIterator[Scene]:
    """Everything runs when this is entered, and is gone when it is left."""
    setting = setting or Setting()
    server = str(uuid4())
    async with AsyncExitStack() as stack:
        (directory / "nats").mkdir(parents=True)
        panel = (await stack.enter_async_context(PanelServer())).panel
        broker = await stack.enter_async_context(run_nats(directory / "nats"))
        bus = await stack.enter_async_context(listening_bus(broker.url))
        nodes = []
        for name, engine in (("node-a", world.engines.first), ("node-b", world.engines.second)):
            sections = node_sections(setting, engine, panel.url) | {"nats": {"url": broker.url}}
            if world.engines.is_shared and name == "node-a":
                sections[f"servers.{server}"] = {"container": source_name(world.engines, server)}
            port = free_port()
            node = make_node(
                name,
                directory / name,
                host="127.0.0.1",
                port=port,
                url=f"http://127.0.0.1:{port}",
                sections=sections,
                program=HURRIED if setting.is_hurried else PROGRAM,
            )
            nodes.append(node)
        source, destination = nodes
        link = await stack.enter_async_context(link_to(destination.port))
        addresses = introduce(panel, world, setting, server, source, destination, destination_url=link.url)
        scene = Scene(world, setting, panel, bus, source, destination, link, server, addresses)
        await asyncio.to_thread(make_volume, source.volume(server), setting.size_mb)
        stack.push_async_callback(asyncio.to_thread, scene.remove_containers)  # when no node makes any more
        for node in nodes:
            stack.push_async_callback(node.stop)
        await asyncio.to_thread(scene.make_container)
        await asyncio.gather(source.start(), destination.start(), scene.server_is_up(source))
        yield scene


def introduce(
    panel: StandInPanel,
    world: World,
    setting: Setting,
    server: str,
    source: Node,
    destination: Node,
    *,
    destination_url: str,
) -> tuple[Allocation, Allocation]:
    """Tell the panel of both nodes and of the server. Returns the server's address on each."""
    panel.add_node(source.name, token_id=source.token_id, token=source.token, url=source.url)
    panel.add_node(destination.name, token_id=destination.token_id, token=destination.token, url=destination_url)
    first, second = (Allocation(ip=ip, port=free_port()) for ip in _ADDRESSES)
    kind = ServerKind(
        image=f"~{world.game.image}",
        invocation=world.game.invocation,
        environment=dict(setting.variables),
        stop=setting.stop,
    )
    panel.add_server(server, source.name, kind, {source.name: first, destination.name: second})
    return first, second


def node_sections(setting: Setting, engine: Engine, panel_url: str) -> dict[str, dict[str, Any]]:
    """The settings of a node, apart from its own identity and places."""
    return {
        "panel": {"url": panel_url, "call_timeout_s": 5.0},
        "servers": {"owner": f"{USER[0]}:{USER[1]}"},
        "containers": {
            "runtime": "docker",
            "host": engine.url,
            "network": "host",
            "data_target": DATA_TARGET,
            "stop_policy": setting.stop_policy,
            "stop_timeout_s": setting.stop_timeout_s,
        },
        "transfer": {
            "progress_interval_s": 0.5,
            "stall_timeout_s": setting.stall_timeout_s,
            "retain_s": setting.retain_s,
            "shutdown_grace_s": setting.shutdown_grace_s,
            "allowed_destinations": ("http://127.0.0.1:*", "192.0.2.0/24"),
        },
        "limits": {"reserve_bytes": 64 * 1024 * 1024},
    }


def source_name(engines: Engines, server: str) -> str:
    """Of the container on the first node."""
    return f"{server}-first" if engines.is_shared else server


def _startup(game: GameServer, address: Allocation) -> str:
    return game.invocation.replace("{{SERVER_IP}}", address.ip).replace("{{SERVER_PORT}}", str(address.port))
