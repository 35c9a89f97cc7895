"""Where the data of a sparse member belongs: GNU tar's four ways to say so, read into one map.

old GNU: in the header and in extension blocks behind it · PAX 0.0: one record per number · PAX 0.1: one record ·
PAX 1.0: decimal lines in front of the content. All describe segments: an offset in the file and a size in bytes.

Memory: 16 bytes a segment, `MAX_SEGMENTS` of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

from sidecar.archive.tar_header import BLOCK_BYTES, damaged, number
from sidecar.errors import DataCorrupt

MAX_SEGMENTS: Final = 1 << 18
_MAX_OFFSET: Final = 1 << 62
_MAX_LINE_BYTES: Final = 24


class SparseMap:
    """Segments in ascending order. Raises DataCorrupt (`archive.damaged`, `archive.limit`) on what cannot be."""

    def __init__(self, real_size: int, at: int) -> None:
        if not 0 <= real_size < _MAX_OFFSET:
            raise damaged("a sparse member has an impossible size", at)
        self.real_size = real_size  # bytes, holes included
        self.data_size = 0  # bytes in the archive
        self._at = at
        self._end = 0
        self._offsets = array("q")
        self._sizes = array("q")

    def add(self, offset: int, size: int) -> None:
        if len(self._offsets) >= MAX_SEGMENTS:
            raise DataCorrupt(
                "archive.limit", f"a sparse member has more than {MAX_SEGMENTS} segments", limit="sparse_segments"
            )
        if offset < self._end or size < 0 or offset + size > self.real_size:
            raise damaged("the segments of a sparse member overlap or lie outside of it", self._at)
        self._end = offset + size
        self.data_size += size
        self._offsets.append(offset)
        self._sizes.append(size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._offsets, self._sizes, strict=True)

    def add_old_gnu(self, block: bytes, position: int, count: int) -> None:
        """`count` entries of 24 bytes that start at `position`; an empty one ends the list."""
        for start in range(position, position + 24 * count, 24):
            if not any(block[start + 12 : start + 24]):
                return
            self.add(
                number(block[start : start + 12], "segment's offset", self._at),
                number(block[start + 12 : start + 24], "segment's size", self._at),
            )

    def add_numbers(self, numbers: list[bytes]) -> None:
        """Offset, size, offset, size ... in decimal digits."""
        if len(numbers) % 2:
            raise damaged("a sparse member's map has an odd number of numbers", self._at)
        for offset, size in zip(numbers[::2], numbers[1::2], strict=True):
            if not (offset.isdigit() and size.isdigit() and len(offset) < 20 and len(size) < 20):
                raise damaged("a sparse member's map holds something that is no number", self._at)
            self.add(int(offset), int(size))


class SparseLines:
    """PAX 1.0's map, block by block: the number of segments, then offset and size of each, a line each."""

    def __init__(self, sparse: SparseMap, at: int) -> None:
        self._map = sparse
        self._at = at
        self._rest = b""
        self._numbers: list[bytes] = []
        self._wanted: int | None = None

    def add(self, block: bytes) -> bool:
        """Take the next 512 bytes; whether the map is complete. The rest of the last block is padding."""
        if len(block) != BLOCK_BYTES:
            raise damaged("a sparse member ends inside its map", self._at)
        *lines, self._rest = (self._rest + block).split(b"\n")
        if self._wanted is None and lines:
            count = lines.pop(0)
            if not count.isdigit() or int(count[:_MAX_LINE_BYTES]) > MAX_SEGMENTS:
                raise damaged("a sparse member's map has an impossible number of segments", self._at)
            self._wanted = 2 * int(count)
        self._numbers += lines
        if self._wanted is not None and len(self._numbers) >= self._wanted:
            self._map.add_numbers(self._numbers[: self._wanted])
            return True
        if len(self._rest) > _MAX_LINE_BYTES:
            raise damaged("a sparse member's map has an endless line", self._at)
        pairs = len(self._numbers) // 2 * 2
        if self._wanted is not None:
            self._map.add_numbers(self._numbers[:pairs])
            self._wanted -= pairs
            del self._numbers[:pairs]
        return False
