"""The roster of one node: which transfers there are, who may begin one, and what is still owed after a restart.

One transfer per server, either direction (D1): the slot is taken synchronously, before the first await, and it is free
again only when the transfer's own state says so. Every transfer runs in a task of the roster's task group.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import msgspec

from sidecar.engine.daemon_folder import put_back_leftovers
from sidecar.engine.incoming import Incoming
from sidecar.engine.outgoing import Outgoing
from sidecar.engine.services import Services
from sidecar.engine.start_keys import StartKeys
from sidecar.engine.transfer import Transfer
from sidecar.errors import HostFailed, Refused, SidecarError
from sidecar.journal.records import OutgoingFacts
from sidecar.journal.store import Recovered, worth_keeping
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Role, Status

log = logging.getLogger(__name__)

HISTORY = 500  # ended transfers that are remembered; each is a file of a few KiB
STOPPING = "This node is being stopped and takes no more transfers."
_BEGINNING_S = 0.02  # between two looks at what is just beginning


class Roster:
    """Use it as `async with roster.running():`. What it holds is for the rest of the engine to read."""

    def __init__(self, services: Services, *, max_outgoing: int, max_incoming: int) -> None:
        self._services = services
        self._limits = {Role.SOURCE: max_outgoing, Role.DESTINATION: max_incoming}
        self.transfers: dict[str, Transfer] = {}  # by transfer id, oldest first
        self.newest: dict[str, Transfer] = {}  # by server
        self.reserved: dict[str, Role | None] = {}  # servers for which a transfer is about to begin; None: a deletion
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.keys = StartKeys()
        self._group: asyncio.TaskGroup | None = None
        self._draining = False
        self._barred: Refused | None = None

    # -- life ----------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Recover what the journal holds, then serve. On leaving nothing is decided: what runs is cut, as by a kill."""
        await self._services.in_thread(self._services.journal.prepare)
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._recover()
                yield
            finally:
                self._draining = True
                for transfer in self.transfers.values():
                    transfer.close()
                for task in self.tasks.values():
                    task.cancel()
        await self._services.in_thread(self._services.journal.close)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, and wait for what begins, moves bytes or awaits a verdict, for `grace_s` at most."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.reserved or self._running():
                    for transfer in self._running():
                        await transfer.wait_until(lambda state: state.is_final)
                    await asyncio.sleep(_BEGINNING_S)

    def _running(self) -> list[Transfer]:
        """What will come to an end by itself."""
        return [
            t for key, t in self.transfers.items() if key in self.tasks and not t.state.is_final and not t.is_broken
        ]

    async def check(self) -> None:
        """Readiness: raise HostFailed (`node.stopping`) when it takes no more transfers because it is to end."""
        if self._draining:
            raise HostFailed("node.stopping", STOPPING)

    def bar(self, reason: Refused | None) -> None:
        """Begin no transfer, in either direction, until told None: each is refused with `reason`.

        What runs already goes on to its end, and so do recovery and what is still owed.
        """
        self._barred = reason

    def refuse_where_barred(self) -> None:
        if self._barred is not None:
            raise Refused(self._barred.code, self._barred.message)

    async def _recover(self) -> None:
        recovered = await self._services.in_thread(self._services.journal.replay)
        for found in recovered:
            transfer = self._revive(found)
            self.remember(transfer)
            # A crash may have come between a decision and the outbox. What is there already is recognised.
            self._services.hub.republish([transfer.told(r.state, decision=r.seq, time=r.time) for r in found.statuses])
            if found.record.state.holds_slot or found.record.state.owes_cleanup:
                log.info("recovering transfer %s in stage %s", transfer.facts.transfer, transfer.state.stage)
                self.run(transfer, told=on.Restarted())
        await self._services.in_thread(self._sweep)

    def _revive(self, found: Recovered) -> Transfer:
        record = found.record
        state = assume_the_worse(record.state) if found.is_damaged else record.state
        told = found.statuses[-1].seq if state == record.state else record.seq
        if isinstance(record.facts, OutgoingFacts):
            return Outgoing(self._services, state, record.facts, seq=record.seq, told=told)
        return Incoming(self._services, state, record.facts, seq=record.seq, told=told)

    def _sweep(self) -> None:
        """In a thread: staging directories that no transfer will ask for again; trash that is old enough.

        A transfer is journaled before it has a staging directory. So one that this journal does not know is another
        node's, or from a state directory that was lost: it may be the only copy, and stays. The same goes for a journal
        that could not be read (a newer version's).
        """
        over = {t.facts.transfer: t.facts.server for t in self.transfers.values() if not t.state.holds_slot}
        known, now = self._services.journal.known(), self._services.now()
        for leftover in self._services.volumes.leftovers():
            if leftover.transfer in over:
                log.info("clearing the staging directory of transfer %s", leftover.transfer)
                leftover.clear(over[leftover.transfer], now)
            elif leftover.transfer not in known:
                place = leftover.layout.staging_root / leftover.transfer
                log.warning("%s is of a transfer that this node knows nothing of; left where it is", place)
        busy = {t.facts.server for t in self.transfers.values() if t.state.holds_slot}
        for directory in self._services.volumes.filed:
            put_back_leftovers(directory, busy)
        self._services.volumes.purge(now)

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
    def slot(self, server: str, role: Role) -> Iterator[None]:
        """Take the server's slot while a transfer is being made; synchronous up to the `yield`.

        Raises Refused (`transfer.exists`, `transfer.quarantine`, `node.stopping`, `transfer.too_many`).
        """
        holder = self.newest.get(server)
        if server in self.reserved or (holder is not None and holder.state.holds_slot):
            if holder is not None and holder.state.is_final and server not in self.reserved:
                other = "panel" if self._services.panel is not None else "destination"
                message = (
                    f"The previous transfer of this server is not over: the {other} has not been told, or a call to it "
                    "can still land there. Try again in a minute."
                )
                raise Refused("transfer.quarantine", message, transfer=holder.facts.transfer)
            raise Refused("transfer.exists", "A transfer is already in progress for this server.")
        active = sum(
            t.state.role is role and t.state.holds_slot and not t.state.is_final for t in self.transfers.values()
        )
        if self._draining:
            raise Refused("node.stopping", STOPPING)
        if active + list(self.reserved.values()).count(role) >= self._limits[role]:
            raise Refused(
                "transfer.too_many", "This node takes no more transfers at the moment.", limit=self._limits[role]
            )
        self.reserved[server] = role
        try:
            yield
        finally:
            del self.reserved[server]

    def remember(self, transfer: Transfer) -> None:
        """At recovery the order is that of clocks, which may have been set back: who holds the slot stays newest."""
        self.transfers[transfer.facts.transfer] = transfer
        self.keys.remember(transfer.facts)
        newest = self.newest.get(transfer.facts.server)
        if newest is None or not newest.state.holds_slot:
            self.newest[transfer.facts.server] = transfer

    async def _forget_old(self) -> None:
        ended = [t for t in self.transfers.values() if t.facts.transfer not in self.tasks and not self._is_needed(t)]
        doomed = ended[: max(0, len(ended) - HISTORY)]
        for transfer in doomed:  # all before the first await: several transfers end at once
            del self.transfers[transfer.facts.transfer]
            self.keys.forget(transfer.facts)
            if self.newest.get(transfer.facts.server) is transfer:
                del self.newest[transfer.facts.server]
        for transfer in doomed:
            await self._services.in_thread(self._services.journal.forget, transfer.facts.transfer)

    def _is_needed(self, transfer: Transfer) -> bool:
        moved = self._last_move(transfer.facts.server) is transfer
        return worth_keeping(transfer.state) and (moved or transfer.state.holds_slot)

    def run(self, transfer: Transfer, *effects: Effect, told: Event | None = None) -> None:
        assert self._group is not None
        transfer_id = transfer.facts.transfer
        task = self._group.create_task(self._drive(transfer, *effects, told=told), name=f"transfer {transfer_id}")
        self.tasks[transfer_id] = task

    async def _drive(self, transfer: Transfer, *effects: Effect, told: Event | None) -> None:
        """One transfer's bug must not end the others."""
        try:
            await transfer.run(*effects, told=told)
        except Exception:
            log.exception("a bug stopped transfer %s; its data is kept", transfer.facts.transfer)
            await transfer.mark_broken()
        finally:
            del self.tasks[transfer.facts.transfer]
            self._services.journal.release(transfer.facts.transfer)
        try:
            await self._forget_old()
        except OSError as error:
            log.warning("an old journal file stays behind: %s", error)

    def has_departed(self, server: str) -> bool:
        """Whether the last thing known of that server is that it left this node."""
        return self.departure(server) is not None

    def departure(self, server: str) -> Transfer | None:
        """The transfer by which the server left, while its old files are here: what comes later is something else."""
        last = self._last_move(server)
        if last is None or last.state.role is not Role.SOURCE:
            return None
        return None if last.state.delete_requested and not last.state.owes_cleanup else last

    def _last_move(self, server: str) -> Transfer | None:
        """The newest transfer that moved the server. One that failed since then has not brought it back."""
        for transfer in reversed(self.transfers.values()):
            if transfer.facts.server == server and transfer.state.status is Status.COMPLETED:
                return transfer
        return None


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
