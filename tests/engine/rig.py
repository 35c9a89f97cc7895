"""Real nodes for the engine's tests: all of the product but the container engine, on loopback, in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import jwt
import msgspec

from sidecar.api.app import build_app
from sidecar.api.health import Readiness
from sidecar.api.reading import ApiLimits
from sidecar.api.websocket import SocketSettings
from sidecar.archive.extract import ExtractLimits
from sidecar.calls.auth import NodeAuth
from sidecar.engine.contract import StartTransfer
from sidecar.engine.hub import Ledger
from sidecar.engine.node import Node
from sidecar.engine.services import Receiving, Sending, Services, Timings
from sidecar.engine.volumes import Volumes
from sidecar.journal.store import Journal
from sidecar.ports import FilePlace, Panel
from sidecar.views import EventKind, TransferEvent, TransferView
from sidecar.wire.destination import DestinationPolicy
from sidecar.wire.listener import ApiServer
from tests.engine.runtime import FakeRuntime

SERVER = "6f1c3f0e-2b1d-4c55-9c7e-0d6b1a2c3d4e"
FAST = Timings(
    young_s=0.0,
    quarantine_s=0.05,
    quarantine_calagopus_s=0.1,
    call_timeout_s=0.5,
    panel_commit_s=0.0,
    admission_s=0.3,
    retry_first_s=0.02,
    retry_cap_s=0.1,
    progress_event_s=0.02,
    progress_interval_s=0.05,
    late_exit_s=0.1,
)


@dataclass
class Rig:
    """One node: its pieces, and what it said."""

    name: str
    token: str
    home: Path
    node: Node
    runtime: FakeRuntime
    services: Services
    port: int
    events: list[TransferEvent] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def volumes(self) -> Path:
        return self.home / "volumes"

    def volume(self, server: str = SERVER) -> Path:
        return self.volumes / server

    def statuses(self) -> list[str]:
        return [event.status.value for event in self.events if event.kind is EventKind.STATUS]

    def lines(self) -> list[str]:
        return [event.message or "" for event in self.events if event.kind is EventKind.LOGS]

    async def settled(self, server: str = SERVER) -> TransferView:
        """The transfer once its status is final and its slot free."""
        try:
            async with asyncio.timeout(20):
                while (view := self.node.view(server)) is None or view.stage != "ended":  # noqa: ASYNC110 - public view
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not settle: {self.node.view(server)}") from None
        for _ in range(3):
            await asyncio.sleep(0)  # the listener above gets its turn
        return view

    async def stage(self, *stages: str, server: str = SERVER) -> TransferView:
        async with asyncio.timeout(20):
            while (view := self.node.view(server)) is None or view.stage not in stages:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.002)
        return view

    def keep(self, backup: str, content: bytes) -> Path:
        """A backup of a server of this node."""
        path = self.home / FilePlace.BACKUPS.value / f"{backup}.tar.gz"
        path.write_bytes(content)
        return path

    def trash(self) -> list[Path]:
        root = self.volumes / ".sidecar-trash"
        return sorted(root.glob("*/volume")) if root.is_dir() else []

    def staging(self) -> list[Path]:
        return sorted([*self.home.glob("*/.sidecar-staging/*"), *self.home.glob("*/*/.sidecar-staging/*")])

    def filed(self, place: FilePlace = FilePlace.BACKUPS) -> list[str]:
        """The names of what was filed there."""
        return sorted(path.name for path in (self.home / place.value).iterdir() if not path.name.startswith("."))


def token_of(name: str) -> str:
    """The daemon token of the node of that name."""
    return f"token-of-{name}-0123456789abcdef0123456789"


def transfer_token(key: str, server: str = SERVER, **claims: object) -> str:
    now = int(time.time())
    body = {"iss": "http://panel", "sub": server, "iat": now, "nbf": now - 300, "exp": now + 900, "scope": "transfer"}
    return "Bearer " + jwt.encode({**body, **claims}, key, algorithm="HS256")


def request_to(destination: Rig, server: str = SERVER, *, start: bool = False) -> StartTransfer:
    return StartTransfer(
        server=server,
        url=f"{destination.url}/api/transfers",
        token=transfer_token(destination.token, server),
        start_on_completion=start,
    )


@asynccontextmanager
async def running_node(
    home: Path,
    name: str,
    *,
    panel: Panel | None = None,
    timings: Timings = FAST,
    runtime: FakeRuntime | None = None,
    sending: Sending | None = None,
    receiving: Receiving | None = None,
    limits: ExtractLimits | None = None,
    max_transfers: int = 4,
    refuse_deletion: bool = False,
    retain_s: float = 3600,
    keeps_files: bool = False,
    ledger: Ledger | None = None,
) -> AsyncIterator[Rig]:
    """One node with its own home directory; leave the block for an orderly stop. `keeps_files`: backups and logs."""
    token = token_of(name)
    places = {place: home / place.value for place in FilePlace} if keeps_files else {}
    for directory in places.values():
        directory.mkdir(parents=True, exist_ok=True)
    receiving = receiving or Receiving(stall_timeout_s=5, reserve_bytes=0, reserve_inodes=0)
    sending = sending or Sending(stall_timeout_s=5, connect_timeout_s=2, answer_timeout_s=10)
    receiving = msgspec.structs.replace(receiving, places=places)
    sending = msgspec.structs.replace(
        sending, backups=places.get(FilePlace.BACKUPS), install_logs=places.get(FilePlace.INSTALL_LOGS)
    )
    (home / "volumes").mkdir(parents=True, exist_ok=True)
    (home / "state").mkdir(exist_ok=True)
    runtime = runtime or FakeRuntime()
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(16))
        services = Services(
            node=name,
            runtime=runtime,
            panel=panel,
            journal=Journal(home / "state"),
            volumes=Volumes(home / "volumes", {}, retain_s=retain_s, filed=places.values()),
            policy=DestinationPolicy(["http://127.0.0.1:*"]),
            extract_limits=limits or ExtractLimits(),
            executor=executor,
            spool=home / "state",
            timings=timings,
            sending=sending,
            receiving=receiving,
        )
        if ledger is not None:
            services.hub.attach(ledger)
        node = Node(services, max_outgoing=max_transfers, max_incoming=max_transfers, refuse_deletion=refuse_deletion)
        rig = Rig(name, token, home, node, runtime, services, 0)
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
        )
        server = ApiServer(app)
        rig.port = await server.start()
        stack.push_async_callback(server.stop, 0.0)
        try:
            yield rig
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening


async def _listen(rig: Rig) -> None:
    async for event in rig.node.events(None):
        rig.events.append(event)


def grow_world(volume: Path, *, big_bytes: int = 300_000) -> None:
    """A small volume with one of everything that matters here."""
    (volume / "world" / "region").mkdir(parents=True)
    (volume / "logs").mkdir()
    (volume / "plugins" / "empty").mkdir(parents=True)
    (volume / "server.properties").write_text("motd=hello\n")
    (volume / "server.properties").chmod(0o640)
    (volume / "world" / "region" / "r.0.0.mca").write_bytes(Random(7).randbytes(big_bytes))
    (volume / "run.sh").write_text("#!/bin/sh\n")
    (volume / "run.sh").chmod(0o755)
    (volume / "hard.sh").hardlink_to(volume / "run.sh")
    (volume / "latest").symlink_to("world/region/r.0.0.mca")
    (volume / "dangling").symlink_to("nowhere")


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Type, mode, mtime, content or target of everything below `root`."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = ("link", path.readlink(), info.st_mtime_ns)
        elif path.is_dir():
            found[name] = ("dir", info.st_mode & 0o7777, info.st_mtime_ns)
        else:
            found[name] = ("file", info.st_mode & 0o7777, info.st_mtime_ns, path.read_bytes(), info.st_nlink)
    return found


def differences(root: Path, world: dict[str, tuple[object, ...]]) -> list[str]:
    """What is not as in `world` below `root`, by name; contents are left out, for they are long."""
    found = tree_of(root)
    names = sorted(found.keys() | world.keys())
    return [
        f"{name}: {_shown(found.get(name))} instead of {_shown(world.get(name))}"
        for name in names
        if found.get(name) != world.get(name)
    ]


def _shown(entry: tuple[object, ...] | None) -> object:
    return entry and tuple(f"{len(value)} bytes" if isinstance(value, bytes) else value for value in entry)


async def api(rig: Rig, method: str, path: str, **options: object) -> httpx.Response:
    """One call with the node's token."""
    async with httpx.AsyncClient(timeout=20, verify=False) as client:
        headers = {"Authorization": f"Bearer {rig.token}"}
        return await client.request(method, rig.url + path, headers=headers, **options)  # type: ignore[arg-type]
