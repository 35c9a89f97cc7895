"""A node daemon and its panel on loopback, and the adapter that is beside the daemon."""

import asyncio
import io
import tarfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sidecar.adapters.daemon_http import HttpDaemon
from sidecar.demo.daemon import StandInDaemon
from sidecar.demo.daemon_containers import Containers, FakeContainers
from sidecar.demo.panel import PanelServer, StandInPanel
from sidecar.demo.panel_documents import Family, ServerKind

TOKEN = "b" * 32
LIMIT_S = 30


class Scene:
    """A server of node `a` that may be on its way to node `b`, where the daemon is. Its name is new each time."""

    def __init__(
        self, panel: StandInPanel, panel_url: str, daemon: StandInDaemon, http: HttpDaemon, volumes: Path
    ) -> None:
        self.panel = panel
        self.panel_url = panel_url
        self.daemon = daemon
        self.http = http
        self.volumes = volumes
        self.server = str(uuid.uuid4())

    @property
    def volume(self) -> Path:
        return self.volumes / self.server

    @property
    def fake(self) -> FakeContainers:
        containers = self.daemon.containers
        assert isinstance(containers, FakeContainers)
        return containers

    def arriving(self, kind: ServerKind | None = None) -> None:
        """A transfer to `b` is active, and the verified files are in place."""
        self.panel.add_server(self.server, "a", kind)
        self.panel.assume_transfer(self.server, "b")
        self.volume.mkdir(parents=True)
        (self.volume / "level.dat").write_text("world")

    async def owned(self, kind: ServerKind | None = None) -> None:
        """The daemon's own server, offline."""
        self.panel.add_server(self.server, "b", kind)
        self.volume.mkdir(parents=True)
        await self.daemon.restart()

    async def until_state(self, state: str) -> None:
        await until(lambda: (server := self.daemon.find(self.server)) is not None and server.state == state)


async def until(holds: Callable[[], bool]) -> None:
    """Looks again and again; for what has no event of its own."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    family: Family,
    directory: Path,
    *,
    containers: Containers | None = None,
    daemon_options: dict[str, Any] | None = None,
    **http: Any,
) -> AsyncIterator[Scene]:
    volumes = directory / "volumes"
    volumes.mkdir(exist_ok=True)
    async with PanelServer(StandInPanel(family=family)) as server:
        panel = server.panel
        panel.add_node("a", token_id="ida", token="a" * 32, url="http://127.0.0.1:1")
        panel.add_node("b", token_id="idb", token=TOKEN, url="http://127.0.0.1:1")
        daemon = StandInDaemon(
            family,
            token_id="idb",
            token=TOKEN,
            volumes=volumes,
            panel_url=server.url,
            containers=containers,
            **{"retry_s": 0.2, "crash_delay_s": 0.1, **(daemon_options or {})},
        )
        async with daemon:
            panel.add_node("b", token_id="idb", token=TOKEN, url=daemon.url)
            options = {"token": TOKEN, "origin": server.url, "stuck_s": 0.3, "poll_s": 0.01, "forget_s": 5, **http}
            async with HttpDaemon(daemon.url, volume_path=lambda name: volumes / name, **options) as adapter:
                yield Scene(panel, server.url, daemon, adapter, volumes)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await scenario()

    asyncio.run(bounded())


def tar_gz(
    *files: tuple[str, bytes], links: tuple[tuple[str, str], ...] = (), directories: tuple[str, ...] = ()
) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in directories:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o640
            tar.addfile(entry, io.BytesIO(data))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return content.getvalue()
