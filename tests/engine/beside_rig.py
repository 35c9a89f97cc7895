"""Two real nodes, each beside a stand-in node daemon, and the panel that moves a server from a to b.

The nodes stand on the daemons' public addresses (`[api] front`), so the panel's calls reach the daemons through them.
A node can be killed and come back; daemons and panel live on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from sidecar.adapters.beside import BesideRuntime
from sidecar.adapters.daemon_http import HttpDaemon
from sidecar.adapters.panel_http import HttpPanel
from sidecar.api.app import Beside, build_app
from sidecar.api.front import is_passed_on
from sidecar.api.health import Readiness
from sidecar.api.reading import ApiLimits
from sidecar.api.websocket import SocketSettings
from sidecar.archive.extract import ExtractLimits
from sidecar.calls.auth import NodeAuth
from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.daemon_containers import FakeContainers
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Family
from sidecar.engine.cabinet import CARRYING_NAME
from sidecar.engine.node import Node
from sidecar.engine.services import Receiving, Sending, Services, Timings
from sidecar.engine.volumes import Volumes
from sidecar.journal.store import Journal
from sidecar.ports import FilePlace
from sidecar.views import TransferView
from sidecar.wire.destination import DestinationPolicy
from sidecar.wire.listener import ApiServer
from tests.engine.rig import SERVER, Rig, differences, grow_world, token_of, tree_of
from tests.engine.runtime import FakeRuntime

BESIDE = Timings(
    young_s=0.1,
    quarantine_s=0.1,
    quarantine_calagopus_s=0.2,
    call_timeout_s=0.15,
    admission_s=0.6,
    retry_first_s=0.02,
    retry_cap_s=0.05,
    progress_event_s=0.02,
    progress_interval_s=0.05,
    panel_stop_lookup_s=0.3,
    daemon_call_s=0.2,
    late_exit_s=0.1,
)
PANEL_CALL_S = 0.5  # longer than the rules think, so that a busy machine loses no call
NAMES = ("a", "b")


class BesidePair:
    """Use `running_beside`. `a` owns the server, which runs; `world` is what its volume holds."""

    def __init__(self, home: Path, server: PanelServer, daemons: dict[str, StandInDaemon]) -> None:
        self.home = home
        self.server = server
        self.panel = server.panel
        self.daemons = daemons
        self.rigs: dict[str, Rig] = {}
        self.world: dict[str, tuple[object, ...]] = {}
        self.keeps_files = True
        self._stacks: dict[str, AsyncExitStack] = {}

    @property
    def a(self) -> Rig:
        return self.rigs["a"]

    @property
    def b(self) -> Rig:
        return self.rigs["b"]

    @property
    def daemon(self) -> StandInDaemon:
        """The destination's."""
        return self.daemons["b"]

    def fake(self, name: str) -> FakeContainers:
        containers = self.daemons[name].containers
        assert isinstance(containers, FakeContainers)
        return containers

    async def up(self, name: str) -> Rig:
        """Start a node, or start it again: what it wrote down is all that it knows."""
        stack = AsyncExitStack()
        rig = await stack.enter_async_context(
            _beside_node(self.home / name, name, self.server, self.daemons[name], self.keeps_files)
        )
        self._stacks[name], self.rigs[name] = stack, rig
        self.panel.add_node(name, token_id=f"id-{name}", token=token_of(name), url=rig.url)
        return rig

    async def kill(self, name: str) -> None:
        await self._stacks.pop(name).aclose()

    async def restart(self, name: str) -> Rig:
        await self.kill(name)
        return await self.up(name)

    async def close(self) -> None:
        for name in list(self._stacks):
            await self.kill(name)

    async def move(self, *, start: bool = True, backups: Sequence[str] = (), delete_backups: bool = False) -> None:
        """An administrator's click."""
        await self.panel.start_transfer(
            SERVER, "b", start_on_completion=start, backups=backups, delete_backups=delete_backups
        )

    async def settled(self) -> tuple[TransferView, TransferView]:
        """Both ends, when both have ended and both slots are free."""
        return await self.a.settled(), await self.b.settled()

    def told(self, outcome: str) -> list[int | None]:
        """What the panel answered the destination, be it the sidecar or the daemon that called."""
        return [call.status for call in self.panel.calls_of(outcome, "b")]

    def hand_overs(self) -> list[int | None]:
        return [call.status for call in self.daemon.calls_of("transfer")]

    async def is_running(self, name: str) -> bool:
        return await self.fake(name).running(SERVER) is not None

    async def check(self, *, knows: int = 1) -> str:
        """What must hold whenever all is settled; returns the owner.

        The owner has the complete volume in place, the other one has it in its trash or, as the source that keeps it,
        in place; nothing is in staging; only the owner's daemon may know and run the server. `knows`: how often the
        destination's daemon lists a server that has arrived.
        """
        owner = self.panel.owner(SERVER)
        rig, other = self.rigs[owner], self.rigs["b" if owner == "a" else "a"]
        assert self.panel.transfer(SERVER) is None, "the panel still waits for this transfer"
        wrong = differences(rig.volume(), self.world)
        assert not wrong, f"{owner} owns the server and does not have it: {wrong}"
        assert self.a.staging() == [] and self.b.staging() == []
        for trashed in [*self.a.trash(), *self.b.trash()]:
            assert not differences(trashed, self.world), f"{trashed} is not whole"
        assert not await self.is_running(other.name), f"{other.name} runs a server that it does not own"
        assert not other.volume().exists(), f"{other.name} has a volume that is not its own"
        left, came = self.a.node.view(SERVER), self.b.node.view(SERVER)
        moved = owner == "b"
        assert left is not None and (left.status == "completed") is moved, (left, "owner", owner)
        assert came is None or (came.status == "completed") is moved, (came, "owner", owner)
        listed = [server.uuid for server in self.daemon.servers].count(SERVER)
        assert listed == (knows if moved else 0), f"the destination's daemon lists the server {listed} times"
        if moved:
            assert len(self.a.trash()) == 1, "the old copy was deleted"
        return owner

    async def is_back(self, reason: str | None = None, *, trash: int = 1) -> None:
        """The transfer failed after the commit: a runs it again through its daemon, b keeps a copy in its trash."""
        await soon(lambda: (server := self.daemons["a"].find(SERVER)) is not None and server.state == "running")
        assert await self.check() == "a"
        assert len(self.b.trash()) == trash, "the copy that arrived was deleted"
        came = self.b.node.view(SERVER)
        assert came is not None and came.status == "failed"
        assert reason is None or came.reason == reason


@asynccontextmanager
async def running_beside(
    home: Path,
    family: Family = Family.PTERODACTYL,
    *,
    big_bytes: int = 50_000,
    daemon_retry_s: float = 0.0,
    keeps_files: bool = True,
) -> AsyncIterator[BesidePair]:
    """Panel, daemons and nodes on loopback; the server runs on a, by a's daemon.

    `daemon_retry_s`: how long a daemon repeats what the panel did not answer; 0: the Go daemons call once, Calagopus
    ten times in a row. `keeps_files`: the nodes know where their daemons file backups and installation logs.
    """
    panel = StandInPanel(family=family, call_timeout_s=15.0)  # a real one's; a busy machine loses no call
    async with AsyncExitStack() as stack, PanelServer(panel) as server:
        daemons = {}
        for name in NAMES:
            (home / name / "volumes").mkdir(parents=True)
            panel.add_node(name, token_id=f"id-{name}", token=token_of(name), url="http://127.0.0.1:1")
            daemons[name] = await stack.enter_async_context(
                StandInDaemon(
                    family,
                    token_id=f"id-{name}",
                    token=token_of(name),
                    volumes=home / name / "volumes",
                    panel_url=server.url,
                    panel_call_s=2.0,
                    retry_s=daemon_retry_s,
                    crash_delay_s=0.05,
                )
            )
        pair = BesidePair(home, server, daemons)
        pair.keeps_files = keeps_files
        volume = home / "a" / "volumes" / SERVER
        panel.add_server(SERVER, "a")
        grow_world(volume, big_bytes=big_bytes)
        pair.world = tree_of(volume)
        try:
            for name in NAMES:
                await pair.up(name)
            await daemons["a"].restart()
            owned = daemons["a"].find(SERVER)
            assert owned is not None
            daemons["a"].power.act(owned, "start")
            await soon(lambda: owned.state == "running")
            yield pair
        finally:
            panel.release()
            for daemon in daemons.values():
                daemon.release()
            await pair.close()


@asynccontextmanager
async def _beside_node(
    home: Path, name: str, server: PanelServer, daemon: StandInDaemon, keeps_files: bool
) -> AsyncIterator[Rig]:
    token, volumes, carrying = token_of(name), home / "volumes", home / "volumes" / CARRYING_NAME
    logs = daemon.shelves.logs if daemon.family is Family.CALAGOPUS else daemon.shelves.logs / "install"
    places = {FilePlace.BACKUPS: daemon.shelves.backups, FilePlace.INSTALL_LOGS: logs} if keeps_files else {}
    (home / "state").mkdir(exist_ok=True)
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(16))
        panel = await stack.enter_async_context(
            HttpPanel(
                server.url,
                token_id=f"id-{name}",
                token=token,
                call_timeout_s=PANEL_CALL_S,
                transport=httpx.AsyncHTTPTransport(verify=False),  # loading certificates takes longer than a transfer
            )
        )
        http = await stack.enter_async_context(
            HttpDaemon(
                daemon.url,
                token=token,
                origin=server.url,
                volume_path=lambda uuid: volumes / uuid,
                call_timeout_s=2.0,
                stuck_s=0.8,
                forget_s=1.0,
                poll_s=0.01,
            )
        )
        runtime = BesideRuntime(http, None, stop_timeout_s=1.0, settle_s=0.02, start_timeout_s=4.0, poll_s=0.05)
        stack.push_async_callback(runtime.close)
        services = Services(
            node=name,
            runtime=runtime,
            panel=panel,
            daemon=http,
            journal=Journal(home / "state"),
            volumes=Volumes(volumes, {}, retain_s=3600, filed=[*places.values(), carrying]),
            policy=DestinationPolicy(["http://127.0.0.1:*"]),
            extract_limits=ExtractLimits(),
            executor=executor,
            spool=home / "state",
            timings=BESIDE,
            sending=Sending(
                stall_timeout_s=5,
                connect_timeout_s=2,
                answer_timeout_s=20,
                backups=places.get(FilePlace.BACKUPS),
                install_logs=places.get(FilePlace.INSTALL_LOGS),
            ),
            receiving=Receiving(stall_timeout_s=5, reserve_bytes=0, reserve_inodes=0, places=places, carrying=carrying),
        )
        node = Node(services, max_outgoing=4, max_incoming=4, refuse_deletion=False)
        rig = Rig(name, token, home, node, FakeRuntime(), services, 0)
        listening = asyncio.create_task(_listen(rig))
        await asyncio.sleep(0)
        await stack.enter_async_context(node.running())
        app = build_app(
            transfers=node,
            auth=NodeAuth(token, require_scope=False, now=time.time),
            readiness=Readiness([], clock=time.monotonic),
            limits=ApiLimits(),
            sockets=SocketSettings(),
            codecs=("gzip",),
            beside=Beside(daemon_url=daemon.url, is_front=True),
        )
        listener = ApiServer(app, is_streamed=is_passed_on)
        rig.port = await listener.start()
        stack.push_async_callback(listener.stop, 0.0)
        try:
            yield rig
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening


async def _listen(rig: Rig) -> None:
    async for event in rig.node.events(None):
        rig.events.append(event)


async def soon(holds: Callable[[], Any], what: str = "it") -> None:
    """Wait for something that only a look can tell. Bounded."""
    try:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - the fakes have no wait
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(90):
            await scenario()

    asyncio.run(bounded())


async def has_arrived(pair: BesidePair, *, needs: bool = False, start: bool = True) -> None:
    """Completed at both ends, once at the daemon, running; `needs`: a person must restart the daemon first."""
    left, came = await pair.settled()
    assert (left.status, came.status) == ("completed", "completed"), (left, came)
    assert await pair.check() == "b"
    if needs:
        assert came.needs is not None and "restart the node daemon" in came.needs
        assert came.reason == "daemon.restart_needed" and not await pair.is_running("b")
    else:
        assert came.needs is None and came.reason is None, came
        start = start and pair.panel.family is not Family.CALAGOPUS  # whose request does not say it
        server = pair.daemon.find(SERVER)
        assert server is not None and (start or server.state == "offline")
        await soon(lambda: not start or server.state == "running")


async def handed_over(pair: BesidePair) -> None:
    """The request is at the daemon, which holds it or its answer."""
    await pair.b.stage("handing_over")
    await soon(lambda: "transfer" in pair.daemon.held)
