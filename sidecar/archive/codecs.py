"""Which codec an archive is in, and its decompression in pieces of bounded size.

The codec is recognised by the first bytes; a file name never overrules them, because all three daemon families name
their archives by habit. A `Decompressor` is pushed: whatever arrives is fed in, and what comes out comes out in pieces
of at most `PIECE_BYTES`, so an archive that expands a thousandfold costs time but no memory.

gzip is decompressed by zlib-ng in input slices of 128 KiB: measured at 0.14 CPU-s/GB for stored members of 512 KiB to
1 MiB and the fastest or even for compressed ones (isal: 0.18 to 0.43 for stored members, equal for compressed ones).
At the end of a member the unread rest of the slice is copied once, so a short slice also keeps member switches cheap.

zstd has no decoder in Python whose output can be bounded, so `_Zstd` walks the frames: a block holds at most 128 KiB,
and the decoder is handed no more than `_ZSTD_BLOCKS` of them at once.

Zeros may follow the end of a stream, since some archivers pad what they compress to whole records; nothing else may.

Memory: one input slice, one piece of output, and the codec's own window: 32 KiB (gzip), 900 KB (bzip2), 4 MiB (lz4), up
to `MAX_WINDOW_BYTES` (zstd, xz), which only an archive made with the highest levels asks for.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from typing import Final, NamedTuple, Protocol, cast

import lz4.frame
import zstandard
from zlib_ng import zlib_ng

from sidecar.archive.tar_header import BLOCK_BYTES, checksum_matches
from sidecar.errors import DataCorrupt

PIECE_BYTES: Final = 1 << 20  # the most that one piece of output holds
SLICE_BYTES: Final = 128 << 10  # input handed to a codec at once; see the module's first paragraph
MAX_WINDOW_BYTES: Final = 128 << 20  # what zstd's and xz's own tools accept by default
_GZIP_ERROR: Final = cast("type[Exception]", zlib_ng.error)  # a class, whatever the package's stubs say


class Codec(StrEnum):
    TAR = "tar"
    GZIP = "gzip"
    ZSTD = "zstd"
    LZ4 = "lz4"
    XZ = "xz"
    BZIP2 = "bzip2"


DETECT_BYTES: Final = BLOCK_BYTES  # with this many first bytes `detect` is certain

_MAGIC: Final[tuple[tuple[bytes, Codec], ...]] = (
    (b"\x1f\x8b\x08", Codec.GZIP),
    (b"\x28\xb5\x2f\xfd", Codec.ZSTD),
    (b"\x04\x22\x4d\x18", Codec.LZ4),
    (b"\xfd7zXZ\x00", Codec.XZ),
    (b"BZh", Codec.BZIP2),
)

# What is recognised in order to be named in the refusal; nothing here is read.
_FOREIGN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"LZIP", "lzip"),
    (b"itaf", "itaf"),
    (b"ITAF", "itaf"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"Rar!", "rar"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"\x02\x21\x4c\x18", "legacy lz4"),
    (b"\x1f\x9d", "compress (.Z)"),
    (b"\x1f\x8b", "gzip with an unknown method"),
    (b"\x5d\x00\x00", "bare lzma"),
    (b"<", "a text that looks like HTML or XML"),
    (b"{", "a text that looks like JSON"),
)

_SUFFIXES: Final[tuple[tuple[str, Codec], ...]] = (
    (".tar.gz", Codec.GZIP),
    (".tgz", Codec.GZIP),
    (".tar.zst", Codec.ZSTD),
    (".tar.lz4", Codec.LZ4),
    (".tar.xz", Codec.XZ),
    (".tar.bz2", Codec.BZIP2),
    (".tar", Codec.TAR),
)


def detect(first: bytes, filename: str | None = None) -> Codec:
    """The codec of an archive that begins with `first`: its first `DETECT_BYTES` bytes, or all of a shorter one.

    A skippable frame may stand before a zstd or an lz4 frame and belongs to both; only there the file name decides.

    Raises DataCorrupt (`archive.format`) naming what was seen, (`archive.damaged`) for no bytes at all.
    """
    if not first:
        raise DataCorrupt("archive.damaged", "the archive is empty: not a single byte arrived")
    for magic, codec in _MAGIC:
        if first.startswith(magic):
            return codec
    if _is_skippable(first):
        return Codec.LZ4 if _by_name(filename) is Codec.LZ4 else Codec.ZSTD
    if len(first) >= BLOCK_BYTES:
        block = first[:BLOCK_BYTES]
        if not any(block) or checksum_matches(block):
            return Codec.TAR
        if block[257:262] == b"ustar":
            return Codec.TAR  # the reader says at which byte the header is damaged
    seen = next((name for magic, name in _FOREIGN if first.startswith(magic)), "unknown data")
    raise DataCorrupt(
        "archive.format",
        f"the archive is neither tar nor one of gzip, zstd, lz4, xz, bzip2: it looks like {seen}",
        seen=seen,
        first_bytes=first[:16].hex(),
        filename=filename or "",
    )


class Decompressor(Protocol):
    """Turns an archive's bytes, pushed in any split, into the bytes of the tar."""

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        """What `piece` adds: pieces of 1..`PIECE_BYTES` bytes, in order. Exhaust the iterator before the next call.

        The pieces are copies: `piece` may be used again afterwards. Raises DataCorrupt (`archive.damaged`).
        """

    def finish(self) -> None:
        """No byte follows. Raises DataCorrupt (`archive.damaged`) when the stream is not complete."""


def decompressor(codec: Codec) -> Decompressor:
    """A new decompressor of one archive."""
    match codec:
        case Codec.TAR:
            return _Stored()
        case Codec.GZIP:
            return _Gzip()
        case Codec.ZSTD:
            return _Zstd()
        case Codec.LZ4:
            return _Members(codec, lz4.frame.LZ4FrameDecompressor, padding=0, foreign=(RuntimeError,))
        case Codec.XZ:
            return _Members(codec, _new_xz, padding=4, foreign=(lzma.LZMAError,))
        case Codec.BZIP2:
            return _Members(codec, bz2.BZ2Decompressor, padding=0, foreign=(OSError,))


class _Stored:
    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(piece)
        for start in range(0, len(view), SLICE_BYTES):
            yield bytes(view[start : start + SLICE_BYTES])

    def finish(self) -> None:
        pass  # where a tar ends is the tar reader's to say


class _Gzip:
    """Members one after another; after the last one only zeros."""

    def __init__(self) -> None:
        self._member = zlib_ng.decompressobj(31)
        self._inside = True  # at the very start too: an empty stream is no gzip
        self._padding = False
        self._held = b""  # the first byte of what may be the next member's magic
        self._raw_bytes = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(piece)
        for start in range(0, len(view), SLICE_BYTES):
            part = view[start : start + SLICE_BYTES]
            yield from self._slice(part)
            self._raw_bytes += len(part)

    def _slice(self, part: bytes | memoryview) -> Iterator[bytes]:
        while part:
            if not self._inside:
                part = self._next_member(part)
                if not part:
                    return
            member = self._member
            try:
                out = member.decompress(part, PIECE_BYTES)
            except _GZIP_ERROR as error:
                raise _damaged(Codec.GZIP, str(error), self._raw_bytes) from error
            if out:
                yield out
            if member.eof:
                self._inside = False
                part = member.unused_data
            elif member.unconsumed_tail:
                part = member.unconsumed_tail
            elif len(out) < PIECE_BYTES:
                return
            else:
                part = b""
                yield from self._drain()

    def _drain(self) -> Iterator[bytes]:
        """The input is used up exactly as the output became full: more may wait inside."""
        while True:
            try:
                out = self._member.decompress(b"", PIECE_BYTES)
            except _GZIP_ERROR as error:
                raise _damaged(Codec.GZIP, str(error), self._raw_bytes) from error
            if out:
                yield out
            if self._member.eof:
                self._inside = False
            if self._member.eof or len(out) < PIECE_BYTES:
                return

    def _next_member(self, part: bytes | memoryview) -> bytes | memoryview:
        head = self._held + bytes(part[:2])
        if self._padding or head[:1] == b"\0":
            if any(self._held) or any(part):
                raise _damaged(Codec.GZIP, "something other than zeros follows the last member", self._raw_bytes)
            self._padding = True
            return b""
        if len(head) < 2:
            self._held = head
            return b""
        if head[:2] != b"\x1f\x8b":
            raise _damaged(Codec.GZIP, "something that is no gzip member follows the last one", self._raw_bytes)
        self._member = zlib_ng.decompressobj(31)
        self._inside = True
        if self._held:
            part = self._held + bytes(part)
            self._held = b""
        return part

    def finish(self) -> None:
        if self._inside or self._held:
            raise _truncated(Codec.GZIP, self._raw_bytes)


class _Member(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW_BYTES)


class _Members:
    """Any codec whose decoder follows the protocol of `bz2.BZ2Decompressor`; streams may follow one another.

    `padding`: the size in bytes that zeros between streams come in (xz: 4), 0 where none may stand. After the last
    stream any number of them may.
    """

    def __init__(
        self, codec: Codec, new: Callable[[], _Member], *, padding: int, foreign: tuple[type[Exception], ...]
    ) -> None:
        self._codec = codec
        self._new = new
        self._padding = padding
        self._foreign = foreign
        self._member: _Member | None = new()
        self._zeros = 0
        self._raw_bytes = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(piece)
        for start in range(0, len(view), SLICE_BYTES):
            part = bytes(view[start : start + SLICE_BYTES])
            yield from self._slice(part)
            self._raw_bytes += len(part)

    def _slice(self, part: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None:
                part = self._next_member(part)
                if self._member is None:
                    return
            try:
                out = self._member.decompress(part, PIECE_BYTES)
            except self._foreign as error:
                raise _damaged(self._codec, str(error), self._raw_bytes) from error
            if out:
                yield out
            if self._member.eof:
                part = self._member.unused_data or b""
                self._member = None
                if not part:
                    return
            elif self._member.needs_input:
                return
            else:
                part = b""

    def _next_member(self, part: bytes) -> bytes:
        rest = part.lstrip(b"\0")
        self._zeros += len(part) - len(rest)
        if not rest:
            return b""
        if self._zeros and (not self._padding or self._zeros % self._padding):
            raise _damaged(self._codec, "something stands behind the padding of the last stream", self._raw_bytes)
        self._zeros = 0
        self._member = self._new()
        return rest

    def finish(self) -> None:
        if self._member is not None:
            raise _truncated(self._codec, self._raw_bytes)


_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCKS: Final = 7  # x 128 KiB of output at most, and one that was begun: within PIECE_BYTES


def _is_skippable(first: bytes) -> bool:
    return len(first) >= 4 and 0x184D2A50 <= int.from_bytes(first[:4], "little") <= 0x184D2A5F


class _Stride(NamedTuple):
    """The next bytes of a zstd stream."""

    size: int
    looked_at: bool  # a header, to be collected; otherwise content, to be passed over
    between_frames: bool = False


def _zstd_strides() -> Generator[_Stride, bytes, None]:
    """The structure of a zstd stream (RFC 8878, section 3): yields strides, is sent the headers."""
    while True:
        magic = yield _Stride(4, looked_at=True, between_frames=True)
        if _is_skippable(magic):
            size = yield _Stride(4, looked_at=True)
            yield _Stride(int.from_bytes(size, "little"), looked_at=False)
            continue
        if magic != _ZSTD_MAGIC:
            raise zstandard.ZstdError("something that is no zstd frame follows the last one")
        descriptor = (yield _Stride(1, looked_at=True))[0]
        single_segment = bool(descriptor & 0x20)
        content_size = (int(single_segment), 2, 4, 8)[descriptor >> 6]
        yield _Stride((not single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size, looked_at=False)
        last = False
        while not last:
            header = int.from_bytes((yield _Stride(3, looked_at=True)), "little")
            last = bool(header & 1)
            repeats = (header >> 1) & 3 == 1  # one byte, up to 128 KiB times
            yield _Stride(1 if repeats else header >> 3, looked_at=False)
        if descriptor & 4:
            yield _Stride(4, looked_at=False)  # the content's checksum, which libzstd verifies


class _Zstd:
    """Walks the frames only to know where blocks and frames end; libzstd decodes every byte of them."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._frame = self._context.decompressobj()
        self._strides = _zstd_strides()
        self._stride = next(self._strides)
        self._passed = 0  # bytes of the stride that are behind us
        self._head = b""
        self._padding = False
        self._raw_bytes = 0

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes]:
        view = memoryview(piece)
        for start in range(0, len(view), SLICE_BYTES):
            part = view[start : start + SLICE_BYTES]
            try:
                yield from self._slice(part)
            except zstandard.ZstdError as error:
                raise _damaged(Codec.ZSTD, str(error), self._raw_bytes) from error
            self._raw_bytes += len(part)

    def _slice(self, part: memoryview) -> Iterator[bytes]:
        sent = position = blocks = 0
        while position < len(part):
            if self._stride.between_frames and not self._passed and not part[position]:
                self._padding = True
            if self._padding:
                if any(part[position:]):
                    raise zstandard.ZstdError("something other than zeros follows the last frame")
                return
            taken = min(self._stride.size - self._passed, len(part) - position)
            if self._stride.looked_at:
                self._head += part[position : position + taken]
            position += taken
            self._passed += taken
            while self._passed == self._stride.size:
                blocks += not self._stride.looked_at
                self._stride = self._strides.send(self._head)
                self._head, self._passed = b"", 0
            if self._stride.between_frames and not self._passed:
                yield from self._decode(part[sent:position])
                sent, blocks = position, 0
                if not self._frame.eof:
                    raise zstandard.ZstdError("a frame does not end where its blocks do")
                self._frame = self._context.decompressobj()
            elif blocks >= _ZSTD_BLOCKS:
                yield from self._decode(part[sent:position])
                sent, blocks = position, 0
        if sent < position:
            yield from self._decode(part[sent:position])

    def _decode(self, part: memoryview) -> Iterator[bytes]:
        out = self._frame.decompress(part)
        if out:
            yield out

    def finish(self) -> None:
        if not self._raw_bytes or not self._stride.between_frames or self._passed:
            raise _truncated(Codec.ZSTD, self._raw_bytes)


def _by_name(filename: str | None) -> Codec | None:
    lowered = (filename or "").lower()
    return next((codec for suffix, codec in _SUFFIXES if lowered.endswith(suffix)), None)


def _damaged(codec: Codec, reason: str, raw_bytes: int) -> DataCorrupt:
    return DataCorrupt(
        "archive.damaged",
        f"the {codec} stream is damaged within {SLICE_BYTES} bytes after byte {raw_bytes}: {reason}",
        codec=codec.value,
        near_byte=raw_bytes,
    )


def _truncated(codec: Codec, raw_bytes: int) -> DataCorrupt:
    return DataCorrupt(
        "archive.damaged",
        f"the {codec} stream ends too early, after {raw_bytes} bytes",
        codec=codec.value,
        at=raw_bytes,
    )
