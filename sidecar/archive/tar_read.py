"""A tar archive, pushed in any split, becomes calls of a sink: begin, data and hole, end; once per member.

Understood: ustar, GNU (long names, base 256, sparse), PAX (path, linkpath, size, mtime, sparse; global headers are
passed over), v7. The type field alone says what a member is: one daemon writes directories without the customary slash
and file type bits into the mode.

The archive ends with two zero blocks, with one, or with none after a whole member; nothing less. What follows the two
is ignored (record padding), but what follows one is not: that would be guessing. Which bytes were sent is proved by the
archive's checksum, not here.

Our own records: `SIDECAR.removed=1` on an empty member says that an earlier member of that name is gone again.

Memory: 512 bytes, or the extended header being collected (`MAX_EXTENSION_BYTES`), or a sparse map. Content is passed on
as slices of what was fed, never joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import msgspec

from sidecar.archive.tar_header import (
    BLOCK_BYTES,
    ZERO_BLOCK,
    Header,
    Kind,
    damaged,
    number,
    parse_header,
    parse_pax,
    pax_mtime_ns,
    pax_size,
)
from sidecar.archive.tar_sparse import SparseLines, SparseMap
from sidecar.errors import DataCorrupt

MAX_EXTENSION_BYTES: Final = 1 << 20  # a PAX or GNU extension; a path is at most a few KiB, a PAX 0.x sparse map more
# What our own source says about nearly every member, a fraction of a second; as `parse_pax` would have it, but at once.
_MTIME_ALONE: Final = re.compile(rb"30 mtime=([0-9]{10})\.([0-9]{9})\n")
REMOVED_KEY: Final = b"SIDECAR.removed"


class Member(msgspec.Struct):
    """One member, extensions applied. `size`: bytes of the file, holes included; 0 for all but files."""

    kind: Kind  # FILE, HARD_LINK, SYMLINK, DIRECTORY, FIFO, DEVICE or LABEL
    name: bytes
    mode: int  # the lower twelve bits
    size: int
    mtime_ns: int
    link: bytes = b""
    removed: bool = False
    at: int = 0  # byte of the tar where its header stands


class TarSink(Protocol):
    """What becomes of the members. For each: `begin`, for files then `data` and `hole` up to its size, `end`."""

    def begin(self, member: Member) -> None: ...

    def data(self, piece: bytes, start: int, end: int) -> None:
        """The file goes on with `piece[start:end]`: 1 byte or more."""

    def hole(self, size: int) -> None:
        """The file goes on with that many zero bytes, 1 or more."""

    def end(self) -> None: ...


class _Extensions(msgspec.Struct):
    """What the headers before a member's own say about it. A PAX record is stronger than a GNU extension."""

    path: bytes = b""
    link: bytes = b""
    long_path: bytes = b""
    long_link: bytes = b""
    size: int | None = None
    mtime_ns: int | None = None
    removed: bool = False
    sparse_major: bytes | None = None
    sparse_path: bytes = b""
    sparse_size: int | None = None
    sparse_numbers: list[bytes] = []

    @property
    def is_sparse(self) -> bool:
        return self.sparse_major is not None or self.sparse_size is not None

    def apply(self, member: Member) -> None:
        member.name = self.sparse_path or self.path or self.long_path or member.name
        member.link = self.link or self.long_link or member.link
        member.removed = self.removed
        if self.mtime_ns is not None:
            member.mtime_ns = self.mtime_ns
        if self.size is not None and member.kind in (Kind.FILE, Kind.SPARSE):
            member.size = self.size

    def add(self, kind: Kind, content: bytes, at: int) -> None:
        """The content of an extension whose header stood at byte `at`."""
        if kind is Kind.LONG_NAME:
            self.long_path = content.split(b"\0", 1)[0]
        elif kind is Kind.LONG_LINK:
            self.long_link = content.split(b"\0", 1)[0]
        elif found := _MTIME_ALONE.fullmatch(content):
            self.mtime_ns = int(found[1] + found[2])
        else:
            for key, value in parse_pax(content, at):
                self._record(key, value, at)

    def _record(self, key: bytes, value: bytes, at: int) -> None:
        if key == b"path":
            self.path = value
        elif key == b"linkpath":
            self.link = value
        elif key == b"size":
            self.size = pax_size(value, at) if value else None
        elif key == b"mtime":
            self.mtime_ns = pax_mtime_ns(value, at) if value else None
        elif key == REMOVED_KEY:
            self.removed = value == b"1"
        elif key.startswith(b"GNU.sparse."):
            self._sparse_record(key[11:], value, at)

    def _sparse_record(self, key: bytes, value: bytes, at: int) -> None:
        if key == b"major":
            self.sparse_major = value
        elif key == b"name":
            self.sparse_path = value
        elif key in (b"size", b"realsize"):
            self.sparse_size = pax_size(value, at)
        elif key == b"map":
            self.sparse_numbers = value.split(b",") if value else []
        elif key in (b"offset", b"numbytes"):
            self.sparse_numbers.append(value)


class TarReader:
    """Feed the tar's bytes, then `finish`. After an exception it must not be used again."""

    def __init__(self, sink: TarSink) -> None:
        self._sink = sink
        self._state: Callable[[bytes, int], int] = self._header
        self._base = 0  # bytes of the tar before the piece in hand
        self._held = bytearray()  # a block, or an extension, that is not complete
        self._extensions: _Extensions | None = None
        self._extension_kind = Kind.PAX
        self._at = 0  # where the header in hand stands
        self._left = 0  # bytes of content still to come
        self._padding = 0
        self._member: Member | None = None  # a sparse one, while its map is being read
        self._sparse: SparseMap | None = None
        self._lines: SparseLines | None = None
        self._segments: Iterator[tuple[int, int]] = iter(())
        self._segment_left = 0
        self._file_position = 0
        self._zero_blocks = 0
        self._seen = False
        self._pax_block = b""  # the last extended header; a writer repeats its own, and so it need not be read again
        self._pax_header: Header | None = None

    def feed(self, piece: bytes | memoryview) -> None:
        """The next bytes. Raises DataCorrupt, or what the sink raises."""
        data = piece if isinstance(piece, bytes) else bytes(piece)
        position, size = 0, len(data)
        while position < size:
            position = self._state(data, position)
        self._base += size

    def finish(self) -> None:
        """No byte follows. Raises DataCorrupt (`archive.damaged`) unless the archive may end here."""
        if self._state == self._ended:
            return
        if self._state != self._header or self._held or self._extensions is not None:
            raise damaged("the archive ends inside a member", self._base)
        if not self._seen and not self._zero_blocks:
            raise damaged("the archive holds nothing, not even its end", self._base)

    # --- states: each takes what it can of `data` from `position` on and returns the position after it

    def _header(self, data: bytes, position: int) -> int:
        if not self._held and len(data) - position >= BLOCK_BYTES:
            block = data[position : position + BLOCK_BYTES]
            self._at = self._base + position
            position += BLOCK_BYTES
        else:
            position = self._hold(data, position, BLOCK_BYTES)
            if len(self._held) < BLOCK_BYTES:
                return position
            block = bytes(self._held)
            self._held.clear()
            self._at = self._base + position - BLOCK_BYTES
        if not block[0] and block == ZERO_BLOCK:
            self._zero_block()
        elif self._zero_blocks:
            raise damaged("a single block of zeros stands between two members", self._at)
        else:
            self._seen = True
            self._enter(self._parsed(block), block)
        return position

    def _parsed(self, block: bytes) -> Header:
        if self._pax_header is not None and block == self._pax_block:
            return self._pax_header
        header = parse_header(block, self._at)
        if header.kind is Kind.PAX:
            self._pax_block, self._pax_header = block, header
        return header

    def _zero_block(self) -> None:
        if self._extensions is not None:
            raise damaged("the archive ends after a header that announced a member", self._at)
        self._zero_blocks += 1
        if self._zero_blocks == 2:
            self._state = self._ended

    def _ended(self, data: bytes, position: int) -> int:
        return len(data)

    def _content(self, data: bytes, position: int) -> int:
        taken = min(self._left, len(data) - position)
        self._sink.data(data, position, position + taken)
        self._left -= taken
        if not self._left:
            self._sink.end()
            return self._after_padding(data, position + taken)
        return position + taken

    def _skip(self, data: bytes, position: int) -> int:
        taken = min(self._padding, len(data) - position)
        self._padding -= taken
        if not self._padding:
            self._state = self._header
        return position + taken

    def _extension(self, data: bytes, position: int) -> int:
        end = position + self._left
        if not self._held and end <= len(data):
            content, position = data[position:end], end
        else:
            position = self._hold(data, position, self._left)
            if len(self._held) < self._left:
                return position
            content = bytes(self._held)
            self._held.clear()
        assert self._extensions is not None
        self._extensions.add(self._extension_kind, content, self._at)
        return self._after_padding(data, position)

    def _sparse_block(self, data: bytes, position: int) -> int:
        """Old GNU: another 21 segments and whether more such blocks follow."""
        position = self._hold(data, position, BLOCK_BYTES)
        if len(self._held) == BLOCK_BYTES:
            block = bytes(self._held)
            self._held.clear()
            assert self._sparse is not None
            self._sparse.add_old_gnu(block, 0, 21)
            if not block[504]:
                self._begin_sparse()
        return position

    def _sparse_lines(self, data: bytes, position: int) -> int:
        wanted = min(BLOCK_BYTES, self._left)
        position = self._hold(data, position, wanted)
        if len(self._held) == wanted:
            block = bytes(self._held)
            self._held.clear()
            self._left -= wanted
            assert self._lines is not None
            if self._lines.add(block):
                self._begin_sparse()
            elif not self._left:
                raise damaged("a sparse member ends inside its map", self._at)
        return position

    def _sparse_content(self, data: bytes, position: int) -> int:
        taken = min(self._segment_left, len(data) - position)
        self._sink.data(data, position, position + taken)
        self._file_position += taken
        self._segment_left -= taken
        self._left -= taken
        if not self._segment_left:
            self._next_segment()
        return position + taken

    # --- from one state to the next

    def _hold(self, data: bytes, position: int, wanted: int) -> int:
        taken = min(wanted - len(self._held), len(data) - position)
        self._held += data[position : position + taken]
        return position + taken

    def _enter(self, header: Header, block: bytes) -> None:
        kind = header.kind
        if kind in (Kind.PAX, Kind.LONG_NAME, Kind.LONG_LINK):
            self._enter_extension(header)
            return
        if kind is Kind.PAX_GLOBAL:
            self._content_size(header.size)
            self._padding += header.size
            self._pass_padding()
            return
        member = Member(kind, header.name, header.mode, header.size, header.mtime_ns, header.link, False, self._at)
        extensions = self._extensions
        if extensions is None:
            self._content_size(header.size)
            if kind is Kind.SPARSE:
                self._enter_old_gnu(member, block)
            else:
                self._begin(member)
            return
        self._extensions = None
        extensions.apply(member)
        self._content_size(member.size)
        if kind is Kind.SPARSE:
            self._enter_old_gnu(member, block)
        elif kind is Kind.FILE and extensions.is_sparse:
            self._enter_pax_sparse(member, extensions)
        else:
            self._begin(member)

    def _content_size(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK_BYTES

    def _pass_padding(self) -> None:
        self._state = self._skip if self._padding else self._header

    def _after_padding(self, data: bytes, position: int) -> int:
        """As `_pass_padding`, at once where all of it is here."""
        after = position + self._padding
        if after > len(data):
            self._state = self._skip
            return position
        self._padding = 0
        self._state = self._header
        return after

    def _begin(self, member: Member) -> None:
        self._sink.begin(member)
        if self._left and member.kind is Kind.FILE:
            self._state = self._content
            return
        self._padding += self._left  # the content of something that is no file: GNU's list of a directory
        self._sink.end()
        self._pass_padding()

    def _enter_extension(self, header: Header) -> None:
        if header.size > MAX_EXTENSION_BYTES:
            raise DataCorrupt(
                "archive.limit",
                f"an extended header of {header.size} bytes at byte {self._at}, more than {MAX_EXTENSION_BYTES}",
                limit="extension_bytes",
                at_byte=self._at,
            )
        if self._extensions is None:
            self._extensions = _Extensions()
        self._extension_kind = header.kind
        self._content_size(header.size)
        if header.size:
            self._state = self._extension

    # --- sparse members

    def _enter_old_gnu(self, member: Member, block: bytes) -> None:
        self._member = member
        self._sparse = SparseMap(number(block[483:495], "size", self._at), self._at)
        self._sparse.add_old_gnu(block, 386, 4)
        if block[482]:
            self._state = self._sparse_block
        else:
            self._begin_sparse()

    def _enter_pax_sparse(self, member: Member, extensions: _Extensions) -> None:
        if extensions.sparse_size is None:
            raise damaged("a sparse member does not say how large it is", self._at)
        self._member = member
        self._sparse = SparseMap(extensions.sparse_size, self._at)
        if extensions.sparse_major is None:
            self._sparse.add_numbers(extensions.sparse_numbers)
            self._begin_sparse()
        elif extensions.sparse_major == b"1":
            self._lines = SparseLines(self._sparse, self._at)
            self._state = self._sparse_lines
        else:
            raise DataCorrupt("archive.format", "a sparse member is in a version that nobody knows", at_byte=self._at)

    def _begin_sparse(self) -> None:
        assert self._sparse is not None
        assert self._member is not None
        if self._sparse.data_size != self._left:
            raise damaged("a sparse member's segments are not as large as its content", self._at)
        self._member.kind = Kind.FILE
        self._member.size = self._sparse.real_size
        self._sink.begin(self._member)
        self._segments = iter(self._sparse)
        self._file_position = 0
        self._next_segment()

    def _next_segment(self) -> None:
        for offset, size in self._segments:
            self._hole_up_to(offset)
            if size:
                self._segment_left = size
                self._state = self._sparse_content
                return
        assert self._sparse is not None
        self._hole_up_to(self._sparse.real_size)
        self._sink.end()
        self._sparse = self._lines = self._member = None
        self._segments = iter(())
        self._pass_padding()

    def _hole_up_to(self, offset: int) -> None:
        if offset > self._file_position:
            self._sink.hole(offset - self._file_position)
            self._file_position = offset
