"""The source half of the archive: a volume becomes gzip members that carry a tar of it, and again of what changed.

    scan -> [read and pack -> rescan -> pack what changed -> ...] -> compress -> the caller
             one thread                                              one thread

First everything is packed in archive order. Then the volume is scanned again and what is not as it was is appended to
the same archive, where a later entry replaces an earlier one. That is repeated until a scan finds nothing changed: then
every entry of the archive is what the volume held when its last change was already over. A volume that does not come to
rest within some rounds is an error rather than a torn copy.

The end of the archive is not among the pieces. It is a separate call, so that the caller can put its point of no return
between the two; until then the stream is not an archive that anybody accepts as whole.

Memory: `READ_BUFFERS` + `MEMBER_BUFFERS` buffers of `PIECE_BYTES`, up to four compressed members, and three packed
lists of `MEMORY_BYTES` (`spool.py`); with the maps of `pack.py` below 32 MiB in all, of which a volume without hard
links and with fewer than 100,000 files uses 10.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from sidecar.archive.entries import Entry, EntryType, Notice, NoticeKind, readable
from sidecar.archive.gzip_write import MemberWriter, ending_member, member_capacity
from sidecar.archive.meter import Meter
from sidecar.archive.pack import Dialect, Packer
from sidecar.archive.pipe import Pipe, PipeClosed
from sidecar.archive.scan import Changes, Scan, changes, scan
from sidecar.archive.tar_write import END_OF_ARCHIVE, PIECE_BYTES, Piece, TarWriter
from sidecar.errors import HostFailed

__all__ = ["ArchiveProducer", "Dialect"]

READ_BUFFERS: Final = 4  # one being filled, two waiting, one being compressed
MEMBER_BUFFERS: Final = 4
MAX_NOTICES: Final = 100  # of each kind; then one that says how many more


class _Member(NamedTuple):
    """A gzip member on its way to the caller. `buffer`: what it lies in, if that is to be used again."""

    data: bytes | memoryview
    buffer: memoryview | None


class ArchiveProducer:
    """One archive of one volume. `scan()`, then all of `pieces()`, then `ending()`; `close()` at any time."""

    def __init__(
        self,
        volume: Path,
        *,
        dialect: Dialect,
        gzip_level: int,
        max_entries: int,
        max_rounds: int = 3,
        meter: Meter,
        notice: Callable[[Notice], None],
        spool_dir: Path | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args: max_rounds: how often what changed may be appended. notice: called from the thread that reads (and from
        `scan`'s), at most `MAX_NOTICES` times per kind; what it raises ends the archive. spool_dir: for packed lists of
        entries that outgrow memory; None: the system's own place.
        Raises ValueError for a gzip level outside 0 to 9.
        """
        self._volume = volume
        self._dialect = dialect
        self._members = MemberWriter(gzip_level)
        self._max_entries = max_entries
        self._max_rounds = max_rounds
        self._meter = meter
        self._on_notice = notice
        self._noticed: dict[NoticeKind, int] = {}
        self._spool_dir = spool_dir
        self._first: Scan | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._free: Pipe[memoryview] = Pipe(READ_BUFFERS)
        self._filled: Pipe[Piece] = Pipe(READ_BUFFERS - 2)
        self._free_members: Pipe[memoryview] = Pipe(MEMBER_BUFFERS)
        self._ready: Pipe[_Member] = Pipe(MEMBER_BUFFERS - 2)

    def scan(self) -> Scan:
        """The first look at the volume; sets the meter's totals. Blocks; for a worker thread.

        Returns: what was found, alive until `close`. A second call returns the same.
        Raises HostFailed (`volume.missing`, `volume.unreadable`, `archive.limit`, `disk.failed`); PipeClosed after
        `close`.
        """
        if self._first is not None:
            return self._first
        result = self._look()
        with self._lock:
            if self._stopped.is_set():
                result.close()
                raise PipeClosed
            self._first = result
        self._meter.total_bytes = result.size_bytes
        self._meter.total_files = result.files
        for skipped in result.skipped:
            self._notify(skipped)
        left_out = self._noticed.get(NoticeKind.SKIPPED_SPECIAL, 0) + result.skipped_count - len(result.skipped)
        self._noticed[NoticeKind.SKIPPED_SPECIAL] = left_out
        return result

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The archive without its end, as whole gzip members. Blocks; for one worker thread, once.

        Returns: members of `PIECE_BYTES` of tar or less, never empty; one is valid until the next is asked for.
        Raises HostFailed: `volume.changed` when the volume does not come to rest, `volume.unreadable`,
        `volume.missing`, `archive.limit`, `disk.failed`; PipeClosed when closed from elsewhere. After an error nothing
        more comes. If abandoned: the threads end.
        """
        if self._threads:
            raise RuntimeError("pieces() was called before")
        first = self.scan()
        for _ in range(READ_BUFFERS):
            self._free.put(memoryview(bytearray(PIECE_BYTES)))
        for _ in range(MEMBER_BUFFERS):
            self._free_members.put(memoryview(bytearray(member_capacity(PIECE_BYTES))))
        try:
            self._start("archive-read", lambda: self._read(first))
            self._start("archive-compress", self._compress)
            for member in self._ready:
                self._meter.wire_bytes += len(member.data)
                yield member.data
                if member.buffer is not None:
                    self._free_members.put(member.buffer)
        finally:
            self._break(PipeClosed())
            self._join()

    def ending(self) -> bytes:
        """The member that ends the archive: two blocks of zeros and nothing behind them."""
        member = ending_member(END_OF_ARCHIVE)
        self._meter.wire_bytes += len(member)
        return member

    def close(self) -> None:
        """End the threads, close the files, drop the lists. Any thread, any time; idempotent.

        Waits for a read or a compression in progress, except when called from within `notice`.
        """
        with self._lock:
            self._stopped.set()
        self._break(PipeClosed())
        self._join()
        if self._first is not None:
            self._first.close()

    # --- threads

    def _start(self, name: str, run: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._break(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        with self._lock:
            if self._stopped.is_set():
                raise PipeClosed
            self._threads.append(thread)
            thread.start()

    def _break(self, error: BaseException) -> None:
        for pipe in (self._free, self._filled, self._free_members, self._ready):
            pipe.break_(error)

    def _join(self) -> None:
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _compress(self) -> None:
        buffers = iter(self._free_members)
        spare: memoryview | None = None
        for piece in self._filled:
            if piece.is_zero:
                member = _Member(self._members.zeros(piece.size), None)
            else:
                spare = spare if spare is not None else next(buffers)
                data = self._members.member(piece.buffer[: piece.size], spare)
                if isinstance(data, bytes):
                    member = _Member(data, None)
                else:
                    member, spare = _Member(data, spare), None
            self._free.put(piece.buffer)
            self._ready.put(member)
        self._ready.end()

    def _read(self, first: Scan) -> None:
        buffers = iter(self._free)
        tar = TarWriter(lambda: next(buffers), self._filled.put)
        packer = Packer(
            self._volume,
            tar,
            dialect=self._dialect,
            meter=self._meter,
            notice=self._notify,
            wait=self._stopped.wait,
        )
        packer.pack(first)
        rescans: list[Scan] = []
        try:
            before = first
            for appended in range(self._max_rounds + 1):
                tar.flush()  # what is ready travels while the volume is scanned
                rescans.append(self._look())
                if not self._append(packer, before, rescans[-1], appended):
                    break
                if before is not first:
                    before.close()
                before = rescans[-1]
        finally:
            for rescan in rescans:
                rescan.close()
        tar.flush()
        self._tell_how_many_more()
        self._filled.end()

    def _append(self, packer: Packer, before: Scan, after: Scan, appended: int) -> bool:
        """Pack what differs between two scans; whether anything did. Raises `volume.changed` when that is too often."""
        found = changes(before, after, also=packer.unsent, spool_dir=self._spool_dir)
        try:
            if found.is_empty:
                return False
            if appended == self._max_rounds:
                raise _restless(found, appended)
            links = after if self._dialect is Dialect.STRANGER and after.symlinks else ()
            packer.pack(self._noticing(found), removed=reversed(found.removed), links=links, again=True)
            return True
        finally:
            found.close()

    def _noticing(self, found: Changes) -> Iterator[Entry]:
        for entry in found.changed:
            if entry.type is not EntryType.DIRECTORY:  # those change with whatever changes in them
                self._notify(Notice(NoticeKind.CHANGED, entry.path))
            yield entry

    def _look(self) -> Scan:
        return scan(
            self._volume, max_entries=self._max_entries, spool_dir=self._spool_dir, is_stopped=self._stopped.is_set
        )

    def _notify(self, notice: Notice) -> None:
        count = self._noticed[notice.kind] = self._noticed.get(notice.kind, 0) + 1
        if count <= MAX_NOTICES:
            self._on_notice(notice)

    def _tell_how_many_more(self) -> None:
        for kind, count in self._noticed.items():
            if count > MAX_NOTICES:
                self._on_notice(Notice(NoticeKind.MORE, b"", f"{count - MAX_NOTICES} more of {kind.value}"))


def _restless(found: Changes, rounds: int) -> HostFailed:
    path = next(iter(found.changed), None)
    name = readable(path.path if path is not None else next(iter(found.removed)))
    return HostFailed(
        "volume.changed",
        f"the server's files were still changing after {rounds} rounds of sending what had changed: {name}",
        path=name,
        rounds=rounds,
        changed=found.changed.count,
        removed=found.removed.count,
    )
