"""One node as REST, the WebSocket and the bus see it: what may be asked of its transfers, and how each is begun."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from sidecar.engine.arrivals import Arrivals
from sidecar.engine.contract import Caller, IncomingUpload, ServerView, SourceCut, StartTransfer
from sidecar.engine.deletion import Deletion
from sidecar.engine.incoming import Incoming
from sidecar.engine.outgoing import Outgoing
from sidecar.engine.roster import Roster
from sidecar.engine.services import Services
from sidecar.engine.transfer import not_transferring
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.journal.records import IncomingFacts, OutgoingFacts
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State, first
from sidecar.lifecycle.statuses import Role, Status
from sidecar.ports import Observed, RunState
from sidecar.views import TransferEvent, TransferView

ANSWER_WAIT_S = 20.0  # the source's answer waits this long for the panel to have been told of a failure


class Node:
    """Fulfils `contract.Transfers`. Use it as `async with node.running():`."""

    def __init__(self, services: Services, *, max_outgoing: int, max_incoming: int, refuse_deletion: bool) -> None:
        self._services = services
        self._roster = Roster(services, max_outgoing=max_outgoing, max_incoming=max_incoming)
        self._deletion = Deletion(services, self._roster, is_refused=refuse_deletion)
        self._arrivals = Arrivals()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """Recover what the journal holds, then serve. On leaving nothing is decided: what runs is cut, as by a kill."""
        async with self._roster.running():
            yield self

    async def drain(self, grace_s: float) -> None:
        """See `Roster.drain`."""
        await self._roster.drain(grace_s)

    async def check(self) -> None:
        """See `Roster.check`."""
        await self._roster.check()

    def bar(self, reason: Refused | None) -> None:
        """See `Roster.bar`."""
        self._roster.bar(reason)

    async def keep_house(self) -> None:
        """See `Roster.keep_house`."""
        await self._roster.keep_house()

    # -- source --------------------------------------------------------------------------------------------------------
    async def start(self, request: StartTransfer, *, caller: Caller | None, respond_async: bool) -> TransferView:
        if request.key is None:
            return await self._start(request, caller, respond_async=respond_async)

        async def begun() -> str:
            return (await self._start(request, caller, respond_async=respond_async)).transfer

        return self._roster.transfers[await self._roster.keys.once(request, begun)].view()

    async def _start(self, request: StartTransfer, caller: Caller | None, *, respond_async: bool) -> TransferView:
        if request.expires_at is not None and self._services.now() >= request.expires_at:
            raise Refused("request.expired", "The command's expires_at has passed; nothing was started.")
        self._roster.refuse_where_barred()
        if not await self._services.in_thread(self._services.volumes.has, request.server):
            raise Refused("server.unknown", "The requested resource does not exist on this instance.")
        if self._roster.has_departed(request.server) and not await self._came_back(request.server):
            raise Refused("server.departed", "The server has left this node; only its old files are here.")
        with self._roster.slot(request.server, Role.SOURCE):
            target = await self._services.in_thread(self._services.policy.resolve, request.url)
            observed = await self._services.runtime.observe(request.server)
            if observed.state is RunState.RUNNING and observed.container is None:
                message = "Something else runs on the server's files: an installation or a restore."
                raise Refused("server.busy", message)
            facts = OutgoingFacts(
                transfer=str(uuid.uuid4()),
                server=request.server,
                url=request.url,
                token="" if self._services.panel is not None else request.token,
                accepted_at=self._services.now(),
                observed=observed,
                start_on_completion=request.start_on_completion,
                backups=request.backups,
                backup_form=request.backup_form,
                delete_backups=request.delete_backups,
                key=request.key,
                key_digest=request.digest() if request.key is not None else "",
            )
            state = first(Role.SOURCE, respond_async=respond_async)
            transfer = Outgoing(self._services, state, facts, target=target, token=request.token, caller=caller)
            await transfer.begin()
            self._roster.remember(transfer)
        self._roster.run(transfer, Effect.STOP_SERVER)
        if respond_async:
            transfer.answered_now()
            return transfer.view()
        await transfer.wait_until(lambda state: state.stage is not Stage.STOPPING)
        if not transfer.was_accepted:
            raise transfer.error()
        return transfer.view()

    async def _came_back(self, server: str) -> bool:
        """Whether the panel lists a server here that this node saw leaving: it returned by another way."""
        panel = self._services.panel
        return panel is not None and await panel.is_ours(server) is True

    # -- destination ---------------------------------------------------------------------------------------------------
    async def receive(self, upload: IncomingUpload) -> TransferView:
        if upload.multiplex_stream is not None:
            return await self._arrivals.receive(upload, self._services.timings.join_s)
        transfer: Incoming | None = None
        try:
            transfer = await self._begin_receipt(upload)
            state = await transfer.wait_until(lambda state: state.is_final)
            if state.status is Status.COMPLETED:
                return transfer.view()
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_WAIT_S):
                    await transfer.wait_until(lambda state: not state.owes_failure and not state.owes_cleanup)
            raise transfer.error()
        except SidecarError as error:
            if upload.is_calagopus or (transfer is not None and transfer.is_calagopus):
                upload.connection.abort()
                raise SourceCut(error.code) from error
            raise

    async def _begin_receipt(self, upload: IncomingUpload) -> Incoming:
        self._roster.refuse_where_barred()
        if upload.multiplex_streams > (most := self._services.receiving.max_multiplex_streams):
            raise Refused("upload.multiplex", f"This node takes an upload in at most {most} further streams.")
        transfer_id = upload.transfer or str(uuid.uuid4())
        with self._roster.slot(upload.server, Role.DESTINATION):
            if transfer_id in self._roster.transfers:
                raise Refused(
                    "transfer.exists", "That transfer has been seen before and is over.", transfer=transfer_id
                )
            facts = IncomingFacts(
                transfer=transfer_id,
                server=upload.server,
                peer=upload.peer,
                accepted_at=self._services.now(),
                start_on_completion=bool(upload.start_on_completion),
                content_bytes=upload.content_bytes,
                entries=upload.entries,
                is_sidecar=upload.is_sidecar,
                is_calagopus=upload.is_calagopus,
            )
            transfer = Incoming(
                self._services,
                first(Role.DESTINATION, beside=self._services.daemon is not None),
                facts,
                upload=upload,
                has_departed=self._roster.has_departed(upload.server),
            )
            await transfer.begin()
            self._roster.remember(transfer)
        self._roster.run(transfer, Effect.ADMIT)
        await self._arrivals.announce(transfer)
        return transfer

    async def settle(self, server: str, transfer: str) -> Literal["completed", "failed"]:
        if self._services.panel is not None:
            raise Refused("transfer.none", "This node's transfers are decided by its panel.")
        found = self._roster.transfers.get(transfer)
        if found is None:
            with self._roster.slot(server, Role.DESTINATION):
                await self._bury(server, transfer)
            return "failed"
        if found.state.role is not Role.DESTINATION or found.facts.server != server:
            raise Refused("transfer.none", "That transfer does not arrive at this node.")
        if not found.state.is_final and not found.state.in_doubt:
            with suppress(Refused):
                await found.ask(on.CancelRequested())
        state = await found.wait_until(lambda state: state.is_final or state.stage is Stage.ACTIVATING)
        return "failed" if state.status in (Status.FAILED, Status.CANCELLED) else "completed"

    async def _bury(self, server: str, transfer: str) -> None:
        """Remember a transfer that never arrived as failed, so that it cannot arrive after the question."""
        now = self._services.now()
        facts = IncomingFacts(transfer=transfer, server=server, peer="", accepted_at=now, finished_at=now)
        message = "The source asked how it ended before it had arrived."
        state = State(
            role=Role.DESTINATION,
            stage=Stage.ENDED,
            status=Status.FAILED,
            reason="upload.truncated",
            message=message,
        )
        buried = Incoming(self._services, state, facts)
        await buried.begin("Settled")
        newest = self._roster.newest.get(server)
        self._roster.transfers[transfer] = buried
        if newest is None:
            self._roster.newest[server] = buried

    # -- both ----------------------------------------------------------------------------------------------------------
    async def cancel(self, server: str, role: Role) -> TransferView:
        transfer = self._roster.newest.get(server)
        if transfer is None or transfer.state.role is not role:
            raise not_transferring()
        await transfer.ask(on.CancelRequested())
        return transfer.view()

    async def resolve(self, server: str, outcome: Literal["completed", "failed"]) -> TransferView:
        transfer = self._roster.newest.get(server)
        if transfer is None or not transfer.state.in_doubt:
            raise Refused("transfer.none", "No transfer of that server is in doubt.")
        await transfer.ask(on.Resolved(outcome))
        return transfer.view()

    async def delete_server(self, server: str) -> bool:
        return await self._deletion.delete(server)

    # -- what others see -----------------------------------------------------------------------------------------------
    def views(self) -> list[TransferView]:
        found = sorted(self._roster.transfers.values(), key=lambda t: (t.state.is_final, -t.facts.accepted_at))
        return [transfer.view() for transfer in found]

    def view(self, server: str) -> TransferView | None:
        newest = self._roster.newest.get(server)
        return newest.view() if newest is not None else None

    def find(self, transfer: str) -> TransferView | None:
        found = self._roster.transfers.get(transfer)
        return found.view() if found is not None else None

    async def servers(self) -> list[ServerView]:
        names = await self._services.in_thread(self._services.volumes.servers)
        return [await self._server_view(name) for name in names]

    async def server(self, server: str) -> ServerView:
        if not await self._services.in_thread(self._services.volumes.has, server):
            raise Refused("server.unknown", "The requested resource does not exist on this instance.")
        return await self._server_view(server)

    async def _server_view(self, server: str) -> ServerView:
        try:
            observed = await self._services.runtime.observe(server)
        except HostFailed:
            observed = Observed(RunState.MISSING)
        newest = self._roster.newest.get(server)
        return ServerView(
            uuid=server,
            state="running" if observed.state is RunState.RUNNING else "offline",
            is_transferring=newest is not None and not newest.state.is_final,
            transferred=self._roster.has_departed(server),
            volume=str(self._services.volumes.layout(server).volume),
        )

    def tell_statuses(self) -> None:
        """Whoever keeps events may have lost some: tell it the present status of every transfer."""
        for transfer in self._roster.transfers.values():
            transfer.tell_again()

    def events(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        return self._services.hub.listen(server)
