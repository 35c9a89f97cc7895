"""Runtime `none`: nothing runs the servers here, only files are moved. Everything is done before it is asked."""

from __future__ import annotations

import asyncio

from sidecar.ports import Configuration, Observed, RunState, StopHow


class NoRuntime:
    """Fulfils `ports.Runtime`. Whoever configures it says that the servers are stopped by other means."""

    async def observe(self, server: str) -> Observed:
        return Observed(RunState.MISSING)

    async def stop(self, server: str, observed: Observed, how: StopHow) -> None:
        return None

    async def verify_stopped(self, server: str, observed: Observed) -> None:
        return None

    async def wait_started_outside(self, server: str) -> None:
        """Nothing is ever seen to start: waits until it is cancelled."""
        await asyncio.get_running_loop().create_future()

    async def start(self, server: str, observed: Observed) -> None:
        return None

    async def prepare(self, server: str, configuration: Configuration | None) -> None:
        return None

    async def activate(self, server: str, configuration: Configuration | None, *, start: bool) -> None:
        return None

    async def remove(self, server: str) -> None:
        return None

    async def mounts_running(self, server: str) -> bool:
        return False

    async def check(self) -> None:
        return None
