"""What a stand-in node daemon runs its servers in: containers of a real engine, or nothing but names of them.

As the daemons do: a new container at each start, named by the server's UUID, marked by two labels, the volume bound to
`/home/container`, no restart policy.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    import docker

_DATA_TARGET: Final = "/home/container"
_WAIT_S: Final = 0.5  # of one wait; the SDK cannot be interrupted in it


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
            self._end(container, 137 if name == "SIGKILL" else 0)

    async def wait(self, container: str) -> int:
        running = self._exits.get(container)
        return 0 if running is None else await asyncio.shield(running)

    async def running(self, server: str) -> str | None:
        return next((container for container in self._exits if self._servers[container] == server), None)

    async def remove(self, server: str) -> None:
        for container in [known for known, its in self._servers.items() if its == server]:
            self._end(container, 137)
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
    """Containers of a Docker engine. `labels` are added to each, so that a test finds its own."""

    def __init__(self, client: docker.DockerClient, *, labels: dict[str, str] | None = None, threads: int = 8) -> None:
        self._api: Any = client.api
        self._labels = labels or {}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="stand-in daemon")

    async def _in_thread(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))

    async def create(self, kind: ContainerKind) -> str:
        return str(await self._in_thread(self._create, kind))

    def _create(self, kind: ContainerKind) -> str:
        self._remove(kind.server)
        created = self._api.create_container(
            kind.image,
            name=kind.server,
            hostname=kind.server,
            environment={"STARTUP": kind.invocation},
            labels={"Service": kind.service, "ContainerType": "server_process", **self._labels},
            tty=True,
            stdin_open=True,
            network_disabled=True,
            host_config=self._api.create_host_config(
                binds={str(kind.volume): {"bind": _DATA_TARGET, "mode": "rw"}}, network_mode="none"
            ),
        )
        return str(created["Id"])

    async def start(self, container: str) -> None:
        await self._in_thread(self._api.start, container)

    async def write(self, container: str, line: str) -> None:
        await self._in_thread(self._write, container, line)

    def _write(self, container: str, line: str) -> None:
        attached = self._api.attach_socket(container, params={"stdin": 1, "stream": 1})
        response = attached._response  # the SDK leaves it open otherwise
        try:
            attached._sock.sendall(line.encode() + b"\n")
        finally:
            attached.close()
            response.close()

    async def signal(self, container: str, name: str) -> None:
        await self._in_thread(self._signal, container, name)

    def _signal(self, container: str, name: str) -> None:
        import docker

        try:
            self._api.kill(container, name)
        except docker.errors.APIError as error:
            if error.response is None or error.response.status_code not in (404, 409):
                raise

    async def wait(self, container: str) -> int:
        while True:
            exit_code: int | None = await self._in_thread(self._wait, container)
            if exit_code is not None:
                return exit_code

    def _wait(self, container: str) -> int | None:
        import docker
        import requests

        try:
            return int(self._api.wait(container, timeout=_WAIT_S)["StatusCode"])
        except docker.errors.NotFound:
            return 137
        except requests.exceptions.RequestException:
            return None  # it still runs

    async def running(self, server: str) -> str | None:
        found: str | None = await self._in_thread(self._running, server)
        return found

    def _running(self, server: str) -> str | None:
        import docker

        try:
            document = self._api.inspect_container(server)
        except docker.errors.NotFound:
            return None
        return str(document["Id"]) if document["State"]["Running"] else None

    async def remove(self, server: str) -> None:
        await self._in_thread(self._remove, server)

    def _remove(self, server: str) -> None:
        import docker

        try:
            self._api.remove_container(server, force=True, v=True)
        except docker.errors.NotFound:
            return

    async def close(self) -> None:
        """Join the threads; the client is the caller's. Blocks for the rest of a wait."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
