"""The roster of one node: which transfers there are, who may begin one, and what is still owed after a restart.

One transfer per server, either direction (D1): the slot is taken synchronously, before the first await, and it is free
again only when the transfer's own state says so. Every transfer runs in a task of the roster's task group.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Literal

import msgspec

from sidecar.engine.arrivals import Arrivals
from sidecar.engine.contract import Caller, IncomingUpload, ServerView, SourceCut, StartTransfer
from sidecar.engine.incoming import Incoming
from sidecar.engine.outgoing import Outgoing
from sidecar.engine.services import Services
from sidecar.engine.start_keys import StartKeys
from sidecar.engine.transfer import Transfer, not_transferring
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.journal.records import IncomingFacts, OutgoingFacts
from sidecar.journal.store import Recovered, worth_keeping
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State, first
from sidecar.lifecycle.statuses import Role, Status
from sidecar.ports import Observed, RunState, StopHow
from sidecar.views import TransferEvent, TransferView

log = logging.getLogger(__name__)

HISTORY = 500  # ended transfers that are remembered; each is a file of a few KiB
ANSWER_WAIT_S = 20.0  # the source's answer waits this long for the panel to have been told of a failure
KILL = StopHow("signal", "SIGKILL")
STOPPING = "This node is being stopped and takes no more transfers."


class Node:
    """Fulfils `contract.Transfers`. Use it as `async with node.running():`."""

    def __init__(self, services: Services, *, max_outgoing: int, max_incoming: int, refuse_deletion: bool) -> None:
        self._services = services
        self._limits = {Role.SOURCE: max_outgoing, Role.DESTINATION: max_incoming}
        self._refuse_deletion = refuse_deletion
        self._transfers: dict[str, Transfer] = {}  # by transfer id, oldest first
        self._newest: dict[str, Transfer] = {}  # by server
        self._reserved: dict[str, Role | None] = {}  # servers for which a transfer is about to begin; None: a deletion
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._arrivals = Arrivals()
        self._keys = StartKeys()
        self._group: asyncio.TaskGroup | None = None
        self._draining = False
        self._barred: Refused | None = None

    # -- life ----------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """Recover what the journal holds, then serve. On leaving nothing is decided: what runs is cut, as by a kill."""
        await self._services.in_thread(self._services.journal.prepare)
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._recover()
                yield self
            finally:
                self._draining = True
                for transfer in self._transfers.values():
                    transfer.close()
                for task in self._tasks.values():
                    task.cancel()
        await self._services.in_thread(self._services.journal.close)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, and wait for what moves bytes or awaits a verdict, for `grace_s` at most."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                for transfer in list(self._transfers.values()):
                    if transfer.facts.transfer in self._tasks:
                        await transfer.wait_until(lambda state: state.is_final)

    async def check(self) -> None:
        """Readiness: raise HostFailed (`node.stopping`) when it takes no more transfers because it is to end."""
        if self._draining:
            raise HostFailed("node.stopping", STOPPING)

    def bar(self, reason: Refused | None) -> None:
        """Begin no transfer, in either direction, until told None: each is refused with `reason`.

        What runs already goes on to its end, and so do recovery and what is still owed.
        """
        self._barred = reason

    async def _recover(self) -> None:
        recovered = await self._services.in_thread(self._services.journal.replay)
        for found in recovered:
            transfer = self._revive(found)
            self._remember(transfer)
            # A crash may have come between a decision and the outbox. What is there already is recognised.
            self._services.hub.republish([transfer.told(r.state, decision=r.seq, time=r.time) for r in found.statuses])
            if found.record.state.holds_slot or found.record.state.owes_cleanup:
                log.info("recovering transfer %s in stage %s", transfer.facts.transfer, transfer.state.stage)
                self._run(transfer, told=on.Restarted())
        await self._services.in_thread(self._sweep)

    def _revive(self, found: Recovered) -> Transfer:
        record = found.record
        state = assume_the_worse(record.state) if found.is_damaged else record.state
        if isinstance(record.facts, OutgoingFacts):
            return Outgoing(self._services, state, record.facts, seq=record.seq)
        return Incoming(self._services, state, record.facts, seq=record.seq)

    def _sweep(self) -> None:
        """In a thread: staging directories that no transfer will ask for again; trash that is old enough.

        A transfer is journaled before it has a staging directory. So one that this journal does not know is another
        node's, or from a state directory that was lost: it may be the only copy, and stays. The same goes for a journal
        that could not be read (a newer version's).
        """
        over = {t.facts.transfer for t in self._transfers.values() if not t.state.holds_slot}
        known = self._services.journal.known()
        for leftover in self._services.volumes.leftovers():
            if leftover.transfer in over:
                log.info("removing the staging directory of transfer %s", leftover.transfer)
                leftover.remove()
            elif leftover.transfer not in known:
                place = leftover.layout.staging_root / leftover.transfer
                log.warning("%s is of a transfer that this node knows nothing of; left where it is", place)
        self._services.volumes.purge(self._services.now())

    async def keep_house(self, interval_s: float = 300.0) -> None:
        """Purge trash that is old enough, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self._services.in_thread(self._services.volumes.purge, self._services.now())
            except SidecarError as error:
                log.warning("%s", error.message)

    # -- slots ---------------------------------------------------------------------------------------------------------
    @contextmanager
    def _slot(self, server: str, role: Role) -> Iterator[None]:
        """Take the server's slot while a transfer is being made; synchronous up to the `yield`.

        Raises Refused (`transfer.exists`, `transfer.quarantine`, `node.stopping`, `transfer.too_many`).
        """
        holder = self._newest.get(server)
        if server in self._reserved or (holder is not None and holder.state.holds_slot):
            if holder is not None and holder.state.is_final and server not in self._reserved:
                message = "A call of the previous transfer of this server can still land at the panel; try again later."
                raise Refused("transfer.quarantine", message, transfer=holder.facts.transfer)
            raise Refused("transfer.exists", "A transfer is already in progress for this server.")
        active = sum(
            t.state.role is role and t.state.holds_slot and not t.state.is_final for t in self._transfers.values()
        )
        if self._draining:
            raise Refused("node.stopping", STOPPING)
        if active + list(self._reserved.values()).count(role) >= self._limits[role]:
            raise Refused(
                "transfer.too_many", "This node takes no more transfers at the moment.", limit=self._limits[role]
            )
        self._reserved[server] = role
        try:
            yield
        finally:
            del self._reserved[server]

    def _remember(self, transfer: Transfer) -> None:
        """At recovery the order is that of clocks, which may have been set back: who holds the slot stays newest."""
        self._transfers[transfer.facts.transfer] = transfer
        self._keys.remember(transfer.facts)
        newest = self._newest.get(transfer.facts.server)
        if newest is None or not newest.state.holds_slot:
            self._newest[transfer.facts.server] = transfer

    async def _forget_old(self) -> None:
        ended = [t for t in self._transfers.values() if t.facts.transfer not in self._tasks and not self._is_needed(t)]
        doomed = ended[: max(0, len(ended) - HISTORY)]
        for transfer in doomed:  # all before the first await: several transfers end at once
            del self._transfers[transfer.facts.transfer]
            self._keys.forget(transfer.facts)
            if self._newest.get(transfer.facts.server) is transfer:
                del self._newest[transfer.facts.server]
        for transfer in doomed:
            await self._services.in_thread(self._services.journal.forget, transfer.facts.transfer)

    def _is_needed(self, transfer: Transfer) -> bool:
        moved = self._last_move(transfer.facts.server) is transfer
        return worth_keeping(transfer.state) and (moved or transfer.state.holds_slot)

    def _run(self, transfer: Transfer, *effects: Effect, told: Event | None = None) -> None:
        assert self._group is not None
        transfer_id = transfer.facts.transfer
        task = self._group.create_task(self._drive(transfer, *effects, told=told), name=f"transfer {transfer_id}")
        self._tasks[transfer_id] = task

    async def _drive(self, transfer: Transfer, *effects: Effect, told: Event | None) -> None:
        """One transfer's bug must not end the others."""
        try:
            await transfer.run(*effects, told=told)
        except Exception:
            log.exception("a bug stopped transfer %s; its data is kept", transfer.facts.transfer)
            await transfer.mark_broken()
        finally:
            del self._tasks[transfer.facts.transfer]
            self._services.journal.release(transfer.facts.transfer)
        try:
            await self._forget_old()
        except OSError as error:
            log.warning("an old journal file stays behind: %s", error)

    def _has_departed(self, server: str) -> bool:
        """Whether the last thing known of that server is that it left this node."""
        return self._departure(server) is not None

    def _departure(self, server: str) -> Transfer | None:
        """The transfer by which the server left, while its old files are here: what comes later is something else."""
        last = self._last_move(server)
        if last is None or last.state.role is not Role.SOURCE:
            return None
        return None if last.state.delete_requested and not last.state.owes_cleanup else last

    def _last_move(self, server: str) -> Transfer | None:
        """The newest transfer that moved the server. One that failed since then has not brought it back."""
        for transfer in reversed(self._transfers.values()):
            if transfer.facts.server == server and transfer.state.status is Status.COMPLETED:
                return transfer
        return None

    # -- source --------------------------------------------------------------------------------------------------------
    async def start(self, request: StartTransfer, *, caller: Caller | None, respond_async: bool) -> TransferView:
        if request.key is None:
            return await self._start(request, caller, respond_async=respond_async)

        async def begun() -> str:
            return (await self._start(request, caller, respond_async=respond_async)).transfer

        return self._transfers[await self._keys.once(request, begun)].view()

    async def _start(self, request: StartTransfer, caller: Caller | None, *, respond_async: bool) -> TransferView:
        self._refuse_where_barred()
        if not await self._services.in_thread(self._services.volumes.has, request.server):
            raise Refused("server.unknown", "The requested resource does not exist on this instance.")
        if self._has_departed(request.server) and not await self._came_back(request.server):
            raise Refused("server.departed", "The server has left this node; only its old files are here.")
        with self._slot(request.server, Role.SOURCE):
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
            self._remember(transfer)
        self._run(transfer, Effect.STOP_SERVER)
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

    def _refuse_where_barred(self) -> None:
        if self._barred is not None:
            raise Refused(self._barred.code, self._barred.message)

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
        self._refuse_where_barred()
        if upload.multiplex_streams > (most := self._services.receiving.max_multiplex_streams):
            raise Refused("upload.multiplex", f"This node takes an upload in at most {most} further streams.")
        transfer_id = upload.transfer or str(uuid.uuid4())
        with self._slot(upload.server, Role.DESTINATION):
            if transfer_id in self._transfers:
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
                has_departed=self._has_departed(upload.server),
            )
            await transfer.begin()
            self._remember(transfer)
        self._run(transfer, Effect.ADMIT)
        await self._arrivals.announce(transfer)
        return transfer

    async def settle(self, server: str, transfer: str) -> Literal["completed", "failed"]:
        if self._services.panel is not None:
            raise Refused("transfer.none", "This node's transfers are decided by its panel.")
        found = self._transfers.get(transfer)
        if found is None:
            with self._slot(server, Role.DESTINATION):
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
        newest = self._newest.get(server)
        self._transfers[transfer] = buried
        if newest is None:
            self._newest[server] = buried

    # -- both ----------------------------------------------------------------------------------------------------------
    async def cancel(self, server: str, role: Role) -> TransferView:
        transfer = self._newest.get(server)
        if transfer is None or transfer.state.role is not role:
            raise not_transferring()
        await transfer.ask(on.CancelRequested())
        return transfer.view()

    async def resolve(self, server: str, outcome: Literal["completed", "failed"]) -> TransferView:
        transfer = self._newest.get(server)
        if transfer is None or not transfer.state.in_doubt:
            raise Refused("transfer.none", "No transfer of that server is in doubt.")
        await transfer.ask(on.Resolved(outcome))
        return transfer.view()

    async def delete_server(self, server: str) -> bool:
        if self._refuse_deletion:
            raise Refused("server.deletion_refused", "The settings of this node refuse the deletion of servers.")
        transfer = self._newest.get(server)
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
        if (departure := self._departure(server)) is not None:
            await self._delete_departed(departure)
            return False
        if isinstance(transfer, Outgoing):
            await transfer.leave_stopped()
        await self._delete_own(server)
        return True

    async def _delete_departed(self, transfer: Transfer) -> None:
        """S3d, S5: the panel's DELETE after a transfer. Answered at once; the files go when the oracle agrees."""
        running = self._tasks.get(transfer.facts.transfer)
        if running is not None:
            with suppress(Refused):
                await transfer.ask(on.ServerDeleted())
                return
            await asyncio.wait({running})  # it was just ending
        if transfer.state.delete_requested:
            return
        self._run(transfer, told=on.ServerDeleted())
        await transfer.wait_until(lambda state: state.delete_requested)
        await transfer.wait_until(lambda state: not state.owes_cleanup)

    async def _delete_own(self, server: str) -> None:
        """An ordinary deletion: the server is stopped, its container removed, its files go to trash.

        Nothing may arrive or leave meanwhile: what this looked at must be what it deletes.
        """
        newest = self._newest.get(server)
        if server in self._reserved or (newest is not None and not newest.state.is_final):
            raise Refused("transfer.exists", "A transfer of this server has begun.")
        self._reserved[server] = None
        try:
            await self._delete_undisturbed(server)
        finally:
            del self._reserved[server]

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

    # -- what others see -----------------------------------------------------------------------------------------------
    def views(self) -> list[TransferView]:
        found = sorted(self._transfers.values(), key=lambda t: (t.state.is_final, -t.facts.accepted_at))
        return [transfer.view() for transfer in found]

    def view(self, server: str) -> TransferView | None:
        newest = self._newest.get(server)
        return newest.view() if newest is not None else None

    def find(self, transfer: str) -> TransferView | None:
        found = self._transfers.get(transfer)
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
        newest = self._newest.get(server)
        return ServerView(
            uuid=server,
            state="running" if observed.state is RunState.RUNNING else "offline",
            is_transferring=newest is not None and not newest.state.is_final,
            transferred=self._has_departed(server),
            volume=str(self._services.volumes.layout(server).volume),
        )

    def tell_statuses(self) -> None:
        """Whoever keeps events may have lost some: tell it the present status of every transfer."""
        for transfer in self._transfers.values():
            transfer.tell_again()

    def events(self, server: str | None) -> AsyncGenerator[TransferEvent, None]:
        return self._services.hub.listen(server)


def assume_the_worse(state: State) -> State:
    """A later decision than this one may be lost to a damaged disk: recover as if it had been taken.

    The source may have been past its point, the destination in its commit; both ask before they act.
    """
    worse = {
        Stage.STOPPING: Stage.AWAITING_VERDICT,
        Stage.SENDING: Stage.AWAITING_VERDICT,
        Stage.CUTTING: Stage.AWAITING_VERDICT,
        Stage.PREPARING: Stage.COMMITTING,
    }
    stage = worse.get(state.stage, state.stage)
    past_point = state.past_point or stage is Stage.AWAITING_VERDICT
    return msgspec.structs.replace(state, stage=stage, past_point=past_point)
