"""A long list of entries or paths, packed: written once in order, read as often as needed, forwards or backwards.

A million entries as objects would take half a gigabyte. Here they are blocks of msgpack in one buffer, which moves to
an unnamed temporary file once it has grown. A block is also the unit in which two lists are compared cheaply: equal
bytes are equal entries.

Memory: `MEMORY_BYTES`, plus while reading one block as objects (at most `BLOCK_ITEMS`). On disk at most `LIMIT_BYTES`.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from sidecar.errors import HostFailed

T = TypeVar("T")

MEMORY_BYTES: Final = 4 << 20  # about 40,000 entries; three lists can be alive at once
BLOCK_ITEMS: Final = 512
LIMIT_BYTES: Final = 1 << 30  # a million entries take about 100 MB; more is a volume made to hurt


class Spool(Generic[T]):
    """`add` each item, then iterate. Adding is for one thread; so is each iteration, but there may be several."""

    def __init__(self, item: type[T], directory: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        """item: what is kept, `Entry` or `bytes`. directory: where the file goes; None: the system's own place."""
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - lives until close()
            max_size=MEMORY_BYTES, dir=None if directory is None else str(directory)
        )
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[item])  # type: ignore[valid-type]
        self._pending: list[T] = []
        self._ends: list[int] = [0]
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self.count = 0

    def add(self, item: T) -> None:
        """Raises HostFailed: `archive.limit` for a list beyond all measure, `disk.failed` where it cannot be kept."""
        self._pending.append(item)
        self.count += 1
        if len(self._pending) == BLOCK_ITEMS:
            self._write()

    def done(self) -> None:
        """Nothing more is added."""
        if self._pending:
            self._write()

    def _write(self) -> None:
        block = self._encoder.encode(self._pending)
        self._pending.clear()
        end = self._ends[-1] + len(block)
        if end > self._limit_bytes:
            raise HostFailed(
                "archive.limit",
                f"the list of the volume's files takes more than {self._limit_bytes} bytes",
                limit="list_bytes",
            )
        try:
            with self._lock:
                self._file.seek(self._ends[-1])
                self._file.write(block)
        except OSError as error:
            raise HostFailed(
                "disk.failed", f"the list of the volume's files cannot be kept: {error.strerror}"
            ) from error
        self._ends.append(end)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self._ends) - 1

    def block(self, index: int) -> bytes:
        """A block as it is kept. Raises HostFailed (`disk.failed`), and ValueError after `close`."""
        begin, end = self._ends[index], self._ends[index + 1]
        try:
            with self._lock:
                self._file.seek(begin)
                return self._file.read(end - begin)
        except OSError as error:
            raise HostFailed(
                "disk.failed", f"the list of the volume's files cannot be read: {error.strerror}"
            ) from error

    def items(self, first_block: int = 0) -> Iterator[T]:
        """The items from that block on, in the order in which they were added."""
        for index in range(first_block, self.blocks):
            yield from self._decoder.decode(self.block(index))

    def __iter__(self) -> Iterator[T]:
        return self.items()

    def __reversed__(self) -> Iterator[T]:
        for index in reversed(range(self.blocks)):
            yield from reversed(self._decoder.decode(self.block(index)))

    def close(self) -> None:
        """Drop it all. Any thread, idempotent."""
        with self._lock:
            self._file.close()
