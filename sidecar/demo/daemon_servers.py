"""The servers of a stand-in node daemon: their power actions, their crashes, and who listens to them.

What matters here is what surprised in the real ones: an end that the daemon did not ask for is a crash, whatever the
exit code, and a new container runs a second later (not twice within a minute); a server that is held as transferring
accepts every power action and does nothing; a kill is `offline` for the Go daemons before the process has gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from sidecar.demo.daemon_containers import ContainerKind, Containers
from sidecar.demo.daemon_words import SERVICES, is_go, message
from sidecar.demo.panel_documents import Document, Family

log = logging.getLogger(__name__)

CLOSED: Final = ""  # in a listener's queue: the server was deleted
_STOP_S: Final = 600.0  # after which a Go daemon kills
_LISTENER_MESSAGES: Final = 512


class DaemonServer:
    """One server as the daemon has it in memory."""

    def __init__(self, uuid: str, document: Document, *, transferring: bool = False) -> None:
        self.uuid = uuid
        self.document = document
        self.state = "offline"
        self.is_transferring = transferring
        self.is_suspended = False
        self.container: str | None = None
        self.last_crash: float | None = None
        self.power = asyncio.Lock()
        self.listeners: set[asyncio.Queue[str]] = set()

    @property
    def settings(self) -> Document:
        settings: Document = self.document["settings"]
        return settings


class Power:
    """Starts, stops and watches servers. `spawn` owns what runs in the background."""

    def __init__(
        self,
        family: Family,
        containers: Containers,
        volume_path: Callable[[str], Path],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        refresh: Callable[[DaemonServer], Awaitable[bool]],
        *,
        crash_delay_s: float,
        crash_window_s: float,
    ) -> None:
        self.family = family
        self.containers = containers
        self.crashes: list[str] = []  # servers, one per end that was not asked for
        self._volume_path = volume_path
        self._spawn = spawn
        self._refresh = refresh
        self._crash_delay_s = crash_delay_s
        self._crash_window_s = crash_window_s

    # ---- what consoles see -----------------------------------------------------------------------------------------

    def publish(self, server: DaemonServer, event: str, *args: str) -> None:
        """To every listener; one that does not read loses messages, as the daemons' consoles do."""
        text = message(self.family, event, *args)
        for listener in server.listeners:
            if listener.qsize() < _LISTENER_MESSAGES:
                listener.put_nowait(text)

    def close_listeners(self, server: DaemonServer) -> None:
        for listener in server.listeners:
            listener.put_nowait(CLOSED)

    def set_state(self, server: DaemonServer, state: str) -> None:
        if server.state != state:
            server.state = state
            self.publish(server, "status", state)
            if is_go(self.family):
                self.publish(server, "console output", f"Server marked as {state}...")

    # ---- power -----------------------------------------------------------------------------------------------------

    def act(self, server: DaemonServer, action: str, wait_s: float | None = None) -> None:
        """In the background; nobody hears how it went. `wait_s`: how long it waits for the action before it.

        Without, the Go daemons drop it where another is under way, and Calagopus keeps it for ever.
        """
        if not wait_s and is_go(self.family):
            wait_s = 0
        self._spawn(self._act(server, action, wait_s))

    async def _act(self, server: DaemonServer, action: str, wait_s: float | None) -> None:
        if server.is_transferring and (is_go(self.family) or action in ("start", "restart")):
            log.info("server %s is currently being transferred", server.uuid)
            return
        if action == "kill":
            await self._kill(server)
            return
        if wait_s == 0 and server.power.locked():
            log.info("server %s: %s is dropped, another action is under way", server.uuid, action)
            return
        try:
            async with asyncio.timeout(wait_s or None):
                await server.power.acquire()
        except TimeoutError:
            return
        try:
            if action in ("stop", "restart"):
                await self._stop(server)
            if action in ("start", "restart"):
                await self._start(server)
        finally:
            server.power.release()

    async def _start(self, server: DaemonServer) -> None:
        if server.state != "offline" or server.is_suspended or not await self._refresh(server):
            return
        self.set_state(server, "starting")
        try:
            container = await self.make_container(server)
            await self.containers.start(container)
        except Exception:
            log.warning("server %s cannot be started", server.uuid, exc_info=True)
            self.set_state(server, "offline")
            return
        self.watch(server, container)
        self.set_state(server, "running")

    async def make_container(self, server: DaemonServer) -> str:
        """A new one in place of the old. Raises whatever the engine says."""
        settings = server.settings
        invocation = str(settings.get("invocation", ""))
        for name, value in dict(settings.get("environment") or {}).items():
            invocation = invocation.replace("{{" + name + "}}", str(value))
        kind = ContainerKind(
            server=server.uuid,
            image=str(settings["container"]["image"]).strip("~"),
            invocation=invocation,
            service=SERVICES[self.family],
            volume=self._volume_path(server.uuid),
        )
        kind.volume.mkdir(parents=True, exist_ok=True)
        return await self.containers.create(kind)

    def watch(self, server: DaemonServer, container: str) -> None:
        """A container runs: know its end."""
        server.container = container
        self._spawn(self._watch(server, container))

    async def _watch(self, server: DaemonServer, container: str) -> None:
        exit_code = await self.containers.wait(container)
        if server.container != container:
            return
        server.container = None
        was_asked = server.state == "stopping" or server.is_suspended or server.state == "offline"
        self.set_state(server, "offline")
        if was_asked:
            if self.family is Family.CALAGOPUS and not server.is_suspended:
                await self.containers.remove(server.uuid)
            return
        await self._crashed(server, exit_code)

    async def _crashed(self, server: DaemonServer, exit_code: int) -> None:
        self.crashes.append(server.uuid)
        self.publish(server, "console output", "---------- Detected server process in a crashed state! ----------")
        self.publish(server, "console output", f"Exit code: {exit_code}")
        now = time.monotonic()
        if server.last_crash is not None and now < server.last_crash + self._crash_window_s:
            self.publish(server, "console output", "Aborting automatic restart, last crash occurred too recently.")
            return
        server.last_crash = now
        await asyncio.sleep(self._crash_delay_s)
        await self._act(server, "start", 0)

    async def _stop(self, server: DaemonServer) -> None:
        container = server.container
        if container is None:
            return
        self.set_state(server, "stopping")
        stop = server.document["process_configuration"].get("stop") or {}
        if stop.get("type") == "command":
            await self.containers.write(container, str(stop.get("value") or ""))
        else:
            value = str(stop.get("value") or "TERM").removeprefix("^")
            await self.containers.signal(container, {"C": "SIGINT"}.get(value, f"SIG{value.removeprefix('SIG')}"))
        try:
            async with asyncio.timeout(_STOP_S):
                await self.containers.wait(container)
        except TimeoutError:
            await self._kill(server)

    async def _kill(self, server: DaemonServer) -> None:
        if server.container is None:
            return
        self.set_state(server, "stopping")
        await self.containers.signal(server.container, "SIGKILL")
        if is_go(self.family):
            self.set_state(server, "offline")
