"""The source: stops the server, sends its archive, and finds out how it ended.

S1 is the shape of this file: `send_archive` sends everything but the end of the archive and returns; only the decision
that follows, once it is on disk, lets `finish_upload` send the end and the boundary behind it.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress

import msgspec

from sidecar.archive.filing import Filing
from sidecar.archive.pipe import PipeClosed
from sidecar.archive.produce import ArchiveProducer, Dialect
from sidecar.engine.arbiter import PeerArbiter
from sidecar.engine.backups import BackupForm, find_backups, kept_backups, pack, pack_install_log
from sidecar.engine.contract import Caller
from sidecar.engine.daemon_folder import DaemonFolder
from sidecar.engine.guard import keep_stopped
from sidecar.engine.notices import NoticeLines
from sidecar.engine.peer import PeerKind, probe
from sidecar.engine.progress import duration, size
from sidecar.engine.services import Backoff, Services
from sidecar.engine.transfer import Perform, Transfer
from sidecar.errors import HostFailed, PeerFailed, SidecarError
from sidecar.journal.records import OutgoingFacts
from sidecar.lifecycle import events as on
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import Event
from sidecar.lifecycle.stages import Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Status
from sidecar.ports import Arbiter, Daemon, RunState, StopHow
from sidecar.views import TransferView
from sidecar.wire.destination import Target
from sidecar.wire.headers import UploadHeaders, encode
from sidecar.wire.upload import Answer, FilePart, Upload, failure_of

PROBE_TRIES = 3  # a lost call or a restart of the other node; then the upload would not get through either


class Outgoing(Transfer):
    """One server on its way out."""

    facts: OutgoingFacts

    def __init__(
        self,
        services: Services,
        state: State,
        facts: OutgoingFacts,
        *,
        target: Target | None = None,
        token: str = "",
        caller: Caller | None = None,
        seq: int = 0,
        told: int = 0,
    ) -> None:
        super().__init__(services, state, facts, seq=seq, told=told)
        self._target = target  # None after a restart: nothing is sent any more
        self._token = token
        self._caller = caller
        self._producer: ArchiveProducer | None = None
        self._upload: Upload | None = None
        self._backups: dict[str, FilePart] = {}  # behind the archive, by UUID
        self._install_log: FilePart | None = None  # before them
        self._digest = hashlib.sha256()
        self._given_up = False
        self._stays_stopped = False  # it is being deleted: do not start it again
        self.was_accepted = False  # the server was stopped and the caller may have its 202
        self._notices = NoticeLines(self.say, asyncio.get_running_loop())

    @property
    def performers(self) -> dict[Effect, Perform]:
        return {
            Effect.STOP_SERVER: self.stop_server,
            Effect.SEND_ARCHIVE: self.send_archive,
            Effect.FINISH_UPLOAD: self.finish_upload,
            Effect.CUT_UPLOAD: self.cut_upload,
            Effect.RESTORE_SERVER: self.restore_server,
            Effect.TRASH_DEPARTED: self.trash_departed,
            Effect.TELL_FAILURE: self.tell_failure,
            Effect.ASK_OWNER: self.ask_owner,
            Effect.HOLD_SLOT: self.hold_slot,
        }

    def failed(self, effect: Effect, error: SidecarError) -> Event:
        match effect:
            case Effect.STOP_SERVER:
                return on.StopFailed(error.code, error.message)
            case Effect.SEND_ARCHIVE:
                return on.SendFailed(error.code, error.message)
            case Effect.FINISH_UPLOAD:
                return on.UploadUnsure(error.code, error.message)
            case Effect.RESTORE_SERVER:
                return on.RestoreFailed(error.code, error.message)
            case Effect.TRASH_DEPARTED:
                return on.CleanUpFailed(error.code, error.message)
            case Effect.TELL_FAILURE:
                return on.FailureUnanswered(call=self.state.call)
            case Effect.ASK_OWNER:
                return on.OwnerUnanswered(call=self.state.call)
            case Effect.CUT_UPLOAD:
                return on.UploadCut()
            case _:
                return on.HoldOver()

    @property
    def peer(self) -> str | None:
        return self.facts.url

    def arbiter(self) -> Arbiter:
        if self.services.panel is not None:
            return self.services.panel
        return PeerArbiter(self.services, self.facts)

    def stage_line(self, stage: Stage) -> str | None:
        match stage:
            case Stage.STOPPING:
                return "Stopping the server..."
            case Stage.SENDING:
                return "Preparing to stream server data to destination..."
            case Stage.AWAITING_VERDICT:
                return "Finished streaming archive to destination."
            case Stage.REPORTING_FAILURE:
                return (
                    f"The outcome is in doubt ({self.state.message}): the server stays stopped and its files stay here "
                    "until it is known."
                )
            case Stage.SETTLING if self.state.status is Status.COMPLETED:
                return "The server has moved to the destination."
            case _:
                return None

    def after(self, old: State, new: State) -> None:
        if new.stage is Stage.SENDING and old.stage is Stage.STOPPING:
            self.was_accepted = True
            if not new.respond_async:
                self.answered_now()
        if new.is_final and not old.is_final and new.status is not Status.COMPLETED:
            self._cut()

    async def run(self, *first_effects: Effect, told: Event | None = None) -> None:
        """As `Transfer.run`; and S3: in doubt, the server stays stopped."""
        guarding = asyncio.create_task(keep_stopped(self, lambda: self.facts.stop), name=f"keep {self.facts.server}")
        try:
            await super().run(*first_effects, told=told)
        finally:
            guarding.cancel()
            with suppress(asyncio.CancelledError):
                await guarding

    # -- the server ----------------------------------------------------------------------------------------------------
    async def stop_server(self) -> Event:
        """A caller that hangs up before the answer means that nothing was started."""
        how = await self._how_to_stop()
        await self.note(msgspec.structs.replace(self.facts, stop=how))
        await self.services.runtime.stop(self.facts.server, self.facts.observed, how)
        if self._caller is not None and not self.state.respond_async and not self._caller.is_open:
            return on.CallerGone()
        return on.ServerStopped()

    async def _how_to_stop(self) -> StopHow:
        """As the panel says; the engine's own stop where the panel does not say or does not answer in time."""
        if self.services.panel is None or self.facts.observed.state is not RunState.RUNNING:
            return StopHow()
        try:
            async with asyncio.timeout(self.services.timings.panel_stop_lookup_s):
                configuration = await self.services.panel.configuration(self.facts.server)
        except (SidecarError, TimeoutError):
            return StopHow()
        stop = configuration.process_configuration.get("stop")
        if not isinstance(stop, dict) or stop.get("type") not in ("stop", "command", "signal"):
            return StopHow()
        value = stop.get("value")
        return StopHow(stop["type"], value if isinstance(value, str) else None)

    async def restore_server(self) -> Event:
        """Start it again if it ran; asked for ever while the engine does not answer."""
        if self.facts.observed.state is not RunState.RUNNING or not self.services.sending.restart_on_failure:
            return on.ServerRestored()
        runtime, server, observed = self.services.runtime, self.facts.server, self.facts.observed
        tries = 0
        while True:
            if self._stays_stopped:
                return on.ServerRestored()
            try:
                await runtime.start(server, observed)
                break
            except HostFailed as error:
                tries += 1
                if error.code != "engine.unreachable" and tries >= 3:
                    raise
                self.log.warning("the server cannot be started again: %s (try %d)", error.message, tries)
                await asyncio.sleep(
                    min(self.services.timings.retry_cap_s, self.services.timings.retry_first_s * 2**tries)
                )
        if self.state.reason in ("server.stop_timeout", "server.stop_failed"):
            await self._watch_late_exit()
        self.say("The server runs again on this node.")
        return on.ServerRestored()

    async def leave_stopped(self) -> None:
        """The server is about to be deleted: nobody starts it again once this returns."""
        self._stays_stopped = True
        await self.wait_until(lambda state: not state.owes_restore)

    async def _watch_late_exit(self) -> None:
        """It was asked to stop and did not in time: it may still obey, and must then be started again."""
        runtime, server, observed = self.services.runtime, self.facts.server, self.facts.observed
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.services.timings.late_exit_s
        while loop.time() < deadline and not self._stays_stopped:
            with suppress(HostFailed):
                if (await runtime.observe(server)).state is RunState.STOPPED:
                    await runtime.start(server, observed)
                    return
            await asyncio.sleep(min(1.0, self.services.timings.late_exit_s))

    async def trash_departed(self) -> Event:
        """S5: the volume to trash, the stopped container away."""
        label, now = f"transferred-{self.facts.transfer}", self.services.now()
        await self.services.in_thread(self.services.volumes.trash, self.facts.server, label, now)
        if self.facts.delete_backups:
            await self._trash_backups(label)
        try:
            await self.services.runtime.remove(self.facts.server)
            if self.services.daemon is not None:  # only now: it deletes what it finds at the volume's place
                await self._have_forgotten(self.services.daemon)
        except HostFailed as error:
            self.log.warning("the container of a server that left stays behind: %s", error.message)
        return on.CleanedUp()

    async def _have_forgotten(self, daemon: Daemon) -> None:
        """One family deletes a server's backups with the server: not those that were to travel and may not have."""
        directory, facts = self.services.sending.backups, self.facts
        if directory is None or not facts.backups:
            await daemon.forget(facts.server)
            return
        await self._until_answered()
        if set(facts.backups) <= set(self.facts.kept_backups):
            await daemon.forget(facts.server)
            return
        folder = DaemonFolder(directory, facts.server)
        await self.services.in_thread(folder.set_aside)
        try:
            await daemon.forget(facts.server)
        finally:
            try:
                await self.services.in_thread(folder.put_back)
            except HostFailed as error:
                self.say(f"{error.message} It is tried again when this node is started.")

    async def _until_answered(self) -> None:
        """The panel's DELETE comes before the destination's answer, which tells what the destination has kept."""
        if answering := [task for task in self._running if task.get_name().startswith(Effect.FINISH_UPLOAD)]:
            await asyncio.wait(answering, timeout=self.services.sending.answer_timeout_s)

    async def _trash_backups(self, label: str) -> None:
        """The panel wanted them deleted, and the transfer has completed: those that the destination has."""
        await self._until_answered()
        directory, facts = self.services.sending.backups, self.facts
        kept = facts.kept_backups if directory is not None else ()
        if left := [backup for backup in facts.backups if backup not in kept]:
            self.say(f"Not deleted, for the destination is not known to have them: the backups {', '.join(left)}.")
        if directory is None or not kept:
            return
        found = await self.services.in_thread(find_backups, directory, facts.server, kept)
        filing, paths = Filing(directory, facts.transfer), list(found.values())
        await self.services.in_thread(filing.trash, facts.server, label, self.services.now(), paths)
        if paths:
            self.say(f"Moved to the trash: {len(paths)} backups that the destination has.")

    # -- the upload ----------------------------------------------------------------------------------------------------
    async def send_archive(self) -> Event:
        """All of the archive but its end."""
        if self._target is None:
            raise HostFailed("transfer.interrupted", "This node was restarted in the middle of the transfer.")
        kind = await self._ask_who(self._target)
        await self.note(msgspec.structs.replace(self.facts, peer_kind=kind.value))
        dialect = Dialect.SIDECAR if kind.is_ours else Dialect.STRANGER
        self._producer = ArchiveProducer(
            self.services.volumes.layout(self.facts.server).volume,
            dialect=dialect,
            gzip_level=self.services.sending.gzip_level,
            max_entries=self.services.sending.max_entries,
            meter=self.meter,
            notice=self._notices.from_thread,
            spool_dir=self.services.spool,
        )
        if dialect is Dialect.STRANGER:
            await self._let_the_panel_commit()
        await self._pack_files(kind)
        if self._given_up:
            return on.UploadCut()
        began = asyncio.get_running_loop().time()
        async with self.progress_lines("Uploading"):
            await self._while_stopped(asyncio.ensure_future(self.services.in_thread(self._send, self._producer)))
        self._notices.summary()
        await self.services.runtime.verify_stopped(self.facts.server, self.facts.observed)
        self._report(asyncio.get_running_loop().time() - began)
        return on.ArchiveSent()

    async def _ask_who(self, target: Target) -> PeerKind:
        """Asked again when nobody answers: what the archive may hold depends on it. Raises PeerFailed."""
        services, backoff = self.services, Backoff(self.services.timings)
        while True:
            await backoff.wait()
            try:
                return await services.in_thread(probe, target, services.sending.connect_timeout_s, services.tls)
            except PeerFailed as error:
                if not self._given_up and backoff.tries < PROBE_TRIES:
                    continue
                if error.code == "peer.protocol":
                    return PeerKind.UNKNOWN
                raise

    async def _let_the_panel_commit(self) -> None:
        """A stranger asks the panel for the server as soon as an upload begins, and a no ends it.

        The panel knows of the transfer only after our 202 (S4); our own nodes ask again (D2).
        """
        if self.services.panel is not None:
            committed_at = self._answered_at + self.services.timings.panel_commit_s
            await asyncio.sleep(max(0.0, committed_at - asyncio.get_running_loop().time()))

    async def _pack_files(self, kind: PeerKind) -> None:
        """What goes behind the checksums: the install log, and the backups that were asked for."""
        form = BackupForm.PELICAN if kind.is_ours else BackupForm(self.facts.backup_form)
        services, server, wanted = self.services, self.facts.server, self.facts.backups
        self._install_log = await services.in_thread(pack_install_log, services.sending.install_logs, server, form)
        if not wanted:
            return
        self._backups = await services.in_thread(pack, services.sending.backups, server, wanted, form)
        if missing := [backup for backup in wanted if backup not in self._backups]:
            self.say(f"Not on this node, and left out: the backups {', '.join(missing)}.")

    def _send(self, producer: ArchiveProducer) -> None:
        """In a thread. Raises PeerFailed (`transfer.cancelled`) where it was given up meanwhile."""
        try:
            self._send_pieces(producer)
        except PipeClosed as error:
            raise PeerFailed("transfer.cancelled", "The upload was given up.") from error

    def _send_pieces(self, producer: ArchiveProducer) -> None:
        assert self._target is not None
        scan = producer.scan()
        headers = UploadHeaders(
            transfer=self.facts.transfer,
            start_on_completion=self.facts.start_on_completion,
            content_bytes=scan.size_bytes,
            entries=scan.files + scan.directories + scan.symlinks,
            protocol=1,
        )
        sending = self.services.sending
        upload = Upload(
            self._target,
            token=self._token,
            headers=encode(headers),
            stall_timeout_s=sending.stall_timeout_s,
            connect_timeout_s=sending.connect_timeout_s,
            answer_timeout_s=sending.answer_timeout_s,
            ssl_context=self.services.tls,
        )
        self._upload = upload
        if self._given_up:
            upload.cut()
        upload.open()
        for piece in producer.pieces():
            self._digest.update(piece)
            upload.send(piece)

    async def _while_stopped(self, sending: asyncio.Future[None]) -> None:
        """Wait for the thread; a start of the server from outside cuts it, before a wrong archive is committed."""
        watching = asyncio.create_task(self.services.runtime.wait_started_outside(self.facts.server))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not watching.cancelled() and not sending.done():
                self._cut()
                await asyncio.wait({sending})
                with suppress(Exception):
                    sending.result()
                message = "The server was started on this node while its files were being sent."
                raise HostFailed("server.started_outside", message)
            await sending
        except asyncio.CancelledError:
            self._cut()
            with suppress(Exception):
                await asyncio.shield(sending)
            raise
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def finish_upload(self) -> Event:
        """The end of the archive, the checksums, the destination's answer. Only 200 is success."""
        if self._upload is None or self._producer is None:
            raise PeerFailed("peer.reset", "The upload is gone.")
        answer = await self.services.in_thread(self._finish, self._upload, self._producer)
        if answer.status != 200:
            raise failure_of(answer)
        if kept := self._kept(answer):
            with suppress(HostFailed):  # not knowing it costs nothing: nothing is deleted then
                await self.learn(kept_backups=kept)
            self.say(f"The destination has {len(kept)} of {len(self._backups)} backups.")
        return on.UploadAccepted()

    def _kept(self, answer: Answer) -> tuple[str, ...]:
        """The backups that the destination is known to have."""
        kind = PeerKind(self.facts.peer_kind)
        if kind is PeerKind.CALAGOPUS and self.facts.backup_form == BackupForm.CALAGOPUS:
            return tuple(self._backups)
        kept = kept_backups(answer.body) if kind.is_ours else ()
        return tuple(backup for backup in self._backups if backup in kept)

    def _finish(self, upload: Upload, producer: ArchiveProducer) -> Answer:
        """In a thread."""
        try:
            ending = producer.ending()
            self._digest.update(ending)
            upload.send(ending)
            log = () if self._install_log is None else (self._install_log,)
            upload.finish(self._digest.hexdigest(), files=(*log, *self._backups.values()))
            return upload.answer()
        finally:
            upload.close()
            producer.close()

    async def cut_upload(self) -> Event:
        self._cut()
        while any(task.get_name().startswith(Effect.SEND_ARCHIVE) for task in self._running):
            await asyncio.wait([task for task in self._running if task.get_name().startswith(Effect.SEND_ARCHIVE)])
        return on.UploadCut()

    def _cut(self) -> None:
        self._given_up = True
        if self._upload is not None:
            self._upload.cut()
        if self._producer is not None:
            self.services.executor.submit(self._producer.close)  # it waits for its threads, and they for the disk

    def close(self) -> None:
        """Shutdown: let go of the network and the files, so that threads end. Decides nothing."""
        self._cut()

    # -- the end -------------------------------------------------------------------------------------------------------
    def hold_s(self) -> float:
        """S7, D9: as long as the other end's `success` or a call of ours can still land."""
        timings = self.services.timings
        if not self.state.past_point or self.state.status is Status.COMPLETED:
            return timings.call_timeout_s
        if PeerKind(self.facts.peer_kind).calls_for_minutes:
            return timings.quarantine_calagopus_s
        return timings.quarantine_s

    def view(self) -> TransferView:
        return msgspec.structs.replace(super().view(), backups=self.facts.kept_backups)

    # -- what others see -----------------------------------------------------------------------------------------------
    def _report(self, seconds: float) -> None:
        meter = self.meter
        rate = size(meter.content_bytes / seconds) if seconds > 0 else "-"
        self.say(
            f"Sent {size(meter.content_bytes)} in {meter.files} files as {size(meter.wire_bytes)} "
            f"in {duration(seconds)} ({rate}/s)."
        )
