"""The destination's half of the pipeline: hash and decompress in the caller's thread, read and write in another.

    feed(piece) -> SHA-256 -> decompress -> Pipe -> tar reader -> files

Two threads, because that is where the time goes half and half; each stage releases the interpreter's lock while it
works on a piece. The archive's bytes are hashed as they came, all of them, whatever the tar reader makes of them: what
follows the end of the tar belongs to the checksum too.

Nothing here says that the archive is the one that was sent; that is for whoever compares `Extracted.sha256_hex`.

Memory: (PIPE_SLOTS + 2) batches of at most BATCH_BYTES + PIECE_BYTES, one decompressor (`codecs`), one tree writer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sidecar.archive.codecs import DETECT_BYTES, Decompressor, decompressor, detect
from sidecar.archive.durable import disk_errors, host_failed
from sidecar.archive.entries import Notice
from sidecar.archive.meter import Meter
from sidecar.archive.pipe import Pipe, PipeClosed
from sidecar.archive.tar_read import TarReader
from sidecar.archive.tree_state import ExtractLimits, TreeState
from sidecar.archive.tree_writer import TreeWriter
from sidecar.errors import DataCorrupt

__all__ = ["ExtractLimits", "Extracted", "Extraction", "TreeState", "seal"]

BATCH_BYTES: Final = 512 << 10  # handed to the writer at once; a switch of threads costs as much as 20 KiB of work
PIPE_SLOTS: Final = 4
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Extracted(msgspec.Struct, frozen=True):
    """What an archive came to. Counts are of members: one that replaced another counts again."""

    sha256_hex: str  # of the archive's bytes as they came
    wire_bytes: int
    content_bytes: int  # of files, holes included
    files: int  # hard links included
    directories: int  # those that only a path announced included
    symlinks: int
    removed: int


class Extraction:
    """One archive into one empty directory. End it with `finish` or `abort`; both leave no thread and no descriptor."""

    def __init__(
        self,
        staging: Path,
        *,
        limits: ExtractLimits,
        owner: tuple[int, int] | None,
        meter: Meter,
        notice: Callable[[Notice], None],
        filename: str | None = None,
        tree: TreeState | None = None,
    ) -> None:
        """
        Args: `owner`: uid and gid that everything gets, None: as the process creates it; `meter`: counted up as it
        goes; `notice`: called in the writer's thread; `filename`: the part's, a tie-break where the bytes say too
        little; `tree`: shared with the extractions of other streams, whose directories `seal` finishes at the end;
        without it `finish` does.

        Raises HostFailed when `staging` cannot be opened as a directory.
        """
        with disk_errors(f"cannot open the staging directory {staging}"):
            self._top = os.open(staging, _DIRECTORY)
        self._writer = TreeWriter(self._top, limits, owner, meter, notice, tree)
        self._seals = tree is None
        self._free_bytes = limits.expansion_free_bytes // (tree.streams if tree is not None else 1)
        self._limits = limits
        self._meter = meter
        self._filename = filename
        self._sha = hashlib.sha256()
        self._wire_bytes = 0
        self._tar_bytes = 0
        self._head = b""  # until the codec is known
        self._decompressor: Decompressor | None = None
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._pipe: Pipe[list[bytes]] = Pipe(PIPE_SLOTS)
        self._lock = threading.Lock()  # over starting, stopping and closing
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._failure: BaseException | None = None  # the writer's

    def feed(self, piece: bytes | memoryview) -> None:
        """The next bytes of the archive. They are not used after the return. Blocks while the writer is behind.

        Raises DataCorrupt (`archive.*`) and HostFailed (`disk.*`), the writer's a few pieces later than they happened;
        PipeClosed after `abort`. After any of them the extraction is over.
        """
        if self._stopped:
            raise PipeClosed
        try:
            self._sha.update(piece)
            self._wire_bytes += len(piece)
            self._meter.wire_bytes += len(piece)
            if self._decompressor is None:
                self._head += piece
                if len(self._head) < DETECT_BYTES:
                    return
                piece = self._recognise()
            self._decompress(self._decompressor, piece)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> Extracted:
        """The archive is complete: wait for the writer, check that codec and tar ended as they must.

        Raises what `feed` raises.
        """
        try:
            if self._decompressor is None:
                head = self._recognise()
                self._decompress(self._decompressor, head)
            assert self._decompressor is not None
            self._decompressor.finish()
            self._hand_over()
            self._pipe.end()
            if self._thread is not None:
                self._thread.join()
            if self._failure is not None:
                raise self._failure
        finally:
            self.abort()
        writer = self._writer
        return Extracted(
            self._sha.hexdigest(),
            self._wire_bytes,
            writer.content_bytes,
            writer.files,
            writer.directories,
            writer.symlinks,
            writer.removed,
        )

    def abort(self) -> None:
        """Stop the writer and close everything; the staging directory stays as it is. Any thread, any time, idempotent.

        Waits for the writer's system call in progress. A `feed` that waits in another thread raises PipeClosed.
        """
        self._pipe.break_()
        with self._lock:
            if self._thread is not None:
                self._thread.join()
            if not self._stopped:
                self._stopped = True
                os.close(self._top)

    def _recognise(self) -> bytes:
        self._decompressor = decompressor(detect(self._head, self._filename))
        head, self._head = self._head, b""
        return head

    def _decompress(self, decompressor: Decompressor | None, piece: bytes | memoryview) -> None:
        assert decompressor is not None
        for out in decompressor.feed(piece):
            self._tar_bytes += len(out)
            self._batch.append(out)
            self._batch_bytes += len(out)
            if self._batch_bytes >= BATCH_BYTES:
                self._check_expansion()
                self._hand_over()

    def _check_expansion(self) -> None:
        most = max(self._free_bytes, self._limits.max_expansion * self._wire_bytes)
        if self._tar_bytes > most:
            raise DataCorrupt(
                "archive.limit",
                f"{self._wire_bytes} bytes expand to {self._tar_bytes}: more than {self._limits.max_expansion} times",
                limit="max_expansion",
                value=self._limits.max_expansion,
            )

    def _hand_over(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._stopped:
                    raise PipeClosed
                # A daemon, so that an extraction that nobody ended does not keep the process from exiting.
                self._thread = threading.Thread(target=self._write, name="extract", daemon=True)
                self._thread.start()
        self._pipe.put(self._batch)
        self._batch, self._batch_bytes = [], 0

    def _write(self) -> None:
        """The writer's thread."""
        reader = TarReader(self._writer)
        try:
            for batch in self._pipe:
                for piece in batch:
                    reader.feed(piece)
            reader.finish()
            if self._seals:
                self._writer.finish()
        except BaseException as error:  # noqa: BLE001 - handed to the other thread, whatever it is
            self._failure = self._translated(error)
            self._pipe.break_(self._failure)
        finally:
            self._writer.close()

    def _translated(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        if error.errno == errno.ENAMETOOLONG:
            limit = DataCorrupt(
                "archive.limit",
                f"{self._writer.doing}: a name is longer than this filesystem takes",
                limit="name_bytes",
            )
            limit.__cause__ = error
            return limit
        failed = host_failed(error, self._writer.doing, self._top)
        failed.__cause__ = error
        return failed


def seal(staging: Path, tree: TreeState, *, owner: tuple[int, int] | None) -> None:
    """Owners, modes and mtimes of the directories that several extractions have made, once all of them have ended.

    Raises HostFailed (`disk.*`).
    """
    with disk_errors(f"cannot finish the directories of {staging}"):
        top = os.open(staging, _DIRECTORY)
        try:
            writer = TreeWriter(top, ExtractLimits(), owner, Meter(), lambda _: None, tree)
            try:
                writer.finish()
            finally:
                writer.close()
        finally:
            os.close(top)
