"""Headers and content of a tar archive, written into large buffers that are used again.

Headers are ustar. What ustar cannot say goes into PAX records before it, and only then: names and link targets that are
long or not ASCII (the raw bytes, whatever they are, as GNU tar does), files of 8 GiB and more (then the size in the
ustar header is 0: one of the daemons reads the record only in that case), times before 1970 or after 2242, and between
our own nodes fractions of a second. Names of up to 255 ASCII bytes use ustar's prefix where a slash allows it. Owners
are 0 and have no names: the destination decides whose the files are. The same entry always gives the same bytes.

A file's content is always as long as its header said. What a file grows beyond that while it is read is left; if it
shrinks, zeros stand for the rest. Both are told to the caller, and in both cases the next scan finds the file changed,
so that it is sent again.

Memory: one buffer of `PIECE_BYTES` in hand; the buffers are the caller's.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

BLOCK_BYTES: Final = 512
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)
REMOVED_KEY: Final = b"SIDECAR.removed"

# A piece becomes one gzip member. Smaller ones cost switches between threads, larger ones leave the processor's cache
# between reading, compressing and hashing.
PIECE_BYTES: Final = 512 * 1024

FILE: Final = b"0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
DIRECTORY: Final = b"5"
_EXTENDED: Final = b"x"

_MAX_OCTAL: Final = 8**11 - 1  # of the eleven digits of a size or mtime
_ZEROS: Final = bytes(BLOCK_BYTES)
_PAX_NAME: Final = b"././@PaxHeader"
_TEN_DIGITS_FROM: Final = 1_000_000_000  # 2001; up to `_MAX_OCTAL` seconds the mtime record below has one length
_ALL_ZERO: Final = memoryview(bytes(64 * 1024))
SPARSE_FROM_BYTES: Final = 1 << 20  # below that, looking for holes costs more than reading them


@lru_cache(maxsize=64)
def _tail(typeflag: bytes, link: bytes, prefix: bytes) -> tuple[bytes, int]:
    """What stands behind the checksum, and its sum with eight spaces for the checksum itself."""
    tail = b"%b%b%b%b%b" % (typeflag, link.ljust(100, b"\0"), b"ustar\x0000", bytes(80), prefix.ljust(167, b"\0"))
    return tail, sum(tail) + 8 * 32


def _ustar(
    name: bytes, mode: int, size: int, mtime_s: int, typeflag: bytes, link: bytes = b"", prefix: bytes = b""
) -> bytes:
    """One header block of parts that fit."""
    head = b"%b%07o\x000000000\x000000000\x00%011o\x00%011o\x00" % (name.ljust(100, b"\0"), mode, size, mtime_s)
    if link or prefix:
        tail, tail_sum = _tail.__wrapped__(typeflag, link, prefix)
    else:
        tail, tail_sum = _tail(typeflag, b"", b"")
    # The low half of an Adler-32 is 1 + the sum of the bytes while that is below 65521, and 148 bytes cannot reach it:
    # forty times as fast as sum().
    return b"%b%06o\x00 %b" % (head, (zlib.adler32(head) & 0xFFFF) - 1 + tail_sum, tail)


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record: its own length in decimal, a space, `key=value`, a newline."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


@lru_cache(maxsize=64)
def _extended_header(size: int) -> bytes:
    return _ustar(_PAX_NAME, 0o644, size, 0, _EXTENDED)


def _extended(records: bytes) -> bytes:
    return b"%b%b%b" % (_extended_header(len(records)), records, bytes(-len(records) % BLOCK_BYTES))


_FRACTION_PREFIX: Final = _extended_header(30)
_FRACTION_SUFFIX: Final = bytes(BLOCK_BYTES - 30)


def header(
    path: bytes,
    typeflag: bytes,
    *,
    mode: int,
    mtime_ns: int,
    size: int = 0,
    link: bytes = b"",
    has_fractions: bool = False,
    is_removed: bool = False,
) -> bytes:
    """Everything that stands before an entry's content: PAX records where needed, and the ustar header.

    Args: path: without a trailing slash, also for a directory. has_fractions: whether a fraction of a second of
    `mtime_ns` is worth a record; otherwise whole seconds, rounded down. is_removed: announce that an earlier entry is
    gone. Returns: 512 bytes, or more in whole blocks.
    """
    mtime_s, fraction = divmod(mtime_ns, 1_000_000_000)
    if len(path) <= 99 and size <= _MAX_OCTAL and not link and path.isascii() and not is_removed:  # nearly all
        name = path + b"/" if typeflag == DIRECTORY else path
        if not (has_fractions and fraction):
            if 0 <= mtime_s <= _MAX_OCTAL:
                return _ustar(name, mode, size, mtime_s, typeflag)
        elif _TEN_DIGITS_FROM <= mtime_s <= _MAX_OCTAL:
            block = _ustar(name, mode, size, mtime_s, typeflag)
            return b"%b30 mtime=%d.%09d\n%b%b" % (_FRACTION_PREFIX, mtime_s, fraction, _FRACTION_SUFFIX, block)
    return _unusual(path, typeflag, mode, mtime_ns, size, link, has_fractions, is_removed)


def _unusual(
    path: bytes,
    typeflag: bytes,
    mode: int,
    mtime_ns: int,
    size: int,
    link: bytes,
    has_fractions: bool,
    is_removed: bool,
) -> bytes:
    records: list[bytes] = []
    name = path + b"/" if typeflag == DIRECTORY else path
    prefix = b""
    if not name.isascii() or len(name) > 100:
        prefix, short = _split(name) if name.isascii() else (b"", b"")
        if not short:
            records.append(_record(b"path", name))
            # For readers without PAX; no slash at its end, which could turn a file into a directory.
            short = name[:100] if typeflag == DIRECTORY else name[:100].rstrip(b"/")
        name = short
    if link and (len(link) > 100 or not link.isascii()):
        records.append(_record(b"linkpath", link))
        link = link[:100]
    if size > _MAX_OCTAL:
        records.append(_record(b"size", b"%d" % size))
        size = 0
    mtime_s, fraction = divmod(mtime_ns, 1_000_000_000)
    if (has_fractions and fraction) or not 0 <= mtime_s <= _MAX_OCTAL:
        records.append(_record(b"mtime", _seconds(mtime_ns if has_fractions else mtime_s * 1_000_000_000)))
        mtime_s = max(0, min(_MAX_OCTAL, mtime_s))
    if is_removed:
        records.append(_record(REMOVED_KEY, b"1"))
    block = _ustar(name, mode, size, mtime_s, typeflag, link, prefix)
    return _extended(b"".join(records)) + block if records else block


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Prefix and name around a slash, or two empty strings where none fits; a directory's last slash is of the name."""
    slash = name.rfind(b"/", 0, min(156, len(name) - 1))
    if slash < 1 or len(name) - slash - 1 > 100:
        return b"", b""
    return name[:slash], name[slash + 1 :]


def _seconds(ns: int) -> bytes:
    """Nanoseconds as decimal seconds: what is before 1970 has a minus sign before both parts."""
    whole, fraction = divmod(abs(ns), 1_000_000_000)
    return b"%b%d%b" % (b"-" if ns < 0 else b"", whole, b".%09d" % fraction if fraction else b"")


class Piece(NamedTuple):
    """A stretch of the tar. `is_zero`: it stands for so many zeros, whatever the buffer holds."""

    buffer: memoryview
    size: int
    is_zero: bool


class Content(msgspec.Struct):
    """What became of a file's content. `read_bytes` is short of the header's size if the file shrank."""

    read_bytes: int
    has_more: bool = False


class TarWriter:
    """Fills buffers with headers and content. One thread; the archive's end is not written here."""

    def __init__(self, take: Callable[[], memoryview], give: Callable[[Piece], None]) -> None:
        """take: a buffer of `PIECE_BYTES` to fill. give: what to do with a full one; it is not touched afterwards."""
        self._take = take
        self._give = give
        self._view: memoryview | None = None
        self._at = 0

    def write(self, data: bytes) -> None:
        """Copy bytes in, whole blocks together."""
        view, at = self._view, self._at
        end = at + len(data)
        if view is not None and end < PIECE_BYTES:
            view[at:end] = data
            self._at = end
        else:
            self._copy(memoryview(data))

    def flush(self) -> None:
        """Give away what is in hand, however little."""
        if self._view is not None:
            view, size = self._view, self._at
            self._view, self._at = None, 0
            if size:
                self._give(Piece(view, size, False))

    def content(self, fd: int, size: int, is_sparse: bool, progress: Callable[[int], None]) -> Content:
        """A file's content from its beginning, padded to whole blocks, exactly `size` bytes of it.

        Args: is_sparse: look for holes and do not read them. progress: told how many bytes were dealt with, in parts
        that sum up to `size` or to what the file still had.
        Raises OSError from reading.
        """
        view, at = self._view, self._at
        end = at + size
        if view is not None and end < PIECE_BYTES:  # room for one byte more than announced, which would show growth
            count = os.readv(fd, (view[at : end + 1],))
            if count >= size:
                padded = end + (-size % BLOCK_BYTES)
                view[end:padded] = _ZEROS[: padded - end]
                self._at = padded
                if padded == PIECE_BYTES:
                    self.flush()
                progress(size)
                return Content(size, count > size)
            os.lseek(fd, 0, os.SEEK_SET)
        result = self._sparse(fd, size, progress) if is_sparse else self._dense(fd, size, progress)
        missing = size - result.read_bytes
        if missing:
            self._zeros(missing)
        self._zeros(-size % BLOCK_BYTES)
        return result

    def _room(self) -> memoryview:
        """What is free of the buffer in hand, at least one byte."""
        if self._view is None:
            self._view, self._at = self._take(), 0
        return self._view[self._at :]

    def _advance(self, count: int) -> None:
        self._at += count
        if self._at == PIECE_BYTES:
            self.flush()

    def _copy(self, data: memoryview) -> None:
        while data:
            room = self._room()
            count = min(len(data), len(room))
            room[:count] = data[:count]
            self._advance(count)
            data = data[count:]

    def _zeros(self, count: int) -> None:
        while count:
            if not self._at and count >= PIECE_BYTES:  # a whole piece of nothing need not be written
                self._room()
                assert self._view is not None
                view, self._view = self._view, None
                self._give(Piece(view, PIECE_BYTES, True))
                count -= PIECE_BYTES
                continue
            room = self._room()
            some = min(count, len(room), len(_ALL_ZERO))
            room[:some] = _ALL_ZERO[:some]
            self._advance(some)
            count -= some

    def _dense(self, fd: int, size: int, progress: Callable[[int], None]) -> Content:
        """From the descriptor's position on, up to `size` bytes. A short read is not the end; an empty one is."""
        left = size
        while left:
            room = self._room()
            # One byte more than wanted, where there is room for it, shows growth without a further system call.
            count = os.readv(fd, (room[: left + 1],))
            if not count:
                return Content(size - left)
            if count > left:
                progress(left)
                self._advance(left)
                return Content(size, True)
            progress(count)
            self._advance(count)
            left -= count
        return Content(size)

    def _sparse(self, fd: int, size: int, progress: Callable[[int], None]) -> Content:
        """As `_dense`, but zeros for holes are made here instead of read."""
        position = 0
        while position < size:
            try:
                data = min(os.lseek(fd, position, os.SEEK_DATA), size)
            except OSError as error:
                if error.errno != errno.ENXIO:  # the filesystem knows no holes
                    os.lseek(fd, position, os.SEEK_SET)
                    rest = self._dense(fd, size - position, progress)
                    return Content(position + rest.read_bytes, rest.has_more)
                data = min(os.fstat(fd).st_size, size)  # nothing but a hole up to the end of the file
                self._hole(data - position, progress)
                return Content(max(position, data))
            self._hole(data - position, progress)
            if data == size:
                break
            position = min(os.lseek(fd, data, os.SEEK_HOLE), size)
            os.lseek(fd, data, os.SEEK_SET)
            part = self._dense(fd, position - data, progress)
            if part.read_bytes < position - data:
                return Content(data + part.read_bytes)
        return Content(size)

    def _hole(self, count: int, progress: Callable[[int], None]) -> None:
        while count > 0:
            some = min(count, PIECE_BYTES - self._at)  # whole pieces, as soon as one can begin
            self._zeros(some)
            progress(some)
            count -= some
