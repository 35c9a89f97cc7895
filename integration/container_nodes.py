"""A node as a container of our image, confined as the documentation says, in the place of a process.

The engine that runs it is the machine's; the engine whose socket it is given, and that runs its game servers, is the
node's own. Its own command line, `docker run`, stays in the foreground: its output is the node's, its exit code too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from integration.game_server import USER
from integration.image import CONFINED, docker
from integration.nodes import Node

# what giving files to another user takes: to give, to set modes and times of what is given, to write where others own
CAPABILITIES: Final = ("--cap-add=CHOWN", "--cap-add=FOWNER", "--cap-add=DAC_OVERRIDE")


class ContainerNode(Node):
    """`is_root`: root with `CAPABILITIES` and no others; else the servers' user without any."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        host: str,
        port: int,
        url: str,
        sections: Mapping[str, Mapping[str, Any]],
        program: tuple[str, ...],
        image: str,
        is_root: bool = False,
    ) -> None:
        super().__init__(name, directory, host=host, port=port, url=url, sections=sections, program=program)
        socket = Path(sections["containers"]["host"].removeprefix("unix://"))
        user = (0, 0) if is_root else USER
        self.container = ""
        self._options = (
            *("--rm", "--network=host", f"--user={user[0]}:{user[1]}", f"--group-add={socket.stat().st_gid}"),
            *(*CONFINED, *(CAPABILITIES if is_root else ())),
            *("--volume", f"{directory}:{directory}", "--volume", f"{socket}:{socket}"),
            *("--env", f"SIDECAR_CONFIG={self._config}"),
            image,
        )
        for path in (directory, *directory.rglob("*")):
            os.chown(path, *user)

    async def start(self) -> None:
        self.container = f"sidecar-test-{self.name}-{uuid4().hex[:8]}"
        self._command = ("docker", "run", f"--name={self.container}", *self._options)
        await super().start()

    async def kill(self) -> None:
        await asyncio.to_thread(docker, "kill", self.container)
        await self.exit_code()

    async def stop_container(self, grace_s: int) -> int:
        """As an orchestrator does: SIGTERM, and SIGKILL after `grace_s`. The program's exit code."""
        await asyncio.to_thread(docker, "stop", f"--time={grace_s}", self.container, timeout_s=grace_s + 30)
        return await self.exit_code()

    async def healthcheck(self) -> str:
        """What the image's own health check says."""
        done = await asyncio.to_thread(docker, "exec", self.container, "transfer-sidecar", "healthcheck", "--ready")
        return done.said.strip()

    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await asyncio.to_thread(docker, "rm", "--force", self.container)


def containers_of(image: str, *, root: str = "") -> Any:
    """What `set_scene` takes to make nodes; the one that is named `root` gives files away as root."""

    def make(name: str, directory: Path, **options: Any) -> ContainerNode:
        return ContainerNode(name, directory, image=image, is_root=name == root, **options)

    return make
