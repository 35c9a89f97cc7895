"""Where one of several streams of an upload finds the transfer that it belongs to."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from sidecar.engine.contract import IncomingUpload, SourceCut
from sidecar.engine.incoming import Incoming
from sidecar.errors import Refused, SidecarError
from sidecar.lifecycle.statuses import Status
from sidecar.views import TransferView


class Arrivals:
    """Where a stream finds the transfer that it belongs to."""

    def __init__(self) -> None:
        self._open: WeakValueDictionary[str, Incoming] = WeakValueDictionary()
        self._changed = asyncio.Condition()

    async def announce(self, transfer: Incoming) -> None:
        """A transfer has begun. Only one whose source deals out is remembered."""
        if transfer.takes_streams:
            self._open[transfer.facts.server] = transfer
            async with self._changed:
                self._changed.notify_all()

    async def receive(self, upload: IncomingUpload, join_s: float) -> TransferView:
        """One stream, from its request to its answer. Raises SourceCut for every failure: its source knows no other."""
        try:
            transfer = await self._find(upload.server, join_s)
            transfer.join(upload)
            state = await transfer.wait_until(lambda state: state.is_final)
            if state.status is not Status.COMPLETED:
                raise transfer.error()
        except SidecarError as error:
            upload.connection.abort()
            raise SourceCut(error.code) from error
        return transfer.view()

    async def _find(self, server: str, join_s: float) -> Incoming:
        def found() -> Incoming | None:
            transfer = self._open.get(server)
            return transfer if transfer is not None and transfer.takes_streams else None

        try:
            async with asyncio.timeout(join_s), self._changed:
                transfer = await self._changed.wait_for(found)
        except TimeoutError:
            message = "The upload is one of several streams, and the main one never came."
            raise Refused("upload.multiplex", message) from None
        assert transfer is not None
        return transfer
