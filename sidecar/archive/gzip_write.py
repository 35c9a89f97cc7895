"""A gzip stream made of independent members, one per piece: compressed where that pays, stored where it does not.

Most of a game world is compressed already (region files, jars). Deflating it again costs two to four seconds of
processor time per GB and gains a few percent; framing it in stored blocks costs a tenth of a second. Which it is, is
guessed from a few KiB spread over the piece, at a cost that hardly shows, and again from the result. Members and stored
blocks are both in RFC 1952 and RFC 1951, and every receiver in use was seen to take them.

Level 0 stores everything, 1 to 3 are ISA-L's, 4 to 9 zlib-ng's. What a member holds depends on its piece alone; its own
bytes do not quite: in a few processes out of a hundred ISA-L was seen to encode a piece differently, to the same
content. So whoever compares or resumes an archive does so by offsets of the tar, never of the compressed stream.

Memory: the buffers that the caller gives for stored members; else one compressed member.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from isal import isal_zlib
from zlib_ng import zlib_ng

STORED_BLOCK_BYTES: Final = 65_535  # the most that a stored deflate block holds
_STORED_HEADER: Final = b"\0\xff\xff\0\0"  # not the last block; that length, and its complement
# Magic, deflate, no flags, no time, no hint, an unknown operating system: the same on every machine.
_MEMBER_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_WBITS_GZIP: Final = 31
_WBITS_RAW: Final = -15

_SAMPLES: Final = 8
_SAMPLE_BYTES: Final = 1024
# What the sample must shrink to. Level 1 is chosen for speed: what would save less than a fifth (measured on region
# files) is stored. At the higher levels somebody asked for fewer bytes.
_WORTH: Final = (0.0, 0.8, 0.85, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95)


def member_capacity(piece_bytes: int) -> int:
    """How large a buffer a stored member of such a piece needs."""
    return piece_bytes + 5 * (piece_bytes // STORED_BLOCK_BYTES + 1) + len(_MEMBER_HEADER) + 8


class MemberWriter:
    """Makes members of one level. No state between members; one thread."""

    def __init__(self, level: int) -> None:
        """level: 0 to 9. Raises ValueError for another."""
        if not 0 <= level <= 9:
            raise ValueError(f"a gzip level is 0 to 9, not {level}")
        self._level = level

    def member(self, piece: memoryview, buffer: memoryview) -> bytes | memoryview:
        """The gzip member that holds `piece` (1 byte or more).

        Args: buffer: at least `member_capacity(len(piece))` bytes, which the answer may be a part of.
        """
        if self._level and self._is_worth(piece):
            compressed = _deflate(piece, self._level)
            if len(compressed) < len(piece):
                return compressed
        return _store(piece, buffer)

    def zeros(self, size: int) -> bytes:
        """The member that holds `size` zeros: holes of sparse files come in many equal pieces."""
        return _zeros(size, self._level)

    def _is_worth(self, piece: memoryview) -> bool:
        size = len(piece)
        if size <= 2 * _SAMPLES * _SAMPLE_BYTES:
            return True  # no larger than a sample is worth
        step = size // _SAMPLES
        sample = b"".join([piece[at : at + _SAMPLE_BYTES] for at in range(step // 2, size, step)])
        return bool(len(isal_zlib.compress(sample, 0, _WBITS_RAW)) < _WORTH[self._level] * len(sample))


@lru_cache(maxsize=4)
def _zeros(size: int, level: int) -> bytes:
    zeros = memoryview(bytes(size))
    return _deflate(zeros, level) if level else bytes(_store(zeros, memoryview(bytearray(member_capacity(size)))))


def _deflate(piece: memoryview, level: int) -> bytes:
    if level <= 3:
        return bytes(isal_zlib.compress(piece, level, _WBITS_GZIP))
    return bytes(zlib_ng.compress(piece, level, _WBITS_GZIP))


def _store(piece: memoryview, buffer: memoryview) -> memoryview:
    """The piece in stored blocks: RFC 1951 section 3.2.4, each block but the last as long as it may be."""
    size = len(piece)
    at = len(_MEMBER_HEADER)
    buffer[:at] = _MEMBER_HEADER
    full = (size - 1) // STORED_BLOCK_BYTES * STORED_BLOCK_BYTES  # bytes before the last block
    for start in range(0, full, STORED_BLOCK_BYTES):
        buffer[at : at + 5] = _STORED_HEADER
        at += 5
        buffer[at : at + STORED_BLOCK_BYTES] = piece[start : start + STORED_BLOCK_BYTES]
        at += STORED_BLOCK_BYTES
    rest = size - full
    buffer[at : at + 5] = b"\1" + rest.to_bytes(2, "little") + (rest ^ 0xFFFF).to_bytes(2, "little")
    at += 5
    buffer[at : at + rest] = piece[full:]
    at += rest
    buffer[at : at + 8] = isal_zlib.crc32(piece).to_bytes(4, "little") + size.to_bytes(4, "little")
    return buffer[: at + 8]


@lru_cache(maxsize=1)
def ending_member(end: bytes) -> bytes:
    """The last member: one compressor, finished once, never flushed in between.

    A receiver that stops reading at the end of the tar must have seen the end of the gzip stream by then
    (docs/PROTOCOL.md: the tail of an archive).
    """
    compressor = zlib_ng.compressobj(6, zlib_ng.DEFLATED, _WBITS_GZIP)
    return bytes(compressor.compress(end) + compressor.flush(zlib_ng.Z_FINISH))
