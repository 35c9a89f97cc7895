"""The containers that a node daemon owns, looked at and never touched: they prove what the daemon says.

A daemon makes a new container at each start and may remove it at each stop, so a server is followed by name and mount,
and a run is told from another by the container's id and its start. Without an engine (runtime `none`) there is nothing
to look at, and the daemon's word stands alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec

from sidecar.adapters.docker_engine import DockerEngine, Document
from sidecar.adapters.server_containers import ServerContainers, is_up
from sidecar.adapters.start_watch import StartWatch
from sidecar.errors import HostFailed

P = ParamSpec("P")
T = TypeVar("T")

_FIND_TRIES: Final = 3
_NEVER: Final = "0001-"  # the engine's time of what has not happened
_CLOSE_S: Final = 2.0  # a watch in the middle of a call to an engine that hangs ends by itself, later


class Seen(msgspec.Struct, frozen=True):
    """What the engine has of one server at one moment."""

    container: str | None = None  # full id
    is_running: bool = False
    started_at: str | None = None  # of its newest run; None: it was never started
    strangers: tuple[str, ...] = ()  # other running containers that mount the volume

    @property
    def is_still(self) -> bool:
        """Nothing runs on the volume."""
        return not self.is_running and not self.strangers

    @property
    def run(self) -> tuple[str | None, str | None]:
        """Its newest run; daemons make containers at their own start, and such a one has not run."""
        return (None, None) if self.started_at is None else (self.container, self.started_at)


class _DaemonStartWatch(StartWatch):
    """Knows a start by the container's name, too: a new container can have ended before it is looked up."""

    def _is_own(self, event: Document) -> bool:
        name = str(((event.get("Actor") or {}).get("Attributes") or {}).get("name", ""))
        return name == self._server or name.endswith(f".{self._server}") or super()._is_own(event)


class DaemonContainers:
    """Raises HostFailed (`engine.*`). Close it. Memory: `threads` + `watchers` threads at most."""

    def __init__(
        self,
        *,
        host: str,
        volume_path: Callable[[str], Path],
        containers: Mapping[str, str] | None = None,
        data_target: str = "/home/container",
        engine_paths: Mapping[str, str] | None = None,
        call_timeout_s: float = 30.0,
        reconnect_s: float = 1.0,
        threads: int = 4,
        watchers: int = 64,
    ) -> None:
        self._engine = DockerEngine(host, call_timeout_s=call_timeout_s, connections=threads + watchers)
        self._servers = ServerContainers(
            self._engine,
            volume_path=volume_path,
            configured=dict(containers or {}),
            data_target=data_target,
            engine_paths=engine_paths or {},
        )
        self._reconnect_s = reconnect_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="daemon-containers")
        self._watchers = ThreadPoolExecutor(watchers, thread_name_prefix="daemon-events")

    async def look(self, server: str) -> Seen:
        """The server's container as it is now."""
        return await self._in_thread(self._look, server)

    async def wait_started(self, server: str, stopped: tuple[str | None, str | None] | None) -> None:
        """Return when a container of the server starts, or has run since `stopped` (a `Seen.run`; None: unknown)."""

        def has_run_since(_: str, details: Document) -> bool:
            return stopped is not None and _seen(details).run != stopped

        watch = _DaemonStartWatch(self._engine, self._servers, server, has_run_since, reconnect_s=self._reconnect_s)
        running = asyncio.get_running_loop().run_in_executor(self._watchers, watch.run)
        try:
            await asyncio.shield(running)
        finally:
            watch.close()
            await asyncio.wait([running], timeout=_CLOSE_S)

    async def ping(self) -> None:
        await self._in_thread(self._engine.ping)

    async def info(self) -> dict[str, Any]:
        return await self._in_thread(self._engine.info)

    async def close(self) -> None:
        """Wait for running calls, end the threads, close the connections. Cancel the waits for a start before."""
        await asyncio.get_running_loop().run_in_executor(None, self._close_all)

    def _close_all(self) -> None:
        self._threads.shutdown(wait=True)
        self._watchers.shutdown(wait=True)
        self._engine.close()

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    def _look(self, server: str) -> Seen:
        for _ in range(_FIND_TRIES):
            found = self._servers.find(server)
            if found.id is None:
                return Seen(strangers=tuple(found.strangers))
            details = self._engine.inspect(found.id)
            if details is not None:
                return msgspec.structs.replace(_seen(details), strangers=tuple(found.strangers))
        raise HostFailed("engine.failed", f"the container of server {server} changes all the time")


def _seen(details: Document) -> Seen:
    started_at = str((details.get("State") or {}).get("StartedAt") or _NEVER)
    return Seen(
        container=str(details["Id"]),
        is_running=is_up(details),
        started_at=None if started_at.startswith(_NEVER) else started_at,
    )
