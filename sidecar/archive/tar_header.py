"""One header block of a tar archive, and the records that extend it: bytes to values, without state.

Read are ustar, GNU, PAX and the old form without a magic (v7). Only what an extraction needs is looked at: owners, user
names and device numbers are not, since a volume belongs to one user on each node.

Numbers are parsed strictly: digits, spaces and NULs in octal, or GNU's base 256. Python's own idea of a number would
also let underscores and prefixes pass.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from enum import Enum
from typing import Final

import msgspec

from sidecar.errors import DataCorrupt

BLOCK_BYTES: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
MAX_MTIME_S: Final = 1 << 40  # beyond what any filesystem stores, within what the system call takes


class Kind(Enum):
    """What a member is. The value: the typeflags that say so."""

    FILE = b"0\x007"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    DEVICE = b"34"
    DIRECTORY = b"5D"
    FIFO = b"6"
    LABEL = b"V"  # GNU's volume label: a name without a file
    SPARSE = b"S"
    PAX = b"xX"
    PAX_GLOBAL = b"g"
    LONG_NAME = b"L"
    LONG_LINK = b"K"


_KINDS: Final = {flag: kind for kind in Kind for flag in kind.value}
_USUAL_KINDS: Final = {b"0": Kind.FILE, b"5": Kind.DIRECTORY, b"x": Kind.PAX}
_WITH_CONTENT: Final = frozenset({Kind.FILE, Kind.SPARSE, Kind.PAX, Kind.PAX_GLOBAL, Kind.LONG_NAME, Kind.LONG_LINK})


class Header(msgspec.Struct):
    """One header block. `size`: bytes of content that follow in the archive."""

    kind: Kind
    name: bytes
    mode: int
    size: int
    mtime_ns: int
    link: bytes


_OCTAL: Final = re.compile(rb"[ \0]*([0-7]*)[ \0]*\Z")
_FIELDS: Final = struct.Struct("100s8s16x12s12s8s1s100s5s")
# Mode, size, mtime, checksum and typeflag as nearly every writer of today pads them.
_USUAL: Final = re.compile(rb"([0-7]{7})\0.{16}([0-7]{11})\0([0-7]{11})\0([0-7]{6})\0 (.)", re.DOTALL)


def checksum_matches(block: bytes) -> bool:
    """Whether a 512-byte block carries the checksum of itself."""
    field = _OCTAL.match(block[148:156].split(b"\0", 1)[0])
    if field is None or not field[1]:
        return False
    claimed = int(field[1], 8)
    # Adler-32's low half is 1 + the sum of all bytes, modulo 65521: forty times as fast as a sum in Python. The eight
    # bytes of the field itself count as spaces.
    own = sum(block[148:156]) - 8 * 32
    if (zlib.adler32(block) & 0xFFFF) == (1 + claimed + own) % 65521 and claimed < 1 << 17:
        return True
    # Some very old writers summed signed bytes.
    others = block[:148] + block[156:]
    return claimed == 8 * 32 + sum(others) - 256 * sum(byte > 127 for byte in others)


def number(field: bytes, what: str, at: int) -> int:
    """A numeric field: octal, or base 256 when the first bit is set (negative when the second is set too)."""
    found = _OCTAL.match(field)
    if found is not None:
        return int(found[1] or b"0", 8)
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field[0] & 0x80:
        raise damaged(f"the {what} of a member is larger than any file", at)
    found = _OCTAL.match(field.split(b"\0", 1)[0])  # something after the terminator: old writers left garbage there
    if found is None:
        raise damaged(f"the {what} of a member is not a number", at)
    return int(found[1] or b"0", 8)


def parse_header(block: bytes, at: int) -> Header:
    """The header in `block` (512 bytes), which stands at byte `at` of the tar.

    Raises DataCorrupt: `archive.damaged` for a wrong checksum or number, `archive.hostile` for an unknown typeflag.
    """
    return _usual_header(block) or _any_header(block, at)


def _usual_header(block: bytes) -> Header | None:
    """What `_any_header` would return, in a third of the time; None for whatever is not as usual in any respect.

    Usual are files, directories and PAX extensions without prefix and link, whose numbers fill their fields.
    """
    found = _USUAL.match(block, 100)
    if found is None or block[157] or block[345]:
        return None
    mode, size, mtime, checksum, typeflag = found.groups()
    claimed = int(checksum, 8)
    # As in `checksum_matches`. Of the field's own eight bytes, digits, a NUL and a space, the sum has to go.
    own = (zlib.adler32(checksum) & 0xFFFF) - 7 * 32
    if zlib.adler32(block) & 0xFFFF != (claimed + own) % 65521 or claimed >= 1 << 17:
        return None
    kind = _USUAL_KINDS.get(typeflag)
    name = block[:100].split(b"\0", 1)[0]
    if kind is None or not name or (kind is Kind.FILE and name[-1] == 0x2F):
        return None
    size_bytes = 0 if kind is Kind.DIRECTORY else int(size, 8)
    return Header(kind, name, int(mode, 8) & 0o7777, size_bytes, int(mtime, 8) * 10**9, b"")


def _any_header(block: bytes, at: int) -> Header:
    if not checksum_matches(block):
        raise damaged("a member's header does not carry its own checksum", at)
    name, mode, size_field, mtime, _, typeflag, link, magic = _FIELDS.unpack_from(block)
    kind = _KINDS.get(typeflag[0])
    if kind is None:
        raise DataCorrupt(
            "archive.hostile", f"a member has the unknown type {typeflag!r}", typeflag=typeflag.hex(), at_byte=at
        )
    name = name.split(b"\0", 1)[0]
    if magic == b"ustar" and block[262] == 0 and block[345]:  # GNU keeps other things there
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    elif kind is Kind.FILE and name.endswith(b"/"):
        kind = Kind.DIRECTORY  # v7 knew no other way to say so; with an announced size a header without content
    size = number(size_field, "size", at)
    if size < 0:
        raise damaged("a member has a negative size", at)
    if kind not in _WITH_CONTENT and typeflag != b"D":
        size = 0  # a header alone, whatever it says: hard links often repeat the size of their file
    mtime_s = number(mtime, "mtime", at)
    return Header(
        kind, name, number(mode, "mode", at) & 0o7777, size, clamp_mtime(mtime_s * 10**9), link.split(b"\0", 1)[0]
    )


def parse_pax(records: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """The key and value of each record of an extended header, in order. Raises DataCorrupt (`archive.damaged`)."""
    position = 0
    while position < len(records):
        space = records.find(b" ", position, position + 20)
        length = records[position:space] if space > 0 else b""
        if not length.isdigit():
            if not records[position:].strip(b"\0"):
                return  # some writers pad the last block themselves
            raise damaged("a record of an extended header has no length", at)
        end = position + int(length)
        if end > len(records) or end <= space + 1 or records[end - 1] != 0x0A:
            raise damaged("a record of an extended header has a wrong length", at)
        key, equals, value = records[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise damaged("a record of an extended header has no key", at)
        yield key, value
        position = end


_DECIMAL: Final = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?\Z")


def pax_size(value: bytes, at: int) -> int:
    """A size in decimal digits."""
    if not value.isdigit() or len(value) > 20:
        raise damaged("an extended header's size is not a number", at)
    return int(value)


def pax_mtime_ns(value: bytes, at: int) -> int:
    """Seconds with any number of decimals, to nanoseconds, rounded down as the format demands."""
    found = _DECIMAL.match(value)
    if found is None:
        raise damaged("an extended header's mtime is not a number", at)
    decimals = found[3] or b""
    nanoseconds = int(found[2]) * 10**9 + int(decimals[:9].ljust(9, b"0"))
    if found[1]:
        nanoseconds = -nanoseconds - bool(decimals[9:].strip(b"0"))
    return clamp_mtime(nanoseconds)


def clamp_mtime(mtime_ns: int) -> int:
    """An mtime that the system call takes; the filesystem clamps further by itself."""
    if 0 <= mtime_ns <= MAX_MTIME_S * 10**9:
        return mtime_ns
    return max(-MAX_MTIME_S * 10**9, min(MAX_MTIME_S * 10**9, mtime_ns))


def damaged(reason: str, at: int) -> DataCorrupt:
    """`archive.damaged`, at byte `at` of the tar (after decompression)."""
    return DataCorrupt("archive.damaged", f"the tar is damaged at byte {at}: {reason}", at_byte=at)
