"""One end of one transfer, driven: told events one at a time, it decides, writes down, then acts.

The order is the point of it: `decide` is asked, the decision is journaled and fsynced, then it is announced, then its
effects start, each a task whose end comes back as an event. What the effects are is the business of `outgoing` and
`incoming`; nothing here knows which end it is.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from sidecar.archive.meter import Meter
from sidecar.engine.log_lines import format_line, printable
from sidecar.engine.progress import Pace, bar
from sidecar.engine.services import Backoff, Services
from sidecar.errors import Fact, HostFailed, IllegalTransition, Refused, SidecarError
from sidecar.journal.records import Facts, Record
from sidecar.lifecycle.effects import Effect
from sidecar.lifecycle.events import (
    Event,
    FailureAccepted,
    FailureGivenUp,
    FailureRefused,
    FailureRefusedEarly,
    FailureUnanswered,
    HoldOver,
    OwnerListed,
    OwnerNotListed,
    OwnerUnanswered,
)
from sidecar.lifecycle.stages import IN_DOUBT, Stage
from sidecar.lifecycle.state import State
from sidecar.lifecycle.statuses import Role, Status
from sidecar.lifecycle.table import decide, refuses
from sidecar.ports import Arbiter, Verdict
from sidecar.views import EventKind, Progress, TransferEvent, TransferView

log = logging.getLogger(__name__)

Perform = Callable[[], Awaitable[Event]]


class Transfer(ABC):
    """The driver. `begin` once, then `run` in a task; `ask` from anywhere in the same loop.

    Args: seq, of the journal's newest record; told, of the one that changed the status last.
    """

    def __init__(self, services: Services, state: State, facts: Facts, *, seq: int = 0, told: int = 0) -> None:
        self.services = services
        self.state = state
        self.facts = facts
        self.meter = Meter()
        self.pace = Pace()
        self.log = logging.LoggerAdapter(log, {"transfer": facts.transfer, "server": facts.server})
        self.updated_at = facts.accepted_at
        self.backoff = Backoff(services.timings)
        self.failure_facts: dict[str, Fact] = {}
        self._accepted_monotonic = asyncio.get_running_loop().time()  # after a restart: counted anew (S4)
        self._seq, self._told = seq, told
        self._inbox: asyncio.Queue[tuple[Event | None, asyncio.Future[bool] | None]] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._running: set[asyncio.Task[None]] = set()
        self.is_broken = False  # a bug: nothing more is decided
        self._unwritten: str | None = None  # why the latest decision is not on disk yet
        self._answered_at = self._accepted_monotonic

    # -- what each end adds --------------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def performers(self) -> dict[Effect, Perform]:
        """How each effect is performed."""

    @abstractmethod
    def failed(self, effect: Effect, error: SidecarError) -> Event:
        """The event that tells of an effect's failure."""

    @abstractmethod
    def arbiter(self) -> Arbiter:
        """Who decides which node owns the server."""

    @property
    @abstractmethod
    def peer(self) -> str | None:
        """The other end, fit to be shown."""

    @abstractmethod
    def stage_line(self, stage: Stage) -> str | None:
        """The log line that a person sees when the stage begins."""

    @abstractmethod
    def after(self, old: State, new: State) -> None:
        """Called when a decision is durable and announced, before its effects."""

    @abstractmethod
    def close(self) -> None:
        """Shutdown: let go of network and files, so that threads end. Decides nothing."""

    # -- life ----------------------------------------------------------------------------------------------------------
    async def begin(self, event_name: str = "Accepted") -> None:
        """Write the first decision down and announce it. Raises HostFailed (`journal.failed`): nothing has begun."""
        await self._write(event_name, self.state)
        self._say_status()

    async def run(self, *first_effects: Effect, told: Event | None = None) -> None:
        """Drive until the slot is free and no effect is under way. If cancelled, effects are cancelled too."""
        try:
            async with asyncio.TaskGroup() as group:
                for effect in first_effects:
                    self._start(group, effect)
                if told is not None:
                    self._inbox.put_nowait((told, None))
                while not self._is_over():
                    event, answer = await self._inbox.get()
                    if event is None:
                        continue
                    try:
                        refused = await self._step(group, event)
                    except IllegalTransition:
                        self.log.exception("a bug stopped this transfer; its data is kept")
                        refused = True
                        await self.mark_broken()
                    if answer is not None and not answer.done():
                        answer.set_result(refused)
        finally:
            self._refuse_the_rest()

    def _is_over(self) -> bool:
        over = self.state.stage is Stage.ENDED and not self.state.owes_cleanup
        return over and not self._running and self._inbox.empty()

    def _refuse_the_rest(self) -> None:
        while not self._inbox.empty():
            _, answer = self._inbox.get_nowait()
            if answer is not None and not answer.done():
                answer.set_result(True)

    async def ask(self, event: Event) -> None:
        """Tell it something from outside and wait until that is durable. Raises Refused (`transfer.none`)."""
        if self._is_over() or self.is_broken:
            raise not_transferring()
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait((event, answer))
        if await answer:
            raise not_transferring()

    async def wait_until(self, condition: Callable[[State], bool]) -> State:
        """Wait until the state fulfils `condition`, or a bug has stopped this transfer."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self.state) or self.is_broken)
        return self.state

    async def _step(self, group: asyncio.TaskGroup, event: Event) -> bool:
        old = self.state
        if refuses(old, event):
            return True
        new, effects = decide(old, event)
        if new != old:
            if new.is_final and not old.is_final:
                self.facts = msgspec.structs.replace(self.facts, finished_at=self.services.now())
            async with self._writing:
                await self._write_at_last(type(event).__name__, new)
                self.state = new
            if new.stage is not old.stage:
                self.backoff.reset()
            self._announce(old, new)
            self.after(old, new)
            await self._notify()
        for effect in effects:
            self._start(group, effect)
        return False

    async def mark_broken(self) -> None:
        """A bug: nothing more is decided; whoever waits is told, and the slot stays taken."""
        self.is_broken = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _start(self, group: asyncio.TaskGroup, effect: Effect) -> None:
        task = group.create_task(self._do(effect), name=f"{effect} {self.facts.transfer}")
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._is_over():
            self._inbox.put_nowait((None, None))  # wakes `run`

    async def _do(self, effect: Effect) -> None:
        try:
            event = await self.performers[effect]()
        except SidecarError as error:
            self.failure_facts = dict(error.facts)
            error.message = printable(error.message)  # it may hold a file's name, of any bytes, and is journaled
            self.log.warning("%s failed: %s (%s)", effect, error.message, error.code)
            event = self.failed(effect, error)
        except Exception:
            self.log.exception("%s failed by a bug", effect)
            event = self.failed(effect, HostFailed("transfer.internal", "A bug in this node stopped the transfer."))
        self._inbox.put_nowait((event, None))

    # -- journal -------------------------------------------------------------------------------------------------------
    async def note(self, facts: Facts) -> None:
        """Write down something learnt that a restart must know, without a change of state.

        Raises HostFailed (`journal.failed`).
        """
        async with self._writing:
            before, self.facts = self.facts, facts
            try:
                await self._write("Noted", self.state)
            except HostFailed:
                self.facts = before  # nothing may be done on the strength of what a restart would not know
                raise

    async def learn(self, **facts: object) -> None:
        """As `note`, of single facts, while decisions may be written down at the same time."""
        async with self._writing:
            before = self.facts
            self.facts = msgspec.structs.replace(before, **facts)
            try:
                await self._write("Noted", self.state)
            except HostFailed:
                self.facts = before
                raise

    async def _write(self, event_name: str, state: State) -> None:
        self._seq += 1
        self.updated_at = self.services.now()
        record = Record(
            seq=self._seq,
            time=self.updated_at,
            event=event_name,
            state=state,
            facts=self.facts,
        )
        await self.services.in_thread(self.services.journal.append, record)

    async def _write_at_last(self, event_name: str, state: State) -> None:
        """A decision that cannot be written is not acted on: it waits for the disk."""
        backoff = Backoff(self.services.timings)
        while True:
            await backoff.wait()
            try:
                await self._write(event_name, state)
            except HostFailed as error:
                self.log.error("%s (try %d)", error.message, backoff.tries)
                self._unwritten = error.message
                if backoff.tries == 1:
                    self.say(f"Waiting: a decision cannot be written down. {error.message}")
            else:
                self._unwritten = None
                return

    # -- what others see -----------------------------------------------------------------------------------------------
    def _announce(self, old: State, new: State) -> None:
        ends = new.is_final and not old.is_final  # with debts or without: it may be past settling at once
        stage = Stage.SETTLING if ends else new.stage
        if (ends or new.stage is not old.stage) and not old.is_final and (line := self.stage_line(stage)) is not None:
            self.say(line)
        if new.status is not old.status:
            if new.status is Status.FAILED:
                self.say(f"Transfer failed: {new.message} ({new.reason})")
            elif new.status is Status.CANCELLED:
                self.say("Canceled.")
            self._say_status()
        if new.needs is not None and new.needs != old.needs:
            if new.status is Status.COMPLETED and new.reason is not None:
                self.say(f"{new.message} ({new.reason})")
            self.say(new.needs)
        self.log.info("%s -> %s (%s)", old.stage, new.stage, new.status)

    def _say_status(self) -> None:
        self._told = self._seq
        self.services.hub.publish(self.told(self.state, decision=self._seq, time=self.services.now()))

    def told(self, state: State, *, decision: int, time: float) -> TransferEvent:
        """The event that tells the status of a decision: the journal's record of that number."""
        return TransferEvent(
            kind=EventKind.STATUS,
            transfer=self.facts.transfer,
            server=self.facts.server,
            node=self.services.node,
            role=state.role,
            decision=decision,
            time=time,
            status=state.status,
            stage=state.stage.value,
            reason=state.reason,
            message=state.message,
        )

    def tell_again(self) -> None:
        """Whoever keeps events may have lost the present status."""
        self.services.hub.republish([self.told(self.state, decision=self._told, time=self.updated_at)])

    def say(self, text: str) -> None:
        """One log line for the people who watch this transfer."""
        self.log.info("%s", text)
        line = format_line(self.state.role, self.services.now(), text)
        self._publish(EventKind.LOGS, message=text, line=line)

    def say_progress(self) -> None:
        self._publish(EventKind.PROGRESS, progress=self.progress())

    def _publish(
        self,
        kind: EventKind,
        *,
        message: str | None = None,
        line: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        event = TransferEvent(
            kind=kind,
            transfer=self.facts.transfer,
            server=self.facts.server,
            node=self.services.node,
            role=self.state.role,
            time=self.services.now(),
            status=self.state.status,
            stage=self.state.stage.value,
            reason=self.state.reason,
            message=message,
            line=line,
            progress=progress,
        )
        self.services.hub.publish(event)

    @asynccontextmanager
    async def progress_lines(self, verb: str) -> AsyncIterator[None]:
        """While the body runs: a progress event every second or so, a log line every `progress_interval_s`."""
        ticking = asyncio.create_task(self._tick(verb))
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            self.say_progress()

    async def _tick(self, verb: str) -> None:
        timings = self.services.timings
        event_s = min(timings.progress_event_s, timings.progress_interval_s)
        loop = asyncio.get_running_loop()
        next_line = loop.time() + timings.progress_interval_s
        while True:
            await asyncio.sleep(event_s)
            self.say_progress()
            if loop.time() >= next_line:
                next_line += timings.progress_interval_s
                self.say(f"{verb} {bar(self.progress())}")

    def progress(self) -> Progress:
        return self.pace.progress(self.meter)

    def view(self) -> TransferView:
        state, facts = self.state, self.facts
        return TransferView(
            transfer=facts.transfer,
            server=facts.server,
            node=self.services.node,
            role=state.role,
            direction=state.role.direction,
            status=state.status,
            stage=state.stage.value,
            in_doubt=state.in_doubt,
            peer=self.peer,
            progress=self.progress(),
            accepted_at=facts.accepted_at,
            updated_at=self.updated_at,
            finished_at=facts.finished_at,
            reason=state.reason,
            message=state.message,
            needs=self._needs(),
        )

    def _needs(self) -> str | None:
        if self.is_broken:
            return "A bug stopped this transfer. Nothing was deleted: see the log, then restart the sidecar."
        if self.state.stage is Stage.MENDING and self.backoff.tries > 3:
            return "The node daemon does not answer: start it. The files of the server are safe."
        if self._unwritten is not None:
            return f"A decision waits because it cannot be written down; nothing is lost. {self._unwritten}"
        if self.state.stage is Stage.COMMITTING and self.backoff.tries > 3:
            return "The verified files cannot be moved into place: see the log. Nothing is lost; it is tried for ever."
        if self.state.stage in IN_DOUBT and self.backoff.tries > 3:
            return (
                "The outcome is unknown because the arbiter does not answer; it is asked for ever. If it never comes "
                "back, decide with: transfer-sidecar resolve"
            )
        return self.state.needs

    def error(self) -> SidecarError:
        """Why it did not complete, as the answer to whoever waits for it."""
        code = self.state.reason or "transfer.internal"
        return HostFailed(code, self.state.message or "The transfer did not complete.", **self.failure_facts)

    # -- effects of both ends ------------------------------------------------------------------------------------------
    async def tell_failure(self) -> Event:
        call = self.state.call
        await self.backoff.wait()
        if self.state.call != call:
            return FailureUnanswered(call=call)
        sent_at = asyncio.get_running_loop().time()
        verdict = await self.arbiter().report_failure(self.facts.server)
        if verdict is Verdict.ACCEPTED:
            return FailureAccepted(call=call)
        if verdict is Verdict.REFUSED:
            if await self._was_early(sent_at):
                return FailureRefusedEarly(call=call)
            return FailureRefused(call=call)
        if self._gives_up_telling():
            return FailureGivenUp(call=call)
        return FailureUnanswered(call=call)

    def _gives_up_telling(self) -> bool:
        """D8: a destination that failed before the commit tells the panel a few times; the source, until heard.

        Without a panel a source that never sent the end of its archive tells the destination a few times too: there is
        nothing there that could become the server, and a wrong address or token would hold the slot for ever.
        """
        is_destination = self.state.role is Role.DESTINATION
        is_harmless = is_destination or (self.services.panel is None and not self.state.past_point)
        settling = is_harmless and self.state.stage is Stage.SETTLING
        return settling and self.backoff.tries >= self.services.timings.refused_caller_tries

    async def _was_early(self, sent_at: float) -> bool:
        """S4, D4b: a refusal of a call sent within the first 30 s decides nothing; the next waits until they end."""
        young_until = self._answered_at + self.services.timings.young_s
        if sent_at >= young_until:
            return False
        await asyncio.sleep(max(0.0, young_until - asyncio.get_running_loop().time()))
        self.backoff.reset()
        return True

    async def ask_owner(self) -> Event:
        call = self.state.call
        await self.backoff.wait()
        if self.state.call != call:
            return OwnerUnanswered(call=call)
        listed = await self.arbiter().is_ours(self.facts.server)
        if listed is None:
            return OwnerUnanswered(call=call)
        return OwnerListed(call=call) if listed else OwnerNotListed(call=call)

    async def hold_slot(self) -> Event:
        await asyncio.sleep(self.hold_s())
        return HoldOver()

    def hold_s(self) -> float:
        """D9: one call's time-out."""
        return self.services.timings.call_timeout_s

    def answered_now(self) -> None:
        """The panel gets its 202 now: S4's 30 s begin."""
        self._answered_at = asyncio.get_running_loop().time()


def not_transferring() -> Refused:
    return Refused("transfer.none", "Server is not currently being transferred.")
