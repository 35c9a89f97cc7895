"""The destination: admits a server, receives and verifies its files, commits them, and finds out whether it owns it.

The order is that of the rules: slot (the roster's), panel's configuration, preflight, body, verify, prepare, commit,
announce, activate. `success` goes out only while the source's connection is open (D6d).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

import msgspec

from sidecar.archive.preflight import check_space
from sidecar.archive.staging import Identity, LayoutKind, Staging, commit, remove_staging
from sidecar.engine.arbiter import JournalArbiter
from sidecar.engine.cabinet import Cabinet
from sidecar.engine.contract import IncomingUpload
from sidecar.engine.handover import forget_discarded, hand_over, mend
from sidecar.engine.notices import NoticeLines
from sidecar.engine.progress import duration, size
from sidecar.engine.receipt import Received
from sidecar.engine.services import Backoff, Services, is_temporary
from sidecar.engine.streams import Streams
from sidecar.engine.transfer import Perform, Transfer
from sidecar.engine.volumes import has_volume, space_directory
from sidecar.errors import HostFailed, PeerFailed, Refused, SidecarError
from sidecar.journal.records import IncomingFacts
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Status
from sidecar.ports import Arbiter, Carries, Configuration, Verdict
from sidecar.views import Progress, TransferView


class Incoming(Transfer):
    """One server on its way in. After a restart there is no upload, and so no source that is connected."""

    facts: IncomingFacts

    def __init__(
        self,
        services: Services,
        state: State,
        facts: IncomingFacts,
        *,
        upload: IncomingUpload | None = None,
        has_departed: bool = False,
        seq: int = 0,
        told: int = 0,
    ) -> None:
        super().__init__(services, state, facts, seq=seq, told=told)
        self._upload = upload
        self._has_departed = has_departed  # what is at the volume's place is known to belong to another node
        self._layout = services.volumes.layout(facts.server)
        self._configuration: Configuration | None = None
        self._staging: Staging | None = None
        self._handing_over: asyncio.Future[Event] | None = None
        self._stoppable: asyncio.Future[Event] | None = None  # admission or preparation under way
        self._notices = NoticeLines(self.say, asyncio.get_running_loop())
        self._streams: Streams | None = None
        if upload is not None:
            self._streams = Streams(services, upload, self.meter, self._notices.from_thread)
        self._carries = Carries()
        receiving = services.receiving
        self.cabinet = Cabinet(receiving.places, facts.transfer, owner=receiving.owner, carrying=receiving.carrying)

    @property
    def performers(self) -> dict[Effect, Perform]:
        return {
            Effect.ADMIT: self.admit,
            Effect.RECEIVE: self.receive,
            Effect.STOP_RECEIPT: self.stop_receipt,
            Effect.PREPARE: self.prepare,
            Effect.COMMIT: self.commit,
            Effect.TELL_SUCCESS: self.tell_success,
            Effect.HAND_OVER: self.hand_over,
            Effect.MEND: self.mend,
            Effect.ACTIVATE: self.activate,
            Effect.DISCARD: self.discard,
            Effect.REMOVE_STAGING: self.remove_staging,
            Effect.TELL_FAILURE: self.tell_failure,
            Effect.ASK_OWNER: self.ask_owner,
            Effect.HOLD_SLOT: self.hold_slot,
        }

    def failed(self, effect: Effect, error: SidecarError) -> Event:
        match effect:
            case Effect.ADMIT:
                return on.AdmissionFailed(error.code, error.message, tell_panel=error.code != "panel.refused")
            case Effect.RECEIVE:
                return on.ReceiptFailed(error.code, error.message)
            case Effect.STOP_RECEIPT:
                return on.ReceiptStopped()
            case Effect.PREPARE:
                return on.PrepareFailed(error.code, error.message)
            case Effect.COMMIT:
                return on.CommitFailed(error.code, error.message)
            case Effect.TELL_SUCCESS:
                return on.SuccessUnanswered(call=self.state.call)
            case Effect.HAND_OVER:
                return on.HandOverUnanswered(call=self.state.call)
            case Effect.MEND:
                return on.MendFailed(error.code, error.message)
            case Effect.ACTIVATE:
                return on.ActivationFailed(error.code, error.message)
            case Effect.DISCARD:
                return on.DiscardFailed(error.code, error.message)
            case Effect.REMOVE_STAGING:
                return on.CleanUpFailed(error.code, error.message)
            case Effect.TELL_FAILURE:
                return on.FailureUnanswered(call=self.state.call)
            case Effect.ASK_OWNER:
                return on.OwnerUnanswered(call=self.state.call)
            case _:
                return on.HoldOver()

    @property
    def peer(self) -> str | None:
        return self.facts.peer

    @property
    def is_calagopus(self) -> bool:
        """It takes any complete answer for success: fail it by closing without one."""
        return self.facts.is_calagopus or (self._streams is not None and self._streams.is_calagopus)

    def arbiter(self) -> Arbiter:
        return self.services.panel if self.services.panel is not None else JournalArbiter()

    def stage_line(self, stage: Stage) -> str | None:
        match stage:
            case Stage.RECEIVING:
                return "Receiving server data from source..."
            case Stage.COMMITTING:
                return "The archive is complete and verified."
            case Stage.ANNOUNCING:
                return "The files are in place; telling the panel."
            case Stage.HANDING_OVER:
                return "The files are in place; handing the server over to the node daemon."
            case Stage.MENDING:
                return "The panel does not know of the hand-over: the node daemon may have to forget it first."
            case Stage.CHECKING_OWNER | Stage.WITHDRAWING:
                return "The outcome is in doubt: the files are kept and nothing is started until it is known."
            case Stage.DISCARDING:
                return f"{self.state.message} Its files go to trash."
            case Stage.ACTIVATING:
                return "This node owns the server now."
            case Stage.SETTLING if self.state.status is Status.COMPLETED:
                return "The server has arrived."
            case _:
                return None

    def _source_is_connected(self) -> bool:
        return self._upload is not None and self._upload.connection.is_open

    # -- before the commit ---------------------------------------------------------------------------------------------
    async def admit(self) -> Event:
        """D2, D3 and the preflight; then the staging directory."""
        return await self._until_stopped(self._admit())

    async def _until_stopped(self, work: Coroutine[None, None, Event]) -> Event:
        """Work that `stop_receipt` may end."""
        self._stoppable = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(self._stoppable)
        except asyncio.CancelledError:
            if self._stoppable.cancelled():
                return on.ReceiptStopped()
            self._stoppable.cancel()
            with suppress(asyncio.CancelledError, SidecarError):
                await self._stoppable
            raise

    async def _admit(self) -> Event:
        self._configuration = await self._read_configuration()
        await self._check_old_volume()
        if self.services.daemon is not None:  # before the body: what comes with it may have to go on to the daemon
            self._carries = await self.services.daemon.carries()
        receiving, facts = self.services.receiving, self.facts
        await self.services.in_thread(
            check_space,
            space_directory(self._layout),
            size_bytes=facts.content_bytes,
            entries=facts.entries,
            reserve_bytes=receiving.reserve_bytes,
            reserve_inodes=receiving.reserve_inodes,
        )
        self._staging = staging = await self.services.in_thread(Staging.make, self._layout, facts.transfer)
        identity = (staging.identity.device, staging.identity.inode)
        await self.note(msgspec.structs.replace(self.facts, staging=identity))
        self.meter.total_bytes, self.meter.total_files = facts.content_bytes, None
        return on.Admitted()

    async def _read_configuration(self) -> Configuration | None:
        """403 and 404 are tried again for 10 s: the panel's transaction may still be open (D2, S4)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.services.timings.admission_s
        backoff = Backoff(self.services.timings)
        while True:
            await backoff.wait()
            try:
                return await self.services.configuration(self.facts.server)
            except PeerFailed as error:
                may_pass = is_temporary(error) or error.facts.get("status") in (403, 404)
                if not may_pass or loop.time() >= deadline:
                    raise

    async def _check_old_volume(self) -> None:
        """D3: a live volume is never touched."""
        if not await self.services.in_thread(has_volume, self._layout):
            return
        server = self.facts.server
        listed = await self.arbiter().is_ours(server) if self.services.panel is not None else not self._has_departed
        if listed is None:
            raise PeerFailed("panel.unreachable", "The panel does not say whether this node already owns the server.")
        if listed:
            raise Refused("volume.exists", "This node already owns that server and has its files.")
        if await self.services.runtime.mounts_running(server):
            raise Refused("volume.exists", "A running container of this node uses that server's files.")

    async def receive(self) -> Event:
        """The body, extracted into staging while it arrives; durable when this returns."""
        streams, staging = self._streams, self._staging
        if streams is None or staging is None:
            raise HostFailed("transfer.interrupted", "This node was restarted in the middle of the transfer.")
        attachments = self.cabinet.attachments(
            server=self.facts.server,
            most_bytes=self.services.extract_limits.max_bytes,
            say=self._notices.say_from_thread,
            carries=self._carries,
        )
        began = asyncio.get_running_loop().time()
        async with self.progress_lines("Receiving"):
            received = await streams.receive(staging, attachments)
        await self.note(msgspec.structs.replace(self.facts, files=received.files))
        self._notices.summary()
        self.meter.total_bytes = self.meter.content_bytes  # the source counts each name of a hard link
        self._report(received, asyncio.get_running_loop().time() - began)
        return on.BodyVerified()

    @property
    def takes_streams(self) -> bool:
        """Whether its source deals the files out over several requests, of which more may still come."""
        is_early = self.state.stage in (Stage.ADMITTING, Stage.RECEIVING)
        return is_early and self._streams is not None and self._streams.is_open

    def join(self, upload: IncomingUpload) -> None:
        """One of those requests. Raises Refused (`upload.multiplex`)."""
        if self._streams is None:
            raise Refused("upload.multiplex", "The stream came when its transfer was over.")
        self._streams.join(upload)

    def progress(self) -> Progress:
        if self._streams is not None:
            self._streams.count()
        return super().progress()

    def view(self) -> TransferView:
        # Beside a daemon it is the daemon that tells the panel: of what it does not have, the source must keep its own.
        is_kept = self.facts.files if not self.state.beside else [file for file in self.facts.files if file.is_kept]
        backups = tuple(file.backup for file in is_kept if file.backup is not None)
        return msgspec.structs.replace(super().view(), backups=backups)

    async def stop_receipt(self) -> Event:
        """End what runs before the commit, whichever it is; the connection stays, so that the source gets an answer."""
        if self._stoppable is not None:
            self._stoppable.cancel()
        if self._streams is not None:
            self._streams.give_up()
        names = (Effect.ADMIT, Effect.RECEIVE, Effect.PREPARE)
        working = [task for task in self._running if task.get_name().startswith(names)]
        if working:
            await asyncio.wait(working)
        return on.ReceiptStopped()

    async def prepare(self) -> Event:
        """D4: all that may fail without harm."""
        return await self._until_stopped(self._prepare())

    async def _prepare(self) -> Event:
        assert self._upload is not None  # there is no preparing after a restart
        preparing = asyncio.ensure_future(self.services.runtime.prepare(self.facts.server, self._configuration))
        hanging_up = asyncio.ensure_future(self._upload.connection.wait_closed())
        try:
            await asyncio.wait({preparing, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done() or not self._source_is_connected():
                raise PeerFailed("upload.truncated", "The source hung up before its answer.")
            preparing.result()
            return on.Prepared()
        finally:
            for task in (preparing, hanging_up):
                task.cancel()
            await asyncio.gather(preparing, hanging_up, return_exceptions=True)

    # -- from the commit on --------------------------------------------------------------------------------------------
    async def commit(self) -> Event:
        """D5: roll forward only. What was at the volume's place goes to trash, never merged into, never deleted."""
        await self.backoff.wait()
        if not self.facts.is_place_free:
            await self._trash(f"replaced-by-{self.facts.transfer}")
            # Written down before the first file moves in: a second attempt must not take those for the old ones.
            await self.note(msgspec.structs.replace(self.facts, is_place_free=True))
        try:
            await self.services.in_thread(self._commit)
        except Refused:
            if self._layout.kind is LayoutKind.DIRECTORY:  # somebody made a directory there: it goes the same way
                await self.note(msgspec.structs.replace(self.facts, is_place_free=False))
            raise
        await self._file()
        return on.Committed()

    async def _file(self) -> None:
        """Backups and install log to their places; what is already there is somebody else's and stays."""
        files = self.facts.files
        placed = await self.services.in_thread(self.cabinet.place, files)
        if len(placed) < len(files):
            names = ", ".join(file.name for file in files if file not in placed)
            self.say(f"Left out, for this node has other files of those names: {names}.")
            await self.note(msgspec.structs.replace(self.facts, files=tuple(placed)))

    def _commit(self) -> None:
        """In a thread."""
        if self.facts.staging is None:
            raise HostFailed("disk.failed", "The journal does not know the staging directory.")
        path = self._layout.staging_root / self.facts.transfer
        commit(self._layout, path, Identity(*self.facts.staging))

    async def _trash(self, label: str) -> None:
        volumes, now = self.services.volumes, self.services.now()
        await self.services.in_thread(volumes.trash, self.facts.server, label, now)

    async def tell_success(self) -> Event:
        call = self.state.call
        await self.backoff.wait()
        if self.state.call != call:
            return on.SuccessUnanswered(call=call)
        if not self._source_is_connected():
            return on.SourceGone(call=call)
        sent_at = asyncio.get_running_loop().time()
        verdict = await self.arbiter().report_success(self.facts.server, self.view().backups)
        if verdict is Verdict.ACCEPTED:
            return on.SuccessAccepted(call=call)
        if verdict is Verdict.UNANSWERED:
            return on.SuccessUnanswered(call=call)
        if await self._was_early(sent_at):
            return on.SuccessRefusedEarly(call=call)
        return on.SuccessRefused(call=call)

    async def hand_over(self) -> Event:
        """H1, H2: the local daemon adopts the server and tells the panel."""
        call = self.state.call
        await self.backoff.wait()
        if self.state.call != call or self.services.daemon is None:
            return on.HandOverUnsent(call=call)
        asking = asyncio.ensure_future(hand_over(self, self.cabinet, self.services.daemon, self._source_is_connected))
        self._handing_over = asking
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking.cancelled():  # by `discard`: an operator has decided
                return on.HandOverUnanswered(call=call)
            asking.cancel()
            with suppress(asyncio.CancelledError, SidecarError):
                await asking
            raise

    async def mend(self) -> Event:
        """H3: a daemon that holds the server although the panel did not give it to this node."""
        await self.backoff.wait()
        if self.services.daemon is None:
            raise HostFailed("daemon.unreachable", "This node is not configured to work beside a daemon any more.")
        return await mend(self, self.services.daemon, self._source_is_connected)

    async def activate(self) -> Event:
        """D7: with the configuration read anew, for the allocations are ours only now."""
        server = self.facts.server
        await self._settle_files()
        configuration = await self._read_configuration()
        await self.services.runtime.activate(server, configuration, start=self.facts.start_on_completion)
        if self.facts.start_on_completion:
            self.say("The server was started.")
        return on.Activated()

    async def _settle_files(self) -> None:
        facts, now = self.facts, self.services.now()
        if not self.services.receiving.places and not facts.files:
            return
        settled = await self.services.in_thread(
            self.cabinet.finish, facts.files, facts.server, now, taken=facts.has_taken_files
        )
        for line in settled.lines:
            self.say(line)
        if settled.files != facts.files:
            await self.learn(files=settled.files)

    async def discard(self) -> Event:
        await self.backoff.wait()
        if self._handing_over is not None:
            self._handing_over.cancel()
        label = f"disowned-{self.facts.transfer}"
        await self._trash(label)
        files, server, now = self.facts.files, self.facts.server, self.services.now()
        await self.services.in_thread(self.cabinet.discard, files, server, label, now)
        if self.services.daemon is not None:
            await forget_discarded(self, self.services.daemon)
        await self.services.in_thread(self.cabinet.put_back, files, server)
        return on.Discarded()

    async def remove_staging(self) -> Event:
        await self.services.in_thread(remove_staging, self._layout, self.facts.transfer)
        await self.services.in_thread(self.cabinet.remove_staging)
        return on.CleanedUp()

    def hold_s(self) -> float:
        """D9: a daemon that was asked repeats its `success` for longer than one call of ours takes."""
        timings = self.services.timings
        return timings.quarantine_calagopus_s if self.state.beside else timings.call_timeout_s

    def after(self, old: State, new: State) -> None:
        """Nothing to add."""

    def close(self) -> None:
        """Shutdown: let go of the network, so that threads end. Decides nothing."""
        if self._streams is not None:
            self._streams.close()

    def _report(self, received: Received, seconds: float) -> None:
        done = received.extracted
        rate = size(done.content_bytes / seconds) if seconds > 0 else "-"
        self.say(
            f"Received {size(done.content_bytes)} in {done.files} files as {size(done.wire_bytes)} in "
            f"{duration(seconds)} ({rate}/s), SHA-256 {done.sha256_hex[:16]}... verified"
            + (f", and {received.streams - 1} more streams." if received.streams > 1 else ".")
        )
        if backups := sum(file.backup is not None for file in received.files):
            self.say(f"Received {backups} backups.")
