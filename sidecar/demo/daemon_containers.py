"""What a stand-in node daemon runs its servers in: containers of a real engine, or nothing but names of them.

As the daemons do: a new container at each start, named by the server's UUID, marked by two labels, the volume bound to
`/home/container`, no restart policy.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

import msgspec

from sidecar.adapters.docker_engine import DockerEngine
from sidecar.adapters.server_containers import is_up

P = ParamSpec("P")
T = TypeVar("T")

_DATA_TARGET: Final = "/home/container"
_KILLED: Final = 137
_POLL_S: Final = 0.05


class ContainerKind(msgspec.Struct, frozen=True):
    """What the panel's configuration makes of a server."""

    server: str
    image: str
    invocation: str
    service: str  # the daemon's label
    volume: Path


class Containers(Protocol):
    """An engine, as far as a daemon needs it."""

    async def create(self, kind: ContainerKind) -> str:
        """Replace the server's container by a new one; returns its id."""

    async def start(self, container: str) -> None: ...

    async def write(self, container: str, line: str) -> None:
        """Type a line at the console."""

    async def signal(self, container: str, name: str) -> None:
        """A container that does not run is no error."""

    async def wait(self, container: str) -> int:
        """Its exit code, once it has ended or is gone."""

    async def running(self, server: str) -> str | None:
        """The id of the server's container that runs now."""

    async def remove(self, server: str) -> None:
        """Force it, as the daemons do."""

    async def close(self) -> None: ...


class FakeContainers:
    """Containers that are names only. A test ends one from outside with `crash`."""

    def __init__(self) -> None:
        self.starts: list[str] = []  # servers, one per start
        self.lines: list[tuple[str, str]] = []  # server, console line
        self.ignores_stop: set[str] = set()
        self.cannot_create: set[str] = set()
        self._servers: dict[str, str] = {}  # container -> server
        self._exits: dict[str, asyncio.Future[int]] = {}  # those that run

    async def create(self, kind: ContainerKind) -> str:
        if kind.server in self.cannot_create:
            raise RuntimeError("no such image")
        await self.remove(kind.server)
        container = uuid.uuid4().hex
        self._servers[container] = kind.server
        return container

    async def start(self, container: str) -> None:
        self.starts.append(self._servers[container])
        self._exits[container] = asyncio.get_running_loop().create_future()

    async def write(self, container: str, line: str) -> None:
        self.lines.append((self._servers[container], line))
        if line == "stop" and self._servers[container] not in self.ignores_stop:
            self._end(container, 0)

    async def signal(self, container: str, name: str) -> None:
        if name == "SIGKILL" or self._servers.get(container) not in self.ignores_stop:
            self._end(container, _KILLED if name == "SIGKILL" else 0)

    async def wait(self, container: str) -> int:
        running = self._exits.get(container)
        return 0 if running is None else await asyncio.shield(running)

    async def running(self, server: str) -> str | None:
        return next((container for container in self._exits if self._servers[container] == server), None)

    async def remove(self, server: str) -> None:
        for container in [known for known, its in self._servers.items() if its == server]:
            self._end(container, _KILLED)
            del self._servers[container]

    async def close(self) -> None:
        return None

    async def crash(self, server: str, exit_code: int = 0) -> None:
        """The server ends behind the daemon's back."""
        container = await self.running(server)
        if container is not None:
            self._end(container, exit_code)

    def _end(self, container: str, exit_code: int) -> None:
        running = self._exits.pop(container, None)
        if running is not None and not running.done():
            running.set_result(exit_code)


class EngineContainers:
    """Containers of a Docker engine.

    Args: `labels` are added to each, so that a test finds its own; `name` of a server's container, where two daemons
    share an engine and cannot both call it by the UUID.
    """

    def __init__(
        self,
        host: str,
        *,
        labels: dict[str, str] | None = None,
        name: Callable[[str], str] = str,
        threads: int = 8,
    ) -> None:
        self._engine = DockerEngine(host, connections=threads)
        self._labels = labels or {}
        self._name = name
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="stand-in daemon")

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def create(self, kind: ContainerKind) -> str:
        await self.remove(kind.server)
        document = {
            "Image": kind.image,
            "Hostname": kind.server,
            "Env": [f"STARTUP={kind.invocation}"],
            "Labels": {"Service": kind.service, "ContainerType": "server_process", **self._labels},
            "Tty": True,
            "OpenStdin": True,
            "HostConfig": {"Binds": [f"{kind.volume}:{_DATA_TARGET}:rw"], "NetworkMode": "none"},
        }
        container, _ = await self._in_thread(self._engine.create, self._name(kind.server), document)
        return container

    async def start(self, container: str) -> None:
        await self._in_thread(self._engine.start, container)

    async def write(self, container: str, line: str) -> None:
        await self._in_thread(self._engine.write_stdin, container, line.encode() + b"\n")

    async def signal(self, container: str, name: str) -> None:
        await self._in_thread(self._engine.signal, container, name)

    async def wait(self, container: str) -> int:
        """Looks again and again: a wait of the engine's own would hold a thread beyond the daemon's end."""
        while True:
            details = await self._in_thread(self._engine.inspect, container)
            if details is None:
                return _KILLED
            if not is_up(details):
                return int(details["State"].get("ExitCode") or 0)
            await asyncio.sleep(_POLL_S)

    async def running(self, server: str) -> str | None:
        details = await self._in_thread(self._engine.inspect, self._name(server))
        return str(details["Id"]) if details is not None and is_up(details) else None

    async def remove(self, server: str) -> None:
        name = self._name(server)
        details = await self._in_thread(self._engine.inspect, name)
        if details is None or name != str(details["Name"]).lstrip("/"):
            return
        container = str(details["Id"])
        if is_up(details):
            await self.signal(container, "SIGKILL")
            await self.wait(container)
        await self._in_thread(self._engine.remove, container)

    async def close(self) -> None:
        """Join the threads, close the connections."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self._engine.close()
