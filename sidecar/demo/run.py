"""The whole demo: one server moves from node to node, as in production but on loopback, and every claim is checked.

    nats-server · stand-in panel · node-a · node-b        (the nodes and the broker are processes of their own)
    panel -> node-a   POST /api/servers/{server}/transfer
    node-a -> node-b  POST /api/transfers
    bus               what is shown meanwhile; nothing of it decides anything here
    beside            each node has a stand-in daemon as well, and its sidecar stands in front of it (`beside.py`)
    in the end        what is asked of the nodes and the panel over their own APIs, and the two volumes compared

The source's volume is compared where the panel's deletion left it: in the trash of node-a. Whatever happens, Ctrl-C
included, processes, containers, the image and the directory are gone afterwards, in this order.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from uuid import uuid4

import httpx
import msgspec
from rich.console import Console
from rich.text import Text

from sidecar.archive.staging import VolumeLayout
from sidecar.archive.trash import list_trash
from sidecar.bus.settings import BusSettings
from sidecar.bus.subjects import event_filter
from sidecar.bus.watch import EVENT_STREAM, Watch
from sidecar.demo import beside
from sidecar.demo.beside import BesideFailed, NodeDaemon
from sidecar.demo.compare import Comparison, compare
from sidecar.demo.game import Game, NoContainer
from sidecar.demo.nats import NatsMissing, run_nats
from sidecar.demo.node import DemoNode, NodeFailed, free_port, run_node
from sidecar.demo.panel import PanelServer, TransferNotStarted
from sidecar.demo.panel_documents import ServerKind
from sidecar.demo.show import Show
from sidecar.demo.world import World, make_world
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.statuses import Role, Status
from sidecar.watch.board import Board
from sidecar.watch.table import plain

DATA_TARGET: Final = "/home/container"
_POLL_S: Final = 0.1
_PATIENCE_S: Final = 120.0  # and a second for every 5 MB: slower than any disk
_IMPATIENCE_S: Final = 15.0  # cleaning up takes less, so a later Ctrl-C is meant
_LAST_EVENT_S: Final = 10.0  # from an end to its event on the bus
_SHOWN_DIFFERENCES: Final = 10
_NODES: Final = {"node-a": ("demoTokenIdOfNodeA", "demo-token-of-node-a-0000000000000"),
                 "node-b": ("demoTokenIdOfNodeB", "demo-token-of-node-b-0000000000000")}  # fmt: skip


P = ParamSpec("P")
T = TypeVar("T")


class DemoFailed(Exception):
    """Something that the demo claims did not happen."""


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that runs."""

    server: str  # a new UUID in each run, because it names a container
    panel: PanelServer
    nats_url: str
    source: DemoNode
    destination: DemoNode
    world: World
    game: Game | None
    daemons: Mapping[str, NodeDaemon]  # by node; empty where the nodes are on their own


def run(*, size_mb: int, use_docker: bool | None = None, keep: bool = False, is_beside: bool = False) -> int:
    """The exit code: 0 when every claim held, 1 when one did not, 130 after Ctrl-C."""
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # in a file a line stays a line
    try:
        asyncio.run(_interruptible(_demo(console, size_mb, use_docker, keep, is_beside)))
    except (DemoFailed, BesideFailed, NodeFailed, NatsMissing, NoContainer) as failed:
        console.print(Text(f"The demo failed: {failed}", "bold red"))
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):  # the former before the demo has begun
        console.print("\nInterrupted; nothing is left behind.")
        return 130
    return 0


async def _interruptible(demo: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C and SIGTERM cancel the demo, so that it cleans up; impatient ones do not disturb it in that."""
    task = asyncio.ensure_future(demo)
    loop = asyncio.get_running_loop()
    last: list[float] = []

    def end() -> None:
        if not last or loop.time() - last[-1] > _IMPATIENCE_S:
            last.append(loop.time())
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    await task


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Blocking work. If cancelled, it is waited for: it must not go on making what is being cleaned up."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _demo(console: Console, size_mb: int, use_docker: bool | None, keep: bool, is_beside: bool) -> None:
    server = str(uuid4())
    async with AsyncExitStack() as stack:
        directory = await stack.enter_async_context(_directory())
        game = await _find_game(console, directory, use_docker, is_beside, stack)
        running = await _set_up(console, directory, server, size_mb, game, is_beside, stack)
        began = time.monotonic()
        views = await _transfer(console, running, size_mb)
        await _check(console, running, views, time.monotonic() - began)
        await _look_back(console, running)
        if keep:
            await _keep(console, running)


@contextlib.asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    path = _new_directory()
    try:
        yield path
    finally:
        await _in_thread(shutil.rmtree, path)


def _new_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="transfer-sidecar-demo-")).resolve()


async def _find_game(
    console: Console, directory: Path, use_docker: bool | None, is_beside: bool, stack: AsyncExitStack
) -> Game | None:
    instead = "the daemons run the server in name only" if is_beside else "the files are moved"
    if use_docker is False:
        console.print(f"Containers: none, as asked; {instead}.")
        return None
    try:
        game = await _in_thread(Game.find, directory)
    except NoContainer as reason:
        if use_docker:
            raise
        console.print(f"Containers: none, {reason}; {instead}.")
        return None
    stack.push_async_callback(_in_thread, game.remove_all)
    await _in_thread(game.make_image)
    console.print(f"Containers: the server runs in one, of the image {game.image}.")
    return game


async def _set_up(
    console: Console,
    directory: Path,
    server: str,
    size_mb: int,
    game: Game | None,
    is_beside: bool,
    stack: AsyncExitStack,
) -> _Running:
    for name in ("nats", *_NODES):
        (directory / name).mkdir()
    ports = {name: free_port() for name in _NODES}
    broker = await stack.enter_async_context(run_nats(directory / "nats", jetstream=True))
    panel = await stack.enter_async_context(_panel(server, ports, game))  # in this process
    volume = directory / "node-a" / "volumes" / server
    world = await _in_thread(make_world, volume, size_mb)
    console.print(
        f"Volume: {world.content_bytes / 1e6:.0f} MB in {world.files} files, {world.directories} directories and "
        f"{world.symlinks} symbolic links."
    )
    container = f"{directory.name}-source"
    if game is not None and not is_beside:
        await _in_thread(game.run, container, volume, DATA_TARGET)
    nodes: dict[str, DemoNode] = {}
    daemons: dict[str, NodeDaemon] = {}
    for name, (token_id, token) in _NODES.items():
        sections = _sections(panel.url, broker.url, game)
        if is_beside:
            daemons[name] = await stack.enter_async_context(
                beside.run_daemon(
                    *(directory / name, name, server, game),
                    panel_url=panel.url,
                    token_id=token_id,
                    token=token,
                    port=ports[name],
                )
            )
            sections |= daemons[name].sections
        elif game is not None and name == "node-a":
            # both nodes share this engine, where the destination's container takes the usual name, the UUID
            sections[f"servers.{server}"] = {"container": container}
        nodes[name] = await stack.enter_async_context(
            run_node(directory / name, name, sections, port=ports[name], token_id=token_id, token=token)
        )
    for node in nodes.values():
        stack.callback(node.begin_stop)
    console.print(f"Running: panel {panel.url}, bus {broker.url}")
    for name, node in nodes.items():
        console.print(
            f"  {name} {node.url}" + (f", in front of its daemon {daemons[name].daemon.url}" if daemons else "")
        )
    if is_beside:
        await beside.power_on(nodes["node-a"], server)
        console.print("Server: started by the daemon of node-a.")
    return _Running(
        server=server,
        panel=panel,
        nats_url=broker.url,
        source=nodes["node-a"],
        destination=nodes["node-b"],
        world=world,
        game=game,
        daemons=daemons,
    )


@contextlib.asynccontextmanager
async def _panel(server: str, ports: Mapping[str, int], game: Game | None) -> AsyncIterator[PanelServer]:
    """The panel with both nodes and the server in its database."""
    async with PanelServer() as panel:
        for name, (token_id, token) in _NODES.items():
            url = f"http://127.0.0.1:{ports[name]}"
            panel.panel.add_node(name, token_id=token_id, token=token, url=url)
        kind = ServerKind() if game is None else ServerKind(image=f"~{game.image}", stop=("signal", "C"))
        panel.panel.add_server(server, "node-a", kind)
        yield panel


def _sections(panel_url: str, nats_url: str, game: Game | None) -> dict[str, Mapping[str, Any]]:
    containers: dict[str, Any] = {"runtime": "none"}
    if game is not None:
        containers = {"runtime": "docker", "host": game.engine_url, "network": "none", "data_target": DATA_TARGET}
    return {
        "panel": {"url": panel_url},
        "containers": containers,
        "transfer": {
            "progress_interval_s": 0.5,
            "retain_s": 3600,
            "shutdown_grace_s": 0,
            "allowed_destinations": ("http://127.0.0.1:*",),
        },
        "limits": {"reserve_bytes": 64 * 1024 * 1024},
        "nats": {"url": nats_url, "manage_stream": "create", "directory": "create"},
    }


async def _transfer(console: Console, running: _Running, size_mb: int) -> dict[str, dict[str, Any]]:
    """Ask for the transfer as the panel does, show what the bus tells, and wait for both ends. Returns their views."""
    with Show(console) as show:
        async with _shown(running.nats_url, show) as shown:
            try:
                await running.panel.panel.start_transfer(
                    running.server, "node-b", start_on_completion=running.game is not None or bool(running.daemons)
                )
            except TransferNotStarted as refused:
                raise DemoFailed(f"{refused}\n{running.source.log_tail()}") from refused
            views = await _wait_end(running, _PATIENCE_S + size_mb / 5)
            try:
                async with asyncio.timeout(_LAST_EVENT_S):
                    await shown.wait()
            except TimeoutError:
                raise DemoFailed("the transfer has ended, and the bus tells it of one end only, or of none") from None
    return views


@contextlib.asynccontextmanager
async def _shown(nats_url: str, show: Show) -> AsyncIterator[asyncio.Event]:
    """Everything on the bus goes to `show`, until the scope ends. Gives what is set once both ends have told theirs."""
    both = asyncio.Event()

    async def feed(events: Watch) -> None:
        async for event in events:
            show.feed(event)
            if show.ended == set(Role):
                both.set()

    async with Watch(BusSettings(urls=(nats_url,)), event_filter(), stream=EVENT_STREAM) as events:
        async with asyncio.timeout(_LAST_EVENT_S):
            await events.wait_connected()
        feeding = asyncio.create_task(feed(events))
        try:
            yield both
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _look_back(console: Console, running: _Running) -> None:
    """What somebody sees who comes only now: the stream has kept it. Raises DemoFailed."""
    board = Board()
    async with Watch(BusSettings(urls=(running.nats_url,)), event_filter(), stream=EVENT_STREAM) as events:
        taking = asyncio.create_task(_take(events, board))
        try:
            async with asyncio.timeout(_LAST_EVENT_S):
                await events.wait_caught_up()
        except TimeoutError:
            raise DemoFailed(f"the bus does not tell a late joiner anything: {events.live_only}") from None
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
    rows = board.rows()
    if [[end.status for end in row.ends] for row in rows] != [[Status.COMPLETED] * 2]:
        raise DemoFailed(f"a late joiner does not see one transfer, completed at both ends: {rows}")
    console.print(Text(f"On the bus, for whoever comes late: {plain(rows[0], time.time())}"))


async def _take(events: Watch, board: Board) -> None:
    async for event in events:
        board.feed(event)


async def _wait_end(running: _Running, patience_s: float) -> dict[str, dict[str, Any]]:
    """Until both nodes have nothing left to do for the transfer. Asks them, because the bus promises nothing."""
    views: dict[str, dict[str, Any]] = {}
    try:
        async with asyncio.timeout(patience_s), httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
            while True:
                for node in (running.source, running.destination):
                    response = await client.get(
                        f"{node.url}/api/servers/{running.server}/transfer",
                        headers={"Authorization": f"Bearer {node.token}"},
                    )
                    if response.status_code == 200:
                        views[node.name] = response.json()
                ends = [(view["status"], view["stage"]) for view in views.values()]
                if any(status in (Status.FAILED, Status.CANCELLED) for status, _ in ends):
                    raise DemoFailed(_why(running, views))
                if ends == [(Status.COMPLETED, Stage.ENDED)] * 2:
                    return views
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise DemoFailed(f"no end within {patience_s:.0f} s: {_why(running, views)}") from None
    except httpx.HTTPError as error:
        raise DemoFailed(f"a node stopped answering ({error!r}): {_why(running, views)}") from error


def _why(running: _Running, views: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for node in (running.source, running.destination):
        view = views.get(node.name, {})
        words = [str(view[name]) for name in ("status", "stage", "reason", "message", "needs") if view.get(name)]
        lines.append(f"{node.name}: {', '.join(words) or 'no transfer'}\n{node.log_tail()}")
    return "\n".join(lines)


async def _check(console: Console, running: _Running, views: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
    """Every claim: the volumes are equal, the panel was told once, the server runs there and not here."""
    daemons = await _check_daemons(running) if running.daemons else None  # first: the daemon forgets after the trash
    source = await _in_thread(_kept_volume, running.source, running.server)
    volume = running.destination.volumes / running.server
    comparison = await _in_thread(compare, source, volume)
    if not comparison.is_equal:
        shown = "\n".join(f"  {difference}" for difference in comparison.differences[:_SHOWN_DIFFERENCES])
        raise DemoFailed(f"the volumes differ in {len(comparison.differences)} things:\n{shown}")
    _check_panel(running)
    if daemons is not None:
        console.print(daemons)
    if running.game is not None:
        here = await _in_thread(running.game.containers_on, running.source.volumes / running.server)
        there = await _in_thread(running.game.containers_on, volume)
        if here or list(there.values()) != ["running"]:
            raise DemoFailed(f"containers at the source: {here}, at the destination: {there}")
        console.print(f"Container: stopped and removed on node-a, runs as {next(iter(there))} on node-b.")
    wire = views[running.destination.name].get("progress", {}).get("wire_bytes") or 0
    console.print(_summary(comparison, seconds, wire))


async def _check_daemons(running: _Running) -> str:
    """What is shown of them; raises DemoFailed, BesideFailed."""
    await beside.check(running.source, running.destination, running.server)
    crashed = [name for name, its in running.daemons.items() if its.daemon.power.crashes]
    if crashed:
        raise DemoFailed(f"the crash handler of {' and '.join(crashed)} took the stop for a crash")
    return (
        "Daemons: that of node-a stopped the server, saw no crash to mend and has forgotten it; that of node-b knows "
        "the server, lists it once and runs it."
    )


def _check_panel(running: _Running) -> None:
    panel = running.panel.panel
    told = {
        route: [call.node for call in panel.calls_of(route) if call.status is not None and call.status < 300]
        for route in ("success", "failure", "delete")
    }
    if told != {"success": ["node-b"], "failure": [], "delete": ["node-a"]}:
        raise DemoFailed(f"the panel was told {told['success']} success and {told['failure']} failure")
    if panel.owner(running.server) != "node-b" or panel.transfer(running.server) is not None:
        raise DemoFailed(f"the panel still has the server on {panel.owner(running.server)}")


def _kept_volume(node: DemoNode, server: str) -> Path:
    """Where the panel's deletion left the source's volume."""
    layout = VolumeLayout.detect(node.volumes / server, node.volumes)
    kept = [item.path for item in list_trash(layout.trash_root) if item.server == server and item.complete]
    if len(kept) != 1 or layout.volume.exists():
        raise DemoFailed(f"the source's volume was not moved to trash: {kept}")
    return kept[0]


def _summary(comparison: Comparison, seconds: float, wire_bytes: int) -> Text:
    megabytes = comparison.content_bytes / 1e6
    text = Text()
    text.append("Verified: ", "bold green")
    text.append(
        f"{megabytes:.1f} MB in {comparison.files} files moved in {seconds:.1f} s ({megabytes / seconds:.0f} MB/s"
        + (f", {wire_bytes / 1e6:.1f} MB on the wire" if wire_bytes else "")
        + f"); all {comparison.entries} entries are equal in type, mode, time, size and SHA-256. "
        "The panel was told once, and gave the server to node-b."
    )
    return text


async def _keep(console: Console, running: _Running) -> None:
    """Until Ctrl-C: the lines that the README's examples begin with, anew whenever a transfer has ended."""
    panel = running.panel.panel
    nodes = {node.name: node for node in (running.source, running.destination)}
    console.print("\nEverything keeps running until Ctrl-C. To be pasted into other shells:\n")
    console.print(Text(f"transfer-sidecar watch --nats {running.nats_url}"), soft_wrap=True)
    while True:
        here = nodes.pop(panel.owner(running.server))
        (there,) = nodes.values()
        nodes[here.name] = here
        token = panel.mint_token(running.server, there.name)
        panel.assume_transfer(running.server, there.name)  # a request by hand is one that the panel has begun
        lines = [
            f"A={here.url} B={there.url} TOKEN={here.token} TOKEN_B={there.token} NODE_B={there.name}",
            f"SERVER={running.server}",
            f'JWT="Bearer {token}"',
        ]
        console.print()
        for line in lines:
            console.print(Text(line), soft_wrap=True)
        await panel.wait_for(lambda: panel.transfer(running.server) is None)
