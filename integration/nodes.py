"""A node as a process that a test may kill and start again, with everything that it keeps between its lives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from sidecar.archive.staging import VolumeLayout
from sidecar.archive.trash import list_trash
from sidecar.demo.nats import end_process
from sidecar.demo.node import write_config

PROGRAM: Final = ("-m", "sidecar")
HURRIED: Final = ("-m", "integration.hurried")
_READY_S: Final = 30.0
_STOP_S: Final = 20.0
_CALL_S: Final = 30.0
_POLL_S: Final = 0.03
_SHOWN_LINES: Final = 40


class Node:
    """Its configuration is written by `start`; `kill`, then `start` again, is a crash and a restart.

    Args: `url` as the tests reach it, which may be another address than the one it listens on; `within` what its
    command line begins with, such as the entry into a network namespace.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        host: str,
        port: int,
        url: str,
        sections: Mapping[str, Mapping[str, Any]],
        program: tuple[str, ...] = PROGRAM,
        within: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.url = url
        self.port = port
        self.token_id = f"tokenIdOf{name[-1].upper()}"
        self.token = f"token-of-{name}-0123456789abcdef0123"
        self.volumes = directory / "volumes"
        self.log = directory / "node.log"
        self._config = directory / "sidecar.toml"
        self._command = (*within, sys.executable, *program, "serve", "--config", str(self._config))
        self._process: asyncio.subprocess.Process | None = None
        # a connection a call, because the node at the other end may be another process the next time
        self._client = httpx.AsyncClient(
            timeout=_CALL_S, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        for folder in (self.volumes, directory / "state"):
            folder.mkdir(parents=True)
        own: dict[str, Mapping[str, Any]] = {
            "node": {"id": name, "token_id": self.token_id, "token": self.token},
            "api": {"host": host, "port": port},
            "state": {"dir": directory / "state"},
        }
        servers = {"volumes": self.volumes, **sections.get("servers", {})}
        write_config(self._config, own | dict(sections) | {"servers": servers})

    async def start(self) -> None:
        """Returns when it is ready: it has looked at its journal, and answers. Fails the test where it does not."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        with self.log.open("ab") as output:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
        async with asyncio.timeout(_READY_S):
            while process.returncode is None:
                with contextlib.suppress(httpx.HTTPError):
                    if (await self.ask("GET", "/readyz")).status_code == 200:
                        return
                await asyncio.sleep(_POLL_S)
        raise AssertionError(f"{self.name} ended with {process.returncode}\n{self.log_tail()}")

    async def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, as from an orchestrator that rolls out something new."""
        assert self._process is not None
        self._process.terminate()

    async def exit_code(self) -> int:
        """Of its process, when it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Once, at the end."""
        await self._client.aclose()
        if self._process is not None:
            await end_process(self._process, _STOP_S)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One call with the node's token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return await self._client.request(method, self.url + path, headers=headers, **options)

    async def view(self, server: str) -> dict[str, Any]:
        """Its transfer of that server as it shows it; empty where it remembers none."""
        answer = await self.ask("GET", f"/api/servers/{server}/transfer")
        shown: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return shown

    def volume(self, server: str) -> Path:
        return self.volumes / server

    def trash(self, server: str) -> list[Path]:
        """Volumes of that server that were moved aside whole."""
        layout = VolumeLayout.detect(self.volumes / server, self.volumes)
        return [item.path for item in list_trash(layout.trash_root) if item.server == server and item.complete]

    def leftovers(self) -> list[str]:
        """What is under way on its disk: staging directories."""
        root = self.volumes / ".sidecar-staging"
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []

    def log_tail(self) -> str:
        said = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
        lines = [line for line in said if " INFO api.app GET " not in line]
        return "\n".join([f"-- {self.name}", *lines[-_SHOWN_LINES:]])
