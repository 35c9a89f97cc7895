"""The panel's DELETE of a server: what it means in each stage of a transfer, and what is then deleted here.

Nothing is: a volume goes to trash (S5), and one that a transfer still decides about is that transfer's business.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from sidecar.engine.outgoing import Outgoing
from sidecar.engine.roster import Roster
from sidecar.engine.services import Services
from sidecar.engine.transfer import Transfer
from sidecar.errors import Refused
from sidecar.lifecycle import events as on
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.statuses import Role
from sidecar.ports import RunState, StopHow

KILL = StopHow("signal", "SIGKILL")


class Deletion:
    """Args: services; roster; is_refused, whether the settings refuse every deletion."""

    def __init__(self, services: Services, roster: Roster, *, is_refused: bool) -> None:
        self._services = services
        self._roster = roster
        self._is_refused = is_refused

    async def delete(self, server: str) -> bool:
        """See `contract.Transfers.delete_server`. Raises Refused (`server.unknown`, `server.deletion_refused`)."""
        if self._is_refused:
            raise Refused("server.deletion_refused", "The settings of this node refuse the deletion of servers.")
        transfer = self._roster.newest.get(server)
        if transfer is not None and not transfer.state.is_final:
            if transfer.state.role is Role.DESTINATION:
                # Before the commit there is nothing of ours to delete; after it the transfer itself finds out whose
                # the server is, and moves the volume to trash if it is not ours (D8).
                if transfer.state.stage is not Stage.ACTIVATING:
                    if not transfer.state.in_doubt:  # one panel deletes here when it is told of our own failure
                        with suppress(Refused):
                            await transfer.ask(on.CancelRequested())
                    return False
                await transfer.wait_until(lambda state: state.is_final)  # it is ours: an ordinary deletion
            if transfer.state.stage in (Stage.STOPPING, Stage.SENDING, Stage.CUTTING):
                with suppress(Refused):
                    await transfer.ask(on.CancelRequested(restart=False))
                await transfer.wait_until(lambda state: state.is_final or state.in_doubt)
        if transfer is not None and transfer.state.in_doubt:
            await self._delete_departed(transfer)
            return False
        if (departure := self._roster.departure(server)) is not None:
            await self._delete_departed(departure)
            return False
        if isinstance(transfer, Outgoing):
            await transfer.leave_stopped()
        await self._delete_own(server)
        return True

    async def _delete_departed(self, transfer: Transfer) -> None:
        """S3d, S5: the panel's DELETE after a transfer. Answered at once; the files go when the oracle agrees."""
        running = self._roster.tasks.get(transfer.facts.transfer)
        if running is not None:
            with suppress(Refused):
                await transfer.ask(on.ServerDeleted())
                return
            await asyncio.wait({running})  # it was just ending
        if transfer.state.delete_requested:
            return
        self._roster.run(transfer, told=on.ServerDeleted())
        await transfer.wait_until(lambda state: state.delete_requested)
        await transfer.wait_until(lambda state: not state.owes_cleanup)

    async def _delete_own(self, server: str) -> None:
        """An ordinary deletion: the server is stopped, its container removed, its files go to trash.

        Nothing may arrive or leave meanwhile: what this looked at must be what it deletes.
        """
        newest = self._roster.newest.get(server)
        if server in self._roster.reserved or (newest is not None and not newest.state.is_final):
            raise Refused("transfer.exists", "A transfer of this server has begun.")
        self._roster.reserved[server] = None
        try:
            await self._delete_undisturbed(server)
        finally:
            del self._roster.reserved[server]

    async def _delete_undisturbed(self, server: str) -> None:
        volumes, runtime = self._services.volumes, self._services.runtime
        has_volume = await self._services.in_thread(volumes.has, server)
        observed = await runtime.observe(server)
        if not has_volume and observed.state is RunState.MISSING:
            raise Refused("server.unknown", "The requested resource does not exist on this instance.")
        if observed.state is RunState.RUNNING:
            await runtime.stop(server, observed, KILL)
        await self._services.in_thread(volumes.trash, server, "deleted", self._services.now())
        await runtime.remove(server)
