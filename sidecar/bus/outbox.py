"""Between a decision and the broker: every event of this node, numbered and on disk before it is sent.

`take` is called by the engine in the event loop and does nothing but remember; a thread of the outbox's own numbers the
events, and commits together what has gathered meanwhile. So no transfer waits for this disk: what makes a status
durable is the decision in the journal. After a crash the engine tells the statuses of its journal again (`retake`),
and those that are not here yet are taken then. A log line or progress that was said in the last moments before a kill
has not become an event.

What is dropped when not everything can be kept, in memory while the disk does not take it, and on disk above the
budget: progress first, then log lines, always the oldest; statuses never. Whatever is dropped leaves a gap in `number`,
log lines in `seq` too, and is counted.

A file that is damaged is put aside, never deleted; a new one begins, with the numbers as they were where this process
knew them. A file that cannot be opened or written is tried again, for ever.

Memory: `outbox_queue.py`, and what is being sent.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import msgspec

from sidecar.bus.event_message import body_of
from sidecar.bus.outbox_file import Known, OutboxDamaged, OutboxFile, Row
from sidecar.bus.outbox_queue import DROPPABLE, PROGRESS, EventQueue, Item
from sidecar.views import EventKind, TransferEvent

_log = logging.getLogger(__name__)

T = TypeVar("T")

COMMIT_EVENTS: Final = 512  # at most so many at once, so that what is asked meanwhile is answered
RETRY_S: Final = 1.0
SWEEP_S: Final = 10.0
CLOSE_S: Final = 5.0  # a disk that hangs does not keep the program from ending
# A transfer that the journal knows and the outbox does not: the outbox was lost, and numbers below may have been used.
# Between two decisions of a transfer there are never so many log lines.
UNKNOWN_SEQ: Final = 100_000
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_FULL: Final = sqlite3.SQLITE_FULL


class OutboxAway(Exception):
    """The file cannot be used at the moment. Never leaves this package."""


class OutboxFacts(msgspec.Struct, frozen=True):
    """For readiness. code: None where all is well, else a key of `errors.CODES`."""

    code: str | None = None
    trouble: str = ""
    waiting: int = 0  # events that the broker has not acknowledged
    dropped_progress: int = 0  # since the program began
    dropped_logs: int = 0
    put_aside: str = ""  # the name that a damaged file was given


class Outbox:
    """Use it as `async with`. Args: path, of the file; node; epoch, of this run; budget_bytes, of the events on disk;
    keep_s, how long acknowledged events are kept; on_lost, called in the event loop when events that nobody has may
    have been lost with a damaged file: statuses are to be told again."""

    def __init__(
        self,
        path: Path,
        *,
        node: str,
        epoch: str,
        budget_bytes: int,
        keep_s: float,
        on_lost: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._node = node
        self._epoch = epoch
        self._budget_bytes = budget_bytes
        self._keep_s = keep_s
        self._on_lost = on_lost
        self._monotonic = monotonic
        self._thread = threading.Thread(target=self._work, name="bus outbox", daemon=True)
        self._wake = threading.Condition()
        # below: shared by both, under `_wake`
        self._queue = EventQueue()
        self._asked: deque[tuple[Callable[[OutboxFile], Any], asyncio.Future[Any]]] = deque()
        self._is_closing = False
        self._in_hand = 0
        # below: written by the thread alone
        self._file: OutboxFile | None = None
        self._known: dict[str, Known] = {}
        self._last = 0
        self._dropped: Counter[EventKind] = Counter()
        self._code: str | None = None
        self._trouble = ""
        self._put_aside = ""
        self._acks: deque[tuple[int, float]] = deque()  # up to which number, and when
        # of the event loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._commits = 0
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what was taken, as far as the disk takes it within `CLOSE_S`."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, CLOSE_S)
        if self._thread.is_alive():
            _log.error("outbox: the disk does not take the last events; they are lost, apart from statuses")

    # -- what the engine tells -----------------------------------------------------------------------------------------
    def take(self, event: TransferEvent) -> None:
        """Remember one event. Never waits, never raises."""
        self._put(event)

    def retake(self, statuses: Sequence[TransferEvent]) -> None:
        """The statuses of one transfer as the journal has them, oldest first: those that are not here yet are taken.

        Of a transfer that an outbox before this one may have known only the newest is.
        """
        if statuses:
            self._put(tuple(statuses))

    def _put(self, item: Item) -> None:
        with self._wake:
            self._queue.put(item)
            self._wake.notify()

    # -- what the sender asks ------------------------------------------------------------------------------------------
    async def ask(self, question: Callable[[OutboxFile], T]) -> T:
        """Run it in the outbox's thread. Raises OutboxAway."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._wake:
            if self._is_closing:
                raise OutboxAway("closed")
            self._asked.append((question, answer))
            self._wake.notify()
        return await answer

    async def read(self, after: int, limit: int) -> list[Row]:
        """Events with higher numbers, in order; waits until there is one. Raises OutboxAway."""
        while True:
            seen = self._commits
            if rows := await self.ask(lambda file: file.read(after, limit)):
                return rows
            await self._wait_commit(seen)

    async def acknowledged(self, number: int) -> None:
        """The broker has everything up to that number. Raises OutboxAway."""
        await self.ask(lambda file: self._note_ack(file, number))

    async def wait_written(self) -> None:
        """Return once everything taken so far is on disk. Waits for ever where the disk does not take it."""
        seen = self._commits
        while self.queued:
            await self._wait_commit(seen)
            seen = self._commits

    async def _wait_commit(self, seen: int) -> None:
        if self._commits == seen:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _note_commit(self) -> None:
        self._commits += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def queued(self) -> int:
        """How many events are not on disk yet."""
        with self._wake:
            return len(self._queue) + self._in_hand

    def facts(self) -> OutboxFacts:
        with self._wake:
            progress = self._queue.skipped[PROGRESS]
            logs = self._queue.skipped.total() - progress
        file = self._file
        return OutboxFacts(
            code=self._code,
            trouble=self._trouble,
            waiting=(file.waiting if file is not None else 0) + self.queued,
            dropped_progress=self._dropped[EventKind.PROGRESS] + progress,
            dropped_logs=self._dropped[EventKind.LOGS] + logs,
            put_aside=self._put_aside,
        )

    # -- the thread ----------------------------------------------------------------------------------------------------
    def _work(self) -> None:
        try:
            is_ending = False
            swept_at = self._monotonic()
            while not is_ending:
                if self._file is None:
                    self._open()
                is_ending = self._turn()
                if self._file is not None and self._monotonic() - swept_at >= SWEEP_S:
                    swept_at = self._monotonic()
                    self._attempt(self._sweep)
        except Exception:  # noqa: BLE001 - the last frame of a thread
            _log.exception("outbox: a bug stopped it; events are not published any more")
            self._code, self._trouble = "transfer.internal", "a bug stopped the outbox"
        finally:
            self._refuse_questions()
            if self._file is not None:
                self._file.close()

    def _turn(self) -> bool:
        """Answer, commit, or wait for something to do; whether that was the last turn."""
        with self._wake:
            if not self._queue and not self._asked and not self._is_closing:
                self._wake.wait(SWEEP_S if self._file is not None else RETRY_S)
            asked, self._asked = self._asked, deque()
            batch, skipped = self._queue.take(COMMIT_EVENTS)
            self._in_hand = len(batch)
            is_closing = self._is_closing
        self._answer(asked)
        is_written = not batch or self._attempt(lambda file: self._commit(file, batch, skipped))
        with self._wake:
            self._in_hand = 0
            if not is_written or not batch:
                self._queue.give_back(batch, skipped)
            if not is_written:
                self._wake.wait_for(lambda: self._is_closing or self._asked, RETRY_S)
            is_empty = not self._queue
        if batch and is_written:
            self._tell(self._note_commit)
            self._attempt(self._keep_budget)
        return is_closing and (is_empty or not is_written)

    def _commit(self, file: OutboxFile, batch: Sequence[Item], skipped: Counter[str]) -> None:
        """Number the events and write them, or change nothing. Raises sqlite3.Error."""
        last = self._last + skipped[PROGRESS]
        touched: dict[str, Known] = {}

        def known(transfer: str) -> Known:
            if transfer not in touched:
                touched[transfer] = msgspec.structs.replace(self._known.get(transfer, Known()))
            return touched[transfer]

        for transfer, count in skipped.items():
            if transfer:
                last += count
                known(transfer).seq += count
        rows: list[Row] = []
        for item in batch:
            events = (item,) if isinstance(item, TransferEvent) else _untold(item, known(item[0].transfer), file.is_new)
            for event in events:
                row = self._row(event, known(event.transfer), last + 1)
                if row is not None:
                    last = row.number
                    rows.append(row)
        file.append(rows, touched.items(), last)
        self._known.update(touched)
        self._last = last
        self._dropped[EventKind.PROGRESS] += skipped[PROGRESS]
        self._dropped[EventKind.LOGS] += skipped.total() - skipped[PROGRESS]
        self._code, self._trouble = None, ""

    def _row(self, event: TransferEvent, known: Known, number: int) -> Row | None:
        try:
            server, transfer = str(UUID(event.server)), str(UUID(event.transfer))
        except ValueError:
            _log.error("outbox: an event's ids are no UUIDs; it is not published", extra={"transfer": event.transfer})
            return None
        if event.kind is not EventKind.PROGRESS:
            known.seq += 1
        if event.kind is EventKind.STATUS:
            known.decision = max(known.decision, event.decision)
        known.number = number
        body = body_of(event, seq=known.seq, number=number)
        return Row(number, self._epoch, event.kind, event.role.direction, server, transfer, event.time, body)

    def _keep_budget(self, file: OutboxFile) -> None:
        """Above the budget, make room: what the broker has, then progress, then log lines; a sixteenth more."""
        if file.bytes <= self._budget_bytes:
            return
        wanted = file.bytes - self._budget_bytes + self._budget_bytes // 16
        before = file.bytes
        file.drop_acked(file.acked)
        for kind in DROPPABLE:
            if (left := wanted - (before - file.bytes)) > 0 and (count := file.drop_oldest(kind, left)):
                self._dropped[kind] += count
                _log.warning("outbox: above its budget; dropped %d %s events that were not sent", count, kind.value)

    def _note_ack(self, file: OutboxFile, number: int) -> None:
        if self._acks and file.acked < self._acks[-1][0]:  # the broker had lost some: these were sent again
            self._acks.clear()
        file.set_acked(number)
        now = self._monotonic()
        if not self._acks or now - self._acks[-1][1] >= 1.0:
            self._acks.append((number, now))

    def _sweep(self, file: OutboxFile) -> None:
        if self._code == "bus.outbox_full":  # there may be room again, and nothing new to show it
            file.append([], (), self._last)
            self._code, self._trouble = None, ""
        up_to, now = 0, self._monotonic()
        if not self._acks and file.acked:
            self._acks.append((file.acked, now))  # of an earlier run: when, nobody knows
        while self._acks and now - self._acks[0][1] >= self._keep_s:
            up_to, _ = self._acks.popleft()
        if up_to:
            file.drop_acked(up_to)

    def _answer(self, asked: deque[tuple[Callable[[OutboxFile], Any], asyncio.Future[Any]]]) -> None:
        for question, answer in asked:
            if self._file is None:
                self._resolve(answer, None, OutboxAway(self._trouble or "not open"))
                continue
            try:
                result = question(self._file)
            except sqlite3.Error as error:
                self._fail(error)
                self._resolve(answer, None, OutboxAway(str(error)))
            else:
                self._resolve(answer, result, None)

    def _resolve(self, answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        def resolve() -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self._tell(resolve)

    def _tell(self, what: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            return  # the loop has ended: nobody listens

    def _refuse_questions(self) -> None:
        with self._wake:
            self._is_closing = True
            asked, self._asked = self._asked, deque()
        for _, answer in asked:
            self._resolve(answer, None, OutboxAway("closed"))
        self._tell(self._note_commit)

    def _attempt(self, work: Callable[[OutboxFile], None]) -> bool:
        """Whether it succeeded; else the trouble is noted."""
        if self._file is None:
            return False
        try:
            work(self._file)
        except sqlite3.Error as error:
            self._fail(error)
            return False
        return True

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._adopt(OutboxFile(self._path, self._epoch))
        except OutboxDamaged as error:
            self._lose(str(error))
        except sqlite3.Error as error:
            self._fail(error)
        except OSError as error:
            self._say("bus.outbox_failed", error.strerror or str(error))

    def _adopt(self, file: OutboxFile) -> None:
        """Where this process knows more than the file, the file is new: an older one was put aside."""
        self._file = file
        self._acks.clear()
        if self._last > file.last:
            file.append([], self._known.items(), self._last)
        else:
            self._known, self._last = file.known, file.last
        self._code, self._trouble = None, ""

    def _fail(self, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        words = f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"[:200]
        if code in _DAMAGED:
            self._lose(words)
        elif code == _FULL:
            self._say("bus.outbox_full", words)  # it can still be read
        else:
            self._say("bus.outbox_failed", words)
            self._close_file()

    def _lose(self, words: str) -> None:
        """Put a damaged file aside; the next turn begins a new one."""
        self._close_file()
        name = f"{self._path.name}.damaged-{self._epoch}-{int(time.time())}"
        try:
            for suffix in ("-wal", "-shm", ""):  # the file itself last: until then this is done again
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.rename(self._path.with_name(name + suffix))
        except OSError as error:
            self._say("bus.outbox_failed", f"{words}; and it cannot be put aside: {error.strerror}")
            return
        _log.error("outbox: %s is damaged (%s) and was put aside as %s", self._path, words, name)
        self._put_aside = name
        for told in self._known.values():
            told.decision = 0  # what of it the broker has is not known: it is told again
        self._tell(self._on_lost)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say(self, code: str, words: str) -> None:
        if code != self._code:
            _log.error("outbox: %s: %s; transfers go on", self._path, words)
        self._code, self._trouble = code, words


def _untold(statuses: tuple[TransferEvent, ...], known: Known, is_new: bool) -> Sequence[TransferEvent]:
    """Which of the statuses of its journal a transfer's events lack. is_new: there may have been another outbox."""
    if known.decision or not (is_new or known.seq):
        return [event for event in statuses if event.decision > known.decision]
    if not known.seq:
        known.seq = statuses[-1].decision * UNKNOWN_SEQ
    return statuses[-1:]
