"""The routes about the node itself: what it is (`/api/system`), and whether it works (`/healthz`, `/readyz`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar import __version__
from sidecar.api.health import Readiness
from sidecar.api.problems import json_response
from sidecar.calls.auth import NodeAuth
from sidecar.errors import SidecarError

# What the container engine's `GET /info` answers, or None without an engine.
EngineInfo = Callable[[], Awaitable[Mapping[str, Any] | None]]


class SystemRoutes:
    """Args: engine_info, asks the container engine about itself, for panels that show it."""

    def __init__(self, *, auth: NodeAuth, readiness: Readiness, engine_info: EngineInfo | None) -> None:
        self._auth = auth
        self._readiness = readiness
        self._engine_info = engine_info

    def routes(self) -> list[Route]:
        return [
            Route("/api/system", self.system, methods=["GET"]),
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
        ]

    async def system(self, request: Request) -> Response:
        self._auth.check_node_token(request.headers.getlist("authorization"))
        if request.query_params.get("v") != "2":
            return json_response(
                {
                    "architecture": _architecture(),
                    "cpu_count": os.cpu_count() or 1,
                    "kernel_version": platform.release(),
                    "os": platform.system().lower(),
                    "version": __version__,
                }
            )
        return json_response({"version": __version__, "docker": await self._docker(), "system": _machine()})

    async def healthz(self, request: Request) -> Response:
        return json_response({"status": "ok", "version": __version__})

    async def readyz(self, request: Request) -> Response:
        is_ready, body = await self._readiness.report()
        return json_response(body, 200 if is_ready else 503, {"Cache-Control": "no-store"})

    async def _docker(self) -> dict[str, Any]:
        """The daemons' shape; empty where no engine answers, because the node itself is well enough to say so."""
        info: Mapping[str, Any] = {}
        if self._engine_info is not None:
            try:
                info = await self._engine_info() or {}
            except SidecarError:
                info = {}
        storage = dict(pair for pair in info.get("DriverStatus") or [] if len(pair) == 2)
        return {
            "version": info.get("ServerVersion", ""),
            "cgroups": {"driver": info.get("CgroupDriver", ""), "version": info.get("CgroupVersion", "")},
            "containers": {
                "total": info.get("Containers", 0),
                "running": info.get("ContainersRunning", 0),
                "paused": info.get("ContainersPaused", 0),
                "stopped": info.get("ContainersStopped", 0),
            },
            "storage": {"driver": info.get("Driver", ""), "filesystem": storage.get("Backing Filesystem", "")},
            "runc": {"version": (info.get("RuncCommit") or {}).get("ID", "")},
        }


def _architecture() -> str:
    """The machine in the words of Go, which panels know from the daemons."""
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _machine() -> dict[str, Any]:
    return {
        "architecture": _architecture(),
        "cpu_threads": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel_version": platform.release(),
        "os": _distribution(),
        "os_type": platform.system().lower(),
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "linux")
    except OSError:
        return platform.system().lower()
