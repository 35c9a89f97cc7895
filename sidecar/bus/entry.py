"""This node as it is now, for the directory and for `info`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from sidecar.bus.messages import NodeEntry
from sidecar.engine.contract import Transfers
from sidecar.lifecycle.statuses import Role


class EntryMaker:
    """Args: fixed, everything that does not change while the program runs; transfers, the engine; free_bytes, on the
    volumes' filesystem, raises OSError; now, seconds since 1970."""

    def __init__(
        self,
        fixed: NodeEntry,
        *,
        transfers: Transfers,
        free_bytes: Callable[[], Awaitable[int]],
        now: Callable[[], float],
    ) -> None:
        self._fixed = fixed
        self._transfers = transfers
        self._free_bytes = free_bytes
        self._now = now

    async def entry(self) -> NodeEntry:
        """Never raises: what cannot be measured is left out."""
        try:
            free_bytes: int | None = await self._free_bytes()
        except OSError:
            free_bytes = None
        running = [view.role for view in self._transfers.views() if not view.status.is_final]
        return msgspec.structs.replace(
            self._fixed,
            outgoing=running.count(Role.SOURCE),
            incoming=running.count(Role.DESTINATION),
            free_bytes=free_bytes,
            time=self._now(),
        )
