"""A runtime for the engine's tests that behaves as the contract says, without an engine: a verified fake.

It is run through the same contract suite as the real adapters (`tests/adapters`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sidecar.errors import HostFailed
from sidecar.ports import Configuration, Observed, RunState, StopHow


class FakeRuntime:
    """Servers are running or stopped; `trouble` maps a method's name to the error that it raises next."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.stopped: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.trouble: dict[str, list[HostFailed]] = {}
        self.at_stop: Callable[[], object] | None = None
        self.slow_stop: asyncio.Event | None = None
        self.gates: dict[str, asyncio.Event] = {}  # a method that is named here waits for its event
        self._started_outside = asyncio.Event()

    def add(self, server: str, *, running: bool) -> None:
        (self.running if running else self.stopped).add(server)

    def start_from_outside(self, server: str) -> None:
        self.stopped.discard(server)
        self.running.add(server)
        self._started_outside.set()

    def _called(self, method: str, server: str) -> None:
        self.calls.append((method, server))
        if self.trouble.get(method):
            raise self.trouble[method].pop(0)

    async def _gate(self, method: str) -> None:
        if method in self.gates:
            await self.gates[method].wait()

    async def observe(self, server: str) -> Observed:
        self._called("observe", server)
        if server in self.running:
            return Observed(RunState.RUNNING, "c0ffee", {"Name": "always"}, 0)
        return Observed(RunState.STOPPED if server in self.stopped else RunState.MISSING)

    async def stop(self, server: str, observed: Observed, how: StopHow) -> None:
        if self.slow_stop is not None:
            await self.slow_stop.wait()
        self._called("stop", server)
        if self.at_stop is not None:
            self.at_stop()
        if server in self.running:
            self.running.discard(server)
            self.stopped.add(server)

    async def verify_stopped(self, server: str, observed: Observed) -> None:
        await self._gate("verify_stopped")
        self._called("verify_stopped", server)
        if server in self.running:
            raise HostFailed("server.started_outside", "it runs")

    async def wait_started_outside(self, server: str) -> None:
        await self._started_outside.wait()

    async def start(self, server: str, observed: Observed) -> None:
        await self._gate("start")
        self._called("start", server)
        if observed.state is RunState.RUNNING:
            self.stopped.discard(server)
            self.running.add(server)

    async def prepare(self, server: str, configuration: Configuration | None) -> None:
        await self._gate("prepare")
        self._called("prepare", server)

    async def activate(self, server: str, configuration: Configuration | None, *, start: bool) -> None:
        await self._gate("activate")
        self._called("activate", server)
        (self.running if start else self.stopped).add(server)

    async def remove(self, server: str) -> None:
        await self._gate("remove")
        self._called("remove", server)
        self.stopped.discard(server)

    async def mounts_running(self, server: str) -> bool:
        self._called("mounts_running", server)
        return server in self.running

    async def check(self) -> None:
        self._called("check", "")
