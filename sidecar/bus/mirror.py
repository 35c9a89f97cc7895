"""From the outbox to the broker: in order, at least once, and never in anybody's way.

A window of events is sent without waiting, then all its acknowledgements are awaited. Where one is missing or is a
refusal, the window is given up, and sending begins again at the first event that was not acknowledged; the broker knows
repeats by their ids, and drops them. An acknowledgement is no fsync at the broker (its default is every two minutes),
and a broker's memory of ids is bounded. So with each connection the stream is asked for the newest event of this node
that it has: what it lost is sent again, as long as the outbox keeps it, and what it has is not, however long the outage
was.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Final

import msgspec
from nats.aio.client import Client

from sidecar.bus.acks import NO_STREAM, OTHER_STREAM, TOO_LARGE, Ack, Acks
from sidecar.bus.connection import BusConnection, BusDown
from sidecar.bus.event_message import event_id, headers_of, shortened
from sidecar.bus.link import BusDenied
from sidecar.bus.outbox import Outbox, OutboxAway
from sidecar.bus.outbox_file import OutboxFile, Row
from sidecar.bus.stream import EventStream, Held, NotTold, Opened
from sidecar.bus.subjects import Subjects

_log = logging.getLogger(__name__)

WINDOW: Final = 64  # unconfirmed messages; measured to be as fast as any larger one
READ: Final = 8 * WINDOW  # about 0.5 MiB
ACK_S: Final = 5.0
LOOK_S: Final = 30.0  # how often an idle node sees whether the stream is still there
PAUSE_MIN_S: Final = 0.25
PAUSE_MAX_S: Final = 5.0

Message = tuple[Row, str, bytes, dict[str, str]]


class MirrorFacts(msgspec.Struct, frozen=True):
    """For readiness. code: None where all is well, else a key of `errors.CODES`."""

    code: str | None = None
    words: str = ""
    is_kept: bool | None = None  # by a stream; None: not known yet
    undeliverable: int = 0  # events that no broker would ever take


class _StreamIsNew(Exception):
    """The stream is not the one that was looked at."""


class Mirror:
    """Args: outbox; connection; subjects; stream."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        connection: BusConnection,
        subjects: Subjects,
        stream: EventStream,
        look_s: float = LOOK_S,
    ) -> None:
        self._outbox = outbox
        self._connection = connection
        self._subjects = subjects
        self._stream = stream
        self._look_s = look_s
        self._acks: Acks | None = None
        self._opened: Opened | None = None
        self._held: Held | None = None
        self._refused: int | None = None  # the first event that the broker refused since then
        self._is_new = False
        self._stream_seq = 0  # of the last acknowledged event
        self._early, self._replaced = 0, 0  # see `OutboxFile.begin_again`
        self._given_up: dict[str, None] = {}  # the newest events that no broker would take, by id: each counts once
        self._undeliverable = 0
        self._pause_s = PAUSE_MIN_S
        self._sent = 0
        self._progress = asyncio.Condition()

    def facts(self) -> MirrorFacts:
        opened, held = self._opened, self._held
        if held is not None:
            code, words = held.code, held.words
        elif opened is not None and opened.differs:
            code, words = "bus.stream_differs", "; ".join(opened.differs)
        else:
            code, words = None, ""
        return MirrorFacts(code, words, opened.is_kept if opened else None, self._undeliverable)

    async def run(self) -> None:
        """Until cancelled, or the connection is closed for good."""
        while True:
            try:
                await self._connection.wait_connected()
                await self._serve(self._connection.connections)
            except BusDown:
                if self._connection.is_closed:
                    return
                await asyncio.sleep(0)  # the connection's supervisor sets the pace
            except _StreamIsNew:
                pass  # `_resume` begins again
            except Held as held:
                self._hold(held)
                await self._pause()
            except OutboxAway:
                await self._pause()  # it says by itself what is wrong

    async def flush(self, within_s: float) -> bool:
        """Wait until everything taken so far is with the broker, at most `within_s`; whether it is.

        Where there is no connection only until it is on disk.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._outbox.wait_written()
                async with self._progress:
                    await self._progress.wait_for(lambda: not self._outbox.facts().waiting or not self._can_send)
        except TimeoutError:
            return False
        return not self._outbox.facts().waiting

    @property
    def _can_send(self) -> bool:
        return self._connection.is_connected and self._held is None

    def _hold(self, held: Held) -> None:
        if self._held is None or self._held.code != held.code:
            _log.warning("bus mirror: events wait: %s; transfers go on", held.words)
        self._held = held

    async def _pause(self) -> None:
        """Doubling, with jitter, so that nodes which all wait for one stream do not ask all at once."""
        async with self._progress:
            self._progress.notify_all()
        await asyncio.sleep(random.uniform(self._pause_s / 2, self._pause_s))
        self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)

    async def _serve(self, connection: int) -> None:
        """On one connection. Ends only by raising."""
        had_stream = await self._outbox.ask(lambda file: file.has_stream)
        opened = await self._stream.open(had_stream=had_stream)
        if opened.is_kept:
            await self._resume(opened.made)
        if opened != self._opened:
            _log.info("bus mirror: events are %s", "kept by the stream" if opened.is_kept else "published at most once")
        self._opened = opened
        if self._refused is None:
            self._held = None
        sending = asyncio.create_task(self._send(opened), name="bus mirror: send")
        lost = asyncio.create_task(self._connection.wait_change(connection), name="bus mirror: connection")
        looking = asyncio.create_task(self._look(had_stream or opened.is_kept), name="bus mirror: look")
        try:
            done, _ = await asyncio.wait({sending, lost, looking}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (sending, lost, looking):
                task.cancel()
            await asyncio.gather(sending, lost, looking, return_exceptions=True)
        raise BusDown("the connection has changed")

    async def _look(self, had_stream: bool) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.75, 1.25) * self._look_s)
            self._opened = opened = await self._stream.open(had_stream=had_stream)
            if opened.is_kept and not await self._meet(opened.made):
                raise _StreamIsNew

    async def _meet(self, made: int) -> bool:
        return await self._outbox.ask(lambda file: file.meet_stream(made))

    async def _resume(self, made: int) -> None:
        """Begin after the newest of our events that the stream, which was made then, has."""
        is_new, self._is_new = self._is_new, False

        def meet(file: OutboxFile) -> tuple[bool, int, int]:
            is_other = not file.meet_stream(made) or is_new
            if is_other:
                file.begin_again(made)
            return is_other, file.early, file.replaced

        is_other, self._early, self._replaced = await self._outbox.ask(meet)
        self._stream_seq = 0
        if is_other:
            _log.warning("bus mirror: the stream %s is another one now; sending everything again", self._stream.name)
        try:
            stored = await self._stream.last_stored()
        except NotTold:
            return  # repeats are all that can come of it
        refused = self._refused

        def decide(file: OutboxFile) -> tuple[int, int]:
            before = file.acked
            place = file.place_of(stored.epoch, stored.number) if stored is not None else None
            is_early = stored is not None and place is not None and place <= file.early and stored.again < file.replaced
            if place is None or is_early:
                file.set_acked(0)
            elif place < before:
                file.set_acked(place)
            else:
                # What was under way when the connection broke: one window at most, whatever the id claims; and nothing
                # beyond an event that the broker is known to lack.
                known = [row.number for row in file.read(before, WINDOW) if file.early < row.number <= place]
                known = [number for number in known if refused is None or number < refused]
                file.set_acked(known[-1] if known else before)
            return before, file.acked

        before, after = await self._outbox.ask(decide)
        if after < before:
            _log.warning(
                "bus mirror: the stream lacks events after %d that it had acknowledged; sending them again", after
            )

    async def _send(self, opened: Opened) -> None:
        after = await self._outbox.ask(lambda file: file.acked)
        while True:
            rows = await self._outbox.read(after, READ)
            for start in range(0, len(rows), WINDOW):
                window = rows[start : start + WINDOW]
                await (self._store(window, opened) if opened.is_kept else self._publish(window))
                after = window[-1].number
                await self._acknowledge(after)

    async def _acknowledge(self, number: int) -> None:
        await self._outbox.acknowledged(number)
        self._held, self._refused, self._pause_s = None, None, PAUSE_MIN_S
        async with self._progress:
            self._progress.notify_all()

    async def _store(self, window: Sequence[Row], opened: Opened) -> None:
        """Return when the stream has acknowledged all of them. Raises Held, BusDown, _StreamIsNew."""
        bound = min(self._connection.max_payload, opened.max_message_bytes or self._connection.max_payload)
        messages = self._messages(window, bound)
        acks = await self._send_window(messages)
        for index, (row, *_) in enumerate(messages):
            ack = acks[index] if index < len(acks) else None
            if ack is None or (ack.error is not None and ack.error.err_code != TOO_LARGE):
                if index:
                    await self._outbox.acknowledged(messages[index - 1][0].number)
                self._refused = row.number
                raise await self._why(ack)
            if ack.error is not None:
                self._give_up(row, str(ack.error))
            elif ack.seq <= self._stream_seq and not ack.duplicate:
                self._is_new = True  # it took an event, but lacks those before
                raise _StreamIsNew
            else:
                self._stream_seq = max(self._stream_seq, ack.seq)

    async def _why(self, ack: Ack | None) -> Held:
        """Why an event was not acknowledged. Raises BusDown where the broker is gone."""
        if ack is None or ack.error is None:
            await self._connection.settle(ACK_S)
            return Held("bus.stream_refuses", "the broker did not acknowledge an event")
        match ack.error.err_code:
            case code if code == NO_STREAM:
                words = f"no stream takes the events; {self._stream.name} is missing or differs"
                return Held("bus.stream_missing", words)
            case code if code == OTHER_STREAM:
                return Held("bus.stream_differs", str(ack.error))
        return Held("bus.stream_refuses", str(ack.error))

    async def _send_window(self, messages: Sequence[Message]) -> list[Ack | None]:
        """What became of each; None: nobody knows. Raises BusDown, Held."""

        async def work(client: Client) -> list[Ack | None]:
            if self._acks is None or self._acks.client is not client:
                self._acks = Acks(client, self._stream.name)
            futures: list[asyncio.Future[Ack]] = []
            try:
                for _, subject, body, headers in messages:
                    futures.append(await self._acks.publish(subject, body, headers))
                await asyncio.wait(futures, timeout=ACK_S)
                return [future.result() if future.done() else None for future in futures]
            finally:
                for future in futures:
                    future.cancel()  # a lost acknowledgement would keep its place for ever

        if not messages:
            return []
        try:
            return await self._connection.use(work, 2 * ACK_S, subject=f'"{self._subjects.root}.v1.event.')
        except TimeoutError:
            return []
        except BusDenied as denied:
            raise Held("bus.denied", str(denied)) from denied

    async def _publish(self, window: Sequence[Row]) -> None:
        """Core NATS: return when the broker has taken all of them. Raises BusDown."""
        for _, subject, body, headers in self._messages(window, self._connection.max_payload):
            await self._connection.publish(subject, body, headers)
        await self._connection.settle(ACK_S)

    def _messages(self, window: Sequence[Row], bound: int) -> list[Message]:
        made = []
        for row in window:
            again = self._replaced if row.number <= self._early else 0
            headers = headers_of(self._subjects.node, row, again)
            body = row.body
            room = bound - self._connection.message_bytes(b"", headers)
            if len(body) > room:
                body = shortened(body, room)
            if len(body) > room:
                self._give_up(row, f"the broker takes {bound} bytes, and it has more without any text")
                continue
            made.append(
                (row, self._subjects.event_of(row.direction, row.kind, row.server, row.transfer), body, headers)
            )
        return made

    def _give_up(self, row: Row, words: str) -> None:
        name = event_id(self._subjects.node, row.epoch, row.number)
        if name in self._given_up:  # its window came again
            return
        if len(self._given_up) >= READ:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[name] = None
        self._undeliverable += 1
        _log.error("bus mirror: the event %s cannot be published: %s", name, words, extra={"transfer": row.transfer})
