"""The outbox on disk: a SQLite file of the events that the broker may not have yet. Blocking; one thread uses it.

Every event of this node has a number, `number`, that counts without gaps and is never given twice. In it are:

- `events`: what is to be sent, or was sent not long ago; the number is the key, so order is the key's.
- `transfers`: of each transfer the last `seq` of its events, and the journal's record that its last status told. What
  the engine tells again after a restart is recognised by it.
- `runs`: which run of the program (`epoch`) gave which numbers, oldest first. An event's id holds both, for at a power
  loss numbers of progress, which nobody syncs for, may be given again.
- `marks`: up to where the broker has acknowledged everything; by which stream, and what that one may have stored
  before its time (see `begin_again`).

A commit is synced (`synchronous=FULL`) where it holds a status or a log line. Progress is a hint: it is written, so
that it survives the process, but no disk is made to sync for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sidecar.views import EventKind

SCHEMA: Final = 1  # `user_version`; another one is put aside as if it were damaged
ROW_BYTES: Final = 256  # what a row costs beside its body, generously
MAX_TRANSFERS: Final = 20_000  # of which numbers are remembered; the engine remembers some 500
MAX_RUNS: Final = 64
_KINDS: Final = (EventKind.STATUS, EventKind.LOGS, EventKind.PROGRESS)
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, run INTEGER NOT NULL, kind INTEGER NOT NULL, direction TEXT NOT NULL,
    server TEXT NOT NULL, transfer TEXT NOT NULL, time REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS transfers (
    transfer TEXT PRIMARY KEY, seq INTEGER NOT NULL, decision INTEGER NOT NULL, number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (run INTEGER PRIMARY KEY, epoch TEXT NOT NULL UNIQUE, first INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class Row(msgspec.Struct, frozen=True):
    """One event as it waits. Its subject and headers are made when it is sent."""

    number: int
    epoch: str
    kind: EventKind
    direction: str
    server: str
    transfer: str
    time: float
    body: bytes


class Known(msgspec.Struct):
    """What has been given to one transfer's events."""

    seq: int = 0
    decision: int = 0
    number: int = 0


class OutboxDamaged(Exception):
    """The file is no outbox that this program can read."""


class OutboxFile:
    """Args: path; epoch, of this run. Raises OutboxDamaged, sqlite3.Error, OSError; nothing stays open then."""

    def __init__(self, path: Path, epoch: str) -> None:
        self.waiting = 0  # events that are not acknowledged
        self.bytes = 0  # of all events, whatever is free in the file besides
        _make_private(path)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)
        try:
            self._open(path, epoch)
        except BaseException:
            self._db.close()
            raise

    def _open(self, path: Path, epoch: str) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        has_tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        self.is_new = not has_tables  # an earlier one may have been lost
        if has_tables and version != SCHEMA:
            raise OutboxDamaged(f"its version is {version}, not {SCHEMA}")
        if has_tables and (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise OutboxDamaged(str(found)[:200])
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA journal_size_limit=4194304")
        db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT")
        self.acked = self._mark("acked")
        self.has_stream = bool(self._mark("stream"))
        self.made = self._mark("made")
        self.early, self.replaced = self._mark("early"), self._mark("replaced")
        self.last = max(self._mark("last"), self._one("SELECT coalesce(max(number), 0) FROM events"))
        self.bytes = self._one(f"SELECT coalesce(sum(length(body) + {ROW_BYTES}), 0) FROM events")
        self.waiting = self._count_waiting()
        self.known = {
            transfer: Known(seq, decision, number)
            for transfer, seq, decision, number in db.execute("SELECT * FROM transfers ORDER BY number")
        }
        self._forget_transfers()
        self.run = self._begin_run(epoch)

    def _begin_run(self, epoch: str) -> int:
        db = self._db
        with self._transaction():
            db.execute("INSERT OR IGNORE INTO runs (epoch, first) VALUES (?, ?)", (epoch, self.last + 1))
            run = self._one("SELECT run FROM runs WHERE epoch = ?", epoch)
            db.execute(
                "DELETE FROM runs WHERE run <= ? AND run < (SELECT coalesce(min(run), ?) FROM events)",
                (run - MAX_RUNS, run),
            )
        self._epochs = dict(db.execute("SELECT run, epoch FROM runs"))
        return run

    def _forget_transfers(self) -> None:
        surplus = list(self.known)[: max(0, len(self.known) - MAX_TRANSFERS)]
        with self._transaction():
            self._db.executemany("DELETE FROM transfers WHERE transfer = ?", [(name,) for name in surplus])
        for name in surplus:
            del self.known[name]

    def append(self, rows: Sequence[Row], known: Iterable[tuple[str, Known]], last: int) -> None:
        """Write rows of this run, with what has been given by now; all of it or nothing. Raises sqlite3.Error.

        Durable when this returns where a status or a log line is among them.
        """
        is_synced = any(row.kind is not EventKind.PROGRESS for row in rows)
        self._db.execute(f"PRAGMA synchronous={'FULL' if is_synced else 'NORMAL'}")
        with self._transaction():
            self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (r.number, self.run, _KINDS.index(r.kind), r.direction, r.server, r.transfer, r.time, r.body)
                    for r in rows
                ],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO transfers VALUES (?, ?, ?, ?)",
                [(transfer, told.seq, told.decision, told.number) for transfer, told in known],
            )
            self._set_mark("last", last)
        self.last = last
        self.waiting += len(rows)
        self.bytes += sum(len(row.body) + ROW_BYTES for row in rows)

    def read(self, after: int, limit: int) -> list[Row]:
        """Up to `limit` events with higher numbers than `after`, in order."""
        return [
            Row(number, self._epochs.get(run, ""), _KINDS[kind], direction, server, transfer, time, body)
            for number, run, kind, direction, server, transfer, time, body in self._db.execute(
                "SELECT * FROM events WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
            )
        ]

    def _count_waiting(self) -> int:
        return self._one("SELECT count(*) FROM events WHERE number > ?", self.acked)

    def set_acked(self, number: int) -> None:
        """The broker has everything up to `number`. Survives the process where the disk has room; where it has none, or
        loses power, the mark is an older one then, which costs some repeats."""
        if number == self.acked:
            return
        before, self.acked = self.acked, number
        if number > before:
            passed = "SELECT count(*) FROM events WHERE number > ? AND number <= ?"
            self.waiting -= self._one(passed, before, number)
        else:
            self.waiting = self._count_waiting()
        self._write_marks(acked=number)

    def meet_stream(self, made: int) -> bool:
        """There is a stream, made then (0: not known). Returns False, and notes nothing, where another acknowledged.

        A file that has just taken the place of a damaged one knows of none yet.
        """
        if made and self.made and made != self.made:
            return False
        if not self.has_stream or (made and not self.made):
            self.has_stream, self.made = True, made or self.made
            self._write_marks(stream=1, made=self.made)
        return True

    def begin_again(self, made: int) -> None:
        """Nothing is acknowledged by a stream that was made then (0: not known). It may have some of what was given out
        so far, before its time; that it has these says nothing about the older ones, not to the next run either."""
        self.early, self.replaced, self.made = self.last, self.replaced + 1, made or self.made
        self.acked, self.has_stream = 0, True
        self.waiting = self._count_waiting()
        self._write_marks(acked=0, stream=1, early=self.early, replaced=self.replaced, made=self.made)

    def _write_marks(self, **marks: int) -> None:
        """A full disk is no reason to keep events from the broker."""
        try:
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                for name, value in marks.items():
                    self._set_mark(name, value)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
                raise

    def place_of(self, epoch: str, number: int) -> int | None:
        """Up to which of our numbers an event of that id stands; None: this outbox has not made it.

        A number that a later run gave again is not meant by an earlier run's.
        """
        run = next((run for run, known in self._epochs.items() if known == epoch), None)
        if run is None:
            return None
        after = self._db.execute("SELECT min(first) FROM runs WHERE run > ?", (run,)).fetchone()[0]
        return min(number, self.last if after is None else after - 1)

    def drop_acked(self, up_to: int) -> None:
        """Forget acknowledged events up to that number."""
        self._drop("number <= ?", min(up_to, self.acked))

    def drop_oldest(self, kind: EventKind, at_least_bytes: int) -> int:
        """Give up events of a kind that nobody has, oldest first, until so much is free; how many."""
        sizes = self._db.execute(
            f"SELECT number, length(body) + {ROW_BYTES} FROM events WHERE kind = ? AND number > ? ORDER BY number",
            (_KINDS.index(kind), self.acked),
        )
        freed, up_to = 0, 0
        for number, size in sizes:
            freed, up_to = freed + size, number
            if freed >= at_least_bytes:
                break
        sizes.close()
        count = self._drop("kind = ? AND number > ? AND number <= ?", _KINDS.index(kind), self.acked, up_to)
        self.waiting -= count
        return count

    def _drop(self, where: str, *values: int) -> int:
        count, size = self._db.execute(
            f"SELECT count(*), coalesce(sum(length(body) + {ROW_BYTES}), 0) FROM events WHERE {where}", values
        ).fetchone()
        if count:
            self._db.execute("PRAGMA synchronous=NORMAL")
            with self._transaction():
                self._db.execute(f"DELETE FROM events WHERE {where}", values)
            self.bytes -= size
        return int(count)

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str, *values: int | str) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _mark(self, name: str) -> int:
        found = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
        return int(found[0]) if found else 0

    def _set_mark(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


def _make_private(path: Path) -> None:
    """Before there is anything in it: the files that SQLite makes beside it get the same mode."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)


class _Transaction:
    """All or nothing. Rolls back where the commit itself fails, which the module's own does not."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
